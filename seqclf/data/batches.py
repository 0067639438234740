"""BatchPlan: which examples make step s, and which of them are this process's. Pure arithmetic.

The order of epoch e is f(seed, e) and the batch of step s a slice of it, so there is no sampler
state: a plan can start at any step, at any world size, at no cost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from seqclf.data.sequences import Share

MIN_STEPS = 1000  # of a run whose length nobody chose


def mix(*parts: int | str) -> int:
    """Hash seeds and positions into one 63-bit seed: mix(0, 1) differs from mix(1, 0)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def split_range(length: int, index: int, count: int) -> tuple[int, int]:
    """Return part `index` of `count` contiguous parts of range(length), sizes within one."""
    return length * index // count, length * (index + 1) // count


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 [length]: every position once."""
    generator = torch.Generator().manual_seed(mix(seed, "order", epoch))
    return torch.randperm(length, generator=generator)


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a whole run: `length` examples, `batch_size` a step over all processes."""

    length: int
    batch_size: int
    seed: int
    num_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last one may be short, none is dropped."""
        return math.ceil(self.length / self.batch_size)

    def examples(self, step: int) -> int:
        """Return how many examples the first `step` steps consume."""
        epochs, index = divmod(step, self.steps_per_epoch)
        return epochs * self.length + index * self.batch_size

    def batch(self, step: int) -> Tensor:
        """Return the positions of the global batch of a step, int64 [total]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.length, self.seed, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """Return one process's part of the global batch of a step."""
        ids = self.batch(step)
        first, end = split_range(len(ids), rank, world_size)
        return Share(step, ids[first:end], first, len(ids), int(ids[0]))

    def shares(self, start: int, rank: int, world_size: int) -> Iterator[Share]:
        """Yield a process's shares from step `start` to the end of the run."""
        return (self.share(step, rank, world_size) for step in range(start, self.num_steps))


def count_steps(
    length: int, batch_size: int, *, steps: int | None = None, epochs: float | None = None
) -> int:
    """Return the number of steps of a run: `steps`, else `epochs`, else 2 epochs or MIN_STEPS."""
    steps_per_epoch = math.ceil(length / batch_size)
    if steps is not None:
        return steps
    if epochs is not None:
        return max(1, round(epochs * steps_per_epoch))
    return steps_per_epoch * max(2, math.ceil(MIN_STEPS / steps_per_epoch))
