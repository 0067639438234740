"""BatchPlan: which examples make step s, and which of them are this process's. Pure arithmetic.

The order of epoch e is f(seed, e), and the batch of step s is a slice of that order. So there is
no sampler state: a plan can start at any step, at any world size, at no cost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from seqclf.data.permute import permute
from seqclf.data.sequences import Share

# Examples. Up to so many an epoch's order is stored, in 128 MiB at most, and two epochs are kept.
# The order of more is computed a part at a time. A run's order must stay, and so must this number.
LARGEST_STORED = 2**24
PART = 2**14  # positions that are computed at once
MOST_MEASURED = 10_000  # batches; a million would delay the start by a minute
MIN_STEPS = 1000  # a run whose length nobody chose has at least this many steps
MIN_FILL = 0.93  # a bucket's shortest sequence is at least this fraction of its longest
MAX_EVAL_STEPS = 2**18  # a batch of an evaluation has at most this many steps, with its padding


def mix(*parts: int | str) -> int:
    """Hash seeds and positions into one 63-bit seed: mix(0, 1) differs from mix(1, 0)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def split_range(length: int, index: int, count: int) -> tuple[int, int]:
    """Cut range(length) into `count` ranges whose sizes differ by at most 1; return one of them."""
    return length * index // count, length * (index + 1) // count


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 [length]: every position once."""
    generator = torch.Generator().manual_seed(mix(seed, "order", epoch))
    return torch.randperm(length, generator=generator)


@lru_cache(maxsize=4)
def computed_part(length: int, seed: int, epoch: int, number: int) -> Tensor:
    """Return the next PART entries of an epoch's order, from entry `number * PART` on."""
    positions = torch.arange(number * PART, min((number + 1) * PART, length))
    return permute(positions, length, mix(seed, "order", epoch))


def order_between(first: int, end: int, length: int, seed: int, epoch: int) -> Tensor:
    """Return entries `first` to `end` of an epoch's order, at constant memory."""
    if length <= LARGEST_STORED:
        return epoch_order(length, seed, epoch)[first:end]
    number = first // PART
    parts = [computed_part(length, seed, epoch, n) for n in range(number, -(-end // PART))]
    return torch.cat(parts)[first - number * PART : end - number * PART]


@dataclass(frozen=True, eq=False)
class Buckets:
    """Examples of similar length, cut into batches: a function of the lengths alone.

    The examples are sorted by length, the longest first. So a bucket is a range of them, and a
    batch is a range of its bucket.
    """

    positions: Tensor  # int64 [N]: the sorted examples, by position in the data set
    bucket_edges: Tensor  # int64 [buckets + 1]: where each bucket begins, and the last one ends
    edges: Tensor  # int64 [batches + 1]: where each batch begins, and where the last one ends

    @property
    def bucket_numbers(self) -> Tensor:
        """The bucket of each sorted example, int64 [N]."""
        sizes = self.bucket_edges.diff()
        return torch.arange(len(sizes)).repeat_interleave(sizes)


def make_buckets(lengths: Tensor, batch_size: int, max_steps: int | None = None) -> Buckets:
    """Sort examples into buckets whose shortest has at least MIN_FILL of the longest's steps.

    A bucket holds one or more full batches of `batch_size` examples, or of as many as make up to
    `max_steps` steps with their padding. Only the last batch of all may be short. Raises
    ValueError if an example alone has more steps.
    """
    descending, positions = lengths.sort(descending=True, stable=True)
    longest_first = descending.numpy()
    bucket_edges = [0]
    edges = [0]
    while edges[-1] < len(positions):
        first = edges[-1]
        longest = int(longest_first[first])
        size = min(batch_size, max_steps // longest if max_steps else batch_size)
        if size == 0:
            raise ValueError(
                f"example {int(positions[first])} has {longest} steps, more than {max_steps}"
            )
        # searchsorted wants ascending numbers.
        num_similar = int((-longest_first).searchsorted(-MIN_FILL * longest, side="right")) - first
        # A batch is full before it is homogeneous, so the first one may reach below MIN_FILL.
        end = min(len(positions), first + size * max(1, num_similar // size))
        edges += [*range(first + size, end, size), end]
        bucket_edges.append(end)
    return Buckets(positions, torch.tensor(bucket_edges), torch.tensor(edges))


@lru_cache(maxsize=2)
def bucketed_order(buckets: Buckets, seed: int, epoch: int) -> Tensor:
    """Return an epoch's positions, int64 [N], bucket after bucket."""
    shuffled = epoch_order(len(buckets.positions), seed, epoch)
    by_bucket = shuffled[buckets.bucket_numbers[shuffled].argsort(stable=True)]
    return buckets.positions[by_bucket]


@lru_cache(maxsize=2)
def batch_order(buckets: Buckets, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's batches."""
    return epoch_order(len(buckets.edges) - 1, mix(seed, "batches"), epoch)


def bucketed_batch(buckets: Buckets, number: int, seed: int, epoch: int) -> Tensor:
    """Return the positions of a batch, by its number among all batches of the buckets."""
    first, end = buckets.edges[number : number + 2].tolist()
    if len(buckets.positions) <= LARGEST_STORED:
        return bucketed_order(buckets, seed, epoch)[first:end]
    bucket = int(torch.searchsorted(buckets.bucket_edges, first, right=True)) - 1
    low, high = buckets.bucket_edges[bucket : bucket + 2].tolist()
    inside = permute(
        torch.arange(first - low, end - low), high - low, mix(seed, "bucket", bucket, epoch)
    )
    return buckets.positions[low + inside]


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a whole run."""

    length: int  # the number of training examples
    batch_size: int  # of the global batch
    seed: int
    num_steps: int
    buckets: Buckets | None = None  # the batches are cut from these, if lengths differ

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
        if self.buckets is None:
            return epochs * self.length + index * self.batch_size
        batches = batch_order(self.buckets, self.seed, epochs)
        return epochs * self.length + int(self.buckets.edges.diff()[batches[:index]].sum())

    def batch(self, step: int) -> Tensor:
        """Return the positions of the global batch of a step, int64 [total]."""
        epoch, index = divmod(step, self.steps_per_epoch)
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
