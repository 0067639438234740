"""C1, C2, C3: the same examples, gradients, losses and metrics at any world size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_metrics, run_ranks
from sklearn.metrics import confusion_matrix, f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional as F

from seqclf import checkpoint
from seqclf import loss as loss_module
from seqclf import runtime as runtimes
from seqclf import train as train_module
from seqclf.config import Config, UserError, load_config
from seqclf.data import sources
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Batch, Sequences
from seqclf.data.sources import Splits
from seqclf.evaluate import evaluate
from seqclf.model import LSTMClassifier
from seqclf.train import train, train_step

CLASSES, LENGTH, BATCH = (
    7,
    13 * 3 + 1,
    13,
)  # 13 splits evenly over no world size; the last batch is 1
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
    return LSTMClassifier(5, CLASSES, hidden_size=8, scale=255.0)


class Recorder(torch.optim.SGD):
    """Keeps the gradients instead of using them."""

    seen: list[list[float]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen = [p.grad.flatten().tolist() for p in self.param_groups[0]["params"]]


def plan_of(length: int) -> BatchPlan:
    return BatchPlan(length, BATCH, seed=3, num_steps=-(-length // BATCH))


def config_with(shift: int, micro: str, shards: str = "null") -> Config:
    return load_config(
        None,
        {
            "data.augment.shift": str(shift),
            "loss.label_smoothing": str(SMOOTHING),
            "train.micro_batch_size": micro,
            "train.shards": shards,
            "optim.clip": "null",
            "train.threads": "1",
        },
    )[0]


def epoch_gradients(
    shift: int, micro: str, shards: str = "null"
) -> list[tuple[float, list[list[float]], list[int]]]:
    """Return each step's loss and gradients in float64, and this rank's labels."""
    torch.set_default_dtype(torch.float64)
    config = config_with(shift, micro, shards)
    runtime = runtimes.start(config)
    data = random_images(LENGTH)
    model = tiny_model()
    prepared = runtime.prepare(model, reduces=shards == "null")
    optimizer = Recorder(model.parameters(), lr=0.0)
    steps = []
    for batch in runtime.loader(data, plan_of(LENGTH), start=0):
        stats = train_step(runtime, prepared, optimizer, batch, config, lr=0.0)
        loss = float(runtime.sum(stats.loss))
        steps.append((loss, optimizer.seen, batch.labels[batch.labels >= 0].tolist()))
    runtime.close()
    return steps


@pytest.fixture(scope="module")
def reference() -> list[tuple[float, list[list[float]], list[int]]]:
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
            steps.append((loss.item(), flat, data.labels[ids].tolist()))
        return steps
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("micro", ["null", "2"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(
    world_size: int, micro: str, reference: list[tuple[float, list[list[float]], list[int]]]
) -> None:
    ranks = run_ranks(world_size, epoch_gradients, 0, micro)
    for step, (loss, gradients, labels) in enumerate(reference):
        assert [label for rank in ranks for label in rank[step][2]] == labels
        for rank in ranks:
            assert rank[step][0] == pytest.approx(loss, rel=1e-12)
            for ours, theirs in zip(rank[step][1], gradients, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_give_the_same_bits_and_the_whole_batchs_gradient(
    world_size: int,
    reference: list[tuple[float, list[list[float]], list[int]]],
    sharded: list[tuple[float, list[list[float]], list[int]]],
) -> None:
    for rank in run_ranks(world_size, epoch_gradients, 0, "2", "6"):
        for (loss, gradients, _), ours, one in zip(reference, rank, sharded, strict=True):
            assert ours[:2] == one[:2]
            assert ours[0] == pytest.approx(loss, rel=1e-12)
            for mine, theirs in zip(ours[1], gradients, strict=True):
                assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-14)


@pytest.fixture(scope="module")
def sharded() -> list[tuple[float, list[list[float]], list[int]]]:
    return list(run_ranks(1, epoch_gradients, 0, "2", "6")[0])


def refusal(shards: str) -> str:
    with pytest.raises(UserError) as caught:
        runtimes.start(config_with(0, "null", shards))
    return str(caught.value)


def test_shards_that_cannot_be_dealt_evenly_are_refused() -> None:
    for said in run_ranks(2, refusal, "3"):
        assert said.startswith("train.shards: 3 parts cannot be dealt evenly to 2 processes")


def test_gradients_agree_with_augmentation_and_an_empty_share() -> None:
    (one,) = run_ranks(1, epoch_gradients, 2, "null")
    three = run_ranks(3, epoch_gradients, 2, "3")
    assert [len(rank[-1][2]) for rank in three] == [0, 0, 1]  # the last batch has one example
    plain = run_ranks(1, epoch_gradients, 0, "null")[0]
    assert one[0][0] != plain[0][0]  # augmentation is on
    for step, (loss, gradients, _) in enumerate(one):
        for rank in three:
            assert rank[step][0] == pytest.approx(loss, rel=1e-12)
            for ours, theirs in zip(rank[step][1], gradients, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-14)


def train_digits(run_dir: str, flags: dict[str, str]) -> int:
    """Train as the command line does; return the exit code."""
    always = {"data.name": "digits", "tracking.wandb": "disabled", "run_dir": run_dir}
    return train(load_config(None, {"train.threads": "1"} | always | flags)[0])


def test_the_losses_of_100_steps_agree_between_world_sizes(tmp_path: Path) -> None:
    flags = {
        "optim.lr": "0.001",
        "optim.schedule": "constant",
        "optim.warmup": "0",
        "train.steps": "100",
        "train.batch_size": "47",
        "log.every": "1",
        "loss.label_smoothing": "0.1",
        "data.augment.shift": "1",
    }
    for world_size in (1, 2, 3):
        assert set(run_ranks(world_size, train_digits, f"{tmp_path}/{world_size}", flags)) == {0}
    runs = [read_metrics(tmp_path / str(world_size)) for world_size in (1, 2, 3)]
    losses = [[line["train/loss"] for line in run if "train/loss" in line] for run in runs]
    assert len(losses[0]) == 100
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][-1] < 0.95 * losses[0][0]


class Echo(nn.Module):
    """Predicts from the sequence's own numbers, so that the test knows every logit."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, values_BTF: Tensor, lengths: None = None) -> Tensor:
        return values_BTF.flatten(1)[:, :CLASSES].float() / 32


