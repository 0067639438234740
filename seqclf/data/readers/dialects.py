"""How the columns of a table write their numbers: with points, commas or words."""

from __future__ import annotations

from collections.abc import Sequence

from seqclf.data.readers.numbers import CELLS_OF, Dialect, parse_number
from seqclf.data.readers.rows import Journal, quote
from seqclf.data.readers.survey import Column
from seqclf.errors import UserError


def find_dialects(
    columns: Sequence[Column], separator: str, journal: Journal
) -> tuple[Dialect, ...]:
    """Return how each column writes its numbers, () if all are plain; note what is not.

    Raises UserError, which names the cells, if the numbers are not of one dialect.
    """
    found = [_dialect(column) for column in columns]
    if all(dialect == "plain" for dialect in found):
        return ()
    # 1,234 may be 1234 or 1.234: other columns decide, or else the separator of the cells.
    usual: Dialect = "thousands" if separator == "," else "comma"
    choices: tuple[Dialect, ...] = ("comma", "thousands")
    for choice in choices:
        if choice in found:
            usual = choice
    dialects: list[Dialect] = [usual if dialect is None else dialect for dialect in found]
    commas = [c for c, dialect in zip(columns, dialects, strict=True) if dialect == "comma"]
    examples: dict[Dialect, str] = {}
    for column, dialect in zip(columns, dialects, strict=True):
        if dialect == "plain" and commas and "point" in column.first:
            where, cell = column.first["point"]
            there, other = _comma_cell(commas[0])
            raise UserError(
                f"{where}, column {quote(column.name)}: '{quote(cell)}' has a decimal point, where "
                f"'{quote(other)}' ({there}, column {quote(commas[0].name)}) has a comma; write "
                "all numbers alike"
            )
        if dialect == "boolean":
            examples.setdefault(dialect, "True is 1, False is 0")
        elif dialect != "plain":
            cell = _comma_cell(column)[1]
            number = f"{parse_number(cell, dialect):.15g}"
            how = "a comma before decimals" if dialect == "comma" else "commas between thousands"
            examples.setdefault(dialect, f"'{quote(cell)}' is {number} ({how})")
    for dialect, example in examples.items():
        names = [c.name for c, d in zip(columns, dialects, strict=True) if d == dialect]
        title = ", ".join(map(quote, names[:3])) + ", …" * (len(names) > 3)
        journal.note(f"{title}: {example}")
    return tuple(dialects)


def _comma_cell(column: Column) -> tuple[str, str]:
    return next(column.first[k] for k in ("comma", "thousands", "either") if k in column.first)


def _dialect(column: Column) -> Dialect | None:
    """Return how a column writes its numbers, None if 1,234 may be either. Raises UserError."""
    numbers = column.first.keys() - {"missing", "word", "time"}
    if numbers <= {"whole", "point"}:
        return "plain"
    if numbers <= CELLS_OF["boolean"]:
        return "boolean"
    numbers -= {"boolean"}
    fitting: list[Dialect] = [d for d in ("comma", "thousands") if numbers <= CELLS_OF[d]]
    if not fitting:
        comma = next(column.first[kind] for kind in ("comma", "either") if kind in column.first)
        other = next(column.first[kind] for kind in ("thousands", "point") if kind in column.first)
        raise UserError(
            f"{other[0]}, column {quote(column.name)}: '{quote(other[1])}' beside "
            f"'{quote(comma[1])}' ({comma[0]}): one has a decimal point, the other a decimal "
            "comma; write all numbers alike"
        )
    return fitting[0] if len(fitting) == 1 else None
