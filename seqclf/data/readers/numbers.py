"""Cells of a text -> numbers, in the dialect that a column writes them in."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from seqclf.data.readers.rows import RowError, quote

MISSING = frozenset({"", "?", "nan", "na", "n/a", "<na>", "null", "none"})  # cells without a value

# How a column writes its numbers: 1234.5, or 1234,5 or 1.234,5, or 1,234.5, or True and False.
Dialect = Literal["plain", "comma", "thousands", "boolean"]
# What a cell is. An `either` is 1,234, which may be 1234 or 1.234.
CellKind = Literal[
    "missing", "whole", "point", "comma", "thousands", "either", "boolean", "time", "word"
]
# The cells that a column of each dialect may hold.
CELLS_OF: dict[Dialect, frozenset[CellKind]] = {
    "plain": frozenset({"whole", "point"}),
    "comma": frozenset({"whole", "comma", "either"}),
    "thousands": frozenset({"whole", "point", "thousands", "either"}),
    "boolean": frozenset({"whole", "boolean"}),
}
NUMBERS: frozenset[CellKind] = frozenset({"whole", "point", "comma", "thousands", "either"})

_BOOLEANS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
_EXPONENT = r"(?:[eE][+-]?\d+)?"
_COMMA = re.compile(rf"[+-]?(?:\d*|[1-9]\d{{0,2}}(?:[. ’'\u00a0\u202f]\d{{3}})+),\d+{_EXPONENT}")
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3}){2,}")
_THOUSANDS = re.compile(rf"[+-]?[1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d*)?{_EXPONENT}")
_TIME = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b.*|\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?")


def kind_of(cell: str) -> CellKind:
    """Return what a cell is."""
    text = cell.strip()
    if text.lower() in MISSING:
        return "missing"
    try:
        parse_number(text)
    except ValueError:
        pass
    else:
        return "point" if "." in text else "whole"
    if text.lower() in _BOOLEANS:
        return "boolean"
    is_comma = bool(_COMMA.fullmatch(text) or _POINTS.fullmatch(text))
    if _THOUSANDS.fullmatch(text):
        return "either" if is_comma else "thousands"
    if is_comma:
        return "comma"
    return "time" if _TIME.fullmatch(text) else "word"


def parse_number(cell: str, dialect: Dialect = "plain") -> float:
    """Return a cell's number, NaN if it is missing. Raises ValueError."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    if dialect == "boolean":
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    if dialect == "comma":
        if "," in text and not _COMMA.fullmatch(text):
            raise ValueError
        if "." in text and not (_COMMA.fullmatch(text) or _POINTS.fullmatch(text)):
            raise ValueError
        text = re.sub(r"[. ’'\u00a0\u202f]", "", text).replace(",", ".")
    if dialect == "thousands" and "," in text:
        if not _THOUSANDS.fullmatch(text):
            raise ValueError
        text = text.replace(",", "")
    # Python reads 1_0 as ten. In a file it is a slip.
    if "_" in text:
        raise ValueError
    return float(text)


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
            if dialect == "comma" and "." in cell:
                kind += " with a decimal comma, as in the rest of the column"
            raise RowError(f"'{quote(cell)}' is not {kind}", index) from None
    return numbers
