"""What all readers share: rows, options, what a reader decides, gaps and names."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

STDIN = Path("-")
LONGEST_NAME = 200  # characters of a label, split, group or id
LONGEST_QUOTE = 40  # characters of a file's own text in a message
NO_LABEL = frozenset({"", "?", "nan", "na", "n/a", "<na>", "null"})
SPECIAL = ("id", "time", "label", "group", "split")  # columns that are no features
SCIENTIFIC = re.compile(r"[+-]?\d\.\d+[eE][+-]?\d+")
WHOLE_NUMBER = re.compile(r"\+?(-?(?:0|[1-9]\d*))(?:\.0*)?")

# What people call the splits, and what they are called here.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

Form = Literal["long", "wide"]
Progress = Callable[[float], object]  # takes the number of bytes that a reader has just read


class Row(NamedTuple):
    """A sequence from a file."""

    id: str
    steps: np.ndarray | tuple[str, ...]  # numbers [T, F]; a text's bytes, uint8 [T]; or tokens
    where: str  # the file, and the line or number in it, for messages
    label: str | None = None
    split: str | None = None
    group: str | None = None
    features: tuple[str, ...] | None = None  # the names of the features, if the file has names
    step_labels: tuple[str, ...] | None = None  # the label of each step, where labels change
    filled: int = 0  # missing values that were filled; one that is still NaN takes train's mean
    padding: int = 0  # steps that were left off at the end, as padding
    measured: np.ndarray | None = None  # bool [T, F]: which values the file has; None: all
    num_equal_times: int = 0  # steps at the time of the step before them


class Names(NamedTuple):
    """What a file calls a sequence, besides its id. The fields are those of Row."""

    label: str | None = None
    split: str | None = None
    group: str | None = None


class BadRow(NamedTuple):
    """A sequence that cannot be used."""

    where: str
    problem: str


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file."""

    # The names of columns (or keys of JSON objects) with a meaning of their own. In a table without
    # a header line they are numbers, from 0, or from -1 at the end.
    id: str | None = None
    time: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    tokens: str | None = None  # each step is a word
    text: str | None = None  # a sequence is the bytes of a text

    # The features, in their order; in wide form the columns of the steps. None: the reader decides.
    features: tuple[str, ...] | None = None
    soft: frozenset[str] = frozenset()  # options that a file need not have a column for
    numbered: bool = False  # the soft options are numbers of columns, of a table without a header
    wanted_by: str = "--features"  # who names the features, for messages
    drop: tuple[str, ...] = ()  # columns that are no features

    form: Form | None = None  # None: the reader decides
    header: bool | None = None  # whether the first line names the columns; None: the reader decides
    encoding: str | None = None  # of a text file; None: UTF-8
    labels: Path | None = None  # a file with the labels of the sequences
    test_ids: Path | None = None  # a file with the numbers of an array's sequences that are test
    pad_value: float | None = None  # steps at the end that hold this value alone are padding
    channels_first: bool = False  # arrays are cases x channels x time
    fill_missing: bool = False
    keep_step_labels: bool = False  # a label may change within a sequence: Row.step_labels
    # A table without a column for the label is refused. Without a header its first column is one.
    needs_label: bool = False
    num_values: int | None = None  # of a wide table without a header, as a model reads it
    open_end: bool = False  # columns of a wide table that go on counting are steps, too
    own_files: bool = False  # a table is one sequence, as those of a folder or a manifest


