"""Blocks of consecutive examples in a shuffled order, as many as make a buffer shuffled as one.

A process reads the examples of a buffer, in pieces of a block, and then those of the next. So data
larger than memory are read once an epoch, and the order is exact: epoch and buffer are a function
of the step, and the order of a buffer is f(seed, epoch, its number).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from seqclf.data.orders import by_bucket, make_buckets, mix, order_between, shuffled

BLOCKS_OF_A_BUFFER = 256  # the examples of a buffer come from so many places of the data


class Buffer(NamedTuple):
    """The positions of a buffer's examples, batch after batch."""

    positions: Tensor  # int64
    edges: Tensor  # int64 [batches + 1]: where each batch begins, and where the last one ends


@dataclass(frozen=True, eq=False)
class Blocks:
    """The order of all epochs."""

    length: int  # examples
    batch_size: int
    seed: int
    buffer: int  # examples; a multiple of the batch size, so a batch is in one buffer
    lengths: Tensor | None = None  # int64 [N]: similar ones of a buffer make a batch; None: any

    @property
    def size(self) -> int:
        """The examples of a block."""
        return max(1, self.buffer // BLOCKS_OF_A_BUFFER)

    def batch(self, epoch: int, index: int) -> Tensor:
        """Return the positions of an epoch's batch, int64."""
        number, index = divmod(index, self.buffer // self.batch_size)
        buffer = fill_buffer(self, epoch, number)
        return buffer.positions[buffer.edges[index] : buffer.edges[index + 1]]

    def num_before(self, epoch: int, index: int) -> int:
        """Return how many examples of an epoch come before a batch."""
        number, index = divmod(index, self.buffer // self.batch_size)
        return number * self.buffer + int(fill_buffer(self, epoch, number).edges[index])

    def between(self, epoch: int, first: int, end: int) -> Tensor:
        """Return the positions of an epoch's examples `first` to `end`, block after block.

        The blocks of each epoch begin at another example. So each has other examples, and so has
        the rest that makes no whole block, which comes last.
        """
        size = self.size
        num_whole = self.length // size
        low, high = first // size, min(-(-end // size), num_whole)
        order = order_between(low, max(low, high), num_whole, mix(self.seed, "blocks"), epoch)
        order = torch.cat([order, torch.tensor([num_whole])])
        start = mix(self.seed, "first block", epoch) % self.length
        places = torch.arange(first, end)
        return (start + order[places // size - low] * size + places % size) % self.length

    def buffer_of(self, epoch: int, index: int) -> int:
        """Return the number of the buffer that an epoch's batch is in, counted over all epochs."""
        return epoch * self.per_epoch + index * self.batch_size // self.buffer

    @property
    def per_epoch(self) -> int:
        """The buffers of an epoch, of which the last may be smaller."""
        return -(-self.length // self.buffer)

    def members(self, epoch: int, number: int) -> Tensor:
        """Return the positions of a buffer's examples, block after block."""
        first = number * self.buffer
        return self.between(epoch, first, min(first + self.buffer, self.length))

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """Return the ranges of positions that make a buffer, by its number over all epochs."""
        members = self.members(*divmod(number, self.per_epoch))
        firsts = torch.cat([torch.tensor([0]), (members.diff() != 1).nonzero()[:, 0] + 1])
        lasts = torch.cat([firsts[1:], torch.tensor([len(members)])]) - 1
        return list(zip(members[firsts].tolist(), (members[lasts] + 1).tolist(), strict=True))


@lru_cache(maxsize=2)
def fill_buffer(blocks: Blocks, epoch: int, number: int) -> Buffer:
    """Return a buffer of an epoch, shuffled."""
    members = blocks.members(epoch, number)
    order = shuffled(len(members), mix(blocks.seed, "buffer", epoch, number))
    if blocks.lengths is None:
        edges = torch.arange(0, len(members) + blocks.batch_size, blocks.batch_size)
        return Buffer(members[order], edges.clamp(max=len(members)))
    buckets = make_buckets(blocks.lengths[members], blocks.batch_size)
    sizes = buckets.edges.diff()
    batches = by_bucket(buckets, order).split(sizes.tolist())
    numbers = shuffled(len(batches), mix(blocks.seed, "batches", epoch, number))
    positions = members[torch.cat([batches[index] for index in numbers.tolist()])]
    return Buffer(positions, torch.cat([torch.tensor([0]), sizes[numbers].cumsum(0)]))
