"""How the columns of a table write their numbers: with points, commas or words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from seqclf.data.readers.numbers import NUMBERS, CellKind, Dialect, parse_number
from seqclf.data.readers.rows import Journal, quote
from seqclf.data.readers.survey import Column
from seqclf.errors import UserError

Mark = Literal["comma", "point"]  # what stands before decimals


def find_dialects(
    columns: Sequence[Column], separator: str, journal: Journal
) -> tuple[Dialect, ...]:
    """Return how each column writes its numbers, and note what is not plain.

    Raises UserError, which names the cells, if not all numbers have the same decimal mark.
    """
    mark, is_sure = _find_mark(columns, separator)
    dialects = tuple(_dialect(column, mark) for column in columns)
    examples: dict[str, list[str]] = {}
    for column, dialect in zip(columns, dialects, strict=True):
        if example := _example(column, dialect, is_sure=is_sure):
            examples.setdefault(dialect + example.partition("(")[2], [example]).append(column.name)
    for example, *names in examples.values():
        title = ", ".join(map(quote, names[:3])) + ", …" * (len(names) > 3)
        journal.note(f"{title}: {example}")
    return dialects


def _find_mark(columns: Sequence[Column], separator: str) -> tuple[Mark, bool]:
    """Return what stands before decimals in all columns, and whether any cell shows it."""
    comma = _first_cell(columns, "comma")
    point = _first_cell(columns, "point") or _first_cell(columns, "thousands")
    if comma and point:
        raise UserError(
            f"{_place(*point)} has a decimal point, where {_place(*comma)} has a decimal comma; "
            "write all numbers alike"
        )
    if comma or point:
        return ("comma" if comma else "point"), True
    # Each number is whole, or like 1.234 or 1,234. Where commas separate cells, they separate
    # thousands too; they stand before decimals where cells need another separator.
    either = _first_cell(columns, "either")
    grouped = _first_cell(columns, "grouped")
    if separator == ",":
        return "point", not (either and grouped)
    if either and grouped:
        raise UserError(
            f"{_place(*either)} and {_place(*grouped)}: nothing shows which of comma and point "
            "stands before decimals; write numbers without a mark between thousands"
        )
    return ("comma" if either else "point"), False


def _first_cell(columns: Sequence[Column], kind: CellKind) -> tuple[Column, CellKind] | None:
    return next(((column, kind) for column in columns if kind in column.first), None)


def _place(column: Column, kind: CellKind) -> str:
    where, cell = column.first[kind]
    return f"{where}, column {quote(column.name)}: '{quote(cell.strip())}'"


def _dialect(column: Column, mark: Mark) -> Dialect:
    """Return how a column writes its numbers."""
    numbers = column.first.keys() & NUMBERS
    if "boolean" in column.first and numbers <= {"whole"}:
        return "boolean"
    if mark == "comma":
        return "plain" if numbers <= {"whole"} else "comma"
    return "plain" if numbers <= {"whole", "point", "grouped"} else "thousands"


def _example(column: Column, dialect: Dialect, *, is_sure: bool) -> str:
    """Return what a cell of a column means, for people; nothing if it is clear."""
    if dialect == "boolean":
        return "True is 1, False is 0"
    kinds: tuple[CellKind, ...] = ("comma", "thousands", "either", "grouped", "spaced")
    kind = next((kind for kind in kinds if kind in column.first), None)
    if kind is None or (dialect == "plain" and (is_sure or kind != "grouped")):
        return ""
    cell = column.first[kind][1].strip()
    number = f"{parse_number(cell, dialect):.15g}"
    if dialect == "plain":
        how = "a point before decimals"
    elif dialect == "comma" and "," in cell:
        how = "a comma before decimals"
    else:
        between = "commas" if "," in cell else "points" if kind == "grouped" else "blanks"
        how = f"{between} between thousands"
    return f"'{quote(cell)}' is {number} ({how})"
