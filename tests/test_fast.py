"""The fast reader of large tables reads what the plain readers read, or leaves it to them."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pytest
from helpers.reading import numbers, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqclf.data.readers import fast, fast_survey, manifests, read_rows
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, Row
from seqclf.data.readers.survey import MOST_VALUES, Column, survey
from seqclf.data.readers.tables import text_table
from seqclf.errors import UserError

HEADER = "rec,t,x,y,label\n"
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Cells of each kind, of which some are no number to pyarrow, or another one.
PLAIN = ["0", "1", "-2", "1.5", "-0.25", "1.234", "12.125", "1e5", "-3E-4", ".5", "7.", "1e-400"]
GAPS = ["", "?", "nan", "NaN", "NA", "N/A", "null", "None", "n/a", "-", "NULL"]
ODD = ["+5", " 5", "5 ", "inf", "1e400", "nan(1)", "1_0", "0x1", "٣", "−1", "15%", "1.234.567"]
WORDS = ["walk", "run", "é", "True", "false", "2024-01-31", "12:30", "a b", "nano", "Infinity"]


@contextmanager
def reading(*, is_fast: bool, block: int = 400) -> Iterator[None]:
    """Read every table in the fast way, in small blocks; or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "LARGE", 0 if is_fast else 2**60)
        patch.setattr(fast, "BLOCK", block)
        yield


def outcome(path: Path, *, is_fast: bool, block: int = 400, **options: Any) -> list[object]:
    """Return all that reading a file gives, in a form that can be compared."""
    journal = Journal()
    found: list[object] = []
    done: list[float] = []
    with reading(is_fast=is_fast, block=block):
        rows = read_rows(path, ReadOptions(**options), journal, progress=done.append)
        try:
            for row in rows:
                found.append(comparable(row))
        except UserError as error:
            found.append(str(error))
        else:
            # A table without lines is read once.
            assert not found or sum(done) == pytest.approx(path.stat().st_size)
    return [*found, journal]


def comparable(row: Row | BadRow) -> object:
    if isinstance(row, BadRow):
        return row
    assert isinstance(row.steps, np.ndarray)
    measured = None if row.measured is None else row.measured.tolist()
    steps = row.steps.shape, row.steps.dtype.str, row.steps.tobytes()
    return row._replace(steps=steps, measured=measured)  # type: ignore[arg-type]


@contextmanager
def never_plain() -> Iterator[None]:
    """Fail where a plain reader reads a line after the header."""

    def fail(*arguments: object) -> NoReturn:
        raise AssertionError("a plain reader")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "survey", fail)
        patch.setattr(manifests, "read_long", lambda *arguments: map(fail, [arguments]))
        yield


def clean_lines(num_sequences: int, num_steps: int, *, seed: int = 0) -> Iterator[str]:
    draw = random.Random(seed)
    for number in range(num_sequences):
        for step in range(num_steps):
            x, y = draw.gauss(0, 1), draw.gauss(100, 1)
            yield f"r{number},{step},{x:.6f},{y:.3f},{'abc'[number % 3]}\n"


