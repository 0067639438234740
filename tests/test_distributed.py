"""C1, C2, C3: the same examples, gradients, losses and metrics at any world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_metrics, run_ranks
from sklearn.metrics import confusion_matrix, f1_score, log_loss
from torch import Tensor, nn
from torch.nn import functional as F

from seqclf import runtime as runtimes
from seqclf.config import Config, UserError, load_config
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Batch, Sequences
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

    def forward(self, values_BTF: Tensor) -> Tensor:
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


def step_on_poison(kind: str, shards: str) -> tuple[bool, list[float]]:
    """Train two steps, the second with something not finite on the last rank only."""
    config = config_with(0, "null", shards)
    runtime = runtimes.start(config)
    model = tiny_model()
    prepared = runtime.prepare(model, reduces=shards == "null")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    values = random_images(4).values.float()
    batch = Batch(values, torch.arange(4), 0, 4 * runtime.rank, 4 * runtime.world_size)
    train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    if runtime.rank == runtime.world_size - 1:
        poison = {"nan": float("nan"), "inf": float("inf")}[kind]
        values[1, 2, 3] = poison
    stats = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and all(
        torch.equal(state[k], optimizer.state[p][k])
        for state, p in zip(states, model.parameters(), strict=True)
        for k in state
    )
    values.nan_to_num_(0.0, 0.0, 0.0)
    after = train_step(runtime, prepared, optimizer, batch, config, lr=0.01)
    runtime.close()
    return same, [float(stats.bad), float(after.bad)]


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("shards", ["null", "4"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_on_every_rank(
    world_size: int, kind: str, shards: str
) -> None:
    for untouched, bad in run_ranks(world_size, step_on_poison, kind, shards):
        assert untouched
        assert bad == [1.0, 0.0]
