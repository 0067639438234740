"""Passes over the written values of a draft: tokens anew, gaps, mean and deviation, and notes.

A pass holds a chunk of the file in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from seqclf.data.draft import Draft, as_tensor
from seqclf.data.mapping import map_pieces
from seqclf.data.prepared import LEFT_OUT, VALUE_TYPES

MOST_VALUES = 10_000  # of a feature whose classes are compared
MOST_STEPS, MOST_NUMBERS = 2**18, 2**24  # of the file that are in memory at once
SMALLEST = float(np.finfo(np.float32).tiny)  # training counts smaller numbers as 0
CONSTANT = 1e30  # for the deviation of a constant feature: a model reads it as 0 ever after
CHANCE = 0.05  # of a finding that is none, among all features


def _map_values(draft: Draft, *, writable: bool = False) -> np.ndarray:
    dtype = VALUE_TYPES[draft.kind].numpy_dtype
    return map_pieces(draft.pieces, dtype, draft.shape, writable=writable)


def _chunks(values: np.ndarray) -> Iterator[slice]:
    """Yield ranges of steps, one after the other."""
    size = min(MOST_STEPS, max(1, MOST_NUMBERS * len(values) // max(1, values.size)))
    for first in range(0, len(values), size):
        yield slice(first, min(first + size, len(values)))


def _train_steps(
    values: np.ndarray, offsets: Tensor, splits: Tensor
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ranges of steps in the file, each with those of its steps that are in train."""
    edges = offsets.numpy()
    is_train = (splits == 0).numpy()
    for chunk in _chunks(values):
        first = np.searchsorted(edges, chunk.start, side="right") - 1
        end = np.searchsorted(edges, chunk.stop)
        num_steps = np.diff(edges[first : end + 1].clip(chunk.start, chunk.stop))
        yield chunk, np.asarray(values[chunk])[np.repeat(is_train[first:end], num_steps)]


def number_tokens(draft: Draft, splits: Tensor) -> tuple[str, ...]:
    """Number the tokens that occur in train anew, by name, and all others 0; return the names."""
    if draft.kind != "tokens":
        return ()
    values = _map_values(draft, writable=True)
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
    return names


def _sum(steps_SF: np.ndarray) -> np.ndarray:
    """Return the sum of each feature over all steps, without missing values."""
    # np.nansum() copies all numbers, which takes long, and most chunks have no gap.
    add = np.nansum if np.isnan(steps_SF).any() else np.sum
    return np.asarray(add(steps_SF, 0, dtype=np.float64))


