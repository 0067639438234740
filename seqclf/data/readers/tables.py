"""A table in a file: what separates its cells, and whether its first line names the columns."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.numbers import CELLS_OF, kind_of, parse_number
from seqclf.data.readers.roles import KNOWN
from seqclf.data.readers.rows import SPECIAL, Journal, Progress, ReadOptions, quote
from seqclf.data.readers.survey import Line, is_blank
from seqclf.errors import UserError

LINES_AHEAD = 100  # lines that decide whether the first one is a header
MOST_CELLS = 2**20  # of a line
CELLS_AHEAD = 2**17  # of lines that are so long that fewer must do
COLUMNS_AHEAD = 100  # the columns of them that are looked at
LINES_OF_SAMPLE = 20  # lines that decide what separates the cells
# The names, in any case, of the column of a manifest.
PATH_COLUMNS = ("path", "file", "filename", "filepath", "file_name", "file_path")
SEPARATORS = ";\t|, "  # the first of them is taken where several are as likely


@dataclass(frozen=True)
class TableFile:
    """A table that can be read several times."""

    name: str  # for messages
    open: Callable[[Progress], Iterator[Line]]
    separator: str = ","
    has_header: bool | None = None  # None: its first lines decide
    index_columns: frozenset[str] = frozenset()  # what the file says is pandas' index
    text: TextFile | None = None  # the lines, if it is a text


def text_table(file: TextFile, journal: Journal, *, separator: str) -> TableFile:
    """Return the table in a text file; its first lines decide what separates the cells."""
    sample = list(islice(file.lines(), LINES_OF_SAMPLE))
    for line in sample[:1]:
        file.check_utf8(1, line)
    for number, line in enumerate(sample, 1):
        for mark in (separator, *",;\t"):
            _check_cells(f"{file.name}:{number}", line, mark)
    # Excel takes the separator from a line before the header.
    if said := re.fullmatch(r'"?sep=([;,|\t])"?\s*', sample[0] if sample else ""):
        found, skip = said[1], 1
    else:
        found, skip = _find_separator(sample, separator), 0
    if found != separator:
        names = {"\t": "a tab", " ": "blanks"}
        journal.note(f"{file.name}: cells are separated by {names.get(found, repr(found))}")
    return TableFile(file.name, partial(_split_lines, file, found, skip), found, text=file)


def _find_separator(sample: Sequence[str], usual: str) -> str:
    """Return what separates the cells of a file's first lines.

    It is the usual separator, or another one that gives more numbers: `1,5;2,5` has two cells. The
    other must give as many cells in each line, or far more numbers.
    """
    lines = [line for line in sample if line.strip()]
    num_numbers: dict[str, int] = {}
    is_even: dict[str, bool] = {}
    for separator in SEPARATORS:
        rows = [_split(line, separator) for line in lines]
        is_last_resort = separator == " " != usual  # Text has blanks, too.
        if rows and len(rows[0]) > 1 and not (is_last_resort and num_numbers):
            cells = (cell for row in rows for cell in row[:COLUMNS_AHEAD])
            num_numbers[separator] = sum(map(_is_number, cells))
            is_even[separator] = len(set(map(len, rows))) == 1
    least = num_numbers.get(usual, -1)
    better = [
        separator
        for separator, count in num_numbers.items()
        if separator == usual
        or (count >= least and is_even[separator])
        or (count > 2 * least and separator != " ")
    ]
    found = max(better, key=num_numbers.__getitem__, default=usual)
    return found if num_numbers.get(found) or usual not in num_numbers else usual


def _split(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []  # a cell that is too long: not the separator


def _is_number(cell: str) -> bool:
    return kind_of(cell) not in ("word", "odd", "missing")


def _check_cells(place: str, line: str, separator: str) -> None:
    """Refuse a line of so many cells that they would fill the memory. Raises UserError."""
    if len(line) > MOST_CELLS and (count := line.count(separator) + 1) > MOST_CELLS:
        raise UserError(
            f"{place}: {count:,} cells in a line, of which at most {MOST_CELLS:,} are read; write "
            "a step a line, or save an .npy"
        )


def _checked(lines: Iterator[str], prefix: str, separator: str, skip: int) -> Iterator[str]:
    for number, line in enumerate(lines, 1 + skip):
        _check_cells(f"{prefix}{number}", line, separator)
        yield line


def _split_lines(file: TextFile, separator: str, skip: int, progress: Progress) -> Iterator[Line]:
    prefix = f"{file.name}:"
    lines = _checked(islice(file.lines(progress), skip, None), prefix, separator, skip)
    if separator == " ":
        for number, line in enumerate(lines, 1 + skip):
            if cells := line.split():
                yield f"{prefix}{number}", cells
        return
    # A quote that is never closed would swallow all lines after it: strict refuses that.
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    number = skip
    try:
        for cells in reader:
            number = reader.line_num + skip
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield f"{prefix}{number}", cells
    except csv.Error as error:
        raise UserError(
            f"{prefix}{number + 1}: {error}; is a quote left open, or not doubled inside a cell?"
        ) from None


def find_header(file: TableFile, options: ReadOptions) -> tuple[str, list[str]] | None:
    """Return where a table's first line is, and the names of the columns; None if it is empty.

    Without a header line there are no names. Raises UserError if the first line is not of the
    table, or if it names too few columns.
    """
    start: list[Line] = []
    for line in islice(file.open(lambda num_bytes: None), LINES_AHEAD):
        start.append(line)
        if len(start) * len(line[1]) > CELLS_AHEAD:
            break
    if not start:
        return None
    where, cells = start[0]
    names = [cell.strip() for cell in cells]
    others = [cells for _, cells in start[1:] if not is_blank(cells)]
    fewest = min(map(len, others), default=0)
    if len(names) == 1 < fewest:
        raise UserError(
            f"{where}: '{quote(names[0])}' is one cell, where the next lines have {fewest}; delete "
            "what stands before the table"
        )
    has_header = file.has_header if options.header is None else options.header
    if has_header is None:
        has_header = _is_header(names, others, options)
    if not has_header:
        return where, []
    if fewest > len(names) and not all(is_blank(cells[len(names) :]) for cells in others):
        raise UserError(
            f"{where}: the header names {len(names)} columns, where the next lines have {fewest} "
            "cells; give each column a name (in R: write.csv), and write numbers with a decimal "
            "comma in quotes"
        )
    return where, names


def _is_header(names: Sequence[str], others: Sequence[list[str]], options: ReadOptions) -> bool:
    """Return whether a first line names the columns of the others."""
    others = [cells for cells in others if [cell.strip() for cell in cells] != names]

    def below(index: int) -> set[str]:
        return {cells[index].strip() for cells in others if index < len(cells)}

    # A number may be a cell, too, and a column may be asked for by its number.
    options_name = {name for role in SPECIAL if (name := getattr(options, role)) is not None}
    options_name |= {*options.drop, options.tokens or "", options.text or ""}
    features = set(options.features or ())
    known = {name for names in KNOWN.values() for name in names} | {*PATH_COLUMNS, "text", "tokens"}
    for index, name in enumerate(names):
        is_asked = name in options_name | features and kind_of(name) == "word"
        # A label may be the word `target`; but a column's name does not come again below it.
        if (is_asked or name.lower() in known) and name not in below(index):
            return True
    if options.wanted_by != "--features" and len(features) > 1 and features <= set(names):
        return True
    words = [index for index, name in enumerate(names) if kind_of(name) == "word"]
    if _counts(names) and not any(names[index] in below(index) for index in words):
        return True
    # The first cell alone tells little: without a header it is a label, which may be a word.
    if others and 0 in words and all(map(_is_value, below(0))):
        return True
    if 2 * len(set(words) - {0}) <= len(names) - 1:
        return False
    return not others or any(
        all(map(_is_value, below(index))) and any(map(_is_number, below(index)))
        for index in words[:COLUMNS_AHEAD]
    )


def _is_value(cell: str) -> bool:
    return _is_number(cell) or kind_of(cell) == "missing"


def _counts(names: Sequence[str]) -> bool:
    """Return whether the numbers among names are 0, 1, 2 ..., or 0, 0.5, 1 ..."""
    numbers = [parse_number(name) for name in names if kind_of(name) in CELLS_OF["plain"]]
    if len(numbers) < 3 or numbers[0] != 0 or not 0 < numbers[1] < math.inf:
        return False
    return all(
        math.isclose(number, place * numbers[1], rel_tol=1e-6)
        for place, number in enumerate(numbers)
    )