def test_a_clean_table_is_read_fast(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", HEADER + "".join(clean_lines(40, 30)))
    with never_plain():
        found = outcome(path, is_fast=True, id="rec", time="t")
    assert found == outcome(path, is_fast=False, id="rec", time="t")
    assert len(found) == 41
    with reading(is_fast=True):
        rows = list(read_rows(path, ReadOptions(id="rec", time="t")))
    second = rows[1]
    assert isinstance(second, Row)
    assert (second.id, second.where, second.label) == ("r1", f"{path}:32", "b")
    assert second.features == ("x", "y")
    lines = islice(clean_lines(2, 30), 30, None)
    expected = [list(map(float, line.split(",")[2:4])) for line in lines]
    assert second.steps.tolist() == expected  # type: ignore[union-attr]
    assert numbers(second) == np.array(expected, np.float32).tolist()


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (HEADER + 'r0,0,1,"2",a\n"r0",1,3,4,a\nr1,0,5,6,"b, c"\n', {}),
        (HEADER + "r0, 0, 1, 2, a\n r0, 1, 3, 4, a\nr1, 0, 5, 6, b\n", {}),
        (HEADER + "r0,0,1,2,a\nr0,1,3,4,\nr1,0,5,6,\nr1,1,5,6,b\n", {}),
        (HEADER + "r0,1,1,2,a\nr0,0,3,4,b\nr1,0,5,6,b\n", {"keep_step_labels": True}),
        (HEADER + "r0,1,1,,a\nr0,0,NA,4,a\nr1,0,5,6,b\n", {"fill_missing": True}),
        (HEADER + "r0,1,1,1,a\nr0,2,0,0,a\nr1,0,5,6,b\n", {"pad_value": 0.0}),
        (HEADER + "7,2,1,1,a\n7,1,0,0,a\n8,-1.5,5,6,b\n\n\n", {}),
        (HEADER.replace("\n", "\r\n") + "r0,2,1,1,a\r\nr1,1,0,0,a\r\n", {}),
        ("sep=;\n" + HEADER.replace(",", ";") + "r0;2;1.5;1;a\nr1;1;0;0;a", {}),
        (HEADER.replace(",", "\t") + "r0\t2\t1.5\t1\ta\nr1\t1\t0\t0\ta\nr1\t2\t0\t0\ta\n", {}),
        ("\ufeff\n" + HEADER + "é,2,1,1,ß\né,1,0,0,ß\nö,1,0,0,a\n", {}),
        (
            HEADER + "a,2024-01-31T00,1,1,a\na,2024-01-30 12:00:00.5,0,0,a\nb,2024-02-01T10,0,0,b",
            {},
        ),
        (HEADER + "a,1,1,7,a\na,2,2,7,a\nb,1,0,8,b\n", {"group": "y", "features": ("x",)}),
        (HEADER + "a,1,1,1,1.0\na,2,2,2,1\nb,1,0,0,n/a\n", {}),
    ],
)
def test_what_is_read_fast(tmp_path: Path, content: str, options: dict[str, Any]) -> None:
    path = write(tmp_path, "a.csv", content)
    known = {"id": "rec", "time": "t", **options}
    with never_plain():
        found = outcome(path, is_fast=True, **known)
    assert found == outcome(path, is_fast=False, **known)
    assert len(found) > 2


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blocks_may_end_anywhere(tmp_path: Path, end: str) -> None:
    content = (HEADER + "".join(clean_lines(4, 5))).replace("\n", end)
    path = write(tmp_path, "a.csv", content + end)
    expected = outcome(path, is_fast=False, id="rec", time="t")
    for block in range(35, 130):
        with never_plain():
            assert outcome(path, is_fast=True, block=block, id="rec", time="t") == expected
    # A block that is shorter than a line is left to the plain readers.
    for block in range(1, 18):
        assert outcome(path, is_fast=True, block=block, id="rec", time="t") == expected


def test_a_compressed_table_is_read_fast(tmp_path: Path) -> None:
    content = gzip.compress((HEADER + "".join(clean_lines(40, 30))).encode())
    path = write(tmp_path, "a.csv.gz", content)
    with never_plain():
        found = outcome(path, is_fast=True, id="rec", time="t")
    assert found == outcome(path, is_fast=False, id="rec", time="t")
    cut = write(tmp_path, "cut.csv.gz", content[:-20])
    found = outcome(cut, is_fast=True, id="rec", time="t")
    assert found == outcome(cut, is_fast=False, id="rec", time="t")
    assert "not a .gz that can be read" in str(found[-2])


GOOD = "r0,0,1,2,a\nr0,1,3,4,a\n"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("r1,0,5,6,b\nr1,1,word,8,b\n", "a.csv:5: column x: 'word' is not a number"),
        ("r1,0,5,6,b\nr1,1,7\n", "a.csv:5: 3 cells, where the header has 5"),
        ("r1,0,5,6,b\nr1,1,7,,b\n", "a.csv:5: column y: a missing value"),
        ("r1,0,5,6,b\nr1,1,7,inf,b\n", "a.csv:5: column y: inf is not finite"),
        ("r1,0,5,6,b\nr1,1,7,nan(1),b\n", "a.csv:5: column y: 'nan(1)' is not a number"),
        ("r1,0,5,6,b\nr1,1,7,8,c\n", "a.csv:5: label 'c', where the sequence began with 'b'"),
        ("r1,0,5,6,b\nr1,,7,8,b\n", "a.csv:5: no time"),
        ("r1,0,5,6,b\nr1,2025-01-31,7,8,b\n", "a.csv:5: time '2025-01-31' is a date"),
        ("r1,0,5,6,b\n,1,7,8,b\n", "a.csv:5: no id in column rec"),
        ("r1,0,5,6,b\nr0,2,7,8,a\n", "a.csv:5: id 'r0' comes again"),
        ('r1,0,5,6,b\nr1,1,7,8,"b\n', "a.csv:5: unexpected end of data"),
        ('r1,0,5,6,b\nr1,1,7,8,"b"c\n', "a.csv:5: ',' expected after '\"'"),
        ("r1,0,5,6,b\nr1,1,7,8,b\x07\n", "a.csv:5: label 'b\\x07': control characters"),
        ("r1,0,5,6,b\n\nr1,1,word,8,b\n", "a.csv:6: column x: 'word' is not a number"),
        ("r1,0,5,6,b\rr1,1,word,8,b\n", "a.csv:5: column x: 'word' is not a number"),
        ("r1,0,5,6,b\n,,,,\nr1,1,word,8,b\n", "a.csv:6: column x: 'word' is not a number"),
        ('r1,0,5,6,"b\nb"\nr1,1,7,8,b\n', "a.csv:5: label 'b\\nb': control characters"),
    ],
)
@pytest.mark.parametrize("block", [30, 2**20])
def test_the_plain_reader_names_a_fault(
    tmp_path: Path, lines: str, problem: str, block: int
) -> None:
    path = write(tmp_path, "a.csv", HEADER + GOOD + lines + "r2,0,1,2,c\nr2,1,1,2,c\n")
    found = outcome(path, is_fast=True, block=block, id="rec", time="t")
    assert found == outcome(path, is_fast=False, id="rec", time="t")
    messages = [f"{row.where}: {row.problem}" for row in found if isinstance(row, BadRow)]
    messages += [text for text in found if isinstance(text, str)]
    assert any(text.replace(f"{tmp_path}/", "").startswith(problem) for text in messages), messages