def measure_features(draft: Draft, splits: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each feature over the steps of train.

    A value that is missing does not count, and becomes the mean.
    """
    if draft.kind != "vectors":
        return (), ()
    values = _map_values(draft, writable=True)
    offsets = as_tensor(draft.offsets)
    count = np.zeros(draft.num_values)
    total = np.zeros(draft.num_values)
    for _, steps in _train_steps(values, offsets, splits):
        total += _sum(steps)
        count += len(steps)
        if np.isnan(steps).any():
            count -= np.isnan(steps).sum(0)
    count = np.maximum(count, 1)
    mean = total / count
    # A second pass, as the mean of squares minus the square of the mean would cancel.
    squares = np.zeros(draft.num_values)
    for _, steps in _train_steps(values, offsets, splits):
        squares += _sum((steps - mean) ** 2)
    std = np.sqrt(squares / count)
    # A constant feature tells nothing, but its rounding errors would, divided by their deviation;
    # and another value would meet weights that no example has trained.
    std[(std <= 1e-7 * np.abs(mean)) | (std < SMALLEST)] = CONSTANT
    if draft.has_gaps.any():
        for chunk in _chunks(values):
            gaps = np.isnan(values[chunk])
            if gaps.any():
                values[chunk][gaps] = np.broadcast_to(mean, gaps.shape)[gaps]
    return tuple(mean.tolist()), tuple(std.tolist())


class FeatureFacts:
    """What the values of each feature have in common, over whole sequences. Shapes: F features."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        self._is_constant_F = np.ones(num_features, bool)  # within each sequence
        self._rises_F = np.ones(num_features, bool)  # from step to step, in each sequence
        self._low_CF = np.full((num_classes, num_features), np.inf)
        self._high_CF = np.full((num_classes, num_features), -np.inf)
        # Of features that are constant within each sequence: the class of each value, -1 if some.
        self._class_of: list[dict[float, int]] = [{} for _ in range(num_features)]
        self._sizes_C = np.zeros(num_classes)  # sequences of each class
        self._log_orders = 0.0  # log of the number of orders that all steps could have

    @property
    def constant(self) -> list[int]:
        """The features that are constant within each sequence."""
        indices: list[int] = np.flatnonzero(self._is_constant_F).tolist()
        return indices

    @property
    def too_small(self) -> list[int]:
        """The features that differ by less than float32 tells from 0, but differ."""
        spread_F = self._high_CF.max(0, initial=-np.inf) - self._low_CF.min(0, initial=np.inf)
        indices: list[int] = np.flatnonzero((spread_F > 0) & (spread_F < SMALLEST)).tolist()
        return indices

    @property
    def rising(self) -> list[int]:
        """The features that rise in each sequence, if this is no chance."""
        is_chance = self._is_chance(-self._log_orders)
        return [] if is_chance else np.flatnonzero(self._rises_F).tolist()

    @property
    def decisive(self) -> list[int]:
        """The features that tell all classes apart alone, if this is no chance."""
        # The share of all orders of the sequences in which each class has a range of its own.
        sizes = [*self._sizes_C.tolist(), len(self._sizes_C)]
        log_share = sum(math.lgamma(size + 1) for size in sizes)
        is_chance = self._is_chance(log_share - math.lgamma(self._sizes_C.sum() + 1))
        order_CF = self._low_CF.argsort(0)
        low_CF = np.take_along_axis(self._low_CF, order_CF, 0)
        high_CF = np.take_along_axis(self._high_CF, order_CF, 0)
        has_ranges_F = np.all(high_CF[:-1] < low_CF[1:], axis=0)
        return [
            feature
            for feature in range(len(has_ranges_F))
            if self._has_codes(feature) or (has_ranges_F[feature] and not is_chance)
        ]

    def _has_codes(self, feature: int) -> bool:
        """Whether few values each stand for a class."""
        classes = self._class_of[feature]
        are_few = len(classes) <= min(MOST_VALUES, self._sizes_C.sum() / 2)
        is_code = bool(self._is_constant_F[feature]) and are_few and len(classes) > 1
        return is_code and min(classes.values()) >= 0

    def _is_chance(self, log_share: float) -> bool:
        """Whether some feature may well show what so small a share of random features shows."""
        return log_share + math.log(len(self._is_constant_F)) > math.log(CHANCE)

    def add(self, values_SF: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> None:
        """Look at sequences, which are all the steps between offsets."""
        starts = offsets[:-1] - offsets[0]
        low_NF = np.minimum.reduceat(values_SF, starts)
        high_NF = np.maximum.reduceat(values_SF, starts)
        self._is_constant_F &= (low_NF == high_NF).all(0)
        rises_SF = np.diff(values_SF, axis=0, prepend=-np.inf) > 0
        rises_SF[starts] = True  # A sequence may begin anywhere.
        self._rises_F &= rises_SF.all(0)
        lengths, counts = np.unique(np.diff(offsets), return_counts=True)
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            self._log_orders += count * math.lgamma(length + 1)
        self._sizes_C += np.bincount(labels, minlength=len(self._sizes_C))
        np.minimum.at(self._low_CF, labels, low_NF)
        np.maximum.at(self._high_CF, labels, high_NF)
        for feature in self.constant:
            if len(self._class_of[feature]) <= MOST_VALUES:
                self._add_codes(feature, low_NF[:, feature], labels)

    def _add_codes(self, feature: int, values_N: np.ndarray, labels: np.ndarray) -> None:
        values, inverse = np.unique(values_N, return_inverse=True)
        lowest = np.full(len(values), labels.max())
        highest = np.zeros_like(lowest)
        np.minimum.at(lowest, inverse, labels)
        np.maximum.at(highest, inverse, labels)
        found = np.where(lowest == highest, lowest, -1).tolist()
        classes = self._class_of[feature]
        for value, label in zip(values.tolist(), found, strict=True):
            classes[value] = label if classes.get(value, label) == label else -1


def find_facts(draft: Draft, labels: Tensor, splits: Tensor) -> FeatureFacts:
    """Read all values once more, and compare the features with sequences and classes."""
    values = _map_values(draft)
    offsets = as_tensor(draft.offsets).numpy()
    kept = (splits != LEFT_OUT).numpy()
    labels_N = labels.numpy()
    facts = FeatureFacts(draft.num_features, int(labels_N[kept].max()) + 1)
    num_steps = min(MOST_STEPS, max(1, MOST_NUMBERS // draft.num_values))
    first = 0
    while first < len(kept):
        if not kept[first]:
            first += 1
            continue
        # As many whole sequences as fit, up to one that is left out; at least one.
        end = int(np.searchsorted(offsets, offsets[first] + num_steps, side="right")) - 1
        end = min(max(end, first + 1), len(kept))
        end = first + int(np.argmin(np.append(kept[first:end], False)))
        chunk = np.asarray(values[offsets[first] : offsets[end], : draft.num_features])
        facts.add(chunk, offsets[first : end + 1], labels_N[first:end])
        first = end
    return facts
