"""Tables as people write them: a table in any dialect gives the same sequences."""

from __future__ import annotations

import csv
import gzip
import io
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.reading import numbers, problems, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqclf.data.readers import numbers as numerals
from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import Journal, ReadOptions, Row
from seqclf.data.readers.survey import survey
from seqclf.errors import UserError

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path: Path, **options: object) -> tuple[list[Row], list[str]]:
    """Return all rows, which must be good, and the notes without the folder."""
    journal = Journal()
    found = list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    good = [row for row in found if isinstance(row, Row)]
    assert good == found, found
    return good, [note.replace(f"{path.parent}/", "") for note in journal.notes]


def refuse(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


# ---- how numbers are written


@pytest.mark.parametrize(
    ("separator", "cells", "expected", "note"),
    [
        (";", "0,5 1,25 -3", [0.5, 1.25, -3], "'0,5' is 0.5 (a comma before decimals)"),
        (";", "1.234,5 1.234.567 2", [1234.5, 1234567, 2], "'1.234,5' is 1234.5 (a comma"),
        (";", "1.234 999 0,5", [1234, 999, 0.5], "'0,5' is 0.5 (a comma before decimals)"),
        (";", "1,234 1,235 7", [1.234, 1.235, 7], "'1,234' is 1.234 (a comma before decimals)"),
        (";", "1.234 1.235 7", [1.234, 1.235, 7], "'1.234' is 1.234 (a point before decimals)"),
        (";", "1.234 1.2 7", [1.234, 1.2, 7], ""),
        (";", "1\u202f234,5 2\u202f345 0,5", [1234.5, 2345, 0.5], "is 1234.5 (a comma before"),
        (";", "1'234.5 2'345 0.5", [1234.5, 2345, 0.5], "(blanks between thousands)"),
        (";", "1\u00a0234 2\u00a0345 7", [1234, 2345, 7], "is 1234 (blanks between thousands)"),
        (",", "1,003 2,004 999", [1003, 2004, 999], "'1,003' is 1003 (commas between thousands)"),
        (",", "1,003.5 2 0.5", [1003.5, 2, 0.5], "'1,003.5' is 1003.5 (commas between"),
        (",", "0,5 1,25 12,3", [0.5, 1.25, 12.3], "'0,5' is 0.5 (a comma before decimals)"),
        (",", "1.234 1.235 7", [1.234, 1.235, 7], ""),
        ("\t", "0,5 1,234 7", [0.5, 1.234, 7], "'0,5' is 0.5 (a comma before decimals)"),
        (",", "True False True", [1, 0, 1], "True is 1, False is 0"),
        (",", "TRUE 0 1", [1, 0, 1], "True is 1, False is 0"),
        (",", "−1.5 −2 3", [-1.5, -2, 3], ""),
        (",", "1e5 -1.5E-3 +7.", [1e5, -1.5e-3, 7], ""),
        (",", "١٢ ٣ 4", [12, 3, 4], ""),
    ],
)
def test_numbers_in_each_dialect(
    separator: str, cells: str, expected: list[float], note: str, tmp_path: Path
) -> None:
    lines = [["id", "x", "label"], *(["s", cell, "a"] for cell in cells.split(" "))]
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(lines)
    (row,), notes = read(path, id="id")
    assert row.steps[:, 0].tolist() == expected  # type: ignore[call-overload]
    about = [line.partition(": ")[2] for line in notes if line.startswith("x: ")]
    assert len(about) == bool(note)
    assert all(note in line for line in about)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["1,5;1", "1.5;2", "2,5;3"],
            "x.csv:3, column x: '1.5' has a decimal point, where x.csv:2, column x: '1,5' has a "
            "decimal comma; write all numbers alike",
        ),
        (
            ["1,5;1.25", "2,5;2"],
            "x.csv:2, column y: '1.25' has a decimal point, where x.csv:2, column x: '1,5' has",
        ),
        (["0,5;1", "1,234.5;2"], "x.csv:3, column x: '1,234.5' has a decimal point, where x.csv:2"),
        (["1,234;1", "1.234;2"], "nothing shows which of comma and point stands before decimals"),
    ],
)
def test_mixed_dialects_are_refused_by_line_and_column(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    text = "\n".join(["id;x;y;label", *(f"s;{line};a" for line in lines)])
    assert message in refuse(write(tmp_path, "x.csv", text), id="id")


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("True 2 False", "x.csv:3: column x: '2' is not True or False"),
        ("0.5 True 1.5", "x.csv:3: column x: 'True' is not a number"),
        ("0.5 1_0 1.5", "x.csv:3: column x: '1_0' is not a number"),
        ("0.5 (3) 1.5", "x.csv:3: column x: '(3)' is not a number"),
        ("0.5 1.2.3 1.5", "x.csv:3: column x: '1.2.3' is not a number"),
        ("0.5 inf 1.5", "x.csv:3: column x: inf is not finite"),
    ],
)
def test_a_cell_of_another_kind_is_named(cells: str, problem: str, tmp_path: Path) -> None:
    text = "id,x,label\n" + "".join(f"s,{cell},a\n" for cell in cells.split())
    assert problems(write(tmp_path, "x.csv", text), id="id") == [problem]


