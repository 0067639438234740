"""JSON: an object in a line (.jsonl), or a list of objects or of columns in a file (.json)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.manifests import read_table
from seqclf.data.readers.records import VALUE_KEYS, RecordReader
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    printable,
    quote,
)
from seqclf.data.readers.survey import Line
from seqclf.data.readers.tables import TableFile
from seqclf.errors import UserError

MOST_CHARACTERS = 2**28  # of a .json, which is read as a whole
_EXPECTED = (
    "expected a list of objects, an object with such a list, or an object of columns, like "
    '{"x": [1, 2], "label": ["a", "b"]}; pandas writes a list with to_json(orient="records")'
)


class _Record(NamedTuple):
    where: str
    content: object  # a RowError if it cannot be read


_Records = Callable[[Progress], Iterator[_Record]]


def read_jsonl(
    file: TextFile, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield a sequence from each line's JSON object, or read these objects as lines of a table."""
    yield from _read(file.name, partial(_records_in_lines, file), options, journal, progress)


def read_json(
    file: TextFile, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a JSON file, which is in memory as a whole; see MOST_CHARACTERS."""
    records = _records_of(_load(file, progress), file.name, journal)

    def numbered(progress: Progress) -> Iterator[_Record]:
        for number, record in enumerate(records()):
            yield _Record(f"{file.name}, record {number}", record)

    yield from _read(file.name, numbered, options, journal, lambda num_bytes: None)


def _read(
    name: str, records: _Records, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    nothing: Progress = lambda num_bytes: None  # noqa: E731
    contents = (record.content for record in records(nothing))
    first = next((content for content in contents if isinstance(content, dict)), None)
    if first is not None and _is_flat(first):
        names = _all_keys(records(nothing))
        table = TableFile(name, partial(_as_table, name, names, records), has_header=True)
        yield from read_table(table, options, journal, progress)
        return
    reader = RecordReader(options, journal)
    for number, (where, content) in enumerate(records(progress)):
        if isinstance(content, RowError):
            yield BadRow(where, content.problem)
        else:
            yield reader.read(content, number, where)


def _is_flat(record: dict[str, object]) -> bool:
    """Whether a record is a line of a table: no sequence is in it."""
    return not any(isinstance(value, list) for value in record.values()) and not any(
        record.get(key) is not None for key in VALUE_KEYS
    )


def _records_in_lines(file: TextFile, progress: Progress) -> Iterator[_Record]:
    is_first = True
    for number, line in enumerate(file.lines(progress), 1):
        if not line.strip():
            continue
        if is_first and line.lstrip()[0] + line.rstrip()[-1] in ("[]", "[[", "{{"):
            raise UserError(
                f"{file.name}:{number}: expected an object a line; if the whole file is one list "
                "or object, say --format json"
            )
        is_first = False
        content: object
        try:
            content = _parse(line)
        except RowError as error:
            content = error
        except json.JSONDecodeError as error:
            content = RowError(f"column {error.colno}: not JSON: {error.msg}")
        yield _Record(f"{file.name}:{number}", content)


def _parse(text: str) -> object:
    """Parse JSON. Raises JSONDecodeError, or RowError for what it says twice or too deep."""
    try:
        return json.loads(text, object_pairs_hook=_to_dict)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):  # nested too deep; a number of too many digits
        raise RowError("JSON that cannot be read") from None


def _to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RowError(f"key '{quote(next(k for k in keys if keys.count(k) > 1))}' comes twice")
    return record


def _load(file: TextFile, progress: Progress) -> object:
    """Load a JSON file. Raises UserError that names line and column."""
    parts = []
    num_characters = 0
    is_compressed = file.path.suffix.lower() == ".gz"
    too_large = UserError(
        f"{file.name}: larger than {MOST_CHARACTERS:,} characters, and a .json is read as a "
        "whole; write an object a line, and name it .jsonl"
    )
    # A line of this length is an error of its own, without the remedy.
    if not is_compressed and file.path.stat().st_size >= MOST_CHARACTERS:
        raise too_large
    for line in file.lines(progress):
        parts.append(line)
        num_characters += len(line)
        if num_characters >= MOST_CHARACTERS:
            raise too_large
    try:
        return _parse("".join(parts))
    except json.JSONDecodeError as error:
        remedy = ""
        if error.msg == "Extra data":
            remedy = "; if the file has an object a line, say --format jsonl"
        raise UserError(
            f"{file.name}:{error.lineno}: column {error.colno}: not JSON: {error.msg}{remedy}"
        ) from None
    except RowError as error:
        raise UserError(f"{file.name}: {error.problem}") from None


def _records_of(content: object, name: str, journal: Journal) -> Callable[[], Iterator[object]]:
    """Return the records in what a JSON file holds. Raises UserError."""
    if isinstance(content, list) and (not content or any(isinstance(r, dict) for r in content)):
        return lambda: iter(content)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{name}: {_EXPECTED}")
    values = list(content.values())
    of_records = [key for key, value in content.items() if _is_list_of_records(value)]
    if len(of_records) == 1:
        inner: list[object] = content[of_records[0]]
        for key in content.keys() - set(of_records):
            journal.left_aside[quote(key)] = f"beside the records, in '{quote(of_records[0])}'"
        return lambda: iter(inner)
    if len(content) > 1 and all(isinstance(value, list) for value in values):
        _check_lengths(content, name)
        return lambda: (
            dict(zip(content, cells, strict=True)) for cells in zip(*values, strict=True)
        )
    if all(isinstance(value, dict) for value in values):
        _check_index(content, name)
        return lambda: (
            {key: column[place] for key, column in content.items()} for place in values[0]
        )
    if any(isinstance(content.get(key), list | str) for key in VALUE_KEYS):
        return lambda: iter([content])
    raise UserError(f"{name}: {_EXPECTED}")


def _is_list_of_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) for r in value)


def _check_lengths(columns: dict[str, list[object]], name: str) -> None:
    (first, cells), *others = columns.items()
    for key, others_cells in others:
        if len(others_cells) != len(cells):
            raise UserError(
                f"{name}: {len(others_cells)} values in '{quote(key)}', where '{quote(first)}' has "
                f"{len(cells)}; one record is a list of one object: [{{...}}]"
            )


def _check_index(columns: dict[str, dict[str, object]], name: str) -> None:
    """Refuse objects in an object unless they are columns, as pandas' to_json writes them."""
    index = next(iter(columns.values())).keys()
    is_pandas = (
        all(column.keys() == index for column in columns.values())
        and all(place.isdecimal() for place in index)
        and not all(key.isdecimal() for key in columns)
    )
    if not is_pandas:
        raise UserError(f"{name}: {_EXPECTED}")


def _all_keys(records: Iterator[_Record]) -> list[str]:
    """Return the keys of all records. Raises UserError for a record that is no line of a table."""
    names: dict[str, None] = {}
    for where, content in records:
        if isinstance(content, RowError):
            raise UserError(f"{where}: {content.problem}")
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected an object, as in the records before")
        for key in content.keys() - names.keys():
            if printable(key) != key:
                raise UserError(f"{where}: key '{quote(key)}': control characters, or not UTF-8")
        names |= dict.fromkeys(content)
    return list(names)


def _as_table(name: str, names: list[str], records: _Records, progress: Progress) -> Iterator[Line]:
    yield f"{name}, keys", names
    for where, content in records(progress):
        assert isinstance(content, dict)
        yield where, [_as_cell(content.get(key)) for key in names]


def _as_cell(value: object) -> str:
    """Return a JSON value as the cell of a text file that a table reader expects."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return str(value)
