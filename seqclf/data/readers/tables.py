"""Tables: a sequence in a line (wide), a step in a line (long), or a manifest of files."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqclf.data.readers.arrays import ArrayFile
from seqclf.data.readers.rows import (
    MISSING,
    SPECIAL,
    BadRow,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    is_number,
    parse_name,
    parse_number,
    parse_numbers,
    printable,
    quote,
    read_lines,
)
from seqclf.errors import UserError

LINES_AHEAD = 100  # lines of a long table that decide which of its columns hold numbers

Line = tuple[str, list[str]]  # where the line is, and its cells


class _Columns(NamedTuple):
    """The columns of a table, by index."""

    names: list[str]  # of all columns; empty if the table has no header line
    special: dict[str, int]  # the columns of SPECIAL that the table has
    values: list[int]  # the columns that hold values

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.names[index] for index in self.values)

    def parse(self, role: str, cells: Sequence[str]) -> str | None:
        """Return the name in a line's cell of a special column, None if there is none."""
        index = self.special.get(role)
        # A line may end before the column.
        if index is None or index >= len(cells):
            return None
        return parse_name(cells[index], role)

    def parse_all(self, cells: Sequence[str]) -> dict[str, str | None]:
        """Return a line's label, split and group. Raises RowError."""
        return {role: self.parse(role, cells) for role in ("label", "split", "group")}


