"""A row of a file -> the examples it makes: the whole row, windows of it, or a part a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from seqclf.data.readers.rows import Row
from seqclf.data.reading import Reading


class Part(NamedTuple):
    """A part of a row that makes an example."""

    first: int
    end: int
    label: str | None


class Parts(NamedTuple):
    """The parts of a row, and what is in none of them."""

    parts: list[Part]
    num_undecided: int = 0  # windows without a label that enough of their steps have
    num_lost: int = 0  # steps that are in no window


def cut_into_parts(row: Row, reading: Reading) -> Parts:
    """Return the examples that a row makes.

    Windows are all of one length; a row, or a part with a label of its own, that is shorter than a
    window is kept whole. A window has the label that most of its steps have.
    """
    labels = row.step_labels
    stretches: list[Part] = [Part(0, len(row.steps), row.label)]
    if labels is not None and reading.on_label_change == "cut":
        stretches = list(_stretches(labels))
        labels = None
    parts = []
    num_undecided = 0
    num_lost = 0
    for stretch in stretches:
        if labels is None and row.step_labels is not None and stretch.label is None:
            num_lost += stretch.end - stretch.first
            continue
        last_end = stretch.first
        for first, end in _windows(stretch, reading):
            num_lost += max(0, first - last_end)
            last_end = end
            label = stretch.label
            if labels is not None:
                label = _majority(labels[first:end], reading.min_share)
                if label is None:
                    num_undecided += 1
                    continue
            parts.append(Part(first, end, label))
        num_lost += stretch.end - last_end
    return Parts(parts, num_undecided, num_lost)


def _stretches(labels: Sequence[str]) -> Iterator[Part]:
    """Yield the steps that follow each other with one label."""
    for label, members in groupby(enumerate(labels), key=lambda member: member[1]):
        steps = [step for step, _ in members]
        yield Part(steps[0], steps[-1] + 1, label or None)


def _windows(part: Part, reading: Reading) -> Iterator[tuple[int, int]]:
    """Yield where windows begin and end: all whole ones, or the part if it is shorter."""
    window = reading.window
    if window is None or part.end - part.first <= window:
        yield part.first, part.end
        return
    for first in range(part.first, part.end - window + 1, reading.stride or window):
        yield first, first + window


def _majority(labels: Sequence[str], min_share: float) -> str | None:
    """Return the label that most steps have; None if it is not one, or not of enough steps."""
    counts = Counter(label for label in labels if label).most_common(2)
    if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
        return None
    label, count = counts[0]
    return label if count >= min_share * len(labels) else None
