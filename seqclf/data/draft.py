"""A data set while `prepare` writes it: what it knows of the rows, and passes over their values.

A draft keeps a few numbers for each example. The values are in values.safetensors, and a pass over
them holds CHUNK steps at a time in memory.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqclf.data.prepared import SPLITS, VALUE_TYPES, Kind
from seqclf.data.readers.rows import BadRow, Row

HEADER_BYTES = 256  # of values.safetensors, before its numbers
CHUNK = 2**18  # steps of the file that are in memory at once


@dataclass
class Draft:
    """What `prepare` knows of the rows that it has written so far."""

    # The first row decides what all others must be:
    kind: Kind = "vectors"
    features: tuple[str, ...] | None = None
    num_features: int = 0

    # A number for each example (in arrays, which take a quarter of a list's memory):
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    labels: array[int] = field(default_factory=lambda: array("q"))
    splits: array[int] = field(default_factory=lambda: array("b"))  # -1: nobody names one
    groups: array[int] = field(default_factory=lambda: array("q"))  # empty: there are no groups

    # The names behind these numbers, which count up as the names come:
    class_ids: dict[str, int] = field(default_factory=dict)
    token_ids: dict[str, int] = field(default_factory=dict)  # from 1
    group_ids: dict[str, int] = field(default_factory=dict)

    first_seen: dict[int, str] = field(default_factory=dict)  # where each class came first
    bad_rows: list[BadRow] = field(default_factory=list)
    num_filled: int = 0
    num_rows: int = 0

    def find_problem(self, row: Row) -> str | None:
        """Return why a row cannot stand beside those before it, None if it can."""
        if not row.label:
            return "no label; give it one, or name its column with --label"
        if row.split is not None and row.split not in SPLITS:
            return f"split '{row.split}': expected train, val or test"
        if not self.num_rows:
            return None
        kind, num_features = _kind_and_features(row)
        if kind != self.kind:
            return f"{kind}, where the rows before are {self.kind}"
        if num_features != self.num_features:
            return f"{num_features} features, where rows before have {self.num_features}"
        # A file that names its features may stand beside one that does not.
        if row.features is not None and row.features != (self.features or row.features):
            return (
                f"features {', '.join(row.features)}, where rows before have "
                f"{', '.join(self.features or ())}"
            )
        return None

    def add(
        self,
        row: Row,
        split: str | None,
        *,
        windows: Sequence[tuple[int, int]],
        has_groups: bool,
    ) -> np.ndarray:
        """Add a row, as an example for each window (its first step and its end); return its values.

        A row that names no group is a group of its own, if others name one or `has_groups` is set:
        then the windows of a row stay in one split.
        """
        if not self.num_rows:
            self.kind, self.num_features = _kind_and_features(row)
            self.features = row.features
        label = self.class_ids.setdefault(row.label or "", len(self.class_ids))
        self.first_seen.setdefault(label, row.where)
        if row.group is not None or has_groups or self.group_ids:
            # The first row that names a group may come late.
            for number in range(len(self.groups), len(self.labels)):
                self._add_to_group(f"\0{number}", 1)
            # No name in a file has a control character, so this one is free.
            self._add_to_group(row.group or f"\0{self.num_rows}", len(windows))
        for first, end in windows:
            self.offsets.append(self.offsets[-1] + end - first)
            self.labels.append(label)
            self.splits.append(SPLITS.index(split) if split else -1)
        self.num_filled += row.filled
        self.num_rows += 1
        values = row.steps
        if isinstance(values, tuple):
            ids = self.token_ids
            values = np.array([ids.setdefault(token, len(ids) + 1) for token in values])
        return np.ascontiguousarray(values, VALUE_TYPES[self.kind].numpy_dtype)

    def _add_to_group(self, name: str, count: int) -> None:
        group = self.group_ids.setdefault(name, len(self.group_ids))
        self.groups.extend([group] * count)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all values."""
        num_steps = self.offsets[-1]
        return (num_steps, self.num_features) if self.kind == "vectors" else (num_steps,)

    def header(self) -> bytes:
        """Return the HEADER_BYTES that make values.safetensors of the values."""
        types = VALUE_TYPES[self.kind]
        num_bytes = int(np.prod(self.shape)) * np.dtype(types.numpy_dtype).itemsize
        tensor = {
            "dtype": types.safetensors_dtype,
            "shape": self.shape,
            "data_offsets": [0, num_bytes],
        }
        text = json.dumps({"values": tensor}).encode().ljust(HEADER_BYTES - 8)
        return len(text).to_bytes(8, "little") + text


def _kind_and_features(row: Row) -> tuple[Kind, int]:
    if isinstance(row.steps, tuple):
        return "tokens", 0
    return ("text", 0) if row.steps.ndim == 1 else ("vectors", row.steps.shape[1])


def as_tensor(numbers: array[int]) -> Tensor:
    """Return numbers of a draft as a tensor of their own width."""
    return torch.from_numpy(np.array(numbers))


def _map_values(path: Path, draft: Draft, *, mode: str) -> np.ndarray:
    dtype = np.dtype(VALUE_TYPES[draft.kind].numpy_dtype)
    values: np.ndarray = np.memmap(path, dtype, mode, HEADER_BYTES, draft.shape)  # type: ignore[call-overload]
    return values


def _train_steps(
    values: np.ndarray, offsets: Tensor, splits: Tensor
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ranges of steps in the file, each with those of its steps that are in train."""
    for first in range(0, len(values), CHUNK):
        chunk = slice(first, min(first + CHUNK, len(values)))
        examples = (
            torch.searchsorted(offsets, torch.arange(chunk.start, chunk.stop), right=True) - 1
        )
        yield chunk, np.asarray(values[chunk])[(splits[examples] == 0).numpy()]


def number_tokens(path: Path, draft: Draft, splits: Tensor) -> tuple[str, ...]:
    """Number the tokens that occur in train anew, by name, and all others 0; return the names."""
    if draft.kind != "tokens":
        return ()
    values = _map_values(path, draft, mode="r+")
    offsets = as_tensor(draft.offsets)
    is_in_train = np.zeros(len(draft.token_ids) + 1, bool)
    for _, steps in _train_steps(values, offsets, splits):
        is_in_train[steps] = True
    names = tuple(sorted(name for name, token in draft.token_ids.items() if is_in_train[token]))
    new_ids = np.zeros(len(is_in_train), values.dtype)
    for number, name in enumerate(names, 1):
        new_ids[draft.token_ids[name]] = number
    for chunk, _ in _train_steps(values, offsets, splits):
        values[chunk] = new_ids[values[chunk]]
    values.flush()  # type: ignore[attr-defined]
    return names


def measure_features(
    path: Path, draft: Draft, splits: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each feature over the steps of train."""
    if draft.kind != "vectors":
        return (), ()
    values = _map_values(path, draft, mode="r")
    offsets = as_tensor(draft.offsets)
    count = 0
    total = np.zeros(draft.num_features)
    for _, steps in _train_steps(values, offsets, splits):
        total += steps.sum(0, dtype=np.float64)
        count += len(steps)
    mean = total / max(count, 1)
    # A second pass, as the mean of squares minus the square of the mean would cancel.
    squares = np.zeros(draft.num_features)
    for _, steps in _train_steps(values, offsets, splits):
        squares += ((steps - mean) ** 2).sum(0)
    std = np.sqrt(squares / max(count, 1))
    # A constant feature tells nothing, but its rounding errors would, divided by their deviation.
    std[std <= 1e-7 * np.abs(mean)] = 1.0
    return tuple(mean.tolist()), tuple(std.tolist())
