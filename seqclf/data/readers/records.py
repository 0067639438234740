"""Records: a JSON object in a line, or a row of a parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.manifests import read_table
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Names,
    Progress,
    ReadOptions,
    Row,
    RowError,
    Steps,
    finish_steps,
    parse_name,
    quote,
    reason_of,
)
from seqclf.data.readers.survey import Line
from seqclf.data.readers.tables import TableFile
from seqclf.errors import UserError

VALUE_KEYS = ("steps", "tokens", "text")  # a record has one of them


def read_jsonl(file: TextFile, options: ReadOptions, progress: Progress) -> Iterator[Row | BadRow]:
    """Yield a sequence from each line's JSON object."""
    row_number = -1
    for line_number, line in enumerate(file.lines(progress), 1):
        if not line.strip():
            continue
        row_number += 1
        where = f"{file.name}:{line_number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield BadRow(where, f"column {error.colno}: not JSON: {error.msg}")
        except (RecursionError, ValueError):  # nested too deep; a number of too many digits
            yield BadRow(where, "JSON that cannot be read")
        else:
            yield _from_record(record, row_number, where, options)


def _from_record(record: object, number: int, where: str, options: ReadOptions) -> Row | BadRow:
    """Make a sequence of {"steps": [[...], ...]}, {"tokens": [...]} or {"text": "..."}."""
    try:
        if not isinstance(record, dict):
            raise RowError('expected an object like {"steps": [[1.0, 2.0]], "label": "a"}')
        keys = [key for key in VALUE_KEYS if record.get(key) is not None]
        if len(keys) != 1:
            raise RowError(
                f"expected one of steps, tokens and text, found {quote(', '.join(record))}"
            )
        roles = ("id", *Names._fields)
        row_id, *others = (
            parse_name(record.get(getattr(options, role) or role), role) for role in roles
        )
        found = _parse_value(keys[0], record[keys[0]], options)
        if not len(found.steps):
            raise RowError("an empty sequence")
    except RowError as error:
        return BadRow(where, error.message())
    names = Names(*others)
    return Row(row_id or str(number), where=where, **names._asdict(), **found._asdict())


def _parse_value(key: str, value: object, options: ReadOptions) -> Steps:
    """Return a record's steps. Raises RowError."""
    if key == "text":
        return Steps(_parse_text(value))
    if key == "tokens":
        return Steps(_parse_tokens(value))
    return finish_steps(_parse_steps(value), options)


def _parse_text(value: object) -> np.ndarray:
    if not isinstance(value, str):
        raise RowError(f"text: a {type(value).__name__}, expected a text")
    try:
        return np.frombuffer(value.encode(), np.uint8)
    except UnicodeEncodeError:
        raise RowError("text: not UTF-8") from None


def _parse_tokens(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RowError(f"tokens: a {type(value).__name__}, expected a list")
    for number, token in enumerate(value, 1):
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise RowError(f"token {number}: expected a text or a whole number")
        # JSON can escape half of a surrogate pair, which no file in UTF-8 can hold.
        if isinstance(token, str) and any("\ud800" <= letter <= "\udfff" for letter in token):
            raise RowError(f"token {number}: not UTF-8")
    return tuple(map(str, value))


def _parse_steps(value: object) -> np.ndarray:
    """Return numbers in lists as float64 [T, F]; null is a missing value."""
    if not isinstance(value, list):
        raise RowError(f"a {type(value).__name__}, expected a list of steps")
    rows = [step if isinstance(step, list) else [step] for step in value]
    # Exact types, because bool is a subclass of int.
    allowed = {int, float, type(None)}
    for step, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise RowError(f"{len(row)} features, where the steps before have {len(rows[0])}", step)
        if not allowed.issuperset(map(type, row)):
            feature = next(i for i, cell in enumerate(row) if type(cell) not in allowed)
            raise RowError(f"{quote(repr(row[feature]))} is not a number", step, feature)
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        raise RowError("a number too large for float32") from None


def read_parquet(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a parquet file: records, or a table in long or wide form."""
    # pyarrow is an optional dependency.
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install 'seqclf[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            index = _pandas_index(file.schema_arrow.metadata)
        if set(names) & set(VALUE_KEYS) and options.id is None:
            for number, record in enumerate(_parquet_records(path, progress)):
                yield _from_record(record, number, f"{path}, row {number}", options)
        else:
            table = TableFile(
                str(path),
                partial(_parquet_lines, path, names),
                has_header=True,
                index_columns=index,
            )
            yield from read_table(table, options, journal, progress)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(
            f"{path}: not a parquet file that can be read: {reason_of(error)}"
        ) from None


def _parquet_records(path: Path, progress: Progress) -> Iterator[dict[str, object]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        num_rows = max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=1024):
            progress(path.stat().st_size * len(batch) / num_rows)
            yield from batch.to_pylist()


def _parquet_lines(path: Path, names: list[str], progress: Progress) -> Iterator[Line]:
    yield f"{path}, header", names
    for number, record in enumerate(_parquet_records(path, progress)):
        yield f"{path}, row {number}", [_format_cell(record[name]) for name in names]


def _pandas_index(metadata: dict[bytes, bytes] | None) -> frozenset[str]:
    """Return the columns that pandas says are its index."""
    try:
        columns = json.loads((metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError):
        return frozenset()
    return frozenset(name for name in columns if isinstance(name, str))


def _format_cell(value: object) -> str:
    """Return a parquet value as the cell of a text file that a table reader expects."""
    if value is None:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
