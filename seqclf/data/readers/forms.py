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
    NO_LABEL,
    BadRow,
    Journal,
    Names,
    ReadOptions,
    Row,
    RowError,
    Steps,
    finish_steps,
    parse_name,
    quote,
)
from seqclf.data.readers.survey import Line, is_blank
from seqclf.data.readers.times import Times
from seqclf.errors import UserError


def read_wide(
    lines: Iterable[Line], columns: Columns, options: ReadOptions
) -> Iterator[Row | BadRow]:
    """Yield a sequence of one feature from each line, or its words or text.

    Of sequences that were read the ids are kept, to refuse an id that comes again.
    """
    seen: set[str] = set()
    number = -1
    for where, cells in lines:
        if is_blank(cells):
            continue
        number += 1
        try:
            _check_end(cells, columns)
            names = columns.parse_names(cells)
            row_id = _parse_id(cells, columns, str(number))
            found = _parse_words(cells, columns) or _parse_wide(cells, columns, options)
        except RowError as error:
            yield BadRow(where, error.problem)
            continue
        if "id" in columns.special:
            if row_id in seen:
                title = quote(columns.title(columns.special["id"]))
                raise UserError(
                    f"{where}: id '{quote(row_id)}' comes again; if a line is a step, sort the "
                    f"lines by their id and say --form long; else --drop {title}, or --group "
                    f"{title} if it tells which lines belong together"
                )
            seen.add(row_id)
        yield Row(row_id, where=where, **names._asdict(), **found._asdict())


def _check_end(cells: Sequence[str], columns: Columns) -> None:
    """Raise RowError if a line goes on where the header ends, with more than empty cells."""
    count = columns.count
    if len(cells) > count and not is_blank(cells[count:]):
        raise RowError(f"{len(cells)} cells, where the header has {count}")


def _parse_id(cells: Sequence[str], columns: Columns, number: str) -> str:
    """Return a line's id, or its number if the table has no ids. Raises RowError."""
    if "id" not in columns.special:
        return number
    row_id = columns.parse("id", cells)
    if row_id is None:
        raise RowError(f"no id in column {quote(columns.title(columns.special['id']))}")
    return row_id


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
    indices = columns.values
    num_steps = len(indices)
    # A line may end before the last steps.
    while num_steps and indices[num_steps - 1] >= len(cells):
        num_steps -= 1
    values = [cells[index] if index < len(cells) else "" for index in indices[:num_steps]]
    # A table pads shorter sequences with empty cells: gaps at the end are no steps.
    while values and values[-1].strip().lower() in MISSING:
        values.pop()
    try:
        numbers = parse_numbers(values, columns.dialects[: len(values)])
        found = finish_steps(np.array(numbers), options)
        return found._replace(padding=found.padding + num_steps - len(values))
    except RowError as error:
        if not error.has_position:
            raise
        title = quote(columns.title(indices[error.step]))
        raise RowError(f"column {title}: {error.problem}") from None


def read_long(
    lines: Iterator[Line], columns: Columns, options: ReadOptions, journal: Journal
) -> Iterator[Row | BadRow]:
    """Yield a sequence from all lines with the same id, which must follow each other.

    One sequence at a time is in memory. Of the others the ids are kept, to refuse an id that comes
    again: its lines would make a second sequence.
    """
    seen: set[str] = set()
    times = Times(journal)
    index = columns.special["id"]
    for row_id, members in groupby(_with_ids(lines, index), key=itemgetter(0)):
        row = read_steps(row_id, (line for _, line in members), columns, options, times)
        if not row_id:
            yield BadRow(row.where, f"no id in column {quote(columns.title(index))}")
            continue
        if row_id in seen:
            raise UserError(
                f"{row.where}: id '{quote(row_id)}' comes again after others; sort the lines by "
                "their id"
            )
        seen.add(row_id)
        yield row


def _with_ids(lines: Iterable[Line], index: int) -> Iterator[tuple[str, Line]]:
    """Yield each line that holds something with its id, the cell at `index`."""
    row_id = ""
    for line in lines:
        cells = line[1]
        # A line that is cut off before its id makes the sequence before it a bad row.
        if index < len(cells):
            row_id = cells[index].strip()
            if not row_id and is_blank(cells):
                continue
        yield row_id, line


