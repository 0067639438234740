"""Formats beside tables and arrays: JSON, .arff, blanks, .gz, and labels beside a file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reading import numbers, problems, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import arff

from seqclf.data.readers import json_records, read_rows
from seqclf.data.readers.rows import Journal, ReadOptions, Row
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


def as_json(folder: Path, content: object, name: str = "x.json") -> Path:
    return write(folder, name, json.dumps(content))


def as_lines(folder: Path, *records: object) -> Path:
    return write(folder, "x.jsonl", "\n".join(map(json.dumps, records)))


# ---- JSON


RECORDS = [{"steps": [[1, 2], [3, 4]], "label": "a"}, {"steps": [[5, 6]], "label": "b"}]
COLUMNS = {"steps": [[[1, 2], [3, 4]], [[5, 6]]], "label": ["a", "b"]}


@pytest.mark.parametrize("content", [RECORDS, {"meta": 1, "data": RECORDS}, COLUMNS])
def test_json_holds_records_in_a_list_in_an_object_or_in_columns(
    content: object, tmp_path: Path
) -> None:
    first, second = rows(as_json(tmp_path, content))
    assert (first.id, first.label, numbers(first)) == ("0", "a", [[1, 2], [3, 4]])
    assert (second.id, second.label, numbers(second)) == ("1", "b", [[5, 6]])


def test_a_json_of_one_record(tmp_path: Path) -> None:
    (row,) = rows(as_json(tmp_path, {"steps": [[1, 2], [3, 4]], "label": "a"}))
    assert (row.label, numbers(row)) == ("a", [[1, 2], [3, 4]])


LINES: list[dict[str, object]] = [
    {"rec": 1, "x": 0.5, "label": "a", "note": "u"},
    {"rec": 1, "x": None, "label": "a", "note": "v"},
    {"rec": 2, "x": 3, "label": "b", "note": "u"},
]


def lines_in_columns(kind: str) -> object:
    columns: dict[str, list[object]] = {key: [line[key] for line in LINES] for key in LINES[0]}
    if kind == "columns":
        return columns
    return {key: dict(zip("012", cells, strict=True)) for key, cells in columns.items()}


@pytest.mark.parametrize("kind", ["records", "lines", "columns", "pandas"])
def test_flat_records_are_lines_of_a_table(kind: str, tmp_path: Path) -> None:
    path = {
        "records": lambda: as_json(tmp_path, LINES),
        "lines": lambda: as_lines(tmp_path, *LINES),
    }.get(kind, lambda: as_json(tmp_path, lines_in_columns(kind)))()
    first, second = rows(path, id="rec", fill_missing=True)
    assert (first.id, first.label, first.features) == ("1", "a", ("x",))
    assert (numbers(first), first.filled, numbers(second)) == ([[0.5], [0.5]], 1, [[3]])
    assert decisions(path, id="rec").left_aside == {"note": "words: u, v"}


def test_flat_records_may_be_wide_and_need_not_have_all_keys(tmp_path: Path) -> None:
    records = [{"t0": 1, "t1": 2}, {"Class": True, "t1": 4, "t0": 3, "t2": 5}]
    first, second = rows(as_lines(tmp_path, *records))
    assert (first.label, numbers(first)) == (None, [[1], [2]])
    assert (second.label, numbers(second)) == ("true", [[3], [4], [5]])


def test_a_flat_record_of_words_is_read_with_tokens_or_text(tmp_path: Path) -> None:
    path = as_lines(tmp_path, {"review": "so good", "label": 1})
    (words,) = rows(path, tokens="review")
    (text,) = rows(path, text="review")
    assert words.steps == ("so", "good")
    assert bytes(text.steps) == b"so good"  # type: ignore[arg-type]


def test_a_list_under_another_key_is_the_steps_and_that_is_said(tmp_path: Path) -> None:
    path = as_lines(tmp_path, {"values": [1, 2], "LABEL": 1.0, "Subject": "s", "rate": 50})
    (row,) = rows(path)
    assert (row.label, row.group, row.features, numbers(row)) == ("1", "s", None, [[1], [2]])
    journal = decisions(path)
    assert journal.roles == {"label": "LABEL", "group": "Subject"}
    assert journal.left_aside == {"rate": "one value for a whole sequence"}
    assert journal.notes == ["the steps are in 'values', the only list of numbers"]


def test_several_lists_are_the_features_of_the_steps_sorted_by_time(tmp_path: Path) -> None:
    path = as_lines(
        tmp_path,
        {"x": [1, 2], "y": [3, None], "Time": [9, 5], "tags": ["u"], "label": "a"},
        {"y": [7], "x": [6], "Time": [0], "label": "a"},
    )
    first, second = rows(path, fill_missing=True)
    assert (first.features, numbers(first)) == (("x", "y"), [[2, 3], [1, 3]])
    assert (second.features, numbers(second)) == (("x", "y"), [[6, 7]])
    journal = decisions(path)
    assert journal.roles == {"time": "Time", "label": "label"}
    assert journal.left_aside == {"tags": "not among the steps, in 'x', 'y'"}
    assert journal.notes == ["the features of a step are in the lists 'x', 'y'"]
    (chosen, _) = rows(path, features=("y",), drop=("tags",), fill_missing=True)
    assert (chosen.features, numbers(chosen)) == (("y",), [[3], [3]])


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"x": [1], "label": "a"}, "lists 'x', where the records before have 'x', 'y'"),
        ({"x": [1, 2], "y": [1]}, "1 values in 'y', where 'x' has 2"),
        ({"x": [1, 2], "y": [1, "k"]}, "'y', step 2: 'k' is not a number"),
        ({"x": [1, 2], "y": [1, None]}, "'y', step 2: a missing value; --fill-missing"),
        ({"x": [1], "y": [[1, 2]]}, "'y': lists in a list, beside other lists"),
        ({"x": [1], "y": [2], "time": [1, 2]}, "'time': 2 times, where there are 1 steps"),
        ({"x": [1], "y": [2], "label": ["a"]}, "label: a list, expected a text or a number"),
        ({"x": 1, "y": 2}, "expected one of steps, tokens and text, or a list of numbers; found"),
        ({"w": ["so"]}, "--tokens w reads a list of words"),
    ],
)
def test_records_unlike_the_first_are_bad_rows(
    record: object, problem: str, tmp_path: Path
) -> None:
    path = as_lines(tmp_path, {"x": [1, 2], "y": [3, 4], "label": "a"}, record)
    (message,) = problems(path)
    assert message.startswith(f"x.jsonl:2: {problem}") or problem in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "who"}, "x.jsonl:1: no key 'who' (--id) among x, y, class, label"),
        ({"split": "part", "label": "class"}, "x.jsonl:1: no key 'part' (--split-column) among"),
        (
            {"needs_label": True},
            "x.jsonl:1: 'label', 'class' may all be the label; choose with --label",
        ),
        ({"label": "none", "features": ("z",)}, "no list 'z', which --features names; found x, y"),
        ({"label": "none", "time": "t"}, "no key 't' (--time)"),
        ({"label": "none", "time": "class"}, "--time class: sorts steps, and its key must hold"),
        ({"label": "none", "tokens": "w"}, "no key 'w' (--tokens)"),
    ],
)
def test_options_that_name_other_keys_are_refused_once(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    record = {"x": [1], "y": [2], "class": "a", "label": "b"}
    assert message in refusal(as_lines(tmp_path, record, record), **options)


def test_a_forgotten_label_is_answered_once(tmp_path: Path) -> None:
    path = as_lines(tmp_path, *[{"steps": [1], "mood": "a", "tags": ["u"]}] * 2)
    message = "x.jsonl:1: no key is called label; say --label (perhaps mood)"
    assert refusal(path, needs_label=True) == message
    assert [row.label for row in rows(path, needs_label=True, label="mood")] == ["a", "a"]


def test_remembered_keys_may_be_missing(tmp_path: Path) -> None:
    soft = frozenset({"id", "group", "tokens", "time"})
    path = as_lines(tmp_path, {"steps": [1], "ID": "q"})
    (row,) = rows(path, id="rec", group="who", tokens="w", time="t", soft=soft)
    assert (row.id, row.group) == ("q", None)


def test_an_id_that_comes_again_is_said(tmp_path: Path) -> None:
    path = as_lines(tmp_path, *[{"id": "q", "steps": [1]}] * 3)
    assert decisions(path).notes == [
        f"{path}:2: id 'q' comes again; each record is a sequence of its own"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"x":\n [1,}', "x.json:2: column 5: not JSON"),
        ("x.json", '{"x": 1}\n{"x": 2}', "x.json:2: column 1: not JSON: Extra data; if the file"),
        ("x.json", "[[1, 2], [3]]", "x.json: expected a list of objects"),
        (
            "x.json",
            '{"r1": {"x": 1}, "r2": {"x": 2}}',
            'pandas writes a list with to_json(orient="',
        ),
        ("x.json", '{"x": [1, 2]}', "x.json: expected a list of objects"),
        ("x.json", '{"x": [1, 2], "y": [1]}', "x.json: 1 values in 'y', where 'x' has 2"),
        ("x.json", '[{"x": 1, "x": 2}]', "x.json: key 'x' comes twice"),
        ("x.json", '[{"x\\u0007": 1}]', "key 'x\\x07': control characters, or not UTF-8"),
        ("x.json", "[" * 100_000, "x.json: JSON that cannot be read"),
        ("x.jsonl", '[\n{"steps": [1]}\n]', "x.jsonl:1: expected an object a line; if the whole"),
        ("x.jsonl", '{"x": 1}\n{"x":', "x.jsonl:2: column 6: not JSON"),
        ("x.jsonl", '{"x": 1}\n3', "x.jsonl:2: expected an object, as in the records before"),
    ],
)
def test_json_that_cannot_be_read(name: str, text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(write(tmp_path, name, text))


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_large_json_is_refused_with_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(RECORDS).encode()
    path = write(tmp_path, name, gzip.compress(text) if name.endswith("gz") else text)
    assert len(rows(path)) == 2
    monkeypatch.setattr(json_records, "MOST_CHARACTERS", len(text))
    assert "write an object a line, and name it .jsonl" in refusal(path)


KEYS = st.sampled_from(["steps", "tokens", "text", "x", "y", "label", "ID", "time", "data", "0"])
CELLS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=VALUES,
    options=st.sampled_from([{}, {"id": "ID"}, {"features": ("x",)}, {"tokens": "x"}]),
)
def test_any_json_gives_sequences_or_messages(
    content: object, options: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("x.json", "x.jsonl"):
        path = as_json(tmp_path, content, name)
        with suppress(UserError):
            for row in read_rows(path, ReadOptions(**options)):
                assert len(row.steps) if isinstance(row, Row) else row.problem.isprintable()


# ---- .arff


ARFF = """\
% of an archive
@RELATION test
@ATTRIBUTE att0 NUMERIC
@attribute att1 real
@attribute 'att2' numeric
@attribute target {1, 2}

