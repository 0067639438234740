"""The order of an epoch's examples: of all of them, or of each bucket of similar lengths.

The order of epoch e is f(seed, e), and of very many examples each part is computed by itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from seqclf.data.permute import permute

# Examples. Up to so many an epoch's order is stored, in 128 MiB at most, and two epochs are kept.
# The order of more is computed a part at a time. A run's order must stay, and so must this number.
LARGEST_STORED = 2**24
PART = 2**14  # positions that are computed at once
MIN_FILL = 0.93  # a bucket's shortest sequence is at least this fraction of its longest


def mix(*parts: int | str) -> int:
    """Hash seeds and positions into one 63-bit seed: mix(0, 1) differs from mix(1, 0)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def shuffled(length: int, seed: int) -> Tensor:
    """Return range(length) in a random order, int64."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 [length]: every position once."""
    return shuffled(length, mix(seed, "order", epoch))


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
    end_number = max(number + 1, -(-end // PART))
    parts = [computed_part(length, seed, epoch, n) for n in range(number, end_number)]
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
    return by_bucket(buckets, epoch_order(len(buckets.positions), seed, epoch))


def by_bucket(buckets: Buckets, order: Tensor) -> Tensor:
    """Return the positions of the examples in an order of each bucket, one after the other."""
    return buckets.positions[order[buckets.bucket_numbers[order].argsort(stable=True)]]


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
