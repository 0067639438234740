"""Parquet files: a sequence in the lists of a row, or a table in long or wide form."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seqclf.data.readers.manifests import read_table
from seqclf.data.readers.records import LISTS, VALUE_KEYS, Held, RecordReader, decide_keys
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    printable,
    quote,
    reason_of,
)
from seqclf.data.readers.survey import Line
from seqclf.data.readers.tables import TableFile
from seqclf.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 1024
BYTES_AT_ONCE = 2**22  # of rows in memory, if they are longer
_DURATIONS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of each unit in a second


class _File(NamedTuple):
    """A parquet file whose columns can be read several times."""

    path: Path
    schema: pa.Schema
    rows_at_once: int
    num_rows: int


def read_parquet(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a parquet file: records, or a table in long or wide form."""
    import pyarrow  # takes a fifth of a second, which other formats need not wait for

    try:
        yield from _read(_open(path), options, journal, progress)
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The file is missing, or may not be read.
        raise UserError(
            f"{path}: not a parquet file that can be read: {printable(reason_of(error))}"
        ) from None


def _open(path: Path) -> _File:
    import pyarrow.parquet

    path.stat()  # Of a file that is not there Arrow says more than one line.
    with pyarrow.parquet.ParquetFile(path) as file:
        metadata = file.metadata
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        num_bytes = sum(group.total_byte_size for group in groups)
        fitting = BYTES_AT_ONCE * metadata.num_rows // max(1, num_bytes)
        return _File(path, file.schema_arrow, min(ROWS_AT_ONCE, max(1, fitting)), metadata.num_rows)


def _read(
    file: _File, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    names = file.schema.names
    index = _pandas_index(file.schema.metadata)
    held = {field.name: _what_is_held(file.path, field, options) for field in file.schema}
    has_lists = any(what in LISTS and name not in options.drop for name, what in held.items())
    # A column of texts may also be a remark beside numbers; in long form it is one.
    has_text = held.get("text") == "text" and options.id is None and options.features is None
    if not has_lists and not has_text:
        table = TableFile(
            str(file.path),
            partial(_as_table, file, journal),
            has_header=True,
            index_columns=index,
        )
        yield from read_table(table, options, journal, progress)
        return
    if len(held) < len(names):
        name = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{file.path}: column '{quote(name)}' comes twice")
    # Of the columns of this name only a list is a sequence.
    wrong = [name for name in VALUE_KEYS[:2] if held.get(name) in ("text", "value")]
    try:
        keys = decide_keys(
            {name: what for name, what in held.items() if name not in wrong},
            options,
            journal,
            index,
        )
    except RowError as error:
        raise UserError(f"{file.path}: {error.problem}") from None
    journal.left_aside |= dict.fromkeys(wrong, "one value for a whole sequence")
    used = [names.index(key) for key in dict.fromkeys((*keys.values, *keys.roles.values()))]
    reader = RecordReader(options, journal, keys)
    for number, cells in enumerate(_rows(file, used, journal, progress)):
        record = dict(zip((names[index] for index in used), cells, strict=True))
        yield reader.read(record, number, f"{file.path}, row {number}")


def _what_is_held(path: Path, field: pa.Field, options: ReadOptions) -> Held:
    """Return what a column holds. Raises UserError if nothing that can be read."""
    import pyarrow as pa
    from pyarrow import types

    kind = _decoded(field.type)
    innermost, depth = kind, 0
    while _is_list(innermost):
        innermost, depth = _decoded(innermost.value_type), depth + 1
    is_unreadable = types.is_nested(innermost) or isinstance(innermost, pa.BaseExtensionType)
    if is_unreadable and field.name not in options.drop:
        raise UserError(
            f"{path}: column '{quote(field.name)}': {quote(str(field.type))}, where numbers, words "
            f"or lists of them are expected; --drop {quote(field.name)} leaves it out"
        )
    is_text = types.is_string(innermost) or types.is_large_string(innermost)
    if depth:
        is_words = is_text or types.is_temporal(innermost)
        return "words" if is_words else "lists" if depth > 1 else "numbers"
    return "text" if is_text else "nothing" if types.is_null(innermost) else "value"


def _is_list(kind: pa.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _decoded(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values, or the type itself."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _rows(
    file: _File, columns: Sequence[int], journal: Journal, progress: Progress
) -> Iterator[tuple[object, ...]]:
    """Yield the values of some columns in each row, as Python has them."""
    import pyarrow.parquet

    convert = [_converter(file.path, file.schema.field(index), journal) for index in columns]
    num_bytes = file.path.stat().st_size
    with pyarrow.parquet.ParquetFile(file.path) as opened:
        for batch in opened.iter_batches(batch_size=file.rows_at_once):
            progress(num_bytes * len(batch) / max(1, file.num_rows))
            cells = [
                to_values(batch.column(index)).to_pylist()
                for to_values, index in zip(convert, columns, strict=True)
            ]
            yield from zip(*cells, strict=True)


def _converter(path: Path, field: pa.Field, journal: Journal) -> Callable[[pa.Array], pa.Array]:
    """Return what makes a column's values such that Python has them as text or numbers."""
    import pyarrow as pa
    from pyarrow import compute, types

    kind = _decoded(field.type)
    target = field.type
    if _is_list(kind) and types.is_temporal(kind.value_type):
        target = pa.list_(pa.string())
    elif types.is_temporal(kind) and not types.is_duration(kind):
        target = pa.string()  # Python's times end at microseconds, and its dates at year 9999.
    elif target is not kind:
        target = kind
    if types.is_duration(kind):
        journal.note(f"{path}: '{quote(field.name)}' is a duration, in seconds")

    def convert(column: pa.Array) -> pa.Array:
        if types.is_duration(kind):
            ticks = column.cast(kind).cast(pa.int64())
            return compute.divide(ticks.cast(pa.float64(), safe=False), _DURATIONS[kind.unit])
        converted = column if target is field.type else column.cast(kind).cast(target)
        if types.is_timestamp(kind) or types.is_date(kind):
            # Arrow writes the years after 9999 with more digits, and some dates as "<value ...>".
            is_wrong = compute.invert(compute.match_substring_regex(converted, r"^\d{4}-"))
            if wrong := converted.filter(compute.fill_null(is_wrong, False)).to_pylist():
                raise UserError(
                    f"{path}: column '{quote(field.name)}': '{quote(wrong[0])}' is no date of the "
                    "years 0 to 9999; is its unit right?"
                )
        return converted

    return convert


def _as_table(file: _File, journal: Journal, progress: Progress) -> Iterator[Line]:
    names = file.schema.names
    yield f"{file.path}, header", names
    for number, cells in enumerate(_rows(file, range(len(names)), journal, progress)):
        yield f"{file.path}, row {number}", [_as_cell(cell) for cell in cells]


def _as_cell(value: Any) -> str:
    """Return a value as the cell of a text file that a table reader expects."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pandas_index(metadata: dict[bytes, bytes] | None) -> frozenset[str]:
    """Return the columns that pandas says are its index."""
    try:
        columns = json.loads((metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return frozenset()
    return frozenset(name for name in columns if isinstance(name, str))
