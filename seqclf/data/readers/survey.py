"""A first pass over a table: what the cells of each column are, before any is read as a number."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest

from seqclf.data.readers.numbers import NUMBERS, CellKind, kind_of
from seqclf.data.readers.rows import quote

LINES_AT_ONCE = 4096
MOST_VALUES = 40  # a column with more different cells is no label

Line = tuple[str, list[str]]  # where the line is, and its cells


@dataclass
class Column:
    """What the cells of a column are."""

    name: str
    # Each kind of cell that occurs, with the first such cell and where it is.
    first: dict[CellKind, tuple[str, str]] = field(default_factory=dict)
    values: Counter[str] = field(default_factory=Counter)  # complete up to MOST_VALUES
    num_runs: int = 0  # of equal cells that follow each other
    counts_rows: bool = True  # whether the cells are n, n + 1, n + 2 ...

    _next: int | None = None  # the number that the next line must have, to go on counting
    _last: str | None = None

    @property
    def has_numbers(self) -> bool:
        """Whether any line holds a number."""
        return not NUMBERS.isdisjoint(self.first)

    @property
    def words(self) -> str:
        """The first words, for messages."""
        words = [
            quote(cell) for cell in self.values if kind_of(cell) in ("word", "boolean", "time")
        ]
        return ", ".join(words[:3]) + ", …" * (len(words) > 3)

    @property
    def is_choice(self) -> bool:
        """Whether the cells are some of a few words or whole numbers, as labels are."""
        kinds = self.first.keys() - {"missing"}
        num_lines = self.values.total()
        return 2 <= len(self.values) <= min(MOST_VALUES, num_lines // 2) and kinds <= {
            "word",
            "boolean",
            "whole",
        }

    def see(self, kind: CellKind, where: str, cell: str) -> None:
        """Keep the first cell of a kind."""
        self.first.setdefault(kind, (where, cell))

    def add(self, where: Sequence[str], cells: Sequence[str]) -> None:
        """Take the cells of more lines."""
        plain = [cell for cell in cells if cell]
        joined = "".join(plain)
        try:
            # Python reads 1_0 and Arabic digits as numbers. `kind_of` looks at such cells one by
            # one, and at those that say that a number is missing.
            if "_" in joined or "n" in joined or "N" in joined or not joined.isascii():
                raise ValueError
            numbers = list(map(float, plain))
        except ValueError:
            numbers = []
            for cell in dict.fromkeys(cells):
                if (kind := kind_of(cell)) not in self.first:
                    self.see(kind, where[cells.index(cell)], cell)
        else:
            self._see_numbers(where, cells)
        if self.counts_rows:
            self._count(numbers if len(numbers) == len(cells) else [])
        self.num_runs += sum(map(operator.ne, cells, [self._last, *cells[:-1]]))
        self._last = cells[-1]
        if len(self.values) <= MOST_VALUES:
            self.values.update(cells)

    def _see_numbers(self, where: Sequence[str], cells: Sequence[str]) -> None:
        """Keep the first cells of each kind, where all are plain numbers or empty."""
        kinds: tuple[CellKind, ...] = ("missing", "point", "whole")
        for kind in kinds:
            if kind not in self.first:
                # Much faster than kind_of, which need not look at such cells.
                index = next((i for i, cell in enumerate(cells) if _plain_kind(cell) == kind), None)
                if index is not None:
                    self.see(kind, where[index], cells[index])

    def _count(self, numbers: Sequence[float]) -> None:
        """Find out whether more numbers go on counting; no numbers end it."""
        start = self._next if self._next is not None else numbers[0] if numbers else 0.5
        self.counts_rows = float(start).is_integer() and bool(numbers)
        if self.counts_rows:
            self._next = int(start) + len(numbers)
            self.counts_rows = numbers == list(range(int(start), self._next))


def _plain_kind(cell: str) -> CellKind:
    return "missing" if not cell else "point" if "." in cell else "whole"


@dataclass
class Survey:
    """What the columns of a table are."""

    columns: list[Column]
    num_lines: int


def survey(names: Sequence[str], lines: Iterable[Line]) -> Survey:
    """Read all lines of a table. A line that is too short ends in empty cells.

    Without names there are as many columns as the longest line has cells.
    """
    columns = [Column(name) for name in names]
    num_lines = 0
    lines = iter(lines)
    while block := list(islice(lines, LINES_AT_ONCE)):
        where = [place for place, _ in block]
        cells_of_columns = list(zip_longest(*(cells for _, cells in block), fillvalue=""))
        if not names:
            for index in range(len(columns), len(cells_of_columns)):
                columns.append(Column(str(index), counts_rows=not num_lines))
        empty = ("",) * len(block)
        for column, cells in zip_longest(columns, cells_of_columns[: len(columns)]):
            column.add(where, cells or empty)
        num_lines += len(block)
    return Survey(columns, num_lines)
