"""Sequences: labelled sequences, fetched a whole batch at a time.

Shapes: N examples, B batch, T steps, F features, S steps of all examples together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from seqclf.data.mapping import drop, will_need
from seqclf.data.readers.rows import quote
from seqclf.data.reading import Reading

IGNORED = -100  # the label of a row that fills an empty share: no loss, no gradient


class Share(NamedTuple):
    """A process's part of the global batch of one step: which examples, and where in the batch."""

    step: int
    ids: Tensor  # int64 [B]: positions in the training set; may be empty
    first: int  # the index of ids[0] in the global batch
    total: int  # the number of examples in the global batch
    filler: int  # an example of the global batch; an empty share fetches it instead


class Batch(NamedTuple):
    """A share with its data. An empty share holds one row with the label IGNORED."""

    values: Tensor  # features [B, T, F] or tokens [B, T], in the data set's own dtype
    labels: Tensor  # int64 [B]
    step: int
    first: int  # the index of row 0 in the global batch
    total: int  # the number of examples in the global batch
    lengths: Tensor | None = None  # int64 [B] on the CPU; None: every row has T steps
    std: tuple[float, ...] = ()  # of each feature, over the training set; empty: not known

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; a copy from pinned memory does not wait."""
        if self.values.device.type == device.type:
            return self
        values = self.values.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return self._replace(values=values, labels=labels)

    def part(self, first: int, end: int) -> Batch:
        """Return rows `first` to `end`, such as a micro batch, cut to the longest of them."""
        rows = self._replace(values=self.values[first:end], labels=self.labels[first:end])
        if self.lengths is None:
            return rows
        longest, lengths = unequal_lengths(self.lengths[first:end])
        return rows._replace(values=rows.values[:, :longest], lengths=lengths)


def unequal_lengths(lengths: Tensor) -> tuple[int, Tensor | None]:
    """Return the longest length, and all lengths, or None in their place if they are equal."""
    longest = int(lengths.max())
    return longest, None if int(lengths.min()) == longest else lengths


@dataclass(frozen=True)
class Texts:
    """Many short texts, as one tensor of bytes."""

    content: Tensor  # uint8: the texts in UTF-8, one after the other
    offsets: Tensor  # int64 [N + 1]: where each text begins, and the last one ends

    def __getitem__(self, index: int) -> str:
        first, end = self.offsets[index : index + 2].tolist()
        return bytes(self.content[first:end].tolist()).decode()


@dataclass(frozen=True)
class Origins:
    """Where the examples of a prepared data set come from. An example is a row, or a part of it."""

    ids: Texts  # of the rows of the files
    files: tuple[str, ...]  # that were prepared
    sources: Tensor  # int32: the file of each row
    places: Texts  # of the rows: the line or number in the file
    rows: Tensor  # int64 [N]: the row of each example
    first_steps: Tensor  # int64 [N]: where in its row each example begins
    has_parts: bool  # whether an example is a window, or another part of a row

    def place(self, index: int) -> str:
        """Return where an example's row stood: its file, and the line or number in it."""
        row = int(self.rows[index])
        return self.files[int(self.sources[row])] + self.places[row]

    def select(self, ids: Tensor | slice) -> Origins:
        """Return the origins of the examples at these positions."""
        return replace(self, rows=self.rows[ids], first_steps=self.first_steps[ids])