def test_the_smallest_table_with_commas(tmp_path: Path) -> None:
    lines = [f"r{i};1;{i},5;{'ab'[i // 10]}" for i in range(20)]
    path = write(tmp_path, "comma.csv", "\n".join(["rec;n;x;label", *lines]))
    found, notes = read(path, id="rec")
    assert [numbers(row) for row in found] == [[[1, i + 0.5]] for i in range(20)]
    assert found[0].features == ("n", "x")
    assert notes == [
        "comma.csv: cells are separated by ';'",
        "x: '0,5' is 0.5 (a comma before decimals)",
    ]


# ---- times


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "2"),
        ("9", "10"),
        ("-1.5", "1e-3"),
        ("0,5", "1,25"),
        ("1700000000000000000", "1700000000000000001"),
        ("2025-01-31", "2025-02-01"),
        ("2025/1/9", "2025/01/10"),
        ("2025-01-01 9:05", "2025-01-01 10:00"),
        ("2025-01-01T10:00:00Z", "2025-01-01T10:00:00.5Z"),
        ("2025-01-01 10:00:00 UTC", "2025-01-01 10:00:01 UTC"),
        ("2025-01-01 10:00:00+02:00", "2025-01-01 09:00:00+00:00"),
        ("2025-01-01 00:00:00.000000001", "2025-01-01 00:00:00.000000002"),
        ("31.12.2024", "1.1.2025"),
        ("31.12.2024 9:05", "31.12.2024 10:00:00"),
        ("9:05", "10:00"),
        ("9:05:01,250", "9:05:01.500"),
    ],
)
def test_times_sort(first: str, second: str, tmp_path: Path) -> None:
    text = f'id,timestamp,x,label\ns,"{second}",7,a\ns,"{first}",5,a\n'
    (row,), _ = read(write(tmp_path, "x.csv", text))
    assert numbers(row) == [[5], [7]]


def test_equal_times_keep_the_order_of_lines(tmp_path: Path) -> None:
    text = "id,time,x,label\ns,2,5,a\ns,1,6,a\ns,2,7,a\ns,1,8,a\n"
    (row,), _ = read(write(tmp_path, "x.csv", text))
    assert numbers(row) == [[6], [8], [5], [7]]


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ("1 2025-01-01", "time '2025-01-01' is a date, where the first time (x.csv:2) is a number"),
        ("9:05 2025-01-01", "is a date, where the first time (x.csv:2) is a time of a clock"),
        (
            "2025-01-01T00:00Z 2025-01-01",
            "is a date, where the first time (x.csv:2) is a date with",
        ),
        ("1 nan", "no time"),
        ("1 inf", "time 'inf' is not finite"),
        ("1/31/2025 2/1/2025", "time '1/31/2025' is neither a number nor a date like 2025-01-31"),
        ("1 9:75", "time '9:75' is neither a number nor a date"),
    ],
)
def test_times_that_do_not_sort(cells: str, problem: str, tmp_path: Path) -> None:
    text = "id,t,x,label\n" + "".join(f"s,{cell},5,a\n" for cell in cells.split())
    (found,) = problems(write(tmp_path, "x.csv", text), id="id", time="t")
    assert problem in found


