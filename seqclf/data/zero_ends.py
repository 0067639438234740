"""Sequences that end in steps of zeros: they may be padded, and nobody has said so."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

LEAST_STEPS = 2  # of zeros that follow each other; fewer may well be measured
LEAST_SHARE = 0.1  # of the sequences, for a note


@dataclass
class ZeroEnds:
    """Counts the sequences that end in steps of zeros."""

    num_rows: int = 0
    num_ends: int = 0
    num_elsewhere: int = 0  # of those that end so: they have such steps before their end, too
    lengths: set[int] = field(default_factory=set)  # of two ends: padding has several

    def add(self, steps: object) -> None:
        """Look at a sequence; tokens and texts have no numbers that may be padding."""
        if not isinstance(steps, np.ndarray) or steps.ndim != 2:
            return
        self.num_rows += 1
        if len(steps) < LEAST_STEPS or steps[-LEAST_STEPS:].any():
            return
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
    def note(self) -> str | None:
        """What to say of the sequences; None if zeros are no padding as it seems.

        Padding has several lengths. Where zeros are measured, as at rest or in counts of what is
        rare, most of these sequences have them before their end, too.
        """
        is_many = self.num_ends >= LEAST_SHARE * self.num_rows
        if not is_many or len(self.lengths) < 2 or 2 * self.num_elsewhere > self.num_ends:
            return None
        return (
            f"{self.num_ends:,} of {self.num_rows:,} sequences end in steps that are all 0; is it "
            "padding? --pad-value 0 leaves it off"
        )
