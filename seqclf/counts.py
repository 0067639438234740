"""What the predictions of a file come to: how many, how many right, and which rows are bad."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from seqclf.data.readers.rows import BadRow
from seqclf.errors import printable
from seqclf.predict import Prediction

LISTED = 10  # bad rows that are named one by one


@dataclass
class Counts:
    """What the predictions of a file came to."""

    predicted: int = 0
    num_bad: int = 0
    # The first rows, while none is good and all have the same fault, which is said once.
    alike: list[BadRow] = field(default_factory=list)
    is_alike: bool = True
    # A file to predict may have labels, and they need not be classes of the model.
    labelled: int = 0
    hits: int = 0
    in_classes: int = 0
    unsure: int = 0  # decided at the end, where no class was as probable as it had to be
    unlabelled: int = 0  # not counting windows whose steps have not one label
    first_unlabelled: str = ""
    first_unknown: str = ""  # a label that is no class

    def add_bad(self, bad: BadRow) -> None:
        """Count a bad row, and name it: at once, as the file may be long."""
        if self.alike and bad.problem != self.alike[0].problem:
            self._name_alike()
        self.num_bad += 1
        if self.is_alike and self.num_bad > 1:
            self.alike += [bad] * (len(self.alike) < LISTED)
            return
        if self.is_alike:
            self.alike = [bad]
        if self.num_bad <= LISTED:
            print(printable(f"left out: {bad.where}: {bad.problem}"), file=sys.stderr)

    def _name_alike(self) -> None:
        """Name the rows that have not the fault of the whole file."""
        for bad in self.alike[1:]:
            print(printable(f"left out: {bad.where}: {bad.problem}"), file=sys.stderr)
        self.alike = []
        self.is_alike = False

    def finish(self) -> None:
        """Say how many rows had the same fault."""
        if self.is_alike and self.num_bad > 1:
            print(f"left out: {self.num_bad - 1:,} more, all for the same reason", file=sys.stderr)

    def add(self, prediction: Prediction, classes: tuple[str, ...]) -> None:
        """Count a prediction."""
        self._name_alike()
        self.predicted += 1
        self.unsure += not prediction.is_sure
        self.labelled += prediction.truth is not None
        self.hits += prediction.truth == classes[prediction.guess]
        if prediction.truth in classes:
            self.in_classes += 1
        else:
            self.first_unknown = self.first_unknown or prediction.truth or ""
        if prediction.truth is None and not prediction.part.is_undecided:
            self.unlabelled += 1
            self.first_unlabelled = self.first_unlabelled or prediction.id
