"""A fast way through a large table in long form: pyarrow splits the lines and reads the numbers.

It reads only what it certainly reads as the plain readers do. All else is Unusual: a fault, a cell
with a line end, a table in another form. The plain readers then take the table from its start, and
name what is wrong. The sequences are the same in both ways, to the last bit.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from seqclf.data.readers.columns import Columns
from seqclf.data.readers.forms import combine_names, with_labels
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.numbers import MISSING
from seqclf.data.readers.rows import (
    BadRow,
    Names,
    Progress,
    ReadOptions,
    Row,
    RowError,
    Steps,
    finish_steps,
    parse_name,
)
from seqclf.data.readers.survey import CELLS_AT_ONCE, LINES_AT_ONCE, Survey
from seqclf.data.readers.tables import TableFile

if TYPE_CHECKING:
    import pyarrow as pa

LARGE = 2**20  # bytes of a file; a smaller one is read before pyarrow is there
BLOCK = 2**21  # bytes of a file that are in memory at once; more do not fit into caches
MICROSECONDS_A_DAY = 86_400_000_000
EXACT = 2.0**53  # as floats, whole numbers below it are exact
NULLS = sorted({f(word) for word in MISSING for f in (str, str.upper, str.title)} | {"NaN", "NaT"})

T = TypeVar("T")


class UnusualError(Exception):
    """The plain readers must read the table."""


@dataclass(frozen=True)
class FastTable:
    """A table with a header line in a text file."""

    text: TextFile
    separator: str
    names: Sequence[str]
    first_line: int  # the number of the line after the header

    def place(self, row: int) -> str:
        """Return where a row is, for messages; rows count from 0."""
        return f"{self.text.name}:{self.first_line + row}"

    def blocks(self, progress: Progress) -> Iterator[bytes]:
        """Yield many whole lines at a time, without the end of the last one."""
        done = 0
        is_end = False
        with self.text.path.open("rb") as file:
            is_gz = self.text.path.suffix.lower() == ".gz"
            content = gzip.GzipFile(fileobj=file) if is_gz else file
            for _ in range(self.first_line - 1):
                line = content.readline(BLOCK)
                check_line_ends(line)
                if not line.endswith(b"\n"):
                    raise UnusualError
            while block := content.read(BLOCK):
                line = content.readline(BLOCK)
                is_windows = (block[-2:] + line).endswith(b"\r\n")
                end = line.rstrip(b"\r\n")
                lines = block + end if end else block.rstrip(b"\r\n")
                # Rows tell the numbers of their lines if no empty line stands before one.
                if lines and is_end:
                    raise UnusualError
                is_end = len(block) + len(line) - len(lines) != (2 if is_windows else 1)
                if lines:
                    yield lines
                progress(file.tell() - done)
                done = file.tell()

    def parse(self, lines: bytes, types: dict[int, pa.DataType]) -> list[pa.Array]:
        """Return columns of a block, as arrays of the types that they shall have."""
        import pyarrow as pa
        from pyarrow import csv

        titles = list(map(str, range(len(self.names))))
        table = csv.read_csv(
            pa.BufferReader(lines),
            csv.ReadOptions(column_names=titles, block_size=len(lines)),
            csv.ParseOptions(delimiter=self.separator),
            csv.ConvertOptions(
                column_types={titles[index]: kind for index, kind in types.items()},
                include_columns=[titles[index] for index in types],
                null_values=NULLS,
                strings_can_be_null=False,
            ),
        )
        # numpy counts many line ends faster than bytes.count().
        num_ends = np.count_nonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        if table.num_rows != num_ends + 1:
            raise UnusualError
        return [column.combine_chunks() for column in table.columns]


def fast_table(file: TableFile, where: str, names: Sequence[str]) -> FastTable | None:
    """Return a table for the functions below; None if it is small, or unusual at first sight.

    `where` is the place of the header line, and `names` are those of the columns.
    """
    if not names or file.text is None or file.text.encoding is not None:
        return None
    is_large = file.text.path.stat().st_size >= LARGE
    has_few_columns = len(names) <= CELLS_AT_ONCE // LINES_AT_ONCE
    is_usual = file.separator.isascii() and file.separator != " "
    if not (is_large and has_few_columns and is_usual):
        return None
    return FastTable(file.text, file.separator, names, int(where.rpartition(":")[2]) + 1)


def check_line_ends(lines: bytes) -> None:
    """Raise UnusualError if a line ends in \\r alone."""
    if b"\r" in lines and lines.count(b"\r") != lines.count(b"\r\n"):
        raise UnusualError


def to_numpy(array: pa.Array) -> np.ndarray:
    """Return an array of numpy; a null is NaN there."""
    numbers: np.ndarray = array.to_numpy(zero_copy_only=False)
    return numbers


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items; a thread makes the next one while the last one is in use."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


@contextmanager
def usual(progress: Progress) -> Iterator[Progress]:
    """Make what may be a fault Unusual, and take back the progress that was made before it."""
    import pyarrow as pa

    done = 0.0

    def count(num_bytes: float) -> None:
        nonlocal done
        done += num_bytes
        progress(num_bytes)

    try:
        yield count
    except (UnusualError, RowError, pa.ArrowException, OSError, EOFError, zlib.error) as error:
        progress(-done)
        raise UnusualError from error


def read_fast(
    table: FastTable,
    survey: Survey,
    columns: Columns,
    options: ReadOptions,
    progress: Progress,
    plain: Iterator[Row | BadRow],
) -> Iterator[Row | BadRow]:
    """Yield what the reader `plain` yields, and let it go on where the table is unusual.

    `survey` is what fast_survey() returned of the table.
    """
    num_rows = 0
    is_read = False
    try:
        with usual(progress) as count:
            types = _types(survey, columns)
            for row in _read_long(table, types, columns, options, count):
                num_rows += 1
                yield row
        is_read = True
    except UnusualError:
        pass
    if not is_read:
        yield from islice(plain, num_rows, None)


@dataclass(slots=True)
class _Lines:
    """The lines of a sequence, as far as they were read, in pieces."""

    id: str
    row: int  # the first one
    values: list[np.ndarray] = field(default_factory=list)
    times: list[np.ndarray] = field(default_factory=list)
    names: list[Names] = field(default_factory=list)
    must_sort: bool = False
    must_finish: bool = False  # whether finish_steps() may change something

    def finish(self, table: FastTable, features: tuple[str, ...], options: ReadOptions) -> Row:
        """Return the sequence."""
        is_one = len(self.values) == 1
        values_TF = self.values[0] if is_one else np.concatenate(self.values)
        order_T = None
        num_equal = 0
        if self.times:
            times_T = self.times[0] if is_one else np.concatenate(self.times)
            if self.must_sort or not is_one:
                order_T = np.argsort(times_T, kind="stable")
                values_TF = values_TF[order_T]
                times_T = times_T[order_T]
            num_equal = int(np.count_nonzero(times_T[1:] == times_T[:-1]))
        finished = Steps(values_TF)
        if self.must_finish:
            finished = finish_steps(values_TF, options, nan_is_padding=False)
        names = Names()
        for found in self.names:
            is_free = options.keep_step_labels  # the label may change
            names = combine_names(names, found._replace(label=None) if is_free else found)
        row = Row(
            parse_name(self.id, "id") or "",
            finished.steps,
            table.place(self.row),
            label=names.label,
            split=names.split,
            group=names.group,
            features=features,
            filled=finished.filled,
            padding=finished.padding,
            measured=finished.measured,
            num_equal_times=num_equal,
        )
        if not options.keep_step_labels:
            return row
        pieces = zip(self.names, map(len, self.values), strict=True)
        labels = [names.label or "" for names, length in pieces for _ in range(length)]
        return with_labels(
            row, [labels[step] for step in order_T] if order_T is not None else labels
        )


def _types(survey: Survey, columns: Columns) -> dict[int, pa.DataType]:
    """Return the types of all columns that are read. Raises UnusualError if they cannot be."""
    import pyarrow as pa

    is_plain = not columns.dialects and columns.time_dialect == "plain"
    if columns.form != "long" or columns.words is not None or not is_plain:
        raise UnusualError
    types = dict.fromkeys(columns.values, pa.float64())
    for role, index in columns.special.items():
        kind = pa.string()
        if role == "time":
            is_date = survey.columns[index].first.keys() == {"time"}
            kind = pa.timestamp("us") if is_date else pa.float64()
        if types.setdefault(index, kind) != kind:
            raise UnusualError  # Such as a column that is a feature and the label.
    return types


def _read_long(
    table: FastTable,
    types: dict[int, pa.DataType],
    columns: Columns,
    options: ReadOptions,
    progress: Progress,
) -> Iterator[Row]:
    """Yield the sequences of a table in long form. Raises UnusualError, and what usual() takes."""
    import pyarrow as pa

    roles = [role for role in Names._fields if role in columns.special]
    texts = [columns.special[role] for role in ("id", *roles)]

    @lru_cache(maxsize=4096)
    def parse(cells: tuple[str, ...]) -> Names:
        return Names(**{r: parse_name(cell, r) for r, cell in zip(roles, cells, strict=True)})

    features = columns.features
    seen: set[str] = set()
    now: _Lines | None = None
    num_rows = 0
    have_clocks: set[bool] = set()  # dates of both kinds are said by the plain reader
    parts = table.blocks(progress)
    blocks = (_parse(table, lines, types, columns, have_clocks) for lines in parts)
    for block in ahead(blocks):
        arrays = dict(zip(types, block, strict=True))
        values = np.stack([_numbers(arrays[index]) for index in columns.values], axis=1)
        with np.errstate(over="ignore"):
            is_finite = bool(np.isfinite(values.astype(np.float32)).all())
        must_finish = not is_finite or options.pad_value is not None
        id_changes = _changes(arrays[texts[0]])
        times = None
        must_sort = False
        if "time" in columns.special:
            column = arrays[columns.special["time"]]
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.int64()).cast(pa.float64())
            times = _numbers(column)
            # Beyond, a float does not hold all digits.
            if not (np.abs(times) < EXACT).all():
                raise UnusualError
            must_sort = not (id_changes | (np.diff(times, prepend=-np.inf) >= 0)).all()
        changes = np.logical_or.reduce([id_changes, *(_changes(arrays[i]) for i in texts[1:])])
        starts = np.flatnonzero(changes)
        cells = [arrays[index].take(pa.array(starts)).to_pylist() for index in texts]
        bounds = pairwise([*starts.tolist(), len(values)])
        for (first, end), id_cell, *name_cells in zip(bounds, *cells, strict=True):
            row_id = id_cell.strip()
            if now is None or row_id != now.id:
                if now is not None:
                    yield now.finish(table, features, options)
                if not row_id or row_id in seen:
                    raise UnusualError
                seen.add(row_id)
                now = _Lines(row_id, num_rows + first)
            now.values.append(values[first:end])
            now.names.append(parse(tuple(name_cells)))
            if times is not None:
                now.times.append(times[first:end])
            now.must_sort |= must_sort
            now.must_finish |= must_finish
        num_rows += len(values)
    if now is not None:
        yield now.finish(table, features, options)


def _parse(
    table: FastTable,
    lines: bytes,
    types: dict[int, pa.DataType],
    columns: Columns,
    have_clocks: set[bool],
) -> list[pa.Array]:
    """Return the columns of a block. Raises UnusualError if some dates alone have no clock."""
    import pyarrow as pa
    from pyarrow import compute

    arrays = table.parse(lines, types)
    time = columns.special.get("time")
    if time is None or not pa.types.is_timestamp(types[time]):
        return arrays
    ticks = to_numpy(arrays[list(types).index(time)].cast(pa.int64()).fill_null(1))
    is_midnight = ticks % MICROSECONDS_A_DAY == 0
    if is_midnight.any():
        # Whether midnight was written, the cells alone tell.
        (cells,) = table.parse(lines, {time: pa.string()})
        have_clocks |= set(compute.match_substring_regex(cells, "[:T]").unique().to_pylist())
    else:
        have_clocks.add(True)
    if len(have_clocks) > 1:
        raise UnusualError
    return arrays


def _numbers(column: pa.Array) -> np.ndarray:
    """Return the numbers of a column, NaN for gaps. Raises UnusualError."""
    numbers = to_numpy(column)
    # pyarrow reads `nan(1)`, too.
    if np.isnan(numbers).sum() > column.null_count:
        raise UnusualError
    return numbers


def _changes(cells: pa.Array) -> np.ndarray:
    """Return whether each cell differs from the one before; the first one does."""
    from pyarrow import compute

    return np.append(True, to_numpy(compute.not_equal(cells[1:], cells[:-1])))
