"""A data set while `prepare` writes it: what is known of its rows, and the files of their values.

A draft keeps a few numbers and the id of each row. The values go to their files, a block of many
rows at a time.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.data.mapping import Piece
from seqclf.data.prepared import SPLITS, VALUE_TYPES, Kind
from seqclf.data.readers.rows import BadRow, Row, count_of, quote
from seqclf.data.reading import Reading
from seqclf.data.values_file import ValuesFile
from seqclf.data.windows import Cuts, cut_into_parts
from seqclf.data.zero_ends import ZeroSides

BLOCK = 2**16  # numbers that are written at once; more do not fit into the cache of a core
# float32 keeps 24 bits of a number. A feature that needs more than this share of its range for the
# rounding, as times near 1e9 do, is stored without an offset in float64.
LARGEST_ROUNDING = 2**-14


class Adjustment(NamedTuple):
    """What a first reading of the files finds that a second one must do with the numbers."""

    offset: tuple[float, ...] = ()  # to take off each feature in float64; empty: nothing
    measured: tuple[int, ...] = ()  # features that get a 0/1 feature: was it measured?

    def apply(self, row: Row) -> np.ndarray:
        """Return a row's numbers [T, F] with the features that are added to them."""
        assert isinstance(row.steps, np.ndarray)
        steps_TF = row.steps
        if self.offset:
            steps_TF = steps_TF.astype(np.float64) - self.offset
        if not self.measured:
            return steps_TF
        num_steps = len(steps_TF)
        is_measured_TF = np.ones((num_steps, len(self.measured)))
        if row.measured is not None:
            is_measured_TF = row.measured[:, list(self.measured)]
        return np.hstack([steps_TF, is_measured_TF])


