"""Parquet files: lists in a row, tables of every type, and what cannot be read."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from datetime import date, datetime, time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.reading import numbers, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, Row
from seqclf.errors import UserError


def decisions(path: Path, **options: object) -> Journal:
    journal = Journal()
    list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    return journal


def refusal(path: Path, **options: object) -> str:
    """Return why a whole file is refused, without the folder."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


def as_parquet(folder: Path, columns: dict[str, object], index: str | None = None) -> Path:
    table = pa.table(columns)
    if index:
        metadata = {"pandas": json.dumps({"index_columns": [index]})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


UNEQUAL = [[1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_list_column_of_parquet_is_the_steps(tmp_path: Path) -> None:
    columns = {"values": UNEQUAL, "Target": ["a", "b"], "rate": [50, 60], "idx": [4, 5]}
    path = as_parquet(tmp_path, columns, index="idx")
    first, second = rows(path)
    assert (first.label, first.features, numbers(first)) == ("a", None, [[1], [2]])
    assert (second.label, numbers(second)) == ("b", [[3], [4], [5]])
    journal = decisions(path)
    assert journal.roles == {"label": "Target"}
    assert journal.left_aside == {
        "rate": "one value for a whole sequence",
        "idx": "pandas' index",
    }
    assert journal.notes == ["the steps are in 'values', the only list of numbers"]


def test_list_columns_of_parquet_are_features_in_the_order_of_the_schema(tmp_path: Path) -> None:
    times = pa.array([[datetime(2025, 1, 2), datetime(2025, 1, 1)], [datetime(2025, 1, 1)] * 3])
    columns = {"y": UNEQUAL, "x": [[7, 8], [9, 10, 11]], "time": times, "label": ["a", "b"]}
    first, second = rows(as_parquet(tmp_path, columns))
    assert (first.features, numbers(first)) == (("y", "x"), [[2, 8], [1, 7]])
    assert numbers(second) == [[3, 9], [4, 10], [5, 11]]


def test_nested_lists_of_parquet_are_steps_of_features(tmp_path: Path) -> None:
    kind = pa.list_(pa.list_(pa.float32(), 2))
    path = as_parquet(tmp_path, {"acc": pa.array([[[1, 2], [3, 4]], None], kind)})
    row, bad = read_rows(path, ReadOptions())
    assert isinstance(row, Row)
    assert numbers(row) == [[1, 2], [3, 4]]
    assert "no value, expected a list of steps" in str(bad)


def test_parquet_of_texts_and_of_tokens(tmp_path: Path) -> None:
    (text,) = rows(as_parquet(tmp_path, {"text": ["né"], "label": ["a"], "n": [1]}))
    assert bytes(text.steps) == "né".encode()  # type: ignore[arg-type]
    (words,) = rows(as_parquet(tmp_path, {"tokens": [["so", "good"]], "n": [[1.0]]}))
    assert words.steps == ("so", "good")
    assert "--tokens w reads a list" in refusal(as_parquet(tmp_path, {"w": [["so"]]}))


def test_structs_of_parquet_are_refused_by_name(tmp_path: Path) -> None:
    path = as_parquet(tmp_path, {"x": [[1.0]], "meta": [{"rate": 1}], "label": ["a"]})
    assert "x.parquet: column 'meta': struct<rate: int64>" in refusal(path)
    (row,) = rows(path, drop=("meta",))
    assert numbers(row) == [[1]]


LONG = {"rec": ["r", "r"], "x": [1.0, 2.0], "label": ["a", "a"]}


@pytest.mark.parametrize(
    "moments",
    [
        [datetime(2025, 1, 1, 0, 0, 1), datetime(2025, 1, 1)],
        [date(2025, 1, 2), date(2025, 1, 1)],
        [time(12, 30), time(1, 0)],
        pa.array([1_000_000_001, 5], pa.timestamp("ns")),
        pa.array([1500, 20], pa.duration("ms")),
        pa.array([1, 0], pa.timestamp("us", tz="UTC")),
    ],
    ids=["datetime", "date", "time", "nanoseconds", "duration", "zone"],
)
def test_the_times_of_parquet_sort_steps(moments: object, tmp_path: Path) -> None:
    (row,) = rows(as_parquet(tmp_path, {**LONG, "at": moments}), id="rec", time="at")
    assert (row.features, numbers(row)) == (("x",), [[2], [1]])


def test_a_duration_is_read_in_seconds(tmp_path: Path) -> None:
    path = as_parquet(tmp_path, {**LONG, "gap": pa.array([1500, None], pa.duration("ms"))})
    (row,) = rows(path, id="rec", fill_missing=True)
    assert numbers(row) == [[1, 1.5], [2, 1.5]]
    assert decisions(path, id="rec").notes == [f"{path}: 'gap' is a duration, in seconds"]


@pytest.mark.parametrize(
    "moments",
    [pa.array([10**12, 5], pa.timestamp("s")), pa.array([2**31 - 1, 1], pa.date32())],
    ids=["timestamp", "date"],
)
def test_dates_beyond_the_year_9999_are_an_error(moments: object, tmp_path: Path) -> None:
    path = as_parquet(tmp_path, {**LONG, "at": moments})
    assert "column 'at': '<value out of range" in refusal(path, id="rec", time="at")


def test_numbers_and_words_of_every_type_in_a_parquet_table(tmp_path: Path) -> None:
    columns = {
        "rec": pa.array(["r", "r"]).dictionary_encode(),
        "price": pa.array([1, 2], pa.decimal128(5, 2)),
        "on": [True, False],
        "half": pa.array([1.5, 2.5], pa.float16()),
        "label": [b"a", b"a"],
        "raw": [b"q", b"\xff"],
        "none": pa.nulls(2),
        "row": [8, 9],
    }
    path = as_parquet(tmp_path, columns, index="row")
    (row,) = rows(path, id="rec")
    assert (row.id, row.label, row.features) == ("r", "a", ("price", "on", "half"))
    assert numbers(row) == [[1, 1, 1.5], [2, 0, 2.5]]
    assert decisions(path, id="rec").left_aside.keys() == {"raw", "none", "row"}


def test_a_message_about_a_parquet_table_is_passed_on(tmp_path: Path) -> None:
    path = as_parquet(tmp_path, LONG)
    assert refusal(path, id="who").startswith("x.parquet, header: no column 'who' (--id)")
    assert "No such file" in refusal(tmp_path / "gone.parquet")


def saved() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"x": UNEQUAL, "y": UNEQUAL, "label": ["a", "b"]}), file)
    return file.getvalue()


SAVED = saved()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4))
def test_damaged_parquet_never_raises_anything_else(
    edits: list[tuple[float, bytes]], tmp_path: Path
) -> None:
    content = SAVED
    for fraction, added in edits:
        offset = int(fraction * len(content))
        content = content[:offset] + added + content[offset + len(added) :]
    path = write(tmp_path, "x.parquet", content)
    with suppress(UserError):
        for row in read_rows(path, ReadOptions()):
            assert row.problem.isprintable() if isinstance(row, BadRow) else len(row.steps)