@dataclass(frozen=True)
class Sequences:
    """N sequences of steps, their labels, and the meaning of the numbers.

    Images are one tensor [N, T, F]. Prepared data are the steps of all sequences one after the
    other, [S, F] (or tokens [S]), with the start and length of each sequence. Splits of prepared
    data share one tensor of values, which may be a file that is mapped into memory.
    """

    values: Tensor  # images stay uint8
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]

    scale: float = 1.0  # images: the model divides pixel values by this

    # Prepared data: the model subtracts mean and divides by std, per feature.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    num_tokens: int = 0  # values are token ids below this number; 0: values are features
    tokens: tuple[str, ...] = ()  # the names of token 1, 2 ...; empty if tokens are a text's bytes
    features: tuple[str, ...] = ()  # the names of the features
    reading: Reading | None = None  # how new files are read as those of the data set

    # Prepared data, int64 [N], on the CPU:
    starts: Tensor | None = None
    lengths: Tensor | None = None

    origins: Origins | None = None  # None: the data set knows no names of its examples

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

        A shorter sequence repeats its last step up to the longest.
        """
        if self.starts is None or self.lengths is None:
            if isinstance(ids, slice):
                return self.values[ids], None
            return self.values.index_select(0, ids.to(self.values.device, non_blocking=True)), None
        starts, lengths = self.starts[ids, None], self.lengths[ids]
        longest, lengths_if_unequal = unequal_lengths(lengths)
        steps = starts + torch.arange(longest).minimum(lengths[:, None] - 1)
        steps = steps.flatten().to(self.values.device, non_blocking=True)
        values = self.values.index_select(0, steps)
        return values.view(len(lengths), longest, *self.values.shape[1:]), lengths_if_unequal

    @property
    def shape(self) -> tuple[int, int]:
        """The steps of the longest sequence, and the features of a step (1 of tokens)."""
        if self.lengths is None:
            return self.values.shape[1], self.values.shape[2]
        return int(self.lengths.max()), math.prod(self.values.shape[1:])

    def name(self, index: int) -> str:
        """Return what people call an example: its id, and its steps if it is a part of a row."""
        if self.origins is None or self.lengths is None:
            return f"example {index}"
        row_id = self.origins.ids[int(self.origins.rows[index])]
        if not self.origins.has_parts:
            return row_id
        first = int(self.origins.first_steps[index])
        return f"{row_id}, steps {first + 1} to {first + int(self.lengths[index])}"

    def select(self, ids: Tensor) -> Sequences:
        """Return the examples at these positions, as a data set."""
        if self.starts is None or self.lengths is None:
            return replace(self, values=self.values[ids], labels=self.labels[ids])
        return replace(
            self,
            labels=self.labels[ids],
            starts=self.starts[ids],
            lengths=self.lengths[ids],
            origins=self.origins and self.origins.select(ids),
        )

    def will_need(self, first: int, end: int) -> None:
        """Have the kernel read the values of examples `first` to `end` before they are used."""
        if self.starts is not None:
            will_need(self.values, *self._steps_between(first, end))

    def drop(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Have the kernel forget the values of examples, in ranges like those of `will_need`."""
        if self.starts is not None:
            drop(self.values, [self._steps_between(first, end) for first, end in ranges])

    def _steps_between(self, first: int, end: int) -> tuple[int, int]:
        assert self.starts is not None
        assert self.lengths is not None
        return int(self.starts[first]), int(self.starts[end - 1] + self.lengths[end - 1])

    def title(self, index: int) -> str:
        """Return what a line or a page calls an example."""
        name = self.name(index)
        return name if self.origins is None else f"example '{quote(name)}'"

    def first(self, count: int) -> Sequences:
        """Return the first examples, at most `count`, as a data set."""
        return self.select(torch.arange(min(count, len(self))))

    def cut(self, max_length: int | None, keep: str) -> Sequences:
        """Return the sequences with no more than `max_length` steps, the first or the last."""
        if max_length is None or not len(self) or self.shape[0] <= max_length:
            return self
        if self.starts is None or self.lengths is None:
            steps = slice(max_length) if keep == "first" else slice(-max_length, None)
            return replace(self, values=self.values[:, steps])
        lengths = self.lengths.clamp(max=max_length)
        num_skipped = self.lengths - lengths if keep == "last" else 0
        origins = self.origins
        if origins is not None:
            origins = replace(origins, first_steps=origins.first_steps + num_skipped)
        return replace(self, starts=self.starts + num_skipped, lengths=lengths, origins=origins)

    def to(self, device: torch.device) -> Sequences:
        """Return the data set in a device's memory."""
        return replace(self, values=self.values.to(device), labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """Return a sha256 over everything of an image data set that a model sees."""
        header = (tuple(self.values.shape), str(self.values.dtype), self.classes, self.scale)
        digest = hashlib.sha256(repr(header).encode())
        for tensor in (self.values, self.labels):
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def spread_over_classes(labels: Tensor, count: int) -> Tensor:
    """Return at most `count` examples: the first of each class in turn, then the second of each.

    Of more classes than `count`, classes in equal distances have an example each.

    >>> spread_over_classes(torch.tensor([7, 7, 7, 2, 2, 5]), 5).tolist()
    [3, 5, 0, 4, 1]
    """
    labels = labels.cpu()
    by_class = labels.argsort(stable=True)
    _, sizes = labels[by_class].unique_consecutive(return_counts=True)
    firsts = sizes.cumsum(0) - sizes
    if len(sizes) > count:
        return by_class[firsts[torch.arange(count) * len(sizes) // count]]
    turns = torch.arange(len(labels)) - firsts.repeat_interleave(sizes)
    return by_class[turns.argsort(stable=True)[:count]]
