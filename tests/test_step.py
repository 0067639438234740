"""C10: a step reads nothing back from the device, and skips itself where it is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import tiny_config, train_tiny
from torch import Tensor, nn

from seqclf import loss as loss_module
from seqclf.config.settings import Config
from seqclf.data.sequences import Batch
from seqclf.errors import UserError
from seqclf.model import LSTMClassifier
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime
from seqclf.step import train_step


@pytest.fixture(scope="module")
def config() -> Config:
    return tiny_config(
        {
            "data.augment.shift": 2,
            "loss.label_smoothing": 0.1,
            "model.dropout": 0.5,
            "train.micro_batch_size": 3,
        }
    )


@pytest.fixture(scope="module")
def runtime(config: Config) -> Runtime:
    return start_runtime(config)


class Unfused(torch.optim.AdamW):
    """The fused kernel does not exist on the meta device, and the others refuse its arguments."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        del self.found_inf, self.grad_scale  # type: ignore[attr-defined]
        super().step()


def step_on_meta(runtime: Runtime, config: Config) -> None:
    """Make a step on the meta device, where every read of a value raises."""
    with torch.device("meta"):
        model = LSTMClassifier(28, 10, num_layers=2, dropout=0.5, init="tutorial")
        values = torch.zeros(8, 28, 28, dtype=torch.uint8)
        batch = Batch(values, torch.zeros(8, dtype=torch.int64), 5, 0, 8)
    optimizer = Unfused(model.parameters(), fused=False)
    stats = train_step(runtime, model, optimizer, batch, config, lr=0.01)
    results = (stats.loss, stats.norm, stats.skipped)
    assert {tensor.device.type for tensor in results} == {"meta"}


def test_a_step_never_reads_the_device(runtime: Runtime, config: Config) -> None:
    step_on_meta(runtime, config)


@pytest.mark.parametrize(
    "read", [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero]
)
def test_that_test_fails_when_a_step_reads(
    read: object, runtime: Runtime, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loss_module.summed_loss

    def reading(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
        loss: Tensor = honest(logits, labels, label_smoothing=label_smoothing)
        read(loss.detach())  # type: ignore[operator]
        return loss

    monkeypatch.setattr("seqclf.step.summed_loss", reading)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        step_on_meta(runtime, config)


class InfiniteLoss(nn.Module):
    """Its loss is infinite and its gradient finite."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, values: Tensor, lengths: None = None) -> Tensor:
        logits: Tensor = self.out(values.flatten(1))
        return logits + torch.tensor([-torch.inf, 0.0, 0.0])


def test_an_infinite_loss_with_a_finite_gradient_is_skipped(runtime: Runtime) -> None:
    model = InfiniteLoss()
    before = model.out.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = Batch(torch.ones(2, 2, 2), torch.zeros(2, dtype=torch.int64), 0, 0, 2)
    stats = train_step(runtime, model, optimizer, batch, Config(), lr=0.1)
    assert (stats.loss.item(), stats.skipped.item()) == (torch.inf, 1.0)
    assert torch.equal(model.out.weight, before)


def test_dropout_depends_on_the_step_and_the_micro_batch_only(runtime: Runtime) -> None:
    config = tiny_config({"model.dropout": 0.5, "train.micro_batch_size": 2})
    values = torch.rand(4, 5, 6)
    losses = []
    for step in (1, 1, 2):
        torch.manual_seed(0)
        model = LSTMClassifier(6, 3, dropout=0.5)
        torch.rand(step * 7)  # whatever was drawn before
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = Batch(values, torch.zeros(4, dtype=torch.int64), step, 0, 4)
        losses.append(train_step(runtime, model, optimizer, batch, config, lr=0.0).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_a_run_stops_after_too_many_skipped_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loss_module.summed_loss

    def poisoned(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return honest(logits, labels, **options) * torch.nan

    monkeypatch.setattr("seqclf.step.summed_loss", poisoned)
    with pytest.raises(
        UserError, match=r"step 7: the last 7 steps .* and 54 more; lower optim\.lr"
    ):
        train_tiny(tmp_path, {"train.max_skipped": 7, "log.every": 5})


@pytest.mark.parametrize(("log_every", "stop_at"), [(1000, None), (5, None), (1000, 4)])
def test_skipped_steps_in_a_row_count_between_log_lines(
    log_every: int, stop_at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 to 5 are skipped, and those after them are not."""
    honest, calls = loss_module.summed_loss, 0

    def poisoned(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        bad = torch.nan if 3 <= calls <= 5 else 1.0
        return honest(logits, labels, **options) * bad

    monkeypatch.setattr("seqclf.step.summed_loss", poisoned)
    settings = {"train.max_skipped": 3, "log.every": log_every, "train.steps": 60}
    settings |= {"eval.every": 1000, "checkpoint.every": 1000}
    if stop_at is not None:
        assert train_tiny(tmp_path, settings, stop_at=stop_at) == 143
    with pytest.raises(UserError, match="step 5: the last 3 steps were skipped"):
        train_tiny(tmp_path, settings)
    assert calls <= 54  # 50 are read at once