def read_table(
    path: Path, options: ReadOptions, progress: Progress, *, delimiter: str
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a text file that separates cells by a delimiter."""
    return read_cells(path, _split_lines(path, progress, delimiter=delimiter), options)


def _split_lines(path: Path, progress: Progress, *, delimiter: str) -> Iterator[Line]:
    lines = read_lines(path, progress)
    first = next(lines, "")
    # Spreadsheets in countries with a decimal comma save a .csv with semicolons.
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    reader = csv.reader(chain([first], lines), delimiter=delimiter)
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; is a quote left open?") from None


def read_cells(path: Path, lines: Iterator[Line], options: ReadOptions) -> Iterator[Row | BadRow]:
    """Yield the sequences of a table: a manifest, or in wide form, or in long form."""
    first = next(lines, None)
    if first is None:
        return
    where, cells = first
    names = [cell.strip() for cell in cells]
    requested = {role: name for role in SPECIAL if (name := getattr(options, role)) is not None}
    if not _is_header(names, {*SPECIAL, "path", *requested.values()}):
        if requested:
            option, name = next(iter(requested.items()))
            raise UserError(f"{where}: no header line, so no column '{name}' (--{option})")
        # The UCR archive's tables have no header, and the label in the first column.
        columns = _Columns(names=[], special={"label": 0}, values=[])
        yield from _read_wide(chain([first], lines), columns, options)
        return
    columns = _find_columns(where, names, requested)
    if "path" in names:
        yield from _read_manifest(path, lines, columns, options)
    elif options.id is not None:
        yield from _read_long(where, lines, columns, options)
    else:
        yield from _read_wide(lines, columns, options)


def _is_header(cells: Sequence[str], special_names: set[str]) -> bool:
    """Return whether a first line names columns: a special one, or others by words, not numbers."""
    # The first cell tells nothing: without a header it is a label, which may be a word.
    num_words = sum(not is_number(cell) for cell in cells[1:])
    return any(cell in special_names for cell in cells) or 2 * num_words > len(cells) - 1


def _find_columns(where: str, names: list[str], requested: dict[str, str]) -> _Columns:
    """Tell special columns from values. Raises UserError if a column that an option names lacks."""
    for option, name in requested.items():
        if name not in names:
            choices = quote(", ".join(names))
            raise UserError(f"{where}: no column '{quote(name)}' (--{option}) among {choices}")
    special = {
        role: names.index(requested.get(role, role))
        for role in SPECIAL
        if requested.get(role, role) in names
    }
    # A column that happens to be called time is a feature, unless --time asks for an order.
    if "time" not in requested:
        special.pop("time", None)
    values = [index for index in range(len(names)) if index not in special.values()]
    return _Columns(names, special, values)


def _read_wide(
    lines: Iterable[Line], columns: _Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield a sequence of one feature from each line."""
    for number, (where, cells) in enumerate(lines, 1):
        try:
            if columns.names and len(cells) > len(columns.names):
                raise RowError(f"{len(cells)} cells, where the header has {len(columns.names)}")
            names = columns.parse_all(cells)
            row_id = columns.parse("id", cells)
            steps, filled = _parse_wide(cells, columns, options)
        except RowError as error:
            yield BadRow(where, error.problem)
        else:
            yield Row(row_id or str(number), steps, where, **names, features=None, filled=filled)


def _parse_wide(
    cells: Sequence[str], columns: _Columns, options: ReadOptions
) -> tuple[np.ndarray, int]:
    """Return a line's steps, and how many of them were filled. Raises RowError."""
    indices = columns.values if columns.names else range(1, len(cells))
    values = [cells[index] for index in indices if index < len(cells)]
    # A table pads shorter sequences with empty cells: gaps at the end are no steps.
    while values and values[-1].strip().lower() in MISSING:
        values.pop()
    try:
        return finish_steps(np.array(parse_numbers(values)), fill_missing=options.fill_missing)
    except RowError as error:
        if not error.has_position:
            raise
        index = indices[error.step]
        title = columns.names[index] if columns.names else str(index + 1)
        raise RowError(f"column {quote(title)}: {error.problem}") from None


def _read_long(
    header: str, lines: Iterator[Line], columns: _Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield a sequence from all lines with the same id, which must follow each other.

    One sequence at a time is in memory. Of the others the ids are kept, to refuse an id that comes
    again: its lines would make a second sequence.
    """
    # A table may hold remarks beside the features, and no option names the features. So they are
    # the columns with a number in any of the first lines.
    start = list(islice(lines, LINES_AHEAD))
    values = [
        index
        for index in columns.values
        if any(index < len(cells) and is_number(cells[index]) for _, cells in start)
    ]
    if not values:
        raise UserError(f"{header}: no column of numbers beside {', '.join(columns.special)}")
    columns = columns._replace(values=values)
    features = columns.features
    if len(set(features)) < len(features):
        repeated = next(name for name in features if features.count(name) > 1)
        raise UserError(f"{header}: column '{quote(repeated)}' comes twice")
    seen: set[str] = set()
    identified = _with_ids(chain(start, lines), columns.special["id"])
    for row_id, members in groupby(identified, key=itemgetter(0)):
        row = _read_steps(row_id, (line for _, line in members), columns, options)
        if row_id in seen:
            raise UserError(
                f"{row.where}: id '{quote(row_id)}' comes again after others; sort the lines by "
                "their id"
            )
        seen.add(row_id)
        yield row


def _with_ids(lines: Iterable[Line], index: int) -> Iterator[tuple[str, Line]]:
    """Yield each line with its id, the cell at `index`."""
    row_id = ""
    for line in lines:
        cells = line[1]
        # A line that is cut off before its id makes the sequence before it a bad row.
        if index < len(cells):
            row_id = cells[index].strip()
        yield row_id, line


def _read_steps(
    row_id: str, lines: Iterator[Line], columns: _Columns, options: ReadOptions
) -> Row | BadRow:
    """Make a sequence of lines, each of which is a step."""
    features = columns.features
    time = columns.special.get("time")
    # Arrays take 8 bytes a number, where a list of floats takes 32.
    values = array("d")
    times = array("d")
    places: list[str] = []
    names: dict[str, str] = {}
    bad: BadRow | None = None
    for where, cells in lines:
        places.append(where)
        if bad:
            continue  # The lines that are left must be read, to get to the next sequence.
        try:
            values.extend(_parse_step(cells, columns))
            if time is not None:
                times.append(_parse_time(cells[time]))
            for role, name in columns.parse_all(cells).items():
                # A cell may be empty: often the first step alone names the label.
                if name is not None and names.setdefault(role, name) != name:
                    raise RowError(
                        f"{role} '{name}', where the sequence began with '{names[role]}'"
                    )
        except RowError as error:
            bad = BadRow(where, error.problem)
    if bad:
        return bad
    values_TF = np.frombuffer(values).reshape(len(places), -1)
    order = np.argsort(np.frombuffer(times), kind="stable") if times else np.arange(len(places))
    try:
        steps, filled = finish_steps(values_TF[order], fill_missing=options.fill_missing)
        name = parse_name(row_id, "id") or ""
    except RowError as error:
        message = error.message(f"column {quote(features[error.feature])}")
        return BadRow(places[order[error.step]], message)
    return Row(name, steps, places[0], **names, features=features, filled=filled)


def _parse_step(cells: Sequence[str], columns: _Columns) -> list[float]:
    """Return a line's values. Raises RowError."""
    if len(cells) != len(columns.names):
        raise RowError(f"{len(cells)} cells, where the header has {len(columns.names)}")
    try:
        return parse_numbers([cells[index] for index in columns.values])
    except RowError as error:
        column = quote(columns.names[columns.values[error.step]])
        raise RowError(f"column {column}: {error.problem}") from None


def _parse_time(cell: str) -> float:
    """Return a time that sorts: a number, or an ISO date in seconds. Raises RowError."""
    try:
        time = parse_number(cell)
    except ValueError:
        time = _parse_date(cell)
    if math.isnan(time):
        raise RowError("no time")
    return time


def _parse_date(cell: str) -> float:
    try:
        date = datetime.fromisoformat(cell.strip())
    except ValueError:
        raise RowError(
            f"time '{quote(cell)}' is neither a number nor a date like 2025-01-31T12:00"
        ) from None
    # Without a zone, UTC: the order of steps must not depend on this machine's zone.
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _read_manifest(
    path: Path, lines: Iterable[Line], columns: _Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield the sequence in each file that a manifest names, beside it or by absolute path."""
    index = columns.names.index("path")
    for where, cells in lines:
        try:
            names = columns.parse_all(cells)
            file = cells[index].strip() if index < len(cells) else ""
            if not file:
                raise RowError("no path")
            steps, filled, features = _read_one(
                path.parent / file, fill_missing=options.fill_missing
            )
            row_id = columns.parse("id", cells) or quote(file)
        except RowError as error:
            yield BadRow(where, error.problem)
        else:
            yield Row(row_id, steps, where, **names, features=features, filled=filled)


def _read_one(file: Path, *, fill_missing: bool) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
    """Read a sequence's own file: its steps, filled gaps, features. Raises RowError."""
    file_name = printable(str(file))
    features: tuple[str, ...] | None = None
    places: list[str] = []
    try:
        if file.suffix.lower() == ".npy":
            with file.open("rb") as opened:
                values = ArrayFile(opened, file.stat().st_size, file_name).read_all()
        elif file.suffix.lower() in (".csv", ".tsv"):
            features, places, values = _read_own_table(file)
        else:
            raise RowError(f"{file_name}: expected .npy, .csv or .tsv")
    except OSError as error:
        raise RowError(f"{file_name}: {error.strerror or error}") from None
    except UserError as error:
        raise RowError(str(error)) from None
    try:
        steps, filled = finish_steps(values, fill_missing=fill_missing)
    except RowError as error:
        where = file_name
        if error.has_position:
            place = places[error.step] if places else f"{file_name}, step {error.step + 1}"
            where = f"{place}, column {features[error.feature] if features else error.feature + 1}"
        raise RowError(f"{where}: {error.problem}") from None
    return steps, filled, features


def _read_own_table(file: Path) -> tuple[tuple[str, ...] | None, list[str], np.ndarray]:
    """Read a table of one sequence: the columns' names, where each step is, and [T, F]."""
    delimiter = "," if file.suffix.lower() == ".csv" else "\t"
    features: tuple[str, ...] | None = None
    places: list[str] = []
    values = array("d")
    width = 0
    for where, cells in _split_lines(file, lambda num_bytes: None, delimiter=delimiter):
        if not width:
            width = len(cells)
            # One number in the first line makes it a step: all of a header's cells are words.
            if not any(map(is_number, cells)):
                features = tuple(quote(cell.strip()) for cell in cells)
                continue
        if len(cells) != width:
            raise RowError(f"{where}: {len(cells)} cells, where the first line has {width}")
        try:
            values.extend(parse_numbers(cells))
        except RowError as error:
            title = features[error.step] if features else error.step + 1
            raise RowError(f"{where}, column {title}: {error.problem}") from None
        places.append(where)
    return features, places, np.frombuffer(values).reshape(len(places), width)
