"""C1, C2, C3: the same examples, gradients, losses and metrics at any world size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.files import logged, read_facts, read_metrics, read_status
from helpers.ranks import run_ranks
from helpers.training import CONSTANT_RATE, tiny_config, train_tiny
from sklearn.metrics import confusion_matrix, f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional as F

from seqclf import loss as loss_module
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Batch, Sequences
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.evaluate import evaluate
from seqclf.model import LSTMClassifier
from seqclf.processes.start import start_runtime
from seqclf.run.checkpoint import checkpoint_directories, read_checkpoint
from seqclf.step import train_step

CLASSES, LENGTH = 7, 13 * 3 + 1
BATCH = 13  # splits evenly over no world size, and the last batch is 1
SMOOTHING = 0.1


def random_images(count: int, seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    return Sequences(
        torch.randint(0, 256, (count, 6, 5), dtype=torch.uint8, generator=generator),
        torch.randint(0, CLASSES, (count,), generator=generator),
        tuple("abcdefg"),
        255.0,
    )


def tiny_model() -> LSTMClassifier:
    torch.manual_seed(0)
    model = LSTMClassifier(5, CLASSES, hidden_size=8, scale=255.0, rocket=84, dilations=(1,))
    assert model.rocket is not None
    model.rocket.fit(lambda: [(model.embed(random_images(4, seed=1).values), None)])
    return model


class Recorder(torch.optim.SGD):
    """Keeps the gradients instead of using them."""

    seen: list[list[float]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen = [p.grad.flatten().tolist() for p in self.param_groups[0]["params"]]


def plan_of(length: int) -> BatchPlan:
    return BatchPlan(length, BATCH, seed=3, num_steps=-(-length // BATCH))


def config_with(shift: int, micro: int | None, shards: int | None = None) -> Config:
    return tiny_config(
        {
            "data.augment.shift": shift,
            "loss.label_smoothing": SMOOTHING,
            "train.micro_batch_size": micro,
            "train.shards": shards,
            "optim.clip": None,
        }
    )


class StepResult(NamedTuple):
    """What one rank finds of a step."""

    loss: float
    gradients: list[list[float]]
    labels: list[int]
    """Of this rank's share."""


def epoch_gradients(shift: int, micro: int | None, shards: int | None = None) -> list[StepResult]:
    """Return each step's loss and gradients, in float64."""
    torch.set_default_dtype(torch.float64)
    config = config_with(shift, micro, shards)
    runtime = start_runtime(config)
    model = tiny_model()
    prepared = runtime.prepare(model, reduces=shards is None)
    optimizer = Recorder(model.parameters(), lr=0.0)
    steps = []
    for batch in runtime.loader(random_images(LENGTH), plan_of(LENGTH), start=0):
        stats = train_step(runtime, prepared, optimizer, batch, config, lr=0.0)
        loss = float(runtime.sum(stats.loss))
        steps.append(StepResult(loss, optimizer.seen, batch.labels[batch.labels >= 0].tolist()))
    runtime.close()
    return steps


def assert_same_gradients(step: StepResult, expected: StepResult) -> None:
    """Assert that loss and gradients are the same but for rounding in float64."""
    assert step.loss == pytest.approx(expected.loss, rel=1e-12)
    for ours, theirs in zip(step.gradients, expected.gradients, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-14)


