"""A first pass over a table: what the cells of each column are, before any is read as a number."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest

from seqclf.data.readers.numbers import NUMBERS, CellKind, is_grouped, is_time, kind_of
from seqclf.data.readers.rows import quote

LINES_AT_ONCE = 512  # more is slower: their cells do not fit into the processor's cache
CELLS_AT_ONCE = 2**19
MOST_VALUES = 40  # a column with more different cells is no label

# Gaps in the usual spelling, which are found without a look at each cell by itself.
_GAPS = frozenset({"", "?", "nan", "NaN", "NAN", "NA", "N/A", "<NA>", "null", "NULL", "None", "-"})

Line = tuple[str, list[str]]  # where the line is, and its cells


def is_blank(cells: Sequence[str]) -> bool:
    """Whether a line holds nothing, as lines that a spreadsheet leaves at the end of a table."""
    return not any(map(str.strip, cells))


@dataclass
class Column:
    """What the cells of a column are."""

    name: str
    # Each kind of cell that occurs, with the first such cell and where it is.
    first: dict[CellKind, tuple[str, str]] = field(default_factory=dict)
    values: Counter[str] = field(default_factory=Counter)  # complete up to MOST_VALUES
    num_words: int = 0  # cells that are neither a number nor missing
    num_runs: int = 0  # of equal cells that follow each other
    counts_rows: bool = True  # whether the cells are n, n + 1, n + 2 ...

    _next: int | None = None  # the number that the next line must have, to go on counting
    _last: str | None = None

    @property
    def has_numbers(self) -> bool:
        """Whether any line holds a number, or what looks like one."""
        return not self.first.keys().isdisjoint(NUMBERS | {"odd"})

    @property
    def has_value(self) -> bool:
        """Whether any line holds something."""
        return bool(self.first.keys() - {"missing"})

    @property
    def words(self) -> str:
        """The first words, for messages."""
        words = [cell for kind, (_, cell) in self.first.items() if not _is_number(kind)]
        words += [cell for cell in self.values if not _is_number(kind_of(cell))]
        different = list(dict.fromkeys(quote(word.strip()) for word in words))
        return ", ".join(different[:3]) + ", …" * (len(different) > 3)

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

    def add(self, where: Sequence[str], cells: Sequence[str]) -> None:
        """Take the cells of more lines."""
        numbers = _plain_numbers(cells)
        if numbers is None:
            self._see_each(where, cells)
        else:
            self._see_numbers(where, cells, len(numbers))
        if self.counts_rows:
            self._count(numbers if numbers is not None and len(numbers) == len(cells) else [])
        self.num_runs += sum(map(operator.ne, cells, [self._last, *cells[:-1]]))
        self._last = cells[-1]
        if len(self.values) <= MOST_VALUES:
            self.values.update(cells)
            # Of many the first ones are enough, for messages. They may be long texts.
            self.values = Counter(dict(islice(self.values.items(), MOST_VALUES + 1)))

    def _see_each(self, where: Sequence[str], cells: Sequence[str]) -> None:
        """Keep the first cells of each kind, whatever the cells are."""
        if "time" in self.first and all(map(is_time, cells)):
            self.num_words += len(cells)  # Much faster than kind_of, for a column of times.
            return
        for cell, count in Counter(cells).items():
            kind = kind_of(cell)
            if kind not in self.first:
                self.first[kind] = where[cells.index(cell)], cell
            if not _is_number(kind):
                self.num_words += count

    def _see_numbers(self, where: Sequence[str], cells: Sequence[str], num_numbers: int) -> None:
        """Keep the first cells of each kind, where all are plain numbers or gaps."""
        if num_numbers < len(cells) and "missing" not in self.first:
            self._see(where, cells, "missing")
        if "point" in self.first and "whole" in self.first:
            return
        num_points = "".join(cells).count(".")  # A number has one at most.
        if num_points < num_numbers and "whole" not in self.first:
            self._see(where, cells, "whole")
        if num_points and "point" not in self.first:
            self._see(where, cells, "point")
            # In a column with 1.23, 1.234 cannot be 1234.
            if "point" not in self.first and "grouped" not in self.first:
                self._see(where, cells, "grouped")

    def _see(self, where: Sequence[str], cells: Sequence[str], kind: CellKind) -> None:
        """Keep the first cell of a kind, where all are plain numbers or gaps."""
        for index, cell in enumerate(cells):
            if _plain_kind(cell) == kind:
                self.first[kind] = where[index], cell
                return

    def _count(self, numbers: Sequence[float]) -> None:
        """Find out whether more numbers go on counting; no numbers end it."""
        start = self._next if self._next is not None else numbers[0] if numbers else 0.5
        self.counts_rows = float(start).is_integer() and bool(numbers)
        if self.counts_rows:
            self._next = int(start) + len(numbers)
            self.counts_rows = numbers == list(range(int(start), self._next))


def _is_number(kind: CellKind) -> bool:
    return kind in NUMBERS or kind == "missing"


def _plain_numbers(cells: Sequence[str]) -> list[float] | None:
    """Return the numbers of cells, without gaps; None if others than plain numbers are there."""
    plain = list(filter(None, cells))
    if not _GAPS.isdisjoint(plain):
        plain = [cell for cell in plain if cell not in _GAPS]
    joined = "".join(plain)
    # Python reads 1_0, nan, inf and Arabic digits. `kind_of` looks at such cells one by one.
    if not joined.isascii() or any(letter in joined for letter in "_nN"):
        return None
    try:
        return list(map(float, plain))
    except ValueError:
        return None


def _plain_kind(cell: str) -> CellKind:
    """Return what a cell is that is a plain number or a gap."""
    if cell in _GAPS:
        return "missing"
    return "whole" if "." not in cell else "grouped" if is_grouped(cell) else "point"


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
    while block := list(islice(lines, _lines_at_once(len(columns)))):
        # A line that holds nothing has an empty first cell, too.
        if not all(cells[0].strip() for _, cells in block if cells):
            block = [line for line in block if not is_blank(line[1])]
            if not block:
                continue
        cells_of_columns = list(zip_longest(*[cells for _, cells in block], fillvalue=""))
        if not names:
            for index in range(len(columns), len(cells_of_columns)):
                columns.append(Column(str(index), counts_rows=not num_lines))
        where = [place for place, _ in block]
        empty = ("",) * len(block)
        for column, cells in zip_longest(columns, cells_of_columns[: len(columns)]):
            column.add(where, cells or empty)
        num_lines += len(block)
    return Survey(columns, num_lines)


def _lines_at_once(num_columns: int) -> int:
    """Return how many lines are in memory at once. A single one tells how many columns it has."""
    if not num_columns:
        return 1
    return max(1, min(LINES_AT_ONCE, CELLS_AT_ONCE // num_columns))
