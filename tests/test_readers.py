"""Users' files: every format is read right, and a message names a mistake and its place."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.reading import numbers, problems, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, ReadOptions, Row
from seqclf.errors import UserError

TS = """\
# a comment
@problemName two
@timeStamps false
@dimensions 2
@classLabel true walk run
@data
1,2,3:4,5,6:walk
7,8:9,10:run
"""
CUT = (
    "; --on-label-change cut makes a sequence of each label, and --window takes the label of most "
    "steps of a window"
)
LONG = """\
id,time,x,note,y,label
a,1,0.5,hello,1,walk
a,0,0.25,hello,2,walk
b,7,-1,there,3,run
"""


# ---- the same two sequences in every format


SEQUENCES = [("walk", [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]), ("run", [[7.0, 9.0], [8.0, 10.0]])]


def as_ts(folder: Path) -> Path:
    return write(folder, "x.ts", TS)


def as_long_csv(folder: Path) -> Path:
    lines = [
        f"s{number},{first},{second},{label}"
        for number, (label, steps) in enumerate(SEQUENCES)
        for first, second in steps
    ]
    return write(folder, "x.csv", "\n".join(["id,a,b,label", *lines]))


def as_jsonl(folder: Path) -> Path:
    lines = [json.dumps({"steps": steps, "label": label}) for label, steps in SEQUENCES]
    return write(folder, "x.jsonl", "\n".join(lines))


def as_npz(folder: Path) -> Path:
    np.savez_compressed(
        folder / "x.npz",
        values=np.concatenate([np.array(steps) for _, steps in SEQUENCES]),
        offsets=np.array([0, 3, 5]),
        labels=np.array([label for label, _ in SEQUENCES]),
    )
    return folder / "x.npz"


def as_manifest(folder: Path) -> Path:
    np.save(folder / "first.npy", np.array(SEQUENCES[0][1]))
    write(folder, "sub/second.csv", "a,b\n7,9\n8,10\n")
    return write(folder, "manifest.csv", "path,label\nfirst.npy,walk\nsub/second.csv,run\n")


def as_parquet(folder: Path) -> Path:
    table = {"steps": [steps for _, steps in SEQUENCES], "label": ["walk", "run"]}
    pq.write_table(pa.table(table), folder / "x.parquet")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    "make",
    [as_ts, as_long_csv, as_jsonl, as_npz, as_manifest, as_parquet],
    ids=lambda f: f.__name__,
)
def test_every_format_gives_the_same_sequences(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    sequences = rows(make(tmp_path), id="id" if make is as_long_csv else None)
    assert [(row.label, numbers(row)) for row in sequences] == SEQUENCES


# ---- each format's own


def test_long_form_sorts_by_time_and_takes_columns_of_numbers(tmp_path: Path) -> None:
    first, second = rows(write(tmp_path, "x.csv", LONG), id="id", time="time")
    assert (first.id, first.features, numbers(first)) == ("a", ("x", "y"), [[0.25, 2], [0.5, 1]])
    assert (second.id, second.label, numbers(second)) == ("b", "run", [[-1, 3]])


def test_dates_are_times(tmp_path: Path) -> None:
    text = "id,at,x\na,2025-01-02T00:00,1\na,2024-12-31,2\na,2025-01-01T23:59:59,3\n"
    (row,) = rows(write(tmp_path, "x.csv", text), id="id", time="at")
    assert numbers(row) == [[2], [3], [1]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,x\na,1\na,oops\na,4\nb,1\n", "x.csv:3: column x: 'oops' is not a number"),
        ("id,x\na,1\na,\n", "x.csv:3: column x: a missing value; --fill-missing fills such gaps"),
        ("id,x\na,1\na,inf\n", "x.csv:3: column x: inf is not finite"),
        ("id,x\na,1\na,-1e300\n", "x.csv:3: column x: -1e+300 is too large for float32"),
        ("id,x\na,1\na,1_0\n", "x.csv:3: column x: '1_0' is not a number"),
        ("id,x\na,1\na,2,3\n", "x.csv:3: 3 cells, where the header has 2"),
        ("id,x\na,1\na\n", "x.csv:3: 1 cells, where the header has 2"),
        (
            "id,x,label\na,1,u\na,2,v\n",
            f"x.csv:3: label 'v', where the sequence began with 'u'{CUT}",
        ),
        ("id,x,label\na,1,u\x07\n", "x.csv:2: label 'u\\x07': control characters, or not UTF-8"),
    ],
)
def test_long_form_problems_name_line_and_column(text: str, problem: str, tmp_path: Path) -> None:
    assert problems(write(tmp_path, "x.csv", text), id="id") == [problem]


def test_a_bad_step_spoils_its_sequence_alone(tmp_path: Path) -> None:
    text = "id,x\na,1\na,oops\na,oops\nb,1\n"
    _, good = read_rows(write(tmp_path, "x.csv", text), ReadOptions(id="id"))
    assert isinstance(good, Row)
    assert good.id == "b"


def test_time_that_is_none(tmp_path: Path) -> None:
    text = "id,t,x\na,noon,1\n"
    assert problems(write(tmp_path, "x.csv", text), id="id", time="t") == [
        "x.csv:2: time 'noon' is neither a number nor a date like 2025-01-31T12:00 or "
        "31.01.2025 12:00 nor a time like 12:00:05"
    ]


def test_wide_form_with_and_without_a_header(tmp_path: Path) -> None:
    plain = rows(write(tmp_path, "x.tsv", "2\t0.5\t1\t\n1\t3\tNaN\tnan\n"))
    assert [(row.label, numbers(row)) for row in plain] == [("2", [[0.5], [1]]), ("1", [[3]])]
    pandas = rows(write(tmp_path, "y.csv", "label,0,1,2\nup,1,2,3\ndown,4,5,\n"))
    assert [(row.label, numbers(row)) for row in pandas] == [
        ("up", [[1], [2], [3]]),
        ("down", [[4], [5]]),
    ]
    named = rows(write(tmp_path, "z.csv", "t0;t1;kind\n1;2;a\n"), label="kind")
    assert [(row.label, numbers(row)) for row in named] == [("a", [[1], [2]])]


def test_a_first_line_with_a_slip_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "a,1,oops,3\nb,1,2,3\n")
    assert problems(path) == ["x.csv:1: column 2: 'oops' is not a number"]


def test_labels_are_no_values_where_a_table_has_no_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column of numbers among id, label"):
        rows(write(tmp_path, "x.csv", "id,label\na,1\n"))


def test_gaps_are_filled_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "a,1,,3\na,,2,2\n")
    assert len(problems(path)) == 2
    first, second = rows(path, fill_missing=True)
    assert (numbers(first), first.filled) == ([[1], [2], [3]], 1)
    assert (numbers(second), second.filled) == ([[2], [2], [2]], 1)


def test_ts_fills_gaps_and_keeps_lengths(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path, "x.ts", "@classLabel true a\n@data\n?,1,?,3,?:5,5,5,5,5:a\n"))
    assert numbers(row) == [[1, 5], [1, 5], [2, 5], [3, 5], [3, 5]]
    assert row.filled == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,2:3:walk", "dimension 2: 1 values, where dimension 1 has 2"),
        ("1,2:3,x:walk", "dimension 2, value 2: 'x' is not a number"),
        ("1,inf:3,4:walk", "dimension 1, value 2: inf is not finite"),
        ("?,?:?,?:walk", "an empty sequence: all of its values are missing or padding"),
        ("::walk", "an empty sequence"),
        ("1,2:3,4:wlak", "label 'wlak': not in the header's @classLabel"),
    ],
)
def test_ts_problems_name_dimension_and_value(line: str, problem: str, tmp_path: Path) -> None:
    assert problems(write(tmp_path, "x.ts", TS + line)) == [f"x.ts:9: {problem}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3:a\n", "x.ts:1: expected a header line"),
        ("@problemName x\n", "no line @data"),
        ("@\n@data\n1,2:a\n", "x.ts:1: expected a header line like @classLabel, or @data"),
        ("@timestamps true\n@data\n(0,1):a\n", "@timestamps true: time stamps are not read"),
        ("@targetlabel true\n@data\n1,2:0.5\n", "@targetlabel true: a number to be predicted"),
    ],
)
def test_ts_headers_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(read_rows(write(tmp_path, "x.ts", text), ReadOptions()))


def test_jsonl_of_every_kind(tmp_path: Path) -> None:
    lines = [
        '{"steps": [1, 2.5, 3], "label": 4, "id": "first"}',
        '{"tokens": ["to", "be", 7], "label": true, "split": "train"}',
        '{"text": "né", "label": "x", "group": 3}',
    ]
    steps, tokens, text = rows(write(tmp_path, "x.jsonl", "\n".join(lines)))
    assert (steps.id, steps.label, numbers(steps)) == ("first", "4", [[1], [2.5], [3]])
    assert (tokens.id, tokens.label, tokens.steps) == ("1", "true", ("to", "be", "7"))
    assert tokens.split == "train"
    assert isinstance(text.steps, np.ndarray)
    assert (bytes(text.steps), text.group) == ("né".encode(), "3")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"steps": [[1, 2], [3]]}', "step 2, feature 1: 1 feature, where the steps before have"),
        ('{"steps": [[1, "2"]]}', "step 1, feature 2: '2' is not a number"),
        ('{"steps": [[1, true]]}', "step 1, feature 2: True is not a number"),
        ('{"steps": [[1, NaN]]}', "step 1, feature 2: a missing value"),
        ('{"steps": [[1, 1e999]]}', "step 1, feature 2: inf is not finite"),
        ('{"steps": [1' + "0" * 400 + "]}", "a number too large for float32"),
        ('{"steps": []}', "3: an empty sequence"),
        ('{"steps": 3}', "3: a int, expected a list of steps"),
        ('{"tokens": [1.5]}', "token 1: expected a text or a whole number"),
        ('{"tokens": ["\\ud800"]}', "token 1: not UTF-8"),
        ('{"text": ""}', "an empty sequence"),
        ('{"text": "\\ud800"}', "text: not UTF-8"),
        ('{"text": "a", "tokens": ["a"]}', "found tokens and text; --drop leaves"),
        ('{"text": "a", "label": ["b"]}', "label: a list, expected a text or a number"),
        ('{"text": "a", "label": "' + "b" * 300 + '"}', "300 characters long"),
        ("[1, 2]", "expected an object like"),
        ('{"text": "a"', "column 13: not JSON"),
        ("[" * 100_000, "JSON that cannot be read"),
    ],
)
def test_jsonl_problems(line: str, problem: str, tmp_path: Path) -> None:
    (message,) = problems(write(tmp_path, "x.jsonl", '\n{"text": "good"}\n' + line))
    assert message.startswith("x.jsonl:3: ")
    assert problem in message


def test_manifest_problems_name_line_file_and_column(tmp_path: Path) -> None:
    write(tmp_path, "bad.csv", "a,b\n1,2\n3,oops\n")
    write(tmp_path, "short.csv", "1,2\n3\n")
    write(tmp_path, "nan.csv", "a,b\n1,2\n3,nan\n")
    write(tmp_path, "x.wav", "RIFF")
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2)))
    names = ["bad.csv", "short.csv", "nan.csv", "x.wav", "gone.npy", "deep.npy", ""]
    text = "path,label\n" + "".join(f"{name},a\n" for name in names)
    assert problems(write(tmp_path, "manifest.csv", text)) == [
        "manifest.csv:2: bad.csv:3, column b: 'oops' is not a number",
        "manifest.csv:3: short.csv:2, 1 cells, where other lines have 2",
        "manifest.csv:4: nan.csv:3, column b: a missing value; --fill-missing fills such gaps",
        "manifest.csv:5: x.wav: expected .npy, .csv, .tsv, .txt, .png, .jpg, .jpeg, .bmp, .gif",
        "manifest.csv:6: gone.npy: No such file or directory",
        "manifest.csv:7: deep.npy: shape (2, 2, 2), where steps x features are expected",
        "manifest.csv:8: no path",
    ]


def test_parquet_in_long_form(tmp_path: Path) -> None:
    table = {"who": [1, 1, 2], "x": [0.5, 1.5, 2.5], "label": ["a", "a", "b"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    sequences = rows(tmp_path / "x.parquet", id="who")
    assert [(row.id, row.label, numbers(row)) for row in sequences] == [
        ("1", "a", [[0.5], [1.5]]),
        ("2", "b", [[2.5]]),
    ]
    with pytest.raises(UserError, match="not a parquet file"):
        list(read_rows(write(tmp_path, "y.parquet", "PAR1 and so on"), ReadOptions()))


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.doc", "", {}, "expected a file that ends in csv, tsv"),
        ("x.csv", "id,x\na,1\nb,1\na,2\n", {"id": "id"}, "x.csv:4: id 'a' comes again"),
        ("x.csv", "id,x\na,1\n", {"id": "who"}, r"x.csv:1: no column 'who' \(--id\) among id, x"),
        ("x.csv", "who,t,x\na,1,2\n", {"time": "t"}, "--time t: if a line is a step, say --id"),
        ("x.csv", "1,2\n3,4\n", {"id": "id"}, "no header line, so no column 'id'"),
        (
            "x.csv",
            "id,name\na,b\n",
            {"id": "id"},
            "no column of numbers among id, name; --tokens name",
        ),
        ("x.csv", "id,x,x\na,1,2\n", {"id": "id"}, "column 'x' comes twice"),
        ("x.csv", 'a,"1\n' + "2,3\n" * 50_000, {}, "field larger than field limit"),
        ("x.csv", "a,1\n".encode("utf-16"), {}, "UTF-16; read it with --encoding utf-16"),
        ("x.npy", b"\x93NUMPY\x01\x00", {}, "not an .npy that can be read"),
        ("x.npz", b"PK\x03\x04", {}, "not an .npz that can be read"),
    ],
)
def test_files_that_cannot_be_read(
    name: str, content: str | bytes, options: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv: cannot read it: No such file"):
        list(read_rows(tmp_path / "x.csv", ReadOptions()))
    (tmp_path / "y.csv").mkdir()
    with pytest.raises(UserError, match=r"a folder without \.npy, \.csv"):
        list(read_rows(tmp_path / "y.csv", ReadOptions()))
    with pytest.raises(UserError, match="say what standard input holds"):
        list(read_rows(Path("-"), ReadOptions()))


# ---- malformed files: a clear error or a right result


VALID: dict[str, tuple[bytes, ReadOptions]] = {
    "x.ts": (TS.encode(), ReadOptions()),
    "x.csv": (LONG.encode(), ReadOptions(id="id", time="time")),
    "y.csv": (b"label,t0,t1\na,1,2\nb,3,\n", ReadOptions()),
    "x.jsonl": (b'{"steps": [[1, 2], [3, 4]], "label": "x"}\n{"tokens": ["a"]}\n', ReadOptions()),
}


def compressed() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros((3, 4, 2)), y=np.array(["a", "b", "a"]))
    return file.getvalue()


def saved() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4, 2)))
    return file.getvalue()


def picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(file, "PNG")
    return file.getvalue()


ARFF = b"@attribute 'x 0' real\n@attribute x1 real\n@attribute class {a,'b c'}\n@data\n1,?,'b c'\n"
RELATIONAL = b"@attribute r relational\n@attribute x real\n@end r\n@attribute c {a}\n@data\n"
VALID |= {
    "x.npz": (compressed(), ReadOptions()),
    "x.npy": (saved(), ReadOptions()),
    "flat.jsonl": (b'{"rec": 1, "x": 0.5, "y": [1]}\n{"rec": 1, "x": null}\n', ReadOptions()),
    "x.json": (b'[{"x": [1, 2], "y": [3, 4], "time": [2, 1], "label": "a"}]', ReadOptions()),
    "y.json": (b'{"x": [1, 2], "rec": ["a", "b"], "label": [1, 2]}', ReadOptions(id="rec")),
    "z.json": (b'{"x": {"0": 1}, "label": {"0": "a"}}', ReadOptions()),
    "x.arff": (ARFF, ReadOptions()),
    "y.arff": (RELATIONAL + rb"'1,2\n3,4',a", ReadOptions()),
    "x.txt": (b"  1.0000000e+00  -6.4e-01   NaN\n  2.0000000e+00  1   2\n", ReadOptions()),
    "x.png": (picture(), ReadOptions()),
    "x.csv.gz": (gzip.compress(LONG.encode()), ReadOptions(id="id")),
    "x.ts.gz": (gzip.compress(TS.encode()), ReadOptions()),
}


@pytest.mark.parametrize("keyword", ["@timestamps", "@targetLabel", "@classLabel"])
def test_a_ts_keyword_without_a_value_is_false(keyword: str, tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path, "x.ts", f"{keyword}\n@data\n1,2\n"))
    assert row.label is None


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(sorted(VALID)),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=6)), min_size=1, max_size=6
    ),
)
def test_damaged_files_never_raise_anything_else(
    name: str, edits: list[tuple[float, int, bytes]], tmp_path: Path
) -> None:
    content, options = VALID[name]
    for fraction, num_removed, added in edits:
        offset = int(fraction * len(content))
        content = content[:offset] + added + content[offset + num_removed :]
    path = write(tmp_path, name, content)
    everything: list[Row | BadRow] = []
    with suppress(UserError):
        everything += read_rows(path, options)
    for row in everything:
        if isinstance(row, Row) and isinstance(row.steps, np.ndarray):
            assert len(row.steps)
            assert np.isfinite(row.steps).all()
        elif isinstance(row, BadRow):
            row.problem.encode()
            assert row.problem.isprintable()
