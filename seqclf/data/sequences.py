"""Sequences: labelled sequences, fetched a whole batch at a time.

Shapes: N examples, B batch, T steps, F features, S steps of all examples together.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # the label of a row that fills an empty share: no loss, no gradient


class Share(NamedTuple):
    """A process's contiguous part of the global batch of one step."""

    step: int
    ids: Tensor  # int64 [B]: positions in the training set; may be empty
    first: int  # place of ids[0] in the global batch
    total: int  # examples in the global batch
    filler: int  # an example of the global batch, standing in where the share is empty


class Batch(NamedTuple):
    """A share with its data. An empty share holds one row with the label IGNORED."""

    values: Tensor  # [B, T, F], or tokens [B, T], in the data set's own dtype
    labels: Tensor  # int64 [B]
    step: int
    first: int
    total: int
    lengths: Tensor | None = None  # int64 [B] on the CPU; None: every row has T steps
    std: tuple[float, ...] = ()  # of each feature over the training set, if it is known

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; from pinned memory without waiting."""
        if self.values.device.type == device.type:
            return self
        values = self.values.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return self._replace(values=values, labels=labels)

    def part(self, first: int, end: int) -> Batch:
        """Return rows `first` to `end`, cut to the longest of them."""
        rows = self._replace(values=self.values[first:end], labels=self.labels[first:end])
        if self.lengths is None:
            return rows
        longest, lengths = unequal(self.lengths[first:end])
        return rows._replace(values=rows.values[:, :longest], lengths=lengths)


def unequal(lengths: Tensor) -> tuple[int, Tensor | None]:
    """Return the longest length, and all of them, or None if they are equal."""
    longest = int(lengths.max())
    return longest, None if int(lengths.min()) == longest else lengths


@dataclass(frozen=True)
class Sequences:
    """N sequences of steps, with their labels and what the numbers mean.

    Images are [N, T, F]. Else `starts` and `lengths` say where in the steps of all, [S, F], or
    tokens [S], each one lies; then parts of a data set share their values, which may be a file's
    mapped into memory.
    """

    values: Tensor  # images stay uint8
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]
    scale: float = 1.0  # the model divides values by it,
    mean: tuple[float, ...] = ()  # ... or takes this off each feature
    std: tuple[float, ...] = ()  # ... and divides it by this
    num_tokens: int = 0  # values are tokens below it; 0: they are features
    tokens: tuple[str, ...] = ()  # the names of token 1, 2 ...; none, if they are bytes of text
    features: tuple[str, ...] = ()  # their names
    starts: Tensor | None = None  # int64 [N], on the CPU, and so are
    lengths: Tensor | None = None  # int64 [N]

    def __post_init__(self) -> None:
        if self.starts is None and (self.values.ndim != 3 or len(self.values) != len(self.labels)):
            raise ValueError(
                f"values {tuple(self.values.shape)} must be [N, T, F] with one label each, "
                f"found {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.rows(slice(index, index + 1))[0][0], self.labels[index]

    def __getitems__(self, share: Share) -> Batch:
        """Fetch a whole share in one indexed read (the name is the DataLoader's protocol)."""
        ids = share.ids if len(share.ids) else torch.tensor([share.filler])
        labels = self.labels.index_select(0, ids.to(self.labels.device, non_blocking=True))
        if not len(share.ids):
            labels = torch.full_like(labels, IGNORED)
        values, lengths = self.rows(ids)
        return Batch(values, labels, share.step, share.first, share.total, lengths, self.std)

    def rows(self, ids: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Return sequences as [B, T, F], or tokens [B, T], and their lengths unless all are equal.

        Shorter ones repeat their last step up to the longest.
        """
        if self.starts is None or self.lengths is None:
            if isinstance(ids, slice):
                return self.values[ids], None
            return self.values.index_select(0, ids.to(self.values.device, non_blocking=True)), None
        starts, lengths = self.starts[ids, None], self.lengths[ids]
        longest, given = unequal(lengths)
        steps = starts + torch.arange(longest).minimum(lengths[:, None] - 1)
        steps = steps.flatten().to(self.values.device, non_blocking=True)
        values = self.values.index_select(0, steps)
        return values.view(len(lengths), longest, *self.values.shape[1:]), given

    @property
    def shape(self) -> tuple[int, int]:
        """The steps of the longest sequence, and the features of a step (1 of tokens)."""
        if self.lengths is None:
            return self.values.shape[1], self.values.shape[2]
        return int(self.lengths.max()), math.prod(self.values.shape[1:])

    def select(self, ids: Tensor) -> Sequences:
        """Return the examples with these positions, as a data set."""
        if self.starts is None or self.lengths is None:
            return replace(self, values=self.values[ids], labels=self.labels[ids])
        starts, lengths = self.starts[ids], self.lengths[ids]
        return replace(self, labels=self.labels[ids], starts=starts, lengths=lengths)

    def cut(self, max_length: int | None, keep: str) -> Sequences:
        """Return the sequences with no more than `max_length` steps, the first or the last."""
        if max_length is None or self.shape[0] <= max_length:
            return self
        if self.starts is None or self.lengths is None:
            steps = slice(max_length) if keep == "first" else slice(-max_length, None)
            return replace(self, values=self.values[:, steps])
        lengths = self.lengths.clamp(max=max_length)
        skipped = self.lengths - lengths if keep == "last" else 0
        return replace(self, starts=self.starts + skipped, lengths=lengths)

    def to(self, device: torch.device) -> Sequences:
        """Return the data set held in a device's memory."""
        return replace(self, values=self.values.to(device), labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """Return a sha256 over everything that a model sees of it."""
        about = (tuple(self.values.shape), str(self.values.dtype), self.classes, self.scale)
        digest = hashlib.sha256(repr(about).encode())
        for tensor in (self.values, self.labels):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()