def test_rows_before_a_fault_come_once(tmp_path: Path) -> None:
    lines = list(clean_lines(100, 20))
    lines[1500] = "r75,0,1,2\n"
    path = write(tmp_path, "a.csv", HEADER + "".join(lines))
    found = outcome(path, is_fast=True, id="rec", time="t")
    assert found == outcome(path, is_fast=False, id="rec", time="t")
    assert [isinstance(row, Row) for row in found[:-1]] == [number != 75 for number in range(100)]


def test_bytes_that_are_not_utf8_are_left_to_the_plain_reader(tmp_path: Path) -> None:
    content = (HEADER + "r0,0,1,2,a\nr1,0,1,2,\xe9\nr2,0,1,2,a\n").encode("latin-1")
    path = write(tmp_path, "a.csv", content)
    found = outcome(path, is_fast=True, id="rec")
    assert found == outcome(path, is_fast=False, id="rec")
    assert isinstance(found[1], BadRow)


def test_small_files_are_read_without_pyarrow(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", HEADER + GOOD)
    file = text_table(TextFile.of(path), Journal(), separator=",")
    assert fast.fast_table(file, f"{path}:1", HEADER.strip().split(",")) is None
    assert fast.LARGE < 2**22


# A table, of which each cell is written in some way, and perhaps with faults.


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quotes = draw(st.sampled_from(["none", "words", "all"]))
    value = st.sampled_from([*PLAIN, *PLAIN[:6], *draw(st.sampled_from([[], [], GAPS, ODD]))])
    label = st.sampled_from(draw(st.sampled_from([["a"], ["1", "1.0"], ["a", ""], ["a", "b"]])))
    times = draw(st.sampled_from(["number", "sorted", "date"]))
    rows: list[list[str]] = []
    for number in range(draw(st.integers(1, 8))):
        for step in range(draw(st.integers(1, 12))):
            time = str(step) if times == "sorted" else draw(st.sampled_from(["1", "2.5", "-3"]))
            if times == "date":
                time = f"2024-01-{draw(st.integers(1, 28)):02} 10:{step:02}"
            rows.append([f"r{number}", time, draw(value), draw(value), draw(label)])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        where = draw(st.integers(0, 4))
        kind = draw(st.sampled_from(["cell", "long", "short", "blank"]))
        if kind == "cell" and where < len(row):
            row[where] = draw(st.sampled_from([*PLAIN, *GAPS, *ODD, *WORDS, "r0", 'a"b', "a\nb"]))
        elif kind == "blank":
            row[:] = []
        else:
            row[:] = [*row, draw(st.sampled_from(["", "z"]))] if kind == "long" else row[:where]
    lines = [["rec", "t", "x", "y", "label"], *rows]

    def written(cell: str) -> str:
        is_quoted = quotes == "all" or (quotes == "words" and cell[:1].isalpha())
        return f'"{cell}"' if is_quoted else cell

    content = "".join(separator.join(map(written, line)) + end for line in lines)
    if draw(st.booleans()):
        content = content.removesuffix(end)
    options = {
        "id": "rec",
        "time": draw(st.sampled_from(["t", None])),
        "fill_missing": draw(st.booleans()),
        "keep_step_labels": draw(st.booleans()),
        "pad_value": draw(st.sampled_from([None, 0.0])),
        "drop": draw(st.sampled_from([(), ("y",)])),
    }
    return content, options


@SETTINGS
@given(table=tables(), block=st.sampled_from([40, 150, 2**20]))
def test_fast_and_plain_reading_are_the_same(
    tmp_path: Path, table: tuple[str, dict[str, Any]], block: int
) -> None:
    content, options = table
    path = write(tmp_path, "a.csv", content)
    assert outcome(path, is_fast=True, block=block, **options) == outcome(
        path, is_fast=False, **options
    )


@SETTINGS
@given(bits=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=20))
def test_numbers_are_the_same_to_the_last_bit(tmp_path: Path, bits: list[float]) -> None:
    small = [number for number in bits if abs(number) < 1e38]
    lines = "".join(f"r{n // 7},{n},{x!r},{x:.17e},a\n" for n, x in enumerate(small or [0.0]))
    path = write(tmp_path, "a.csv", HEADER + lines)
    with never_plain():
        found = outcome(path, is_fast=True, id="rec")
    assert found == outcome(path, is_fast=False, id="rec")


