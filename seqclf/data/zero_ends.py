"""Sequences that end in steps of zeros, or begin so: they may be padded, and nobody has said so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

LEAST_STEPS = 2  # of zeros that follow each other; fewer may well be measured
LEAST_SHARE = 0.1  # of the sequences, for a note


class ZeroSides:
    """Looks at both ends of sequences."""

    def __init__(self) -> None:
        self.ends, self.starts = ZeroEnds(), ZeroEnds()

    def add(self, steps: object) -> None:
        """Look at a sequence; tokens and texts have no numbers that may be padding."""
        if isinstance(steps, np.ndarray) and steps.ndim == 2:
            self.ends.add(steps)
            self.starts.add(steps[::-1])

    def notes(self) -> Iterator[str]:
        """Yield what to say of the sequences."""
        if self.ends.is_padding:
            yield (
                f"{self.ends.counts} sequences end in steps that are all 0; is it padding? "
                "--pad-value 0 leaves it off"
            )
        if self.starts.is_padding:
            yield (
                f"{self.starts.counts} sequences begin with steps that are all 0; is it padding? "
                "docs/data.md has the lines that take it off"
            )


@dataclass
class ZeroEnds:
    """Counts the sequences that end in steps of zeros."""

    num_rows: int = 0
    num_ends: int = 0
    num_elsewhere: int = 0  # of those that end so: they have such steps before their end, too
    lengths: set[int] = field(default_factory=set)  # of two ends: padding has several

    def add(self, steps: np.ndarray) -> None:
        """Look at the end of a sequence [T, F]."""
        self.num_rows += 1
        if steps.item(-1) or len(steps) < LEAST_STEPS or steps[-LEAST_STEPS:].any():
            return  # the look at one number spares most sequences the others
        data = np.flatnonzero(steps.any(1))
        if not len(data):
            return  # A sequence of zeros alone has no end.
        self.num_ends += 1
        if len(self.lengths) < 2:
            self.lengths.add(len(steps) - int(data[-1]))
        # The steps before the first value, and those between two.
        gaps = np.diff(data, prepend=-1) - 1
        self.num_elsewhere += bool((gaps >= LEAST_STEPS).any())

    @property
    def counts(self) -> str:
        """How many of all sequences end so."""
        return f"{self.num_ends:,} of {self.num_rows:,}"

    @property
    def is_padding(self) -> bool:
        """Whether these zeros are padding, as it seems.

        Padding has several lengths. Where zeros are measured, as at rest or in counts of what is
        rare, most of these sequences have them before their end, too.
        """
        is_many = self.num_ends >= LEAST_SHARE * self.num_rows
        return is_many and len(self.lengths) == 2 and 2 * self.num_elsewhere <= self.num_ends
