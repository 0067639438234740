"""What is unlike the training data in sequences that are predicted: a line for each finding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from seqclf.data.notes import MOST_NAMED
from seqclf.data.passes import CONSTANT, SMALLEST
from seqclf.data.readers.rows import Row, count_of, quote
from seqclf.data.reading import Reading
from seqclf.data.zero_ends import ZeroSides
from seqclf.model import Architecture

# A sequence that is so many times longer or shorter than all training sequences is noted.
FAR_LENGTH = 2
# Values that are on average so many deviations of the training data from their mean are noted.
FAR_VALUES = 5
# And so are values that vary so many times less than those of training, in several sequences.
FLAT_VALUES = 100
LEAST_SEQUENCES = 5
FAR = "another unit, or another column?"
UNREAD = "the model does not read what training examples had one value of"


@dataclass
class _Values:
    """The values of each feature, as the model reads them. Shapes: T steps, F features."""

    num_sequences: int = 0
    num_steps: int = 0
    distances: np.ndarray = field(default_factory=lambda: np.zeros(1))  # sum, from the mean
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))  # of such distances with signs
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, values: Tensor, num_sequences: int, architecture: Architecture) -> None:
        """Look at the steps of several sequences, [S, F]. Only features have a mean."""
        num_features = min(len(architecture.mean), len(architecture.std))
        if not num_features or values.ndim != 2 or values.shape[1] != num_features:
            return
        distance_SF = np.subtract(values.numpy(), architecture.mean, dtype=np.float64)
        distance_SF /= architecture.std
        self.num_sequences += num_sequences
        self.num_steps += len(distance_SF)
        self.total = self.total + distance_SF.sum(0)
        self.squares = self.squares + np.einsum("sf,sf->f", distance_SF, distance_SF)
        self.distances = self.distances + np.abs(distance_SF, out=distance_SF).sum(0)

    def notes(self, architecture: Architecture) -> Iterator[str]:
        """Yield a line that names the features whose values are far from those of training."""
        if not self.num_steps:
            return
        reading = architecture.reading
        mean_F = self.total / self.num_steps
        std_F = np.sqrt(np.maximum(self.squares / self.num_steps - mean_F**2, 0))
        is_far_F = self.distances / self.num_steps > FAR_VALUES
        if self.num_sequences >= LEAST_SEQUENCES:
            # What is constant may be a switch that is off.
            is_far_F |= (std_F > 1e-6) & (std_F < 1 / FLAT_VALUES)
        in_training_F = np.array(architecture.std)
        changes_F = self.distances / self.num_steps * in_training_F
        is_unread_F = in_training_F == CONSTANT
        is_unread_F &= changes_F > np.maximum(1e-6 * np.abs(architecture.mean), SMALLEST)
        names = architecture.features or ("the values",) * len(mean_F)
        offset_F = np.array(reading.offset or np.zeros(len(mean_F)))
        found: dict[str, list[str]] = {UNREAD: [], FAR: []}
        for feature in np.flatnonzero(is_far_F | is_unread_F).tolist():
            if names[feature] in {f"{name} measured" for name in reading.measured}:
                continue
            mean, std = architecture.mean[feature], architecture.std[feature]
            offset = offset_F[feature] if feature < len(offset_F) else 0.0
            here = mean + mean_F[feature] * std + offset
            spread = "always" if is_unread_F[feature] else f"+- {std:.3g}"
            found[UNREAD if is_unread_F[feature] else FAR].append(
                f"{quote(names[feature])}: {here:.4g} +- {std_F[feature] * std:.3g} here, "
                f"{mean + offset:.4g} {spread} in training"
            )
        for question, features in found.items():
            more = f" and {len(features) - MOST_NAMED} more" * (len(features) > MOST_NAMED)
            if features:
                yield f"{'; '.join(features[:MOST_NAMED])}{more}; {question}"


@dataclass
class Tally:
    """What is unlike the training data in the sequences that were predicted."""

    num_long: int = 0
    num_short: int = 0
    first_id: str = ""  # of a sequence of such a length
    shortest: int = 0
    longest: int = 0
    largest: float = 0.0  # the largest number of all
    num_undecided: int = 0  # sequences whose steps have labels, but not one for the sequence
    num_uncut: int = 0  # rows without the labels that rows were cut by
    num_short_of_window: int = 0  # rows that are shorter than a window, and so stay whole
    zero_sides: ZeroSides = field(default_factory=ZeroSides)
    values: _Values = field(default_factory=_Values)

    def add_rows(self, rows: Sequence[Row], reading: Reading) -> None:
        """Look at rows of a file, before they are cut into windows."""
        for row in rows:
            if reading.window is not None and len(row.steps) < reading.window:
                self.num_short_of_window += 1
            if reading.on_label_change == "cut" and (row.label, row.step_labels) == (None, None):
                self.num_uncut += 1
            if reading.pad_value is None:
                self.zero_sides.add(row.steps)

    def notes(self, architecture: Architecture) -> Iterator[str]:
        """Yield a line for each finding."""
        unit = "windows" if architecture.reading.window else "sequences"
        if architecture.lengths is not None and (count := self.num_long + self.num_short):
            yield (
                f"{count:,} {unit} are of another length, {_range(self.shortest, self.longest)} "
                f"steps (such as '{quote(self.first_id)}'), than those of training, "
                f"{_range(*architecture.lengths)} steps; do not trust these predictions"
            )
        if architecture.scale > 1 and 0 < self.largest <= 1:
            yield (
                f"all pixels lie in 0 to 1, where the model was trained on 0 to "
                f"{architecture.scale:g}; multiply them by {architecture.scale:g}"
            )
        yield from self.values.notes(architecture)
        yield from self.zero_sides.notes()
        if self.num_short_of_window:
            yield (
                f"{count_of(self.num_short_of_window, 'sequence')} shorter than a window of "
                f"{architecture.reading.window:,} steps: kept whole"
            )
        if self.num_undecided:
            yield (
                f"{self.num_undecided:,} {unit} have no truth: no label stands at enough of their "
                "steps"
            )
        if self.num_uncut:
            yield (
                f"{self.num_uncut:,} sequences are not cut, as they have no labels: the training "
                "sequences were cut where the label changes"
            )

    def add(
        self, ids: Sequence[str], values: Tensor, lengths: Tensor, architecture: Architecture
    ) -> None:
        """Look at sequences: their ids, the steps of all of them, and how many each has."""
        self.values.add(values, len(ids), architecture)
        if architecture.scale > 1:
            self.largest = max(self.largest, float(values.max()))
        if architecture.lengths is None:
            return
        shortest, longest = architecture.lengths
        lengths_N = _lengths_as_read(values, lengths, architecture)
        is_long_N = lengths_N > FAR_LENGTH * longest
        is_short_N = FAR_LENGTH * lengths_N < shortest
        far_N = np.flatnonzero(is_long_N | is_short_N)
        if len(far_N):
            self.first_id = self.first_id or ids[far_N[0]]
            found_N = lengths_N[far_N].tolist()
            self.shortest = min(*found_N, self.shortest or found_N[0])
            self.longest = max(*found_N, self.longest)
            self.num_long += int(is_long_N.sum())
            self.num_short += int(is_short_N.sum())


def _lengths_as_read(values: Tensor, lengths: Tensor, architecture: Architecture) -> np.ndarray:
    """Return how many steps the model reads: an image's may be pixels, long sequences are cut."""
    lengths_N = lengths.numpy()
    if values.ndim == 2 and architecture.read == "columns":
        lengths_N = np.full_like(lengths_N, values.shape[1])
    elif values.ndim == 2 and architecture.read != "rows":
        lengths_N = lengths_N * values.shape[1]
    return (
        lengths_N
        if architecture.max_length is None
        else lengths_N.clip(max=architecture.max_length)
    )


def _range(shortest: int, longest: int) -> str:
    return f"{shortest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
