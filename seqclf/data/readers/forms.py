"""Lines of a table -> sequences: a sequence in a line (wide), or a step in a line (long)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from seqclf.data.readers.columns import Columns
from seqclf.data.readers.numbers import MISSING, parse_numbers
from seqclf.data.readers.rows import (
    BadRow,
    Names,
    ReadOptions,
    Row,
    RowError,
    Steps,
    finish_steps,
    parse_name,
    quote,
)
from seqclf.data.readers.survey import Line
from seqclf.data.readers.times import Times
from seqclf.errors import UserError


def read_wide(
    lines: Iterable[Line], columns: Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield a sequence of one feature from each line, or its words or text."""
    for number, (where, cells) in enumerate(lines):
        try:
            if columns.names and len(cells) > len(columns.names):
                raise RowError(f"{len(cells)} cells, where the header has {len(columns.names)}")
            names = columns.parse_names(cells)
            row_id = columns.parse("id", cells) or str(number)
            found = _parse_words(cells, columns) or _parse_wide(cells, columns, options)
        except RowError as error:
            yield BadRow(where, error.problem)
        else:
            yield Row(row_id, where=where, **names._asdict(), **found._asdict())


def _parse_words(cells: Sequence[str], columns: Columns) -> Steps | None:
    """Return a line's tokens or text; None if the table holds numbers. Raises RowError."""
    if columns.words is None:
        return None
    kind, index = columns.words
    text = cells[index] if index < len(cells) else ""
    if not text.strip():
        raise RowError("an empty sequence")
    try:
        encoded = np.frombuffer(text.encode(), np.uint8)
    except UnicodeEncodeError:
        raise RowError("text: not UTF-8") from None
    return Steps(encoded if kind == "text" else tuple(text.split()))


def _parse_wide(cells: Sequence[str], columns: Columns, options: ReadOptions) -> Steps:
    """Return a line's steps. Raises RowError."""
    values = [cells[index] for index in columns.values if index < len(cells)]
    dialects = columns.dialects
    # A table pads shorter sequences with empty cells: gaps at the end are no steps.
    while values and values[-1].strip().lower() in MISSING:
        values.pop()
    try:
        numbers = parse_numbers(values, dialects[: len(values)] if dialects else ())
        return finish_steps(np.array(numbers), options)
    except RowError as error:
        if not error.has_position:
            raise
        title = quote(columns.title(columns.values[error.step]))
        raise RowError(f"column {title}: {error.problem}") from None


def read_long(
    lines: Iterator[Line], columns: Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield a sequence from all lines with the same id, which must follow each other.

    One sequence at a time is in memory. Of the others the ids are kept, to refuse an id that comes
    again: its lines would make a second sequence.
    """
    seen: set[str] = set()
    times = Times()
    identified = _with_ids(lines, columns.special["id"])
    for row_id, members in groupby(identified, key=itemgetter(0)):
        row = read_steps(row_id, (line for _, line in members), columns, options, times)
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


def read_steps(
    row_id: str, lines: Iterable[Line], columns: Columns, options: ReadOptions, times: Times
) -> Row | BadRow:
    """Make a sequence of lines, each of which is a step."""
    time = columns.special.get("time")
    # Arrays take 8 bytes a number, where a list of floats takes 32.
    values = array("d")
    moments = array("d")
    words: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    names = Names()
    bad: BadRow | None = None
    for where, cells in lines:
        places.append(where)
        if bad:
            continue  # The lines that are left must be read, to get to the next sequence.
        try:
            if len(cells) != columns.count:
                known = "the header has" if columns.names else "other lines have"
                raise RowError(f"{len(cells)} cells, where {known} {columns.count}")
            if columns.words is None:
                values.extend(_parse_step(cells, columns))
            else:
                words.append(_parse_word(cells, columns.words.column))
            if time is not None:
                moments.append(times.parse(cells[time], where))
            found = columns.parse_names(cells)
            if options.keep_step_labels:
                labels.append(found.label or "")
                found = found._replace(label=None)
            names = _combine(names, found)
        except RowError as error:
            bad = BadRow(where, error.problem)
    if bad:
        return bad
    in_order = np.argsort(np.frombuffer(moments), kind="stable") if moments else range(len(places))
    order: list[int] = list(in_order)
    try:
        if columns.words is None:
            values_TF = np.frombuffer(values).reshape(len(places), -1)
            # A line says that there is a step, so its missing values are a fault.
            finished = finish_steps(values_TF[order], options, nan_is_padding=False)
        else:
            finished = Steps(tuple(words[step] for step in order))
        name = parse_name(row_id, "id") or ""
    except RowError as error:
        feature = columns.features[error.feature] if columns.features else ""
        return BadRow(places[order[error.step]], error.message(f"column {quote(feature)}"))
    row = Row(
        name,
        where=places[0],
        **names._asdict(),
        features=columns.features,
        **finished._asdict(),
    )
    return _with_labels(row, [labels[step] for step in order] if labels else [])


def _combine(names: Names, found: Names) -> Names:
    """Return the names of a sequence and of its next line. Raises RowError if they differ."""
    combined = []
    for role, before, now in zip(Names._fields, names, found, strict=True):
        # A cell may be empty: often the first step alone names the label.
        if None not in (before, now) and before != now:
            problem = f"{role} '{now}', where the sequence began with '{before}'"
            if role == "label":
                problem += (
                    "; --on-label-change cut makes a sequence of each label, and --window takes "
                    "the label of most steps of a window"
                )
            raise RowError(problem)
        combined.append(now if before is None else before)
    return Names(*combined)


def _with_labels(row: Row, labels: Sequence[str]) -> Row:
    """Give a sequence its label, or a label for each step if they differ."""
    different = {label for label in labels if label}
    if len(different) > 1:
        return row._replace(step_labels=tuple(labels[: len(row.steps)]))
    return row._replace(label=next(iter(different), row.label))


def _parse_word(cells: Sequence[str], index: int) -> str:
    word = cells[index].strip()
    if word.lower() in MISSING:
        raise RowError("a missing token")
    return quote(word)


def _parse_step(cells: Sequence[str], columns: Columns) -> list[float]:
    """Return a line's values. Raises RowError."""
    try:
        return parse_numbers([cells[index] for index in columns.values], columns.dialects)
    except RowError as error:
        column = quote(columns.title(columns.values[error.step]))
        raise RowError(f"column {column}: {error.problem}") from None
