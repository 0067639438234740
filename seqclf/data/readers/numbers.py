"""Cells of a text -> numbers, in the dialect that a column writes them in."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from seqclf.data.readers.rows import RowError, quote

# Cells without a value, in any case.
MISSING = frozenset(
    {"", "?", "nan", "-nan", "na", "n/a", "<na>", "#n/a", "#na", "nat", "null", "none", "-", "--"}
)

# How a column writes its numbers: 1234.5, or 1234,5 or 1.234,5, or 1,234.5, or True and False.
Dialect = Literal["plain", "comma", "thousands", "boolean"]
# What a cell is. `grouped` is 1.234, and `either` is 1,234: each may be 1234 or a fraction.
# `spaced` is 1 234. `odd` looks like a number, but is none that is read, such as 15%.
CellKind = Literal[
    "missing",
    "whole",
    "point",
    "grouped",
    "comma",
    "thousands",
    "either",
    "spaced",
    "boolean",
    "time",
    "odd",
    "word",
]
# The numbers that a column of each dialect may hold.
CELLS_OF: dict[Dialect, frozenset[CellKind]] = {
    "plain": frozenset({"whole", "point", "grouped"}),
    "comma": frozenset({"whole", "comma", "either", "grouped", "spaced"}),
    "thousands": frozenset({"whole", "point", "thousands", "either", "grouped", "spaced"}),
    "boolean": frozenset({"whole", "boolean"}),
}
NUMBERS = CELLS_OF["comma"] | CELLS_OF["thousands"]

_BOOLEANS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
_LETTERS = {"true", "false", "inf", "infinity"}  # what is no word, though it begins with a letter
_BLANK = " ’'\u00a0\u2009\u202f"  # stands between thousands
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3}){2,}")
_SPACED = re.compile(rf"[+-]?[1-9]\d{{0,2}}([{_BLANK}])\d{{3}}(?:\1\d{{3}})*")
_COMMA = re.compile(
    rf"[+-]?(?:\d*|[1-9]\d{{0,2}}([.{_BLANK}])\d{{3}}(?:\1\d{{3}})*),\d+{_EXPONENT}"
)
_THOUSANDS = re.compile(
    rf"[+-]?[1-9]\d{{0,2}}(?:(?:,\d{{3}})+(?:\.\d*)?|([{_BLANK}])\d{{3}}(?:\1\d{{3}})*\.\d*)"
    rf"{_EXPONENT}"
)
_DAY = r"(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:\d{4}|\d{2}))"
_TIME = re.compile(rf"{_DAY}(?:[ T].*)?|\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:[.,]\d+)?)?")


def kind_of(cell: str) -> CellKind:
    """Return what a cell is."""
    text = cell.strip()
    if text.lower() in MISSING:
        return "missing"
    if text[0].isalpha() and text.lower() not in _LETTERS:
        return "word"
    try:
        parse_number(text)
    except ValueError:
        pass
    else:
        if "." not in text:
            return "whole"
        return "grouped" if is_grouped(text) else "point"
    if text.lower() in _BOOLEANS:
        return "boolean"
    return _marked_kind(text.replace("−", "-"))


def _marked_kind(text: str) -> CellKind:
    """Return what a cell is, if it is no plain number."""
    is_comma = bool(_COMMA.fullmatch(text) or _POINTS.fullmatch(text))
    if _THOUSANDS.fullmatch(text):
        return "either" if is_comma else "thousands"
    if is_comma:
        return "comma"
    if _SPACED.fullmatch(text):
        return "spaced"
    if is_time(text):
        return "time"
    return "odd" if re.search(r"\d", text) and not any(map(str.isalpha, text)) else "word"


def is_grouped(cell: str) -> bool:
    """Whether a plain number is like 1.234, which is 1234 where commas stand before decimals."""
    return bool(_GROUPED.fullmatch(cell.strip()))


def is_time(cell: str) -> bool:
    """Whether a cell looks like a date or a time of a clock."""
    return bool(_TIME.fullmatch(cell))


def parse_number(cell: str, dialect: Dialect = "plain") -> float:
    """Return a cell's number, NaN if it is missing. Raises ValueError."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    if dialect == "boolean":
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    # Typographers write a minus sign that Python does not know.
    text = text.replace("−", "-")
    # Python reads 1_0 as ten. In a file it is a slip.
    if "_" in text:
        raise ValueError
    if dialect == "comma" and not text.isdecimal():
        if not (_COMMA.fullmatch(text) or _POINTS.fullmatch(text) or _GROUPED.fullmatch(text)):
            return _parse_spaced(text, forbidden=".")
        text = re.sub(rf"[.{_BLANK}]", "", text).replace(",", ".")
    if dialect == "thousands" and not text.isdecimal():
        if not _THOUSANDS.fullmatch(text):
            return _parse_spaced(text, forbidden=",")
        text = re.sub(rf"[,{_BLANK}]", "", text)
    return float(text)


def _parse_spaced(text: str, *, forbidden: str) -> float:
    """Return a whole number that may have blanks between thousands. Raises ValueError."""
    if forbidden in text:
        raise ValueError
    return float(re.sub(rf"[{_BLANK}]", "", text) if _SPACED.fullmatch(text) else text)


def parse_numbers(cells: Sequence[str], dialects: Sequence[Dialect] = ()) -> list[float]:
    """Return the numbers of cells. Raises RowError whose step is the index of the cell."""
    # Most lines hold plain numbers only, and float() for all cells at once is fast.
    try:
        if not dialects and "_" not in "".join(cells):
            return list(map(float, cells))
    except ValueError:
        pass
    numbers = []
    for index, cell in enumerate(cells):
        dialect = dialects[index] if dialects else "plain"
        try:
            numbers.append(parse_number(cell, dialect))
        except ValueError:
            kind = "True or False" if dialect == "boolean" else "a number"
            if dialect == "comma" and kind_of(cell) in NUMBERS:
                kind += " with a decimal comma, as in the rest of the column"
            raise RowError(f"'{quote(cell)}' is not {kind}", index) from None
    return numbers
