"""A table in a file: what separates its cells, and whether its first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from seqclf.data.readers.columns import KNOWN
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.numbers import kind_of
from seqclf.data.readers.rows import SPECIAL, Journal, Progress, ReadOptions
from seqclf.data.readers.survey import Line
from seqclf.errors import UserError

LINES_AHEAD = 100  # lines that decide whether the first one is a header
PATH_COLUMNS = ("path", "file")  # of a manifest, in any case


@dataclass(frozen=True)
class TableFile:
    """A table that can be read several times."""

    name: str  # for messages
    open: Callable[[Progress], Iterator[Line]]
    separator: str = ","
    has_header: bool | None = None  # None: its first lines decide
    index_columns: frozenset[str] = frozenset()  # what the file says is pandas' index


def text_table(file: TextFile, journal: Journal, *, separator: str) -> TableFile:
    """Return the table in a text file; its first line decides what separates the cells."""
    first = next(file.lines(), "")
    file.check_utf8(1, first)
    found = _find_separator(first, separator)
    if found != separator:
        names = {"\t": "a tab", " ": "blanks"}
        journal.note(f"{file.name}: cells are separated by {names.get(found, repr(found))}")
    return TableFile(file.name, partial(_split_lines, file, found), found)


def _find_separator(line: str, separator: str) -> str:
    """Return what separates the cells of a first line: the usual separator, if it is there."""
    (cells,) = csv.reader([line], delimiter=separator) if separator != " " else [line.split()]
    if len(cells) > 1:
        return separator
    # Spreadsheets in countries with a decimal comma save a .csv with semicolons.
    found = max(";\t,|", key=line.count)
    if found in line:
        return found
    return " " if len(line.split()) > 1 and all(map(_is_number, line.split()[1:])) else separator


def _is_number(cell: str) -> bool:
    return kind_of(cell) in ("whole", "point", "missing")


def _split_lines(file: TextFile, separator: str, progress: Progress) -> Iterator[Line]:
    if separator == " ":
        for number, line in enumerate(file.lines(progress), 1):
            if cells := line.split():
                yield f"{file.name}:{number}", cells
        return
    reader = csv.reader(file.lines(progress), delimiter=separator)
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield f"{file.name}:{reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{file.name}:{reader.line_num}: {error}; is a quote left open?") from None


def find_header(file: TableFile, options: ReadOptions) -> tuple[str, list[str]] | None:
    """Return where a table's first line is, and the names of the columns; None if it is empty.

    Without a header line there are no names.
    """
    start = list(islice(file.open(lambda num_bytes: None), LINES_AHEAD))
    if not start:
        return None
    where, cells = start[0]
    names = [cell.strip() for cell in cells]
    has_header = file.has_header if options.header is None else options.header
    if has_header is None:
        has_header = _is_header(names, [cells for _, cells in start[1:]], options)
    return where, names if has_header else []


def _is_header(names: Sequence[str], others: Sequence[list[str]], options: ReadOptions) -> bool:
    """Return whether a first line names the columns of the others."""
    requested = {name for role in SPECIAL if (name := getattr(options, role)) is not None}
    requested |= {
        *(options.features or ()),
        *options.drop,
        options.tokens or "",
        options.text or "",
    }
    known = {name for names in KNOWN.values() for name in names} | {*PATH_COLUMNS, "text", "tokens"}
    if any(name in requested - {""} or name.lower() in known for name in names):
        return True
    # pandas numbers columns that have no names.
    if len(names) > 2 and _counts(names):
        return True
    # The first cell alone tells little: without a header it is a label, which may be a word.
    num_words = sum(not _is_number(name) for name in names[1:])
    if 2 * num_words > len(names) - 1:
        return True
    is_word = not _is_number(names[0])
    return is_word and bool(others) and all(_is_number(cells[0]) for cells in others)


def _counts(names: Sequence[str]) -> bool:
    """Return whether names are 0, 1, 2 ..., or a word and then 0, 1, 2 ..."""
    numbers = names if _is_number(names[0]) else names[1:]
    return list(numbers) == [str(number) for number in range(len(numbers))]
