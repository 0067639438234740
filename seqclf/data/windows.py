"""A row of a file -> the examples it makes: the whole row, windows of it, or a part a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from seqclf.data.readers.rows import Row
from seqclf.data.reading import Reading


class Part(NamedTuple):
    """A part of a row that makes an example."""

    first: int
    end: int
    label: str | None  # None: nobody labelled the row, or the part is undecided
    is_undecided: bool = False  # its steps have labels, or might have, but not one for the part


class Parts(NamedTuple):
    """The parts of a row, and what is in none of them."""

    parts: list[Part]
    num_lost: int = 0  # steps that are in no part
    lengths: tuple[int, ...] = ()  # of the stretches that were cut into windows: all, or of a label


@dataclass
class Cuts:
    """How rows were cut."""

    num_lost: int = 0  # steps that are in no part
    num_short: int = 0  # stretches that are shorter than a window, and so stay whole
    longest: int = 0  # the steps of the longest stretch

    def add(self, parts: Parts, reading: Reading) -> None:
        """Count the parts of a row."""
        self.num_lost += parts.num_lost
        self.num_short += sum(length < (reading.window or 0) for length in parts.lengths)
        self.longest = max(self.longest, *parts.lengths)

    def notes(self, reading: Reading) -> Iterator[str]:
        """Yield a line for steps in no window, and for windows or strides that are too long."""
        if self.num_lost:
            yield f"{self.num_lost:,} steps are in no window"
        if reading.window is None:
            return
        window, stride = reading.window, reading.stride
        unit = "stretch" if reading.on_label_change == "cut" else "sequence"
        if self.longest < window:
            longest = f"the longest has {self.longest:,}"
            yield f"no {unit} has {window:,} steps ({longest}): nothing was cut"
            return
        if stride is not None and self.longest < window + stride:
            yield (
                f"no {unit} has a second window: two windows of {window:,} steps, {stride:,} "
                f"apart, take {window + stride:,} steps, and the longest has {self.longest:,}"
            )
        if self.num_short:
            plural = ("es" if unit == "stretch" else "s") * (self.num_short > 1)
            yield (
                f"{self.num_short:,} {unit}{plural} shorter than a window of {window:,} steps: "
                "kept whole"
            )


def cut_into_parts(row: Row, reading: Reading) -> Parts:
    """Return the parts that a row makes, which do not depend on labels unless these cut it.

    Windows are all of one length; a row, or a stretch with a label of its own, that is shorter than
    a window is kept whole. A window has the label that most of its steps have.
    """
    labels = row.step_labels
    if labels is None and reading.window is None:  # as mostly, and so it has to be quick
        return Parts([Part(0, len(row.steps), row.label)], 0, (len(row.steps),))
    stretches = [(0, len(row.steps))]
    if labels is not None and reading.on_label_change == "cut":
        stretches = list(_stretches(labels))
    parts = []
    num_lost = 0
    for first, end in stretches:
        covered = first
        for window in _windows(first, end, reading):
            num_lost += max(0, window[0] - covered)
            covered = window[1]
            parts.append(_label(row, *window, reading))
        num_lost += end - covered
    return Parts(parts, num_lost, tuple(end - first for first, end in stretches))


def _stretches(labels: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where steps that follow each other with one label begin and end."""
    end = 0
    for _, members in groupby(labels):
        first, end = end, end + len(list(members))
        yield first, end


def _windows(first: int, end: int, reading: Reading) -> Iterator[tuple[int, int]]:
    """Yield where windows begin and end: all whole ones, or all steps if they are fewer."""
    window = reading.window
    if window is None or end - first <= window:
        yield first, end
        return
    for start in range(first, end - window + 1, reading.stride or window):
        yield start, start + window


def _label(row: Row, first: int, end: int, reading: Reading) -> Part:
    """Return a part of a row with its label."""
    if row.step_labels is None:
        return Part(first, end, row.label)
    labels = row.step_labels[first:end]
    if reading.on_label_change == "error":
        # One label alone may stand at some steps only.
        found = set(labels) - {""}
        label = found.pop() if len(found) == 1 else None
    else:
        label = _majority(labels, reading.min_share)
    return Part(first, end, label, is_undecided=label is None)


def _majority(labels: Sequence[str], min_share: float) -> str | None:
    """Return the label that most steps have; None if it is not one, or not of enough steps.

    Steps without a label count as a class of their own.
    """
    (label, count), *others = Counter(labels).most_common(2)
    if not label or (others and others[0][1] == count) or count < min_share * len(labels):
        return None
    return label