# The survey.

KINDS = [PLAIN, PLAIN[:3], PLAIN[3:5], PLAIN[5:7], GAPS, ODD, WORDS, WORDS[:2], [*PLAIN, *GAPS]]
KINDS += [[*WORDS, ""], [str(number) for number in range(50)], ["2024-01-31", "2024-02-01 10:11"]]
KINDS += [
    ["1e308", "-1e308"],
    ["1.234", "2.345"],
    ["1.234", "1.5"],
    ["1.234", "7"],
    ["", "?"],
    ["3"],
]


@st.composite
def columns(draw: st.DrawFn) -> list[str]:
    """Draw the cells of a column: a few stretches of many cells of one kind."""
    random_cells = random.Random(draw(st.integers(0, 2**32)))
    cells: list[str] = []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)):
        length = draw(st.sampled_from([1, 3, 511, 512, 700, 1200]))
        if draw(st.booleans()):
            cells += random_cells.choices(kind, k=length)
        elif draw(st.booleans()):
            cells += sorted(random_cells.choices(kind, k=length))
        else:
            start = draw(st.sampled_from([0, 0, 5]))
            cells += map(str, range(start + len(cells), start + len(cells) + length))
    return cells


@SETTINGS
@given(
    cells=st.lists(columns(), min_size=2, max_size=3), block=st.sampled_from([999, 2**13, 2**20])
)
def test_fast_and_plain_surveys_are_the_same(
    tmp_path: Path, cells: list[list[str]], block: int
) -> None:
    length = min(map(len, cells))
    names = [f"c{number}" for number in range(len(cells))]
    rows = zip(*(column[:length] for column in cells), strict=True)
    content = "".join(",".join(row) + "\n" for row in [names, *rows])
    path = write(tmp_path, "a.csv", content)
    file = text_table(TextFile.of(path), Journal(), separator=",")
    with reading(is_fast=True, block=block):
        table = fast.FastTable(TextFile.of(path), ",", names, 2)
        found = fast_survey.fast_survey(table, lambda num_bytes: None)
    expected = survey(names, islice(file.open(lambda num_bytes: None), 1, None))
    if found is None:
        assert any(not "".join(row).strip() for row in zip(*cells, strict=False))
        return
    assert found.num_lines == expected.num_lines
    for ours, theirs in zip(found.columns, expected.columns, strict=True):
        assert facts(ours) == facts(theirs)


def facts(column: Column) -> dict[str, Any]:
    is_complete = len(column.values) <= MOST_VALUES
    return {
        "name": column.name,
        "first": list(column.first.items()),
        "values": list(column.values.items()) if is_complete else list(column.values),
        "num_words": column.num_words,
        "num_runs": column.num_runs,
        "counts_rows": column.counts_rows,
    }


def test_memory_stays_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", HEADER + "".join(clean_lines(2000, 50)))
    block = 2**16
    assert path.stat().st_size > 40 * block
    largest = 0
    tracemalloc.start()
    with reading(is_fast=True, block=block), never_plain():
        for row in read_rows(path, ReadOptions(id="rec", time="t")):
            assert isinstance(row, Row)
            largest = max(largest, pa.total_allocated_bytes())
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < largest < 12 * block
    assert peak < 24 * block


def test_a_reader_that_is_left_early_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    path = write(tmp_path, "a.csv", HEADER + "".join(clean_lines(100, 20)))
    before = threading.active_count()
    with reading(is_fast=True):
        rows = read_rows(path, ReadOptions(id="rec", time="t"))
        next(rows)
        rows.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