@dataclass
class Journal:
    """What the readers decided about the files of a data set, for people and for dataset.json."""

    form: Form | None = None  # of a table
    columns: tuple[str, ...] = ()  # of a wide table, one for each step
    num_values: int | None = None  # of a wide table without a header line: the number of steps
    open_end: bool = False  # nobody chose the columns of a wide table: all that count are steps
    own_files: bool = False  # each sequence has a file of its own
    numbered: bool = False  # a table has no header line, so its columns are called by number
    roles: dict[str, str] = field(default_factory=dict)  # a word of SPECIAL -> its column
    left_aside: dict[str, str] = field(default_factory=dict)  # a column or array -> the reason
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a line for people, once."""
        if text not in self.notes:
            self.notes.append(text)


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


class Steps(NamedTuple):
    """A sequence without gaps. The fields are those of Row."""

    steps: np.ndarray | tuple[str, ...]
    filled: int = 0
    padding: int = 0
    measured: np.ndarray | None = None


def finish_steps(
    values_TF: np.ndarray, options: ReadOptions, *, nan_is_padding: bool = True
) -> Steps:
    """Return numbers [T, F] without padding and gaps. Raises RowError.

    The numbers stay float64, or float32 if the file has them so: whoever takes them may first take
    off an offset. A gap gets the value on the line between its neighbours in time, at the ends the
    nearest value. A feature that has no value in the whole sequence stays NaN.
    """
    if values_TF.dtype.kind not in "fiub":
        raise RowError(f"{values_TF.dtype}, where numbers are expected")
    if values_TF.ndim == 1:
        values_TF = values_TF[:, None]
    if values_TF.ndim != 2:
        raise RowError(f"shape {values_TF.shape}, where steps x features are expected")
    if not values_TF.size:
        raise RowError("an empty sequence")
    # Each of these types holds all numbers of those before it.
    fits = next(t for t in ("f4", "f8", values_TF.dtype) if np.can_cast(values_TF.dtype, t))
    values_TF = values_TF.astype(np.float64 if np.dtype(fits).kind != "f" else fits)
    pads = [
        pad for pad in (options.pad_value, math.nan if nan_is_padding else None) if pad is not None
    ]
    num_steps = _end_of_steps(values_TF, pads)
    padding = len(values_TF) - num_steps
    if not num_steps:
        raise RowError("an empty sequence: all of its values are missing or padding")
    values_TF = values_TF[:num_steps]
    with np.errstate(over="ignore"):
        not_finite_TF = ~np.isfinite(values_TF.astype(np.float32))
    if not not_finite_TF.any():
        return Steps(values_TF, padding=padding)
    gaps_TF = np.isnan(values_TF)
    infinite = np.argwhere(not_finite_TF & ~gaps_TF)
    if len(infinite):
        step, feature = infinite[0].tolist()
        value = values_TF[step, feature]
        limit = "is not finite" if np.isinf(value) else "is too large for float32"
        raise RowError(f"{value} {limit}", step, feature)
    if not options.fill_missing:
        step, feature = np.argwhere(gaps_TF)[0].tolist()
        raise RowError("a missing value; --fill-missing fills such gaps", step, feature)
    steps_T = np.arange(num_steps)
    for feature in np.flatnonzero(gaps_TF.any(0)).tolist():
        measured = np.flatnonzero(~gaps_TF[:, feature])
        if len(measured):
            values_TF[:, feature] = np.interp(steps_T, measured, values_TF[measured, feature])
    return Steps(values_TF, int(gaps_TF.sum()), padding, ~gaps_TF)


def _end_of_steps(values_TF: np.ndarray, pads: Sequence[float]) -> int:
    """Return the number of steps before those at the end that hold nothing but a pad."""

    def is_padding(steps_TF: np.ndarray) -> np.ndarray:
        same = [np.isnan(steps_TF) if math.isnan(pad) else steps_TF == pad for pad in pads]
        padding_T: np.ndarray = np.any([values.all(-1) for values in same], axis=0)
        return padding_T

    # Most sequences have none, and their last step tells.
    if not pads or not is_padding(values_TF[-1]):
        return len(values_TF)
    data = np.flatnonzero(~is_padding(values_TF))
    return int(data[-1]) + 1 if len(data) else 0


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun: 1 row, 2 rows."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def quote(text: str) -> str:
    """Return a file's text as a message may quote it: printable, and cut to LONGEST_QUOTE."""
    return printable(text[:LONGEST_QUOTE] + "…" * (len(text) > LONGEST_QUOTE))


def printable(text: str) -> str:
    """Return a text with escapes for all letters that cannot be printed."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def parse_name(value: object, role: str) -> str | None:
    """Return the name of a label, split, group or id (its `role`), None if there is none.

    Numbers become text. A label or group that is a whole number is the same in every format: 1.0 is
    1, but 007 stays. Raises RowError for what cannot be a name.
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
    if not name.isprintable() and any(map(_is_control, name)):
        raise RowError(f"{role} '{quote(name)}': control characters, or not UTF-8")
    if (
        role in ("label", "group")
        and SCIENTIFIC.fullmatch(name)
        and abs(number := float(name)) < 2**53
        and number.is_integer()
    ):
        name = str(int(number))
    if role in ("label", "group") and (whole := WHOLE_NUMBER.fullmatch(name)):
        name = "0" if whole[1] == "-0" else whole[1]
    if role == "label" and re.fullmatch(r"b'.*'|b\".*\"", name):
        raise RowError(
            f"label {quote(name)}: bytes that were written as text; save text: label.decode()"
        )
    if role in ("label", "group", "split") and name.lower() in NO_LABEL:
        return None
    if role == "split":
        name = SPLIT_WORDS.get(name.lower(), name)
    return name or None


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs")


def reason_of(error: BaseException) -> str:
    """Return what an exception of another library says, in one line."""
    return printable(" ".join(str(error).split())[:200]) or type(error).__name__