@DATA
0.5,1.5,2.5,1
1,2,?,2
% in between
1e1,-2,3,2
"""


def test_arff_is_a_wide_table_with_its_class(tmp_path: Path) -> None:
    path = write(tmp_path, "x.arff", ARFF)
    sequences = rows(path)
    assert [(row.label, numbers(row)) for row in sequences] == [
        ("1", [[0.5], [1.5], [2.5]]),
        ("2", [[1], [2]]),
        ("2", [[10], [-2], [3]]),
    ]
    journal = decisions(path)
    assert (journal.roles, journal.columns) == ({"label": "target"}, ("att0", "att1", "att2"))


def test_the_class_of_arff_is_the_last_attribute_that_lists_values(tmp_path: Path) -> None:
    text = (
        "@attribute kind {u}\n@attribute x0 real\n@attribute x1 real\n@attribute mood {'a b',c}\n"
    )
    path = write(tmp_path, "x.arff", f"{text}@data\nu,1,2,'a b'\nu,3,4,\"c\"\nu,3,4,d\n")
    assert problems(path) == ["x.arff:8: label 'd': not among the values in the header"]
    first, second, _ = read_rows(path, ReadOptions())
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.label, numbers(first), second.label) == ("a b", [[1], [2]], "c")
    note = f"{path}: the label is 'mood', the last attribute that lists its values"
    assert note in decisions(path).notes
    assert [row.label for row in rows(path, label="kind")] == ["u", "u", "u"]


def test_arff_of_several_features_as_the_archive_writes_it(tmp_path: Path) -> None:
    header = (
        "@relation 'Motions'\n@attribute relationalAtt relational\n @attribute att0 numeric\n"
        " @attribute att1 numeric\n@end relationalAtt\n@attribute activity {Standing,Walking}\n"
    )
    data = r"""@data
