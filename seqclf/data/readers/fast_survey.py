"""The survey of a large table whose cells pyarrow holds: the same as survey.py makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from seqclf.data.readers.fast import (
    FastTable,
    UnusualError,
    ahead,
    check_line_ends,
    to_numpy,
    usual,
)
from seqclf.data.readers.numbers import NUMBERS, CellKind, kind_of
from seqclf.data.readers.rows import Progress
from seqclf.data.readers.survey import LINES_AT_ONCE, MOST_VALUES, Column, Survey

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_CELL = 2**17  # bytes; Python's csv refuses a cell of more letters
# Spellings of a gap that stand among numbers. Where others stand, cells are looked at one by one.
GAPS = ("", "?", "nan", "NaN", "NA", "N/A", "null", "None")
GROUPED = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"  # as numbers.is_grouped


def fast_survey(table: FastTable, progress: Progress) -> Survey | None:
    """Return what survey() returns of the lines after the header; None if the table is unusual."""
    try:
        with usual(progress) as count:
            return _survey(table, count)
    except UnusualError:
        return None


def _survey(table: FastTable, progress: Progress) -> Survey:
    """Raise UnusualError, and what usual() takes."""
    import pyarrow as pa

    columns = [ArrowColumn(name) for name in table.names]
    num_lines = 0
    waiting = [pa.array([], pa.string())] * len(columns)
    for arrays in chain(ahead(_read_cells(table, progress)), [None]):
        if arrays is not None:
            waiting = [pa.concat_arrays(pair) for pair in zip(waiting, arrays, strict=True)]
        num_ready = len(waiting[0])
        if arrays is not None:
            # survey() looks at so many lines at once, and what it keeps depends on them.
            num_ready -= num_ready % LINES_AT_ONCE
        if num_ready:
            for column, cells in zip(columns, waiting, strict=True):
                column.add_array(table, num_lines, cells[:num_ready])
            waiting = [cells[num_ready:] for cells in waiting]
            num_lines += num_ready
    return Survey(list(columns), num_lines)


def _read_cells(table: FastTable, progress: Progress) -> Iterator[list[pa.Array]]:
    """Yield the cells of all columns, many lines at a time."""
    import pyarrow as pa

    types = dict.fromkeys(range(len(table.names)), pa.string())
    for lines in table.blocks(progress):
        is_indented = _check_lines(lines, table.separator.encode())
        cells = [_check_cells(cells, is_indented) for cells in table.parse(lines, types)]
        _check_blank(cells)
        yield cells


def _check_lines(lines: bytes, mark: bytes) -> bool:
    """Raise UnusualError if other readers may split lines otherwise.

    Return whether cells may begin with blanks.
    """
    check_line_ends(lines)
    # A byte order mark would be taken off.
    if b"\0" in lines or lines.startswith(b"\xef\xbb\xbf"):
        raise UnusualError
    if b'"' in lines:
        _check_quotes(lines, mark)
        return False
    return b" " in lines and (lines.startswith(b" ") or b"\n " in lines or mark + b" " in lines)


def _check_quotes(lines: bytes, mark: bytes) -> None:
    """Raise UnusualError if quotes do not stand around whole cells, or if other cells are indented.

    A cell in quotes must not hold a line end.
    """
    content = np.frombuffer(b"\n" + lines + b"\n", np.uint8)
    quotes = np.flatnonzero(content == ord('"'))
    if len(quotes) % 2:
        raise UnusualError
    first, last = quotes[::2], quotes[1::2]
    may_be_before, may_be_after = np.zeros((2, 256), bool)
    may_be_before[[*mark, *b"\n"]] = True
    may_be_after[[*mark, *b"\r\n"]] = True
    line_ends = np.flatnonzero(content == ord("\n"))
    is_right = may_be_before[content[first - 1]] & may_be_after[content[last + 1]]
    is_right &= np.searchsorted(line_ends, first) == np.searchsorted(line_ends, last)
    blanks = np.flatnonzero(may_be_before[content[:-1]] & (content[1:] == ord(" "))) + 1
    is_in_quotes = np.searchsorted(quotes, blanks) % 2 == 1
    if not (is_right.all() and is_in_quotes.all()):
        raise UnusualError


def _check_cells(cells: pa.Array, is_indented: bool) -> pa.Array:
    """Return cells without blanks at their beginning. Raises UnusualError for a very long one."""
    from pyarrow import compute

    if compute.max(compute.binary_length(cells)).as_py() > LONGEST_CELL:
        raise UnusualError
    return compute.utf8_ltrim(cells, " ") if is_indented else cells


def _check_blank(columns: Sequence[pa.Array]) -> None:
    """Raise UnusualError if a line holds nothing."""
    from pyarrow import compute

    is_blank = np.ones(len(columns[0]), bool)
    for cells in columns:
        is_empty = to_numpy(compute.equal(compute.binary_length(cells), 0))
        is_blank &= is_empty | to_numpy(compute.utf8_is_space(cells))
        if not is_blank.any():
            return
    raise UnusualError


class ArrowColumn(Column):
    """A Column whose cells come as arrays of texts."""

    def add_array(self, table: FastTable, first_row: int, cells: pa.Array) -> None:
        """Take the cells of more lines, which begin at a multiple of LINES_AT_ONCE."""
        import pyarrow as pa
        from pyarrow import compute

        numbers = _plain_numbers(cells)
        counts: dict[str, int] = {}
        found: tuple[dict[CellKind, str], int] | None = None
        if numbers is not None:
            found = self._kinds_of_numbers(cells, np.isnan(numbers)), 0
        elif "time" not in self.first:
            counts = _count_cells(cells)
            found = _kinds_of_words(counts)
        elif _cast(cells, pa.timestamp("us")) is not None:
            found = {}, len(cells)
        if found is None:
            self._add_each(table, first_row, cells)
            return
        kinds, num_words = found
        for kind, cell in kinds.items():
            # In a column with 1.23, 1.234 cannot be 1234.
            if kind not in self.first and not (kind == "grouped" and "point" in self.first):
                row = first_row + compute.index(cells, cell).as_py()
                self.first[kind] = table.place(row), cell
        for first in range(0, len(cells), LINES_AT_ONCE):
            if self.counts_rows:
                end = first + LINES_AT_ONCE
                self._count([] if numbers is None else numbers[first:end].tolist())
        self.num_words += num_words
        self.num_runs += _count_changes(cells, numbers) + (cells[0].as_py() != self._last)
        self._last = cells[-1].as_py()
        if len(self.values) <= MOST_VALUES:
            self.values.update(counts or _count_cells(cells))
            self.values = Counter(dict(islice(self.values.items(), MOST_VALUES + 1)))

    def _add_each(self, table: FastTable, first_row: int, cells: pa.Array) -> None:
        """Take cells as a Column does."""
        for first in range(0, len(cells), LINES_AT_ONCE):
            some = cells[first : first + LINES_AT_ONCE].to_pylist()
            rows = range(first_row + first, first_row + first + len(some))
            self.add([table.place(row) for row in rows], some)

    def _kinds_of_numbers(self, cells: pa.Array, is_gap: np.ndarray) -> dict[CellKind, str]:
        """Return the first cell of each kind, in a Column's order; kinds that it has may lack."""
        from pyarrow import compute

        kinds: dict[CellKind, np.ndarray] = {"missing": is_gap}
        num_points = _count_points(cells)  # A number has one at most.
        if num_points < len(cells) - is_gap.sum() and "whole" not in self.first:
            kinds["whole"] = ~(to_numpy(compute.match_substring(cells, ".")) | is_gap)
        if num_points and "point" not in self.first:
            is_grouped = to_numpy(compute.match_substring_regex(cells, GROUPED))
            has_point = to_numpy(compute.match_substring(cells, "."))
            kinds |= {"point": has_point & ~is_grouped, "grouped": is_grouped}
        first = {kind: int(found.argmax()) for kind, found in kinds.items() if found.any()}
        ordered = sorted(first, key=lambda kind: first[kind] // LINES_AT_ONCE)
        return {kind: cells[first[kind]].as_py() for kind in ordered}


def _plain_numbers(cells: pa.Array) -> np.ndarray | None:
    """Return the numbers of cells, NaN for gaps; None if others than plain numbers are there."""
    import pyarrow as pa
    from pyarrow import compute

    few = cells[:LINES_AT_ONCE]
    # The first cells of a column of words tell, and to look at all of them takes long.
    if len(few) < len(cells) and _plain_numbers(few) is None:
        return None
    numbers = _cast(cells, pa.float64())
    if numbers is not None and np.isfinite(numbers).all():
        return numbers
    is_gap = compute.is_in(cells, value_set=pa.array(GAPS))
    if not compute.any(is_gap).as_py():
        return None
    numbers = _cast(compute.if_else(is_gap, pa.scalar(None, pa.string()), cells), pa.float64())
    # pyarrow reads `inf` and `nan(1)`, too.
    is_plain = numbers is not None and (np.isfinite(numbers) | to_numpy(is_gap)).all()
    return numbers if is_plain else None


def _cast(cells: pa.Array, kind: pa.DataType) -> np.ndarray | None:
    """Return what cells are as another type; None if some are not of it."""
    import pyarrow as pa

    try:
        # A cast that fails takes long, for each wrong cell.
        cells[:LINES_AT_ONCE].cast(kind)
        return to_numpy(cells.cast(kind))
    except pa.ArrowInvalid:
        return None


def _count_changes(cells: pa.Array, numbers: np.ndarray | None) -> int:
    """Return how many cells differ from the one before."""
    from pyarrow import compute

    # Numbers are compared faster. If they differ, cells do; but 1 and 1.0 are the same number.
    if numbers is not None and not np.isnan(numbers).any():
        num_changes = int(np.count_nonzero(numbers[1:] != numbers[:-1]))
        if num_changes == len(cells) - 1:
            return num_changes
    return compute.sum(compute.not_equal(cells[1:], cells[:-1])).as_py() or 0


def _count_points(cells: pa.Array) -> int:
    """Return how often a point occurs in cells."""
    _, bounds, content = cells.buffers()
    first, end = np.frombuffer(bounds, np.int32)[[cells.offset, cells.offset + len(cells)]]
    if first == end:
        return 0
    return int(np.count_nonzero(np.frombuffer(content, np.uint8)[first:end] == ord(".")))


def _kinds_of_words(counts: dict[str, int]) -> tuple[dict[CellKind, str], int] | None:
    """Return the first cell of each kind, and how many cells are words; None if any is a number."""
    kinds: dict[CellKind, str] = {}
    num_words = 0
    for cell, count in counts.items():
        kind = kind_of(cell)
        if kind in NUMBERS:
            return None
        kinds.setdefault(kind, cell)
        num_words += count * (kind != "missing")
    return kinds, num_words


def _count_cells(cells: pa.Array) -> dict[str, int]:
    """Return how often each different cell occurs, in the order of the first ones."""
    from pyarrow import compute

    # Ids and labels are the same in many lines that follow each other.
    runs = compute.run_end_encode(cells)
    different = runs.values.dictionary_encode()
    counts = np.bincount(to_numpy(different.indices), np.diff(to_numpy(runs.run_ends), prepend=0))
    return dict(zip(different.dictionary.to_pylist(), counts.astype(int).tolist(), strict=True))
