"""BatchPlan: which examples make step s, and which of them are this process's. Pure arithmetic.

The order of epoch e is f(seed, e), and the batch of step s is a slice of that order. So there is
no sampler state: a plan can start at any step, at any world size, at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seqclf.data.blocks import Blocks
from seqclf.data.orders import (
    LARGEST_STORED,
    Buckets,
    batch_order,
    bucketed_batch,
    order_between,
)
from seqclf.data.sequences import Share

MOST_MEASURED = 10_000  # batches; a million would delay the start by a minute
MIN_STEPS = 1000  # a run whose length nobody chose has at least this many steps
MAX_EVAL_STEPS = 2**18  # a batch of an evaluation has at most this many steps, with its padding


def split_range(length: int, index: int, count: int) -> tuple[int, int]:
    """Cut range(length) into `count` ranges whose sizes differ by at most 1; return one of them."""
    return length * index // count, length * (index + 1) // count


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a whole run."""

    length: int  # the number of training examples
    batch_size: int  # of the global batch
    seed: int
    num_steps: int
    buckets: Buckets | None = None  # the batches are cut from these, if lengths differ
    blocks: Blocks | None = None  # the order of all, if a buffer is shuffled at once; no buckets

    @property
    def order(self) -> Literal["stored", "computed"]:
        """How the order of an epoch is made. A run keeps it."""
        return "stored" if self.length <= LARGEST_STORED else "computed"

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch; its last batch may be short, and none is dropped."""
        if self.buckets is not None:
            return len(self.buckets.edges) - 1
        return math.ceil(self.length / self.batch_size)

    def examples(self, step: int) -> int:
        """Return how many examples the first `step` steps consume."""
        epochs, index = divmod(step, self.steps_per_epoch)
        if self.blocks is not None:
            return epochs * self.length + self.blocks.num_before(epochs, index)
        if self.buckets is None:
            return epochs * self.length + index * self.batch_size
        batches = batch_order(self.buckets, self.seed, epochs)
        return epochs * self.length + int(self.buckets.edges.diff()[batches[:index]].sum())

    def batch(self, step: int) -> Tensor:
        """Return the positions of the global batch of a step, int64 [total]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.blocks is not None:
            return self.blocks.batch(epoch, index)
        if self.buckets is None:
            first, end = index * self.batch_size, (index + 1) * self.batch_size
            return order_between(first, min(end, self.length), self.length, self.seed, epoch)
        number = int(batch_order(self.buckets, self.seed, epoch)[index])
        return bucketed_batch(self.buckets, number, self.seed, epoch)

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """Return a process's share of the global batch of a step."""
        ids = self.batch(step)
        first, end = split_range(len(ids), rank, world_size)
        return Share(step, ids[first:end], first, len(ids), int(ids[0]))

    def shares(self, start: int, rank: int, world_size: int) -> Iterator[Share]:
        """Yield a process's shares from step `start` to the end of the run."""
        return (self.share(step, rank, world_size) for step in range(start, self.num_steps))


def count_steps(
    steps_per_epoch: int, *, steps: int | None = None, epochs: float | None = None
) -> int:
    """Return the number of steps of a run: `steps`, else `epochs`, else 2 epochs or MIN_STEPS."""
    if steps is not None:
        return steps
    if epochs is not None:
        return max(1, round(epochs * steps_per_epoch))
    return steps_per_epoch * max(2, math.ceil(MIN_STEPS / steps_per_epoch))


def padding_fraction(lengths: Tensor, plan: BatchPlan) -> float:
    """Return the fraction of the first MOST_MEASURED batches' steps that is padding."""
    num_steps = num_padded = 0
    for step in range(min(plan.steps_per_epoch, MOST_MEASURED)):
        batch = lengths[plan.batch(step)]
        num_steps += int(batch.sum())
        num_padded += len(batch) * int(batch.max())
    return 1 - num_steps / num_padded


def evaluation_batches(
    lengths: Tensor | None, first: int, end: int, batch_size: int
) -> Iterator[Tensor | slice]:
    """Yield positions `first` to `end`, up to `batch_size` at once; similar lengths go together.

    If lengths differ, a batch with its padding has up to MAX_EVAL_STEPS steps, or it is a single
    example.
    """
    if lengths is None:
        for start in range(first, end, batch_size):
            yield slice(start, min(start + batch_size, end))
        return
    descending, positions = lengths[first:end].sort(descending=True, stable=True)
    start = 0
    while start < len(positions):
        size = min(batch_size, max(1, MAX_EVAL_STEPS // int(descending[start])))
        yield first + positions[start : start + size]
        start += size