'1,2,3\n4,5,6',Standing
"7,8,?\n9,10,?",Walking
'1,2\n3',Walking
'1,x\n3,4',Walking
"""
    path = write(tmp_path, "x.arff", header + data)
    first, second, *_ = read_rows(path, ReadOptions())
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.label, numbers(first)) == ("Standing", [[1, 4], [2, 5], [3, 6]])
    assert (second.label, numbers(second), second.padding) == ("Walking", [[7, 9], [8, 10]], 1)
    assert problems(path) == [
        "x.arff:10: feature 2: 1 values, where feature 1 has 2",
        "x.arff:11: feature 1, value 2: 'x' is not a number",
    ]
    assert "--id att0: x.arff has several features" in refusal(path, id="att0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ARFF + "1,2,3\n", "x.arff:13: 3 values, where the header has 4 attributes; is the file"),
        (ARFF + "{0 1, 3 2}\n", "x.arff:13: sparse data, which are not read"),
        (ARFF + "1,2,3,'2\n", "x.arff:13: value 4: a quote that is left open"),
        ("@attribute x what\n@data\n", "x.arff:1: expected a name and a type"),
        ("hello\n", "x.arff:1: expected a header line"),
        ("@relation x\n", "x.arff: no line @data"),
        ("@data\n1\n", "x.arff:1: no @attribute before @data"),
        ("@attribute x real\n@attribute class {\x07}\n@data\n1,2\n", "control characters"),
        (
            "@attribute x real\n@attribute class {a}\n@attribute label {b}\n@data\n1,a,b\n",
            "x.arff, header: 'class', 'label' may all be the label; choose with --label",
        ),
    ],
)
def test_arff_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(write(tmp_path, "x.arff", text), needs_label=True)


NAMES = st.text("abcXYZ019_- '\"\\{},%", min_size=1, max_size=6).map(str.strip)


def quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2), min_size=1, max_size=5
    ),
    classes=st.lists(
        st.text("abcXYZ", min_size=1, max_size=5), min_size=2, max_size=3, unique=True
    ),
)
def test_arff_is_read_as_scipy_reads_it(
    values: list[list[float]], classes: list[str], tmp_path: Path
) -> None:
    lines = ["@relation r", "@attribute x0 real", "@attribute x1 real"]
    lines += [f"@attribute class {{{','.join(classes)}}}", "@data"]
    lines += [f"{a!r},{b!r},{classes[n % 2]}" for n, (a, b) in enumerate(values)]
    text = "\n".join(lines) + "\n"
    limit = csv.field_size_limit()
    table, _ = arff.loadarff(io.StringIO(text))
    csv.field_size_limit(limit)  # scipy takes it away for the whole process
    sequences = rows(write(tmp_path, "x.arff", text))
    if any(name.lower() in ("na", "nan", "null") for name in classes):
        return
    assert [row.label for row in sequences] == [line[2].decode() for line in table]
    assert [row.steps[:, 0].tolist() for row in sequences] == [  # type: ignore[call-overload]
        [line[0], line[1]] for line in table
    ]


@given(cells=st.lists(NAMES.filter(bool), min_size=1, max_size=4))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_quoted_names_of_arff_come_back(cells: list[str], tmp_path: Path) -> None:
    names = [f"w{number}{cell}" for number, cell in enumerate(cells)]
    header = "".join(f"@attribute {quoted(name)} string\n" for name in names)
    text = f"{header}@attribute t0 real\n@attribute t1 real\n@data\n"
    text += ",".join(map(quoted, names)) + ",1,2\n"
    path = write(tmp_path, "x.arff", text)
    (row,) = rows(path)
    assert numbers(row) == [[1], [2]]
    assert {name: f"words: {name}" for name in names} == decisions(path).left_aside


# ---- blanks, .ts and .gz


def test_a_txt_of_the_archive_is_separated_by_blanks(tmp_path: Path) -> None:
    lines = ["  1.0000000e+00  -6.4e-01   2.0e-01   3", " -1.0000000e+00   1.0e-01   2.0e-01   NaN"]
    first, second = rows(write(tmp_path, "x.txt", "\n".join(lines) + "\n"))
    assert (first.label, second.label) == ("1", "-1")
    assert np.asarray(first.steps).tolist() == [[-0.64], [0.2], [3]]
    assert np.asarray(second.steps).tolist() == [[0.1], [0.2]]


TS = """\
@problemName one
@timestamps false
@missing true
@univariate true
@equalLength false
@classLabel true 1.0 2
@data
?,1,?,3,?:1
4,5,?,?:2.0
"""


def test_a_ts_of_one_dimension_with_gaps_and_padding(tmp_path: Path) -> None:
    first, second = rows(write(tmp_path, "x.ts", TS))
    assert (first.label, numbers(first)) == ("1", [[1], [1], [2], [3]])
    assert (first.filled, first.padding) == (2, 1)
    assert (second.label, numbers(second), second.padding) == ("2", [[4], [5]], 2)


COMPRESSED = {
    "x.csv": "label,t0,t1\na,1,2\n",
    "x.tsv": "label\tt0\tt1\na\t1\t2\n",
    "x.txt": "5 1 2\n",
    "x.ts": "@classLabel true a\n@data\n1,2:a\n",
    "x.jsonl": '{"steps": [1, 2], "label": "a"}\n',
    "x.json": '[{"steps": [1, 2], "label": "a"}]',
    "x.arff": "@attribute x real\n@attribute y real\n@attribute class {a}\n@data\n1,2,a\n",
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_text_format_may_be_compressed(name: str, tmp_path: Path) -> None:
    content = COMPRESSED[name].encode()
    (plain,) = rows(write(tmp_path, name, content))
    (row,) = rows(write(tmp_path, f"{name}.gz", gzip.compress(content)))
    assert (row.label, numbers(row)) == (plain.label, [[1], [2]])
    cut = write(tmp_path, f"{name}.gz", gzip.compress(content)[:-10])
    assert refusal(cut).startswith(f"{name}.gz: not a .gz that can be read: Compressed file ended")
    plain_text = write(tmp_path, f"{name}.gz", content)
    assert refusal(plain_text).startswith(f"{name}.gz: not a .gz that can be read: Not a gzipped")


# ---- labels beside a file


STEPS = "rec,t,x\na,1,2\na,2,3\nb,1,5\n"


def test_labels_beside_a_file_are_found_by_id(tmp_path: Path) -> None:
    labels = write(tmp_path, "y.csv", "rec;activity\nb;run\nc;run\na;walk\n")
    path = write(tmp_path, "x.csv", STEPS)
    options = {"id": "rec", "time": "t", "labels": labels}
    sequences = rows(path, **options)
    assert [(row.id, row.label, numbers(row)) for row in sequences] == [
        ("a", "walk", [[2], [3]]),
        ("b", "run", [[5]]),
    ]
    journal = decisions(path, **options)
    assert journal.roles == {"id": "rec", "time": "t"}
    assert f"{path}: no sequence for 1 of the ids in {labels}" in journal.notes
    assert f"{labels}: id = rec, label = activity" in journal.notes


def test_labels_beside_a_file_may_have_groups_and_splits(tmp_path: Path) -> None:
    text = "ID,Class,subject,split,note\na,1.0,s,train,k\nb,?,s,test,k\nb,?,s,test,k\n"
    labels = write(tmp_path, "y.csv.gz", gzip.compress(text.encode()))
    path = write(tmp_path, "x.csv", STEPS.replace("rec", "id") + "d,1,1\n")
    row, *bad = read_rows(path, ReadOptions(id="id", labels=labels))
    assert isinstance(row, Row)
    assert (row.label, row.group, row.split) == ("1", "s", "train")
    assert [str(b).partition("problem=")[2] for b in bad] == [
        f"\"id '{name}': no label in {labels}\")" for name in "bd"
    ]
    assert decisions(path, id="id", labels=labels).left_aside == {"y.csv.gz: note": "not used"}


def test_labels_beside_a_file_win_over_its_own(tmp_path: Path) -> None:
    labels = write(tmp_path, "y.tsv", "id\tlabel\nq\tnew\n")
    path = write(tmp_path, "x.csv", "Id,t0,t1,label\nq,1,2,old\n")
    (row,) = rows(path, labels=labels)
    assert (row.label, numbers(row)) == ("new", [[1], [2]])
    assert decisions(path, labels=labels).left_aside == {"label": f"{labels} says the label"}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("rec,label\na,u\na,v\n", {"id": "rec"}, "y.csv:3: id 'a' comes again with other names"),
        ("rec,label\n,u\n", {"id": "rec"}, "y.csv:2: no id"),
        ("rec,p,q\na,u,1\n", {"id": "rec"}, "y.csv:1: which column is the label? say --label"),
        ("rec,p\na,u\n", {"id": "rec", "label": "q"}, "y.csv:1: no column 'q'? say --label"),
        ("rec,label\na,u\n", {}, "y.csv:1: which column is the id? say --id; found rec, label"),
        ("1,2\n", {"id": "rec"}, "y.csv: expected a first line like id,label"),
        (None, {"id": "rec"}, "--labels y.csv: cannot read it: No such file"),
    ],
)
def test_labels_that_cannot_be_used(
    text: str | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", STEPS)
    labels = tmp_path / "y.csv"
    if text is not None:
        write(tmp_path, "y.csv", text)
    assert message in refusal(path, labels=labels, **options)


def test_labels_need_ids_of_the_sequences(tmp_path: Path) -> None:
    labels = write(tmp_path, "y.csv", "id,label\n0,a\n1,b\n")
    ts = write(tmp_path, "x.ts", "@data\n1,2\n3,4\n")
    assert refusal(ts, labels=labels) == "--labels y.csv: x.ts has no ids to find labels by"
    wide = write(tmp_path, "x.csv", "t0,t1\n1,2\n3,4\n")
    assert "x.csv has no ids to find labels by; say --id" in refusal(wide, labels=labels)
    text = write(tmp_path, "y.txt", "a\nb\n")
    assert "it must be a .csv or .tsv" in refusal(wide, labels=text)


def test_labels_beside_an_array_stand_in_its_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    labels = write(tmp_path, "y.csv", "a\nb\n")
    assert [row.label for row in rows(tmp_path / "x.npy", labels=labels)] == ["a", "b"]
    table = write(tmp_path, "y.csv", "id,label\n0,a\n")
    assert "x.npy has no ids" in refusal(tmp_path / "x.npy", labels=table)


# ---- options that a format cannot have


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.ts", {"drop": ("a",)}, "--drop a: names a column, and x.ts has none"),
        ("x.ts", {"features": ("a",)}, "--features a: names a column, and x.ts has none"),
        ("x.ts", {"header": True}, "--header: x.ts has no lines of which"),
        ("x.npz", {"encoding": "latin-1"}, "--encoding latin-1: x.npz is no text file"),
        ("x.png", {"id": "a"}, "--id a: names a column, and x.png has none"),
    ],
)
def test_options_of_other_formats_are_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in refusal(write(tmp_path, name, ""), **options)


def test_remembered_options_are_no_reason_to_refuse(tmp_path: Path) -> None:
    path = write(tmp_path, "x.ts", "@data\n1,2\n")
    options = {"features": ("x",), "wanted_by": "the model", "id": "r", "soft": frozenset({"id"})}
    assert numbers(rows(path, **options)[0]) == [[1], [2]]
    journal = decisions(path, channels_first=True)
    assert journal.notes == [f"--channels-first is of arrays; the steps of {path} stay as they are"]