def evaluate_ranks(count: int) -> tuple[float, float, float, list[list[int]], int]:
    runtime = runtimes.start(Config())
    found = evaluate(runtime, Echo(), random_images(count, seed=count), batch_size=5)
    runtime.close()
    return found.loss, found.accuracy, found.macro_f1, found.confusion.tolist(), found.count


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
    vars(runtimes)["precision_problem"] = lambda *_: None


POISONS = [
    *(("values", "nan"), ("values", "inf"), ("loss", "nan"), ("loss", "inf")),
    *(("gradient", "nan"), ("gradient", "inf")),
]


def steps_on_poison(precision: str, shards: str) -> list[tuple[bool, float, float]]:
    """Train on each poison, on the last rank only, and without it: was all untouched, were the two
    steps skipped?"""
    allow(precision)
    config = config_with(0, "null", shards).model_copy(update={"precision": precision})
    runtime = runtimes.start(config)
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

    vars(train_module)["summed_loss"] = summed_loss
    dict(model.named_parameters())["rnn.weight_hh_l0"].register_hook(
        lambda gradient: gradient + poisoned["gradient"]
    )
    prepared = runtime.prepare(model, reduces=shards == "null")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = Batch(values, torch.arange(4), 0, 4 * runtime.rank, 4 * runtime.world_size)
    found = []
    train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
    for where, poison in POISONS:
        before = [p.detach().clone() for p in model.parameters()]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
        if runtime.rank == runtime.world_size - 1:
            poisoned[where].fill_(float(poison))
        stats = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        same &= all(
            torch.equal(state[k], optimizer.state[p][k])
            for state, p in zip(states, model.parameters(), strict=True)
            for k in state
        )
        poisoned[where].zero_()
        after = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
        found.append((same, float(stats.bad), float(after.bad)))
    runtime.close()
    return found


@pytest.mark.parametrize(
    ("precision", "shards"), [("fp32", "null"), ("fp32", "4"), ("bf16", "null")]
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_on_every_rank(
    world_size: int, precision: str, shards: str
) -> None:
    for found in run_ranks(world_size, steps_on_poison, precision, shards):
        assert found == [(True, 1.0, 0.0)] * len(POISONS)


POISONED = (4, 5, 6)  # steps


def poisoned_plan() -> BatchPlan:
    return BatchPlan(1438, 50, seed=0, num_steps=20)


def train_on_poison(run_dir: str, what: str, precision: str) -> str:
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

    sources.load = load
    LSTMClassifier.forward = forward  # type: ignore[method-assign]
    flags = {
        "train.steps": "20",
        "train.batch_size": "50",
        "train.max_skipped": "3",
        "optim.schedule": "constant",
        "optim.warmup": "0",
        "model.hidden_size": "8",
        "checkpoint.every": "1",
        "checkpoint.keep_last": "9",
        "log.every": "1",
        "precision": precision,
        "quiet": "true",
    }
    with pytest.raises(UserError) as caught:
        train_digits(run_dir, flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("world_size", "precision", "what"),
    [(1, "fp32", "values"), (2, "fp32", "gradient"), (2, "bf16", "loss")],
)
def test_too_many_skipped_steps_name_the_examples_on_every_rank(
    world_size: int, precision: str, what: str, tmp_path: Path
) -> None:
    said = run_ranks(world_size, train_on_poison, str(tmp_path), what, precision)
    ids = poisoned_plan().batch(POISONED[-1]).tolist()
    found = {
        "values": f"values are not finite, those of training examples {ids[-1]}",
        "loss": f"the loss is not finite, that of training examples {ids[-1]}",
        "gradient": "every loss is finite, so it is the gradient, that of training examples "
        f"{', '.join(map(str, ids[:10]))} and 40 more",
    }[what]
    assert set(said) == {
        "step 7: the last 3 steps were skipped, because loss or gradient was not finite "
        f"(learning rate 0.01); in the last batch {found}; lower optim.lr, set optim.clip, or "
        "look for extreme values in the data"
    }
    assert read_metrics(tmp_path)[-1]["train/skipped"] == 3
    saved = [checkpoint.read(path)[1] for path in checkpoint.directories(tmp_path / "checkpoints")]
    states = [checkpoint.read_state(files, tmp_path) for files in saved]
    assert [(state.step, state.skipped) for state in states] == [
        *((6, 2), (5, 1), (4, 0), (3, 0), (2, 0), (1, 0))
    ]
    for name in ("model.safetensors", "optimizer.safetensors"):
        contents = [files[name] for files in saved]
        assert contents[0] == contents[1] == contents[2] != contents[3]
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == precision
    assert json.loads((tmp_path / "status.json").read_text())["error"] == said[0]
