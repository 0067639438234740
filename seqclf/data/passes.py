"""Passes over the written values of a draft: tokens anew, gaps, mean and deviation, and notes.

A pass holds about CHUNK steps of the file in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqclf.data.draft import HEADER_BYTES, Draft, as_tensor
from seqclf.data.prepared import LEFT_OUT, VALUE_TYPES

MOST_VALUES = 10_000  # of a feature whose classes are compared
CHUNK = 2**18  # steps of the file that are in memory at once


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
    """Return mean and standard deviation of each feature over the steps of train.

    A value that is missing does not count, and becomes the mean.
    """
    if draft.kind != "vectors":
        return (), ()
    values = _map_values(path, draft, mode="r+")
    offsets = as_tensor(draft.offsets)
    count = np.zeros(draft.num_values)
    total = np.zeros(draft.num_values)
    for _, steps in _train_steps(values, offsets, splits):
        total += np.nansum(steps, 0, dtype=np.float64)
        count += len(steps) - np.isnan(steps).sum(0)
    count = np.maximum(count, 1)
    mean = total / count
    # A second pass, as the mean of squares minus the square of the mean would cancel.
    squares = np.zeros(draft.num_values)
    for _, steps in _train_steps(values, offsets, splits):
        squares += np.nansum((steps - mean) ** 2, 0)
    std = np.sqrt(squares / count)
    # A constant feature tells nothing, but its rounding errors would, divided by their deviation.
    std[std <= 1e-7 * np.abs(mean)] = 1.0
    if draft.has_gaps.any():
        for first in range(0, len(values), CHUNK):
            chunk = values[first : first + CHUNK]
            gaps = np.isnan(chunk)
            chunk[gaps] = np.broadcast_to(mean, chunk.shape)[gaps]
        values.flush()  # type: ignore[attr-defined]
    return tuple(mean.tolist()), tuple(std.tolist())


class FeatureFacts:
    """What the values of each feature have in common, over whole sequences. Shapes: F features."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.is_constant_F = np.ones(num_features, bool)  # within each sequence
        self.rises_F = np.ones(num_features, bool)  # from step to step, in each sequence
        self.low_CF = np.full((num_classes, num_features), np.inf)
        self.high_CF = np.full((num_classes, num_features), -np.inf)
        # Of features that are constant within each sequence: the class of each value, -1 if some.
        self.class_of: list[dict[float, int]] = [{} for _ in range(num_features)]
        self.num_sequences = 0

    def decides(self, feature: int) -> bool:
        """Whether a feature alone tells all classes apart."""
        classes = self.class_of[feature]
        if self.is_constant_F[feature] and 2 * len(classes) <= self.num_sequences:
            return len(classes) > 1 and min(classes.values()) >= 0
        return bool(self._has_ranges[feature])

    @property
    def _has_ranges(self) -> np.ndarray:
        """Whether each class has a range of its own, which no other class shares."""
        order_CF = self.low_CF.argsort(0)
        low_CF = np.take_along_axis(self.low_CF, order_CF, 0)
        high_CF = np.take_along_axis(self.high_CF, order_CF, 0)
        has_ranges: np.ndarray = np.all(high_CF[:-1] < low_CF[1:], axis=0)
        return has_ranges


def find_facts(path: Path, draft: Draft, labels: Tensor, splits: Tensor) -> FeatureFacts:
    """Read all values once more, and compare the features with sequences and classes."""
    values = _map_values(path, draft, mode="r")
    offsets = as_tensor(draft.offsets).numpy()
    kept = splits != LEFT_OUT
    facts = FeatureFacts(draft.num_features, int(labels[kept].max()) + 1)
    first = 0
    while first < len(labels):
        # As many whole sequences as fit; at least one.
        end = int(np.searchsorted(offsets, offsets[first] + CHUNK, side="right")) - 1
        end = min(max(end, first + 1), len(labels))
        chunk = np.asarray(values[offsets[first] : offsets[end], : draft.num_features])
        _look(
            facts,
            chunk,
            offsets[first : end + 1],
            labels[first:end].numpy(),
            kept[first:end].numpy(),
        )
        first = end
    return facts


def _look(
    facts: FeatureFacts,
    values_SF: np.ndarray,
    offsets: np.ndarray,
    labels: np.ndarray,
    kept: np.ndarray,
) -> None:
    """Take more sequences into the facts."""
    starts = offsets[:-1] - offsets[0]
    low_NF = np.minimum.reduceat(values_SF, starts)
    high_NF = np.maximum.reduceat(values_SF, starts)
    facts.is_constant_F &= (low_NF == high_NF).all(0)
    rises_SF = np.diff(values_SF, axis=0, prepend=-np.inf) > 0
    rises_SF[starts] = True  # A sequence may begin anywhere.
    facts.rises_F &= rises_SF.all(0)
    facts.num_sequences += int(kept.sum())
    for feature in np.flatnonzero(facts.is_constant_F).tolist():
        classes = facts.class_of[feature]
        if len(classes) <= MOST_VALUES:
            pairs = np.stack([low_NF[kept, feature].astype(float), labels[kept]], 1)
            for value, label in np.unique(pairs, axis=0).tolist():
                classes[value] = int(label) if classes.get(value, label) == label else -1
    np.minimum.at(facts.low_CF, labels[kept], low_NF[kept])
    np.maximum.at(facts.high_CF, labels[kept], high_NF[kept])
