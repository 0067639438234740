"""Sequences: labelled sequences of equal length, fetched a whole batch at a time.

Shapes: N examples, B batch, T steps, F features.
"""

from __future__ import annotations

import hashlib
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

    values: Tensor  # [B, T, F], in the data set's own dtype
    labels: Tensor  # int64 [B]
    step: int
    first: int
    total: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; from pinned memory without waiting."""
        if self.values.device.type == device.type:
            return self
        values = self.values.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return self._replace(values=values, labels=labels)


@dataclass(frozen=True)
class Sequences:
    """N sequences of T steps of F features, with their labels and what the numbers mean."""

    values: Tensor  # [N, T, F]; images stay uint8
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]
    scale: float  # the model divides values by it

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or len(self.values) != len(self.labels):
            raise ValueError(
                f"values {tuple(self.values.shape)} must be [N, T, F] with one label each, "
                f"found {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.values[index], self.labels[index]

    def __getitems__(self, share: Share) -> Batch:
        """Fetch a whole share in one indexed read (the name is the DataLoader's protocol)."""
        ids = share.ids if len(share.ids) else torch.tensor([share.filler])
        ids = ids.to(self.values.device, non_blocking=True)
        labels = self.labels.index_select(0, ids)
        if not len(share.ids):
            labels = torch.full_like(labels, IGNORED)
        values = self.values.index_select(0, ids)
        return Batch(values, labels, share.step, share.first, share.total)

    def select(self, ids: Tensor) -> Sequences:
        """Return the examples with these positions, as a data set."""
        return replace(self, values=self.values[ids], labels=self.labels[ids])

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