# ---- separators, quotes, encodings


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "id;x,y;label\ns;5;a\ns;7;a\n", "';'"),
        ("x.csv", "id\tx y\tlabel\ns\t5\ta\ns\t7\ta\n", "a tab"),
        ("x.csv", "id|x|label\ns|5|a\ns|7|a\n", "'|'"),
        ("x.csv", "id x label\ns 5 a\ns 7 a\n", "blanks"),
        ("x.csv", "sep=;\r\nid;x;label\r\ns;5;a\r\ns;7;a\r\n", "';'"),
        ("x.tsv", "id,x,label\ns,5,a\ns,7,a\n", "','"),
        ("x.txt", "id,x,label\ns,5,a\ns,7,a\n", "','"),
        ("x.txt", "id\tx y\tlabel\ns\t5\ta\ns\t7\ta\n", "a tab"),
        ("x.txt", "id x  label\ns  5 a\n s 7 a\n", ""),
        ("x.csv", 'id,x,note,label\ns,5,"1; 2; 3",a\ns,7,"4; 5; 6",a\n', ""),
        ("x.csv", "id,x,note,label\ns,5,1 2 3 4,a\ns,7,4 5 6 7,a\n", ""),
        ("x.csv", 'id,x,note,label\ns,5,"two\nlines",a\ns,7,"a ""quote""",a\n', ""),
        ("x.csv", 'id,x,note,label\ns,5,"1;2;3;4",a\ns,7,"1;2;3;4",a\n', ""),
        ("x.csv", '"id", "x", "label"\n"s", "5", "a"\n"s", "7", "a"\n', ""),
        ("x.csv", "\ufeffid,x,label\r\ns,5,a\r\ns,7,a", ""),
        ("x.csv", "id,x,label\rs,5,a\rs,7,a\r", ""),
        ("x.csv", "id,x,label\r\r\ns,5,a\r\r\ns,7,a\r\r\n", ""),
    ],
)
def test_what_separates_cells_is_found_and_said(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    (row,), notes = read(write(tmp_path, name, text), id="id", drop=_notes(text))
    assert (row.id, row.label, numbers(row)) == ("s", "a", [[5], [7]])
    assert notes == [f"{name}: cells are separated by {said}"] * bool(said)


def _notes(text: str) -> tuple[str, ...]:
    return ("note",) if "note" in text else ()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_lines_of_unequal_lengths_keep_their_separator(
    separator: str, decimal: str, tmp_path: Path
) -> None:
    lines = ["a 0.5 1.5 2.5", "b 0.5 1.5", "a 0.5 1.5 2.5 3.5", "b 0.5"]
    text = "\n".join(lines).replace(".", decimal).replace(" ", separator)
    found, _ = read(write(tmp_path, "x.csv", text))
    assert [(row.label, numbers(row)) for row in found] == [
        (line[0], [[float(cell)] for cell in line.split()[1:]]) for line in lines
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('s,"5,a', "x.csv:3: unexpected end of data; is a quote left open"),
        ('s,"5"6,a', "x.csv:3: ',' expected after '\"'; is a quote left open, or not doubled"),
    ],
)
def test_a_quote_that_swallows_lines_is_refused(line: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", f"id,x,label\ns,1,a\n{line}\ns,2,a\ns,3,a\n")
    assert message in refuse(path, id="id")


def test_encodings(tmp_path: Path) -> None:
    text = "id;größe;label\ns;1,5;für\n"
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8", "utf-8-sig"):
        path = write(tmp_path, f"{encoding}.csv", text.encode(encoding))
        (row,), _ = read(path, id="id", encoding=encoding)
        assert (row.features, row.label, numbers(row)) == (("größe",), "für", [[1.5]])
    # A byte order mark of any encoding is no letter of the first name.
    (row,), _ = read(write(tmp_path, "b.csv", b"\xef\xbb\xbf" + text.encode()), encoding="utf-8")
    assert row.id == "s"
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(text.encode("latin-1")))
    (row,), _ = read(path, id="id", encoding="latin-1")
    assert row.features == ("größe",)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("rec,Tä,label\nr,0,a\n".encode("latin-1"), {}, "x.csv:1: not UTF-8; say its --encoding"),
        ("rec,x\na,1\n".encode("utf-16"), {}, "UTF-16; read it with --encoding utf-16"),
        ("rec,x\na,1\n".encode("utf-16-le"), {}, "not a text, or UTF-16; if so, read it with"),
        (b"PK\x03\x04\x14\0\x06\0", {}, "x.csv: no text but a zip archive"),
        (
            gzip.compress(b"rec,x\na,1\n", mtime=0),
            {},
            "x.csv: compressed by gzip; let its name end in .gz",
        ),
        (b"a,\xe4\n", {"encoding": "ascii"}, "x.csv: not ascii"),
        (b"rec,x\na,1\n", {"encoding": "utf-16"}, "x.csv: not utf-16"),
        (b"rec,x\n", {"encoding": "hex"}, "--encoding hex: unknown; such as latin-1"),
        (b"rec,x\n", {"encoding": "klingon"}, "--encoding klingon: unknown; such as latin-1"),
    ],
)
def test_a_text_in_another_encoding_names_the_remedy(
    content: bytes, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    assert message in refuse(write(tmp_path, "x.csv", content), id="rec", **options)


def test_cells_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    content = "id,x,note,label\nr,1,grün,a\ns,2,b,blå\n".encode("latin-1")
    path = write(tmp_path, "x.csv", content)
    (problem,) = problems(path, id="id")
    assert problem.startswith("x.csv:3: label 'bl\\udce5': control characters, or not UTF-8")


# ---- the first pass and the second one agree


CELLS = st.one_of(
    st.text("0123456789.,-+eE ’'\u202f_%", max_size=9),
    st.sampled_from(["nan", "NaN", "-", "", " ", "inf", "True", "−1,5", "٣", "9:05", "word"]),
    st.from_regex(r"[+-]?[0-9]{1,3}([.,' ][0-9]{3}){0,2}([.,][0-9]{0,3})?", fullmatch=True),
)


@settings(max_examples=500, deadline=None)
@given(cell=CELLS, dialect=st.sampled_from(["plain", "comma", "thousands", "boolean"]))
def test_a_cell_is_a_number_in_the_dialects_of_its_kind_alone(
    cell: str, dialect: numerals.Dialect
) -> None:
    kind = numerals.kind_of(cell)
    try:
        number = numerals.parse_number(cell, dialect)
    except ValueError:
        # 0 and 1 alone are whole numbers that may stand for True and False.
        is_boolean = dialect == "boolean" and kind == "whole"
        assert is_boolean or kind not in {"missing", *numerals.CELLS_OF[dialect]}
    else:
        assert kind in {"missing", *numerals.CELLS_OF[dialect]}
        assert (kind == "missing") == math.isnan(number)


@settings(max_examples=200, deadline=None)
@given(cells=st.lists(CELLS, min_size=1, max_size=20), repeats=st.integers(1, 60))
def test_the_survey_sees_each_kind_of_cell(cells: list[str], repeats: int) -> None:
    # Most cells of a column are plain numbers, for which the survey takes short cuts.
    column = ["1.5"] * 600 + cells * repeats
    lines = [(f"x.csv:{number}", ["id", cell]) for number, cell in enumerate(column)]
    _, found = survey(["id", "x"], lines).columns
    expected = {numerals.kind_of(cell): cell for cell in reversed(column)}
    expected.pop("grouped", None)  # of no interest beside 1.5
    assert {kind: cell for kind, (_, cell) in found.first.items() if kind != "grouped"} == expected
    numbers = {"missing", *numerals.NUMBERS}
    assert found.num_words == sum(numerals.kind_of(cell) not in numbers for cell in column)
    assert found.num_runs == 1 + sum(a != b for a, b in pairwise(column))


# ---- any table in any dialect


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    separator: str
    decimal: str
    thousands: str  # between three digits
    quoting: int
    newline: str
    mark: str  # at the beginning of the file
    case: str  # the method that changes the names of columns
    index: str | None  # the name of a column that counts the lines
    has_words: bool
    seed: int  # of the order of the columns

    def number(self, text: str) -> str:
        """Return a plain number in this dialect."""
        whole, _, fraction = text.partition(".")
        whole = f"{int(whole):,}".replace(",", self.thousands) if whole not in "-0" else whole
        return whole + (self.decimal + fraction if fraction else "")

    def write(self, path: Path, names: list[str], lines: list[list[str]]) -> list[str]:
        """Write a table whose columns are in another order; return their names as written."""
        written = [getattr(name, self.case)() for name in names]
        table = [written, *lines]
        if self.has_words:
            table = [[*line, word] for line, word in zip(table, words(len(table)), strict=True)]
        order = shuffled(len(table[0]), self.seed)
        table = [[line[place] for place in order] for line in table]
        if self.index is not None:
            counted = [self.index, *map(str, range(len(lines)))]
            table = [[cell, *line] for cell, line in zip(counted, table, strict=True)]
        text = io.StringIO()
        csv.writer(
            text,
            delimiter=self.separator,
            quoting=self.quoting,  # type: ignore[arg-type]
            lineterminator=self.newline,
        ).writerows(table)
        path.write_bytes((self.mark + text.getvalue()).encode())
        return written


def words(count: int) -> list[str]:
    return ["note", *(["hello, you", 'a "word"', "x; y"] * count)[: count - 1]]


def shuffled(count: int, seed: int) -> list[int]:
    return sorted(range(count), key=lambda place: (place * 7919 + seed * 104729) % 1009)


DIALECTS = st.builds(
    Dialect,
    separator=st.sampled_from(",;\t|"),
    decimal=st.sampled_from(".,"),
    thousands=st.sampled_from(["", ",", ".", "\u202f", "'"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
    case=st.sampled_from(["lower", "upper", "title"]),
    index=st.sampled_from([None, "", "Unnamed: 0"]),
    has_words=st.booleans(),
    seed=st.integers(0, 1000),
).filter(lambda dialect: dialect.decimal != dialect.thousands)


@st.composite
def decimals(draw: st.DrawFn) -> str:
    """Return a plain number of any size with up to four decimals."""
    whole = draw(st.integers(-(10 ** draw(st.integers(0, 9))), 10 ** draw(st.integers(0, 9))))
    fraction = draw(st.sampled_from(["", "5", "25", "125", "0625", "000"]))
    return f"{whole}.{fraction}" if fraction else str(whole)


LABELS = st.sampled_from(["up", "down", "1", "7"])


@SETTINGS
@given(
    dialect=DIALECTS,
    features=st.lists(
        st.sampled_from(["acc", "temp", "light", "noise"]), min_size=1, max_size=4, unique=True
    ),
    labels=st.lists(LABELS, min_size=1, max_size=6),
    data=st.data(),
    has_switch=st.booleans(),
)
def test_a_long_table_in_any_dialect_gives_the_same_sequences(
    dialect: Dialect,
    features: list[str],
    labels: list[str],
    data: st.DataObject,
    has_switch: bool,
    tmp_path: Path,
) -> None:
    steps = st.lists(
        st.lists(decimals(), min_size=len(features), max_size=len(features)),
        min_size=1,
        max_size=5,
    )
    sequences = [data.draw(steps) for _ in labels]
    # At least one number shows what stands before decimals.
    sequences[0][0][0] = "-0.5"
    names = ["rec", *features, *["switch"] * has_switch, "label"]
    lines = [
        [
            f"s{number}",
            *map(dialect.number, step),
            *[str(bool(place % 2))] * has_switch,
            label,
        ]
        for number, (label, sequence) in enumerate(zip(labels, sequences, strict=True))
        for place, step in enumerate(sequence)
    ]
    path = tmp_path / "x.csv"
    written = dialect.write(path, names, lines)
    found, _ = read(path, id=written[0], needs_label=True)
    assert [row.id for row in found] == [f"s{number}" for number in range(len(labels))]
    assert [row.label for row in found] == labels
    for row, sequence in zip(found, sequences, strict=True):
        assert row.features is not None
        assert sorted(row.features) == sorted(written[1:-1])
        expected = [
            [*map(float, step), *[place % 2] * has_switch] for place, step in enumerate(sequence)
        ]
        order = [row.features.index(name) for name in written[1:-1]]
        assert row.steps[:, order].tolist() == expected  # type: ignore[call-overload]


@SETTINGS
@given(
    dialect=DIALECTS,
    prefix=st.sampled_from(["t", "", "x_", "step "]),
    num_steps=st.integers(3, 12),
    labels=st.lists(LABELS, min_size=1, max_size=6),
    data=st.data(),
    has_id=st.booleans(),
)
def test_a_wide_table_in_any_dialect_and_order_gives_the_same_steps(
    dialect: Dialect,
    prefix: str,
    num_steps: int,
    labels: list[str],
    data: st.DataObject,
    has_id: bool,
    tmp_path: Path,
) -> None:
    sequences = [data.draw(st.lists(decimals(), min_size=1, max_size=num_steps)) for _ in labels]
    sequences[0][0] = "-0.5"
    names = [*["id"] * has_id, "label", *(f"{prefix}{step}" for step in range(num_steps))]
    lines = [
        [
            *[f"s{number}"] * has_id,
            label,
            *map(dialect.number, sequence),
            *[""] * (num_steps - len(sequence)),
        ]
        for number, (label, sequence) in enumerate(zip(labels, sequences, strict=True))
    ]
    path = tmp_path / "x.csv"
    written = dialect.write(path, names, lines)
    steps = tuple(written[1 + has_id :])
    prefix_of_id = "s" if has_id else ""
    for options in ({}, {"features": steps, "wanted_by": "the model", "num_values": num_steps}):
        found, _ = read(path, needs_label=True, **options)
        assert [row.id for row in found] == [f"{prefix_of_id}{i}" for i in range(len(labels))]
        assert [row.label for row in found] == labels
        assert [row.steps[:, 0].tolist() for row in found] == [  # type: ignore[call-overload]
            [*map(float, sequence)] for sequence in sequences
        ]
