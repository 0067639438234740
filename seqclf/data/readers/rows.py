"""What all readers share: rows, options, numbers, gaps, names, and the lines of a text file."""

from __future__ import annotations

import codecs
import math
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqclf.errors import UserError

STDIN = Path("-")
LONGEST_LINE = 2**28  # bytes
LONGEST_NAME = 200  # characters of a label, split, group or id
LONGEST_QUOTE = 40  # characters of a file's own text in a message
MISSING = frozenset({"", "?", "nan", "na", "n/a", "null", "none"})  # cells without a value
SPECIAL = ("id", "time", "label", "group", "split")  # columns that are no features

Progress = Callable[[int], object]  # takes the number of bytes that a reader has just read


class Row(NamedTuple):
    """A sequence from a file."""

    id: str
    steps: np.ndarray | tuple[str, ...]  # float32 [T, F]; a text's bytes, uint8 [T]; or tokens
    where: str  # the file, and the line or index in it, for messages
    label: str | None = None
    split: str | None = None
    group: str | None = None
    features: tuple[str, ...] | None = None  # the names of the features, if the file has names
    filled: int = 0  # the number of missing values that were filled


class BadRow(NamedTuple):
    """A sequence that cannot be used."""

    where: str
    problem: str


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file."""

    # The names of columns (or keys of JSON objects) with a meaning of their own:
    id: str | None = None
    time: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None

    labels: Path | None = None  # a file with the labels of an .npy file
    fill_missing: bool = False


class RowError(Exception):
    """A sequence cannot be used; `step` and `feature` tell where in it the problem is."""

    def __init__(self, problem: str, step: int | None = None, feature: int = 0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.has_position = step is not None
        self.step = step or 0
        self.feature = feature

    def message(self, position: str | None = None) -> str:
        """Return the problem, after its position in the sequence if it has one."""
        position = position or f"step {self.step + 1}, feature {self.feature + 1}"
        return f"{position}: {self.problem}" if self.has_position else self.problem


def finish_steps(values_TF: np.ndarray, *, fill_missing: bool) -> tuple[np.ndarray, int]:
    """Return float32 [T, F] without gaps, and the number of gaps. Raises RowError.

    A gap gets the value on the line between its neighbours in time, at the ends the nearest value.
    """
    if values_TF.dtype.kind not in "fiub":
        raise RowError(f"{values_TF.dtype}, where numbers are expected")
    if values_TF.ndim == 1:
        values_TF = values_TF[:, None]
    if values_TF.ndim != 2:
        raise RowError(f"shape {values_TF.shape}, where steps x features are expected")
    if not values_TF.size:
        raise RowError("an empty sequence")
    with np.errstate(over="ignore"):
        steps_TF = values_TF.astype(np.float32)
    not_finite_TF = ~np.isfinite(steps_TF)
    if not not_finite_TF.any():
        return steps_TF, 0
    gaps_TF = np.isnan(steps_TF)
    infinite = np.argwhere(not_finite_TF & ~gaps_TF)
    if len(infinite):
        step, feature = infinite[0].tolist()
        value = values_TF[step, feature]
        limit = "is not finite" if np.isinf(value) else "is too large for float32"
        raise RowError(f"{value} {limit}", step, feature)
    if not fill_missing:
        step, feature = np.argwhere(gaps_TF)[0].tolist()
        raise RowError("a missing value; --fill-missing fills such gaps", step, feature)
    steps_T = np.arange(len(steps_TF))
    for feature in np.flatnonzero(gaps_TF.any(0)).tolist():
        measured = np.flatnonzero(~gaps_TF[:, feature])
        if not len(measured):
            raise RowError("all values are missing", 0, feature)
        steps_TF[:, feature] = np.interp(steps_T, measured, steps_TF[measured, feature])
    return steps_TF, int(gaps_TF.sum())


def parse_number(cell: str) -> float:
    """Return a cell's number, NaN if it is missing. Raises ValueError."""
    if cell.strip().lower() in MISSING:
        return math.nan
    # Python reads 1_0 as ten. In a file it is a slip.
    if "_" in cell:
        raise ValueError
    return float(cell)


def parse_numbers(cells: Sequence[str]) -> list[float]:
    """Return the numbers of cells. Raises RowError whose step is the index of the cell."""
    # Most lines hold numbers only, and float() for all cells at once is fast.
    try:
        if "_" not in "".join(cells):
            return list(map(float, cells))
    except ValueError:
        pass
    numbers = []
    for index, cell in enumerate(cells):
        try:
            numbers.append(parse_number(cell))
        except ValueError:
            raise RowError(f"'{quote(cell)}' is not a number", index) from None
    return numbers


def is_number(cell: str) -> bool:
    """Return whether a cell holds a number, or says that one is missing."""
    try:
        parse_number(cell)
    except ValueError:
        return False
    return True


def quote(text: str) -> str:
    """Return a file's text as a message may quote it: printable, and cut to LONGEST_QUOTE."""
    return printable(text[:LONGEST_QUOTE] + "…" * (len(text) > LONGEST_QUOTE))


def printable(text: str) -> str:
    """Return a text with escapes for all letters that cannot be printed."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def parse_name(value: object, role: str) -> str | None:
    """Return the name of a label, split, group or id (its `role`), None if there is none.

    Numbers become text: 1.0 is "1", as one format's whole number is another's float. Raises
    RowError for what cannot be a name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        value = "" if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | int | float):
        name = "" if value is None else str(value).strip()
    else:
        raise RowError(f"{role}: a {type(value).__name__}, expected a text or a number")
    if len(name) > LONGEST_NAME:
        raise RowError(f"{role} '{quote(name)}': {len(name):,} characters long")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise RowError(f"{role} '{quote(name)}': control characters, or not UTF-8")
    return name or None


def read_lines(path: Path, progress: Progress) -> Iterator[str]:
    """Yield the lines of a text file; bytes that are not UTF-8 become surrogates."""
    opened = nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb")
    with opened as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of {LONGEST_LINE:,} bytes; is it a text?")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path}: UTF-16; save it as UTF-8")
            progress(len(line))
            # Excel starts its "CSV UTF-8" with a byte order mark, which belongs to no cell.
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield text.decode("utf-8", "surrogateescape")


def reason_of(error: BaseException) -> str:
    """Return what an exception of another library says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