@dataclass
class TextsDraft:
    """Texts while they come, one after the other."""

    content: bytearray = field(default_factory=bytearray)
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))

    def add(self, text: str) -> None:
        """Add a text."""
        self.content += text.encode("utf-8", "backslashreplace")
        self.offsets.append(len(self.content))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return the texts as bytes, and where each begins and the last one ends."""
        content = np.frombuffer(bytes(self.content), np.uint8).copy()
        return torch.from_numpy(content), as_tensor(self.offsets)


@dataclass
class Draft:
    """What `prepare` knows of the rows that it has written so far."""

    file: ValuesFile
    reading: Reading
    adjustment: Adjustment
    keeps_groups: bool = False  # parts of a row, or rows of a group, must stay together

    # The first row decides what all others must be:
    kind: Kind = "vectors"
    features: tuple[str, ...] | None = None
    num_features: int = 0

    # A number for each example (in arrays, which take a quarter of a list's memory):
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    labels: array[int] = field(default_factory=lambda: array("q"))
    splits: array[int] = field(default_factory=lambda: array("b"))  # -1: nobody names one
    groups: array[int] = field(default_factory=lambda: array("q"))  # empty: there are no groups
    rows: array[int] = field(default_factory=lambda: array("q"))
    first_steps: array[int] = field(default_factory=lambda: array("q"))

    # The names behind these numbers, which count up as the names come:
    class_ids: dict[str, int] = field(default_factory=dict)
    token_ids: dict[str, int] = field(default_factory=dict)  # from 1
    group_ids: dict[str, int] = field(default_factory=dict)

    ids: TextsDraft = field(default_factory=TextsDraft)  # of the rows
    places: TextsDraft = field(default_factory=TextsDraft)  # of the rows, within their files
    sources: array[int] = field(default_factory=lambda: array("i"))  # the file of each row

    first_seen: dict[int, str] = field(default_factory=dict)  # where each class came first
    bad_rows: list[BadRow] = field(default_factory=list)
    num_filled: int = 0  # missing values between or beside others of their feature
    num_unmeasured: int = 0  # missing values of features without any value in their sequence
    num_padding: int = 0
    num_undecided: int = 0  # parts whose steps have not one label
    cuts: Cuts = field(default_factory=Cuts)
    zero_sides: ZeroSides = field(default_factory=ZeroSides)
    num_rows: int = 0
    pieces: list[Piece] = field(default_factory=list)  # of the files, once they are finished

    # Of each feature, over all values so far, before the adjustment:
    low: np.ndarray = field(default_factory=lambda: np.array(np.inf))
    high: np.ndarray = field(default_factory=lambda: np.array(-np.inf))
    has_gaps: np.ndarray = field(default_factory=lambda: np.array(False))

    _block: list[np.ndarray] = field(default_factory=list)
    _block_size: int = 0

    def find_problem(self, row: Row, split: str | None) -> str | None:
        """Return why a row cannot stand beside those before it, None if it can.

        `split` is the one that the row's whole file belongs to, if the user names one.
        """
        if not row.label and row.step_labels is None:
            return "no label; give it one, or name its column with --label"
        if row.split is not None and row.split not in SPLITS:
            name = quote(row.split)
            return f"split '{name}': expected train, val or test; --drop leaves its column out"
        if row.split is not None and split not in (None, row.split):
            return f"split '{row.split}', but --{split} names this file; name it without --{split}"
        if not self.num_rows:
            return None
        kind, num_features = _kind_and_features(row)
        if kind != self.kind:
            return f"{kind}, where the rows before are {self.kind}"
        if num_features != self.num_features:
            return (
                f"{count_of(num_features, 'feature')}, where rows before have {self.num_features}"
            )
        # A file that names its features may stand beside one that does not.
        if row.features is not None and row.features != (self.features or row.features):
            return (
                f"features {quote(', '.join(row.features))}, where rows before have "
                f"{quote(', '.join(self.features or ()))}"
            )
        return None

    def add(self, row: Row, split: str | None, *, source: int, file_name: str) -> None:
        """Add a row of the file that is number `source`, as an example for each of its parts.

        A row that names no group is a group of its own, if others name one or if parts of a row
        must stay in one split.
        """
        if not self.num_rows:
            self.kind, self.num_features = _kind_and_features(row)
            self.features = row.features
        found = cut_into_parts(row, self.reading)
        self.cuts.add(found, self.reading)
        parts = [part for part in found.parts if not part.is_undecided]
        if row.group is not None or self.keeps_groups or self.group_ids:
            # The first row that names a group may come late.
            for number in range(len(self.groups), len(self.labels)):
                self._add_to_group(f"\0{number}", 1)
            # No name in a file has a control character, so this one is free.
            self._add_to_group(row.group or f"\0{self.num_rows}", len(parts))
        values = self._values_of(row)
        for part in parts:
            assert part.label  # find_problem refuses a row without one
            label = self.class_ids.setdefault(part.label, len(self.class_ids))
            self.first_seen.setdefault(label, row.where)
            self.offsets.append(self.offsets[-1] + part.end - part.first)
            self.labels.append(label)
            self.splits.append(SPLITS.index(split) if split else -1)
            self.rows.append(self.num_rows)
            self.first_steps.append(part.first)
            self._write(values[part.first : part.end])
        self.ids.add(row.id)
        # Without the name of the file: the same data are the same data set wherever they lie.
        self.places.add(row.where.removeprefix(file_name))
        self.sources.append(source)
        num_unmeasured = _count_unmeasured(row)
        self.num_filled += row.filled - num_unmeasured
        self.num_unmeasured += num_unmeasured
        self.num_padding += row.padding
        self.num_undecided += len(found.parts) - len(parts)
        if self.reading.pad_value is None:
            self.zero_sides.add(row.steps)
        self.num_rows += 1

    def _values_of(self, row: Row) -> np.ndarray:
        """Return a row's values as the file has them, but for their type."""
        if isinstance(row.steps, tuple):
            ids = self.token_ids
            return np.array([ids.setdefault(token, len(ids) + 1) for token in row.steps])
        if self.kind == "text":
            return row.steps
        if row.measured is not None:
            self.has_gaps = self.has_gaps | ~row.measured.all(0)
        return self.adjustment.apply(row)

    def _add_to_group(self, name: str, count: int) -> None:
        group = self.group_ids.setdefault(name, len(self.group_ids))
        self.groups.extend([group] * count)

    def _write(self, values: np.ndarray) -> None:
        self._block.append(values)
        self._block_size += values.size
        if self._block_size >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write the values that wait."""
        if not self._block:
            return
        values = np.concatenate(self._block)
        self._block = []
        self._block_size = 0
        if self.kind == "vectors":
            # numpy is many times as fast where the numbers of a feature follow each other.
            values_FS = np.ascontiguousarray(values.T)
            self.low = np.fmin(self.low, np.fmin.reduce(values_FS, 1))
            self.high = np.fmax(self.high, np.fmax.reduce(values_FS, 1))
        self.file.write(values.astype(VALUE_TYPES[self.kind].numpy_dtype))

    def finish(self) -> None:
        """Write the values that wait, and the header of each file."""
        self.flush()
        types = VALUE_TYPES[self.kind]
        itemsize = np.dtype(types.numpy_dtype).itemsize
        self.pieces = self.file.finish(types.safetensors_dtype, self.shape[1:], itemsize)

    def find_adjustment(self, *, adds_measured: bool) -> Adjustment:
        """Return what a second reading must do, an empty Adjustment if none is needed."""
        if self.kind != "vectors":
            return Adjustment()
        low, high = (np.broadcast_to(edge, self.num_features) for edge in (self.low, self.high))
        # A feature without any value, or with one value alone, has no range.
        width = np.where(high > low, high, 0.0) - np.where(high > low, low, 0.0)
        rounding = np.maximum(np.abs(low), np.abs(high)) * 2.0**-24
        is_far = (width > 0) & (rounding > LARGEST_ROUNDING * width)
        middle = np.where(is_far, low, 0.0) + np.where(is_far, width / 2, 0.0)
        gaps = np.flatnonzero(np.broadcast_to(self.has_gaps, self.num_features))
        return Adjustment(
            tuple(middle.tolist()) if is_far.any() else (),
            tuple(gaps.tolist()) if adds_measured else (),
        )

    @property
    def num_values(self) -> int:
        """The numbers of a step, with the features that the adjustment adds."""
        return self.num_features + len(self.adjustment.measured)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all values."""
        num_steps = self.offsets[-1]
        return (num_steps, self.num_values) if self.kind == "vectors" else (num_steps,)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of all features."""
        names = self.features or tuple(f"feature {number}" for number in range(self.num_features))
        return (*names, *(f"{names[index]} measured" for index in self.adjustment.measured))


def _kind_and_features(row: Row) -> tuple[Kind, int]:
    if isinstance(row.steps, tuple):
        return "tokens", 0
    return ("text", 0) if row.steps.ndim == 1 else ("vectors", row.steps.shape[1])


def _count_unmeasured(row: Row) -> int:
    """Return how many values of a row no reader could fill: all of a feature are missing."""
    if row.measured is None or not isinstance(row.steps, np.ndarray):
        return 0
    return int(np.isnan(row.steps).sum())


def as_tensor(numbers: array[int]) -> Tensor:
    """Return numbers of a draft as a tensor of their own width."""
    return torch.from_numpy(np.array(numbers))
