"""What the loop logs of its steps: the one place where training reads the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seqclf.data.augment import augment
from seqclf.data.sequences import Batch
from seqclf.errors import UserError
from seqclf.loss import summed_loss
from seqclf.run.directory import Run
from seqclf.run.records import State
from seqclf.settle import Setup
from seqclf.step import StepStats

MOST_UNREAD = 50  # steps; to read them, training waits for the device
MOST_EXAMPLES_NAMED = 10  # in a message


class StepLog:
    """Keeps what steps left on the device, unread until it is time to log or to save."""

    def __init__(self, setup: Setup, run: Run, state: State, model: nn.Module) -> None:
        self._setup = setup
        self._run = run
        self._state = state
        self._model = model
        self._unread: list[StepStats] = []
        self._latest: StepStats | None = None
        self._num_read = state.step  # steps of which it is known whether they were skipped
        self.clock = Stopwatch(setup.plan.examples(state.step), run.runtime.device)

    def add(self, stats: StepStats) -> None:
        """Keep a step's results. Collective; raises UserError as `count_skipped` does."""
        self._latest = stats
        self._unread.append(stats)
        if len(self._unread) >= MOST_UNREAD:
            self.count_skipped()

    def count_skipped(self) -> None:
        """Read which of the kept steps were skipped, the same on every rank, and forget them.

        Collective. Raises UserError after `train.max_skipped` skipped steps in a row.
        """
        if self._read():
            self._refuse_more()

    def write(self, lr: float) -> None:
        """Log the latest step. Collective; raises UserError as `count_skipped` does."""
        assert self._latest is not None
        state, stats = self._state, self._latest
        loss = float(self._run.runtime.sum(stats.loss))
        are_too_many = self._read()
        metrics = {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": float(stats.norm),
            **self.clock.read(self._setup.plan.examples(state.step)),
        }
        if state.skipped:
            metrics["train/skipped"] = state.skipped
        self._run.log(state.step, metrics)
        if are_too_many:
            self._refuse_more()

    def _read(self) -> bool:
        """Read which of the kept steps were skipped; return whether too many were, in a row.

        If so, the steps after them are left unread.
        """
        state = self._state
        flags = torch.stack([s.skipped for s in self._unread]).tolist() if self._unread else []
        self._unread.clear()
        for was_skipped in flags:
            self._num_read += 1
            state.skipped += int(was_skipped)
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if was_skipped else 0
            if state.skipped_in_a_row >= self._setup.config.train.max_skipped:
                return True
        return False

    def _refuse_more(self) -> None:
        """Raise UserError, because the last steps that were read were skipped. Collective."""
        step, setup = self._num_read, self._setup
        runtime, model = self._run.runtime, self._model
        reason = runtime.from_main(
            lambda: find_not_finite(setup, model, step=step - 1, device=runtime.device)
        )
        lr = setup.lr_at(step - 1, self._state.decay_from)
        raise UserError(
            f"step {step}: the last {self._state.skipped_in_a_row} steps were skipped, because "
            f"loss or gradient was not finite (learning rate {lr:.3g}); in the last batch "
            f"{reason}; lower optim.lr, set optim.clip, or look for extreme values in the data"
        )


@torch.inference_mode()
def find_not_finite(setup: Setup, model: nn.Module, *, step: int, device: torch.device) -> str:
    """Say what of a skipped step was not finite, and of which examples, from 0 in the split.

    The step moved no weight, so its global batch is computed again here, without dropout.
    """
    config, examples = setup.config, setup.splits.train
    share = setup.plan.share(step, 0, 1)
    batch = examples.__getitems__(share).to(device)
    batch = augment(batch, config.data.augment, config.seed)
    model.eval()  # nobody trains this model again
    losses_B = _losses(model, batch, setup)
    reason = "every loss is finite, so it is the gradient, that"
    ids = share.ids
    if not losses_B.isfinite().all():
        reason = "the loss is not finite, that"
        ids = share.ids[~losses_B.isfinite().cpu()]
    finite_B = batch.values.isfinite().flatten(1).all(1)
    if not finite_B.all():
        reason = "values are not finite, those"
        ids = share.ids[~finite_B.cpu()]
    names = ", ".join(map(str, ids[:MOST_EXAMPLES_NAMED].tolist()))
    num_more = len(ids) - MOST_EXAMPLES_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return f"{reason} of training examples {names}{more}"


def _losses(model: nn.Module, batch: Batch, setup: Setup) -> Tensor:
    """Return the loss of each example, [B]."""
    size = setup.config.eval.batch_size
    parts = [batch.part(first, first + size) for first in range(0, len(batch.values), size)]
    logits_BC = torch.cat([model(part.values, part.lengths) for part in parts])
    smoothing = setup.config.loss.label_smoothing
    return torch.stack(
        [
            summed_loss(logits_C[None], label[None], label_smoothing=smoothing)
            for logits_C, label in zip(logits_BC, batch.labels, strict=True)
        ]
    )


class Stopwatch:
    """Times training between two log lines; evaluations and saves are not counted.

    A step's time is the device's own on CUDA, where the host runs ahead, and the host's elsewhere.
    """

    def __init__(self, num_examples: int, device: torch.device) -> None:
        self._device = device
        self._restart(num_examples)

    def _restart(self, num_examples: int) -> None:
        self._num_examples = num_examples
        self._started_at = time.perf_counter()
        self._waited_s = 0.0
        self._steps_s: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent in the body."""
        paused_at = time.perf_counter()
        yield
        self._started_at += time.perf_counter() - paused_at

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the body, a step."""
        if self._device.type == "cuda":
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started_at = time.perf_counter()
            yield
            self._steps_s.append(time.perf_counter() - started_at)

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; the time counts as a wait for data."""
        started_at = time.perf_counter()
        batch = next(batches)
        self._waited_s += time.perf_counter() - started_at
        return batch

    def read(self, num_examples: int) -> dict[str, float]:
        """Return the figures since the last call; the device's work must be done."""
        elapsed_s = time.perf_counter() - self._started_at
        on_device = (start.elapsed_time(end) / 1000 for start, end in self._events)
        seconds = sorted([*self._steps_s, *on_device])
        figures = {
            "train/examples": float(num_examples),
            "train/examples_per_s": (num_examples - self._num_examples) / elapsed_s,
            "train/seconds_per_step_p50": seconds[(len(seconds) - 1) // 2],
            "train/seconds_per_step_p95": seconds[math.ceil(0.95 * len(seconds)) - 1],
            "train/data_wait_share": self._waited_s / elapsed_s,
        }
        if self._device.type == "cuda":
            figures["train/peak_memory_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        self._restart(num_examples)
        return figures