def read_steps(
    row_id: str, lines: Iterable[Line], columns: Columns, options: ReadOptions, times: Times
) -> Row | BadRow:
    """Make a sequence of lines, each of which is a step."""
    time = columns.special.get("time")
    # Arrays take 8 bytes a number, where a list of floats takes 32. The second array has what is
    # beyond the precision of the first one, such as nanoseconds since 1970.
    values = array("d")
    moments = array("d"), array("d")
    words: list[str] = []
    labels: list[str] = []
    places: list[str] = []
    names = found = Names()
    named: list[int] = [i for role, i in columns.special.items() if role in Names._fields]
    last: list[str] | None = None  # the cells of the line before in these columns
    bad: BadRow | None = None
    for where, cells in lines:
        places.append(where)
        if bad:
            continue  # The lines that are left must be read, to get to the next sequence.
        try:
            if len(cells) != columns.count:
                _check_length(cells, columns)
            if columns.words is None:
                values.extend(_parse_step(cells, columns))
            else:
                words.append(_parse_word(cells, columns.words.column))
            if time is not None:
                moment = times.parse(cells[time], where, columns.time_dialect)
                moments[0].append(moment)
                moments[1].append(moment - int(moments[0][-1]) if type(moment) is int else 0)
            if (now := [cells[index] for index in named]) != last:
                last = now
                found = columns.parse_names(cells)
                is_free = options.keep_step_labels  # the label may change
                names = combine_names(names, found._replace(label=None) if is_free else found)
            if options.keep_step_labels:
                labels.append(found.label or "")
        except RowError as error:
            bad = BadRow(where, error.problem)
    if bad:
        return bad
    order: list[int] = list(range(len(places)))
    num_equal = 0
    if time is not None:
        both = np.array(moments)
        order = np.lexsort(both[::-1]).tolist()
        num_equal = int((np.diff(both[:, order]) == 0).all(0).sum())
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
        num_equal_times=num_equal,
    )
    return with_labels(row, [labels[step] for step in order] if labels else [])


def combine_names(names: Names, found: Names) -> Names:
    """Return the names of a sequence and of its next line. Raises RowError if they differ."""
    combined = []
    for role, before, now in zip(Names._fields, names, found, strict=True):
        # A cell may be empty: often the first step alone names the label.
        if None not in (before, now) and before != now:
            problem = f"{role} '{now}', where the sequence began with '{before}'"
            if role == "label" and _is_measured(before) and _is_measured(now):
                problem = (
                    "labels with decimals change within a sequence: are they numbers to predict? "
                    "seqclf tells classes apart; --label names another column"
                )
            elif role == "label":
                problem += (
                    "; --on-label-change cut makes a sequence of each label, and --window takes "
                    "the label of most steps of a window"
                )
            raise RowError(problem)
        combined.append(now if before is None else before)
    return Names(*combined)


def _is_measured(label: str | None) -> bool:
    """Whether a label looks like a measured number."""
    try:
        return float(label or 0) % 1 != 0
    except ValueError:
        return False


def with_labels(row: Row, labels: Sequence[str]) -> Row:
    """Give a sequence its label, or a label for each step if they differ.

    A label at one step alone, often the first, is that of the sequence.
    """
    different = {label for label in labels if label}
    if len(different) > 1 or 1 < sum(map(bool, labels)) < len(labels):
        return row._replace(step_labels=tuple(labels[: len(row.steps)]))
    return row._replace(label=next(iter(different), row.label))


def _check_length(cells: Sequence[str], columns: Columns) -> None:
    """Raise RowError if a line has more or fewer cells than there are columns.

    Empty cells may be more, and cells of columns without a name may lack.
    """
    named = [index for index, name in enumerate(columns.names) if name]
    if len(cells) <= (named[-1] if named else columns.count - 1):
        known = "the header has" if columns.names else "other lines have"
        raise RowError(f"{len(cells)} cells, where {known} {columns.count}")
    _check_end(cells, columns)


def _parse_word(cells: Sequence[str], index: int) -> str:
    word = parse_name(cells[index], "token")
    if word is None or word.lower() in NO_LABEL:
        raise RowError("a missing token")
    return word


def _parse_step(cells: Sequence[str], columns: Columns) -> list[float]:
    """Return a line's values. Raises RowError."""
    try:
        return parse_numbers([cells[index] for index in columns.values], columns.dialects)
    except RowError as error:
        column = quote(columns.title(columns.values[error.step]))
        raise RowError(f"column {column}: {error.problem}") from None