@pytest.fixture(scope="module")
def reference() -> list[StepResult]:
    """The whole batches' mean losses and gradients, computed plainly."""
    torch.set_default_dtype(torch.float64)
    try:
        data, plan, model = random_images(LENGTH), plan_of(LENGTH), tiny_model()
        steps = []
        for step in range(plan.num_steps):
            ids = plan.batch(step)
            loss = F.cross_entropy(
                model(data.values[ids]), data.labels[ids], label_smoothing=SMOOTHING
            )
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            flat = [g.flatten().tolist() for g in gradients]
            steps.append(StepResult(loss.item(), flat, data.labels[ids].tolist()))
        return steps
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(
    world_size: int, micro: int | None, reference: list[StepResult]
) -> None:
    ranks = run_ranks(world_size, epoch_gradients, 0, micro)
    for step, expected in enumerate(reference):
        assert [label for rank in ranks for label in rank[step].labels] == expected.labels
        for rank in ranks:
            assert_same_gradients(rank[step], expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_give_the_same_bits_and_the_whole_batchs_gradient(
    world_size: int, reference: list[StepResult], sharded: list[StepResult]
) -> None:
    for rank in run_ranks(world_size, epoch_gradients, 0, 2, shards=6):
        for expected, ours, one in zip(reference, rank, sharded, strict=True):
            assert (ours.loss, ours.gradients) == (one.loss, one.gradients)
            assert_same_gradients(ours, expected)


@pytest.fixture(scope="module")
def sharded() -> list[StepResult]:
    return run_ranks(1, epoch_gradients, 0, 2, shards=6)[0]


def refusal(shards: int) -> str:
    with pytest.raises(UserError) as caught:
        start_runtime(config_with(0, None, shards))
    return str(caught.value)


def test_shards_that_cannot_be_dealt_evenly_are_refused() -> None:
    for message in run_ranks(2, refusal, 3):
        assert message.startswith("train.shards: 3 parts cannot be dealt evenly to 2 processes")


def test_gradients_agree_with_augmentation_and_an_empty_share() -> None:
    (one,) = run_ranks(1, epoch_gradients, 2, None)
    three = run_ranks(3, epoch_gradients, 2, 3)
    assert [len(rank[-1].labels) for rank in three] == [0, 0, 1]  # the last batch has one example
    (plain,) = run_ranks(1, epoch_gradients, 0, None)
    assert one[0].loss != plain[0].loss  # augmentation is on
    for step, expected in enumerate(one):
        for rank in three:
            assert_same_gradients(rank[step], expected)


def test_the_losses_of_100_steps_agree_between_world_sizes(tmp_path: Path) -> None:
    settings = {
        **CONSTANT_RATE,
        "optim.lr": 0.001,
        "model.hidden_size": 64,
        "train.steps": 100,
        "train.batch_size": 47,
        "log.every": 1,
        "loss.label_smoothing": 0.1,
        "data.augment.shift": 1,
    }
    for world_size in (1, 2, 3):
        path = tmp_path / str(world_size)
        assert set(run_ranks(world_size, train_tiny, path, settings)) == {0}
    one, *others = (logged(tmp_path / str(world_size), "train/loss") for world_size in (1, 2, 3))
    assert len(one) == 100
    for other in others:
        assert other == pytest.approx(one, rel=1e-5)
    assert one[100] < 0.95 * one[1]


class Echo(nn.Module):
    """Predicts from the sequence's own numbers, so that the test knows every logit."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, values_BTF: Tensor, lengths: None = None) -> Tensor:
        return values_BTF.flatten(1)[:, :CLASSES].float() / 32


def evaluate_ranks(count: int) -> tuple[float, float, float, list[list[int]], int]:
    runtime = start_runtime(Config())
    metrics = evaluate(runtime, Echo(), random_images(count, seed=count), batch_size=5)
    runtime.close()
    confusion = metrics.confusion.tolist()
    return metrics.loss, metrics.accuracy, metrics.macro_f1, confusion, metrics.count


@pytest.mark.parametrize("count", [1, 2, 31])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_example_once(world_size: int, count: int) -> None:
    data = random_images(count, seed=count)
    logits = Echo()(data.values)
    truth, guess = data.labels.numpy(), logits.argmax(1).numpy()
    labels = list(range(CLASSES))
    for loss, accuracy, macro_f1, confusion, counted in run_ranks(
        world_size, evaluate_ranks, count
    ):
        assert counted == count
        assert loss == pytest.approx(
            log_loss(truth, logits.double().softmax(1).numpy(), labels=labels), rel=1e-5
        )
        assert accuracy == (truth == guess).mean()
        assert macro_f1 == pytest.approx(f1_score(truth, guess, average="macro"), rel=1e-12)
        assert confusion == confusion_matrix(truth, guess, labels=labels).tolist()


def allow(precision: str) -> None:
    """Let this process train in a precision: any CPU can without oneDNN, if slowly."""
    torch.backends.mkldnn.set_flags(precision == "fp32")
    pytest.MonkeyPatch().setattr("seqclf.processes.start.precision_problem", lambda *_: None)


POISONS = [
    (where, value) for where in ("values", "loss", "gradient") for value in (math.nan, math.inf)
]


def steps_on_poison(precision: str, shards: int | None) -> list[tuple[bool, float, float]]:
    """Train on each poison, on the last rank only, and without it: was all untouched, were the two
    steps skipped?"""
    allow(precision)
    config = config_with(0, None, shards).model_copy(update={"precision": precision})
    runtime = start_runtime(config)
    assert runtime.precision == precision
    model = tiny_model()
    values = random_images(4).values.float()
    poisoned = {
        "values": values[1, 2, 3],
        "loss": torch.zeros(()),  # added to it
        "gradient": torch.zeros(()),
    }
    honest = loss_module.summed_loss

    def summed_loss(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return honest(logits, labels, **options) + poisoned["loss"]

    pytest.MonkeyPatch().setattr("seqclf.step.summed_loss", summed_loss)
    dict(model.named_parameters())["rnn.weight_hh_l0"].register_hook(
        lambda gradient: gradient + poisoned["gradient"]
    )
    prepared = runtime.prepare(model, reduces=shards is None)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = Batch(values, torch.arange(4), 0, 4 * runtime.rank, 4 * runtime.world_size)
    found = []
    train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
    for where, poison in POISONS:
        before = [p.detach().clone() for p in model.parameters()]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
        if runtime.rank == runtime.world_size - 1:
            poisoned[where].fill_(poison)
        stats = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        same &= all(
            torch.equal(state[k], optimizer.state[p][k])
            for state, p in zip(states, model.parameters(), strict=True)
            for k in state
        )
        poisoned[where].zero_()
        after = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
        found.append((same, float(stats.skipped), float(after.skipped)))
    runtime.close()
    return found


@pytest.mark.parametrize(("precision", "shards"), [("fp32", None), ("fp32", 4), ("bf16", None)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_on_every_rank(
    world_size: int, precision: str, shards: int | None
) -> None:
    for results in run_ranks(world_size, steps_on_poison, precision, shards):
        assert results == [(True, 1.0, 0.0)] * len(POISONS)


POISONED = (4, 5, 6)  # steps


def poisoned_plan() -> BatchPlan:
    return BatchPlan(1438, 50, seed=0, num_steps=20)


def train_on_poison(run_dir: Path, what: str, precision: str) -> str:
    """Train until too many steps were skipped, for their last example, which is the last rank's."""
    allow(precision)
    honest_load, honest_forward = sources.load, LSTMClassifier.forward
    marker = torch.nan if what == "values" else 99.0

    def load(*arguments: Any, **options: Any) -> Splits:
        splits = honest_load(*arguments, **options)
        values = splits.train.values.float()
        for step in POISONED:
            values[poisoned_plan().batch(step)[-1], 0, 0] = marker
        return replace(splits, train=replace(splits.train, values=values))

    def forward(self: LSTMClassifier, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        logits = honest_forward(self, values, lengths)
        marked = values[:, :1, 0] == marker
        if what == "loss":
            logits = logits.masked_fill(marked, torch.nan)
        elif what == "gradient" and marked.any() and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * torch.nan)
        return logits

    patch = pytest.MonkeyPatch()
    patch.setattr(sources, "load", load)
    patch.setattr(LSTMClassifier, "forward", forward)
    settings = {
        **CONSTANT_RATE,
        "train.steps": 20,
        "train.batch_size": 50,
        "train.max_skipped": 3,
        "checkpoint.every": 1,
        "checkpoint.keep_last": 9,
        "log.every": 1,
        "precision": precision,
        "quiet": True,
    }
    with pytest.raises(UserError) as caught:
        train_tiny(run_dir, settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("world_size", "precision", "what"),
    [(1, "fp32", "values"), (2, "fp32", "gradient"), (2, "bf16", "loss")],
)
def test_too_many_skipped_steps_name_the_examples_on_every_rank(
    world_size: int, precision: str, what: str, tmp_path: Path
) -> None:
    messages = run_ranks(world_size, train_on_poison, tmp_path, what, precision)
    ids = poisoned_plan().batch(POISONED[-1]).tolist()
    reason = {
        "values": f"values are not finite, those of training examples {ids[-1]}",
        "loss": f"the loss is not finite, that of training examples {ids[-1]}",
        "gradient": "every loss is finite, so it is the gradient, that of training examples "
        f"{', '.join(map(str, ids[:10]))} and 40 more",
    }[what]
    assert set(messages) == {
        "step 7: the last 3 steps were skipped, because loss or gradient was not finite "
        f"(learning rate 0.01); in the last batch {reason}; lower optim.lr, set optim.clip, or "
        "look for extreme values in the data"
    }
    assert read_metrics(tmp_path)[-1]["train/skipped"] == 3
    saved = [read_checkpoint(path) for path in checkpoint_directories(tmp_path / "checkpoints")]
    assert [(each.state.step, each.state.skipped) for each in saved] == [
        (6, 2),
        (5, 1),
        (4, 0),
        (3, 0),
        (2, 0),
        (1, 0),
    ]
    for name in ("model.safetensors", "optimizer.safetensors"):
        contents = [each.files[name] for each in saved]
        assert contents[0] == contents[1] == contents[2] != contents[3]
    assert read_facts(tmp_path)["precision"] == precision
    assert read_status(tmp_path).error == messages[0]
