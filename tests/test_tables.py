"""Tables: no column is lost, no step invented, no row made of a header, nothing guessed unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.reading import numbers, problems, rows, write

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, Row
from seqclf.errors import UserError


def read(path: Path, **options: object) -> tuple[list[Row], Journal]:
    """Return good rows alone, and what was decided."""
    journal = Journal()
    found = list(read_rows(path, ReadOptions(**options), journal))  # type: ignore[arg-type]
    good = [row for row in found if isinstance(row, Row)]
    assert good == found, found
    return good, journal


def refuse(path: Path, **options: object) -> str:
    """Return why a file is refused as a whole, without the folder."""
    with pytest.raises(UserError) as caught:
        list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    return str(caught.value).replace(f"{path.parent}/", "")


def lines_of(journal: Journal, path: Path) -> list[str]:
    return [note.replace(f"{path.parent}/", "") for note in journal.notes]


def long_table(names: str, *columns: str) -> str:
    """Return a table of three sequences r0, r1, r2 of two lines, whose cells the columns list."""
    cells = zip(*(column.split() for column in columns), strict=True)
    lines = [",".join((f"r{number // 2}", *line)) for number, line in enumerate(cells)]
    return "\n".join([names, *lines]) + "\n"


X = "5 3 8 2 9 1"
LABEL = "a a b b a a"


# ---- columns by their names


@pytest.mark.parametrize(
    ("names", "columns", "aside"),
    [
        # pandas and R number the lines.
        ("rec,,x,label", ["0 1 2 3 4 5"], {"": "counts the rows"}),
        ("rec,,x,label", ["7 9 12 13 40 41"], {"": "has no name"}),
        ("rec,Unnamed: 0,x,label", ["1 2 3 4 5 6"], {"Unnamed: 0": "counts the rows"}),
        ("rec,Unnamed: 0.1,x,label", ["3 9 4 1 0 7"], {"Unnamed: 0.1": "has no name"}),
        ("rec,__index_level_0__,x,label", ["0 3 1 2 9 4"], {"__index_level_0__": "pandas' index"}),
        ("rec,index,x,label", ["0 1 2 3 4 5"], {"index": "counts the rows"}),
        ("rec,index,x,label", ["0 1 0 1 0 1"], {"index": "by its name an index"}),
        ("rec,Row_ID,x,label", ["1 2 3 4 5 6"], {"Row_ID": "counts the rows"}),
        ("rec,nr,x,label", ["1 2 3 4 5 6"], {"nr": "counts the rows"}),
        # Other names of a role.
        (
            "rec,label_id,x,label",
            ["0 0 1 1 0 0"],
            {"label_id": "by its name another label, beside 'label'"},
        ),
        ("rec,Id,x,label", ["4 4 2 2 7 7"], {"Id": "by its name another id, beside 'rec'"}),
        (
            "rec,subject_id,group,x,label",
            ["1 1 1 1 2 2", "g g g g h h"],
            {"subject_id": "by its name another group, beside 'group'"},
        ),
        # Cells that are no numbers.
        ("rec,step,x,label", ["buy leave buy buy buy buy"], {"step": "words: buy, leave"}),
        ("rec,on,x,label", ["yes no yes no no no"], {"on": "words: yes, no"}),
        ("rec,e,x,label", ["- nan NA ? none NaT"], {"e": "no value in any line"}),
        (
            "rec,day,x,label",
            ["2025-01-03 2025-01-04 2025-01-03 2025-01-04 2025-01-03 2025-01-04"],
            {"day": "times: 2025-01-03, 2025-01-04; --time sorts the steps by it"},
        ),
        (
            "rec,time,date,x,label",
            ["1 2 1 2 1 2", "5 6 5 6 5 6"],
            {
                "time": "time and date may all be the time; --time takes one",
                "date": "time and date may all be the time; --time takes one",
            },
        ),
        # Columns of the same name are two columns.
        (
            "rec,note,note,x,label",
            ["u u u u u u", "v v v v v v"],
            {"note (column 2)": "words: u", "note (column 3)": "words: v"},
        ),
    ],
)
def test_what_is_no_feature_is_named_with_the_reason(
    names: str, columns: list[str], aside: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", long_table(names, *columns, X, LABEL))
    found, journal = read(path, id="rec", needs_label=True)
    assert [(row.id, row.label, numbers(row), row.features) for row in found] == [
        ("r0", "a", [[5], [3]], ("x",)),
        ("r1", "b", [[8], [2]], ("x",)),
        ("r2", "a", [[9], [1]], ("x",)),
    ]
    assert journal.left_aside == aside


def test_the_index_of_pandas_and_r_is_no_feature(tmp_path: Path) -> None:
    lines = [f"{i},r{i},{i / 8},{'ab'[i // 10]}" for i in range(20)]
    path = write(tmp_path, "index.csv", "\n".join([",rec,x,label", *lines]))
    found, journal = read(path, id="rec")
    assert [(row.features, numbers(row)) for row in found] == [
        (("x",), [[i / 8]]) for i in range(20)
    ]
    assert journal.left_aside == {"": "counts the rows"}
    lines = [f'"{i + 1}","r{i}",{i / 8},"{"ab"[i // 10]}"' for i in range(20)]
    path = write(tmp_path, "r.csv", "\n".join(['"","rec","x","label"', *lines]))
    again, journal = read(path, id="rec")
    assert [(row.id, row.label, numbers(row)) for row in again] == [
        (row.id, row.label, numbers(row)) for row in found
    ]
    assert journal.left_aside == {"": "counts the rows"}


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ("1 - 3 4 5 6", "x.csv:3 has none"),
        ("1 2025-01-01 3 4 5 6", "'1' and '2025-01-01' are of two kinds"),
        ("12/31/2024 1/1/2025 x x x x", "'12/31/2024' (x.csv:2) is no time that is read"),
        ("soon 1 2 3 4 5", "'soon' (x.csv:2) is no time that is read"),
    ],
)
def test_a_time_that_cannot_sort_is_left_aside_and_the_lines_keep_their_order(
    cells: str, why: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", long_table("rec,Time,x,label", cells, X, LABEL))
    (first, *_), journal = read(path, id="rec")
    assert (first.features, numbers(first)) == (("x",), [[5], [3]])
    reason = journal.left_aside["Time"].replace(f"{tmp_path}/", "")
    assert reason == f"by its name the time, but {why}; the lines keep their order"


def test_roles_are_known_in_any_case_and_said(tmp_path: Path) -> None:
    text = "ID,Timestamp,X,Target,SUBJECT,Split\na,2,5,u,p,train\na,1,6,u,p,train\nb,1,7,v,q,test\n"
    (first, second), journal = read(write(tmp_path, "x.csv", text), needs_label=True)
    assert (first.id, first.label, first.group, first.split) == ("a", "u", "p", "train")
    assert (numbers(first), first.features) == ([[6], [5]], ("X",))
    assert (second.label, second.split) == ("v", "test")
    assert journal.roles == {
        "id": "ID",
        "time": "Timestamp",
        "label": "Target",
        "group": "SUBJECT",
        "split": "Split",
    }
    assert journal.left_aside == {}


def test_a_counter_under_another_name_stays_and_is_noted(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", long_table("rec,frame,x,label", "1 2 3 4 5 6", X, LABEL))
    (first, *_), journal = read(path, id="rec")
    assert first.features == ("frame", "x")
    assert journal.notes == ["frame: counts the rows of the file; --drop frame leaves it out"]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("rec,a,x,label", {"id": "Rec"}, "no column 'Rec' (--id) among rec, a, x, label; did you"),
        ("rec,a,x,kind", {}, "no column is called label; say --label; it may be 'kind' (a, b)"),
        (
            "rec,a,target,label",
            {},
            "'label' and 'target' may all be the label; choose with --label",
        ),
        ("rec,a,Label,label", {}, "'Label' and 'label' may all be the label; choose with --label"),
        ("rec,a,label,label", {}, "'label' and 'label' may all be the label"),
        ("rec,x,x,label", {}, "column 'x' comes twice; rename one"),
        ("rec,rec,x,label", {}, "column 'rec' comes twice (--id); rename one"),
        ("rec,a,x,label", {"drop": ("z",)}, "no column 'z' (--drop) among rec, a, x, label"),
        ("rec,a,x,label", {"drop": ("rec",)}, "--drop rec: this column is the id; --id names"),
        (
            "rec,a,x,label",
            {"features": ("x",), "drop": ("x",)},
            "--drop x: --features reads this column",
        ),
        ("rec,a,x,label", {"features": ("x", "x")}, "column 'x' comes twice"),
        ("rec,a,x,label", {"features": ("z",)}, "no column 'z' (--features) among rec, a, x"),
        ("rec,a,x,label", {"time": "t"}, "no column 't' (--time) among rec, a, x, label"),
    ],
)
def test_a_name_that_is_wrong_or_not_clear(
    names: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", long_table(names, "4 9 4 2 2 7", X, LABEL))
    assert message in refuse(path, **{"id": "rec", "needs_label": True} | options)


def test_features_and_drop_choose(tmp_path: Path) -> None:
    text = long_table("rec,a,b,index,label", "4 9 4 2 2 7", X, "0 1 2 3 4 5", LABEL)
    path = write(tmp_path, "x.csv", text)
    (first, *_), journal = read(path, id="rec", features=("index", "b"))
    assert (first.features, numbers(first)) == (("index", "b"), [[0, 5], [1, 3]])
    assert journal.left_aside == {"a": "not in --features"}
    (first, *_), journal = read(path, id="rec", drop=("a",))
    assert (first.features, numbers(first)) == (("b",), [[5], [3]])
    assert journal.left_aside == {"a": "--drop", "index": "counts the rows"}


@pytest.mark.parametrize(
    ("cells", "cell"),
    [
        ("hello hello hello hello hello 6", "hello"),
        ("15% 25% 7% 25% 3% 4%", "15%"),
        ("$5 $6 $7 $8 $9 $1", "$5"),
        ("1_0 2_0 3_0 4_0 5_0 6_0", "1_0"),
        ("0.5; 1.5; 2.5; 3.5; 4.5; 5.5;", "0.5;"),
    ],
)
def test_a_column_of_numbers_that_are_mostly_none_is_refused_once(
    cells: str, cell: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", long_table("rec,y,x,label", cells, X, LABEL))
    assert refuse(path, id="rec").startswith(
        f"x.csv:2, column y: '{cell}' is not a number, nor are most cells of the column; --drop y "
        "leaves the column out"
    )
    (first, *_), journal = read(path, id="rec", drop=("y",))
    assert (numbers(first), journal.left_aside) == ([[5], [3]], {"y": "--drop"})


def test_a_column_that_begins_without_numbers_is_a_feature(tmp_path: Path) -> None:
    lines = [f"r{i // 100},{'-' if i < 200 else i},{i % 7},a" for i in range(300)]
    path = write(tmp_path, "x.csv", "\n".join(["rec,x,y,label", *lines]))
    assert problems(path, id="rec") == [
        "x.csv:2: column x: a missing value; --fill-missing fills such gaps",
        "x.csv:102: column x: a missing value; --fill-missing fills such gaps",
    ]
    filled = rows(path, id="rec", fill_missing=True)
    assert filled[2].features == ("x", "y")
    assert numbers(filled[2])[0] == [200, 200 % 7]
    assert filled[0].filled == 100


# ---- a header, or none


@pytest.mark.parametrize(
    "text",
    [
        "label,0,1,2\na,5,6,7\nb,5,6,8\n",
        ",0,1,2,label\n0,5,6,7,a\n1,5,6,8,b\n",
        "0,1,2,label\n5,6,7,a\n5,6,8,b\n",
        "label,0.0,0.5,1.0\na,5,6,7\nb,5,6,8\n",
        "label,t0,t1,t2\na,5,6,7\nb,5,6,8\n",
        "t2,t0,label,t1\n7,5,a,6\n8,5,b,6\n",
        "label,2001,2002,2003\na,5,6,7\nb,5,6,8\n",
        "label,2020-01-31,2020-02-01,2020-02-02\na,5,6,7\nb,5,6,8\n",
        "label,x(t-2),x(t-1),x(t)\na,5,6,7\nb,5,6,8\n",
        "label,-1,0,1\na,5,6,7\nb,5,6,8\n",
        "label,s-1,s-2,s-3\na,5,6,7\nb,5,6,8\n",
        "label,t-3,t-2,t-1\na,5,6,7\nb,5,6,8\n",
        "label,1e-3,1e-2,1e-1\na,5,6,7\nb,5,6,8\n",
        "label,jan,feb,mar\na,5,6,7\nb,5,6,8\n",
        "label,t0,t1,t2,\na,5,6,7,\nb,5,6,8,\n",
        "label,t0,t1,t2\na,5,6,7,\nb,5,6,8,\n",
        "label,t0,t1,t2\n\na,5,6,7\n,,,\nb,5,6,8\n,,,\n",
        " label , t0 , t1 , t2 \n a , 5 , 6 , 7 \nb,5,6,8\n",
        '"label", "t0", "t1", "t2"\n"a", 5, 6, 7\n"b", 5, 6, 8\n',
        "age,label,t0,t1,t2\n70,a,5,6,7\n80,b,5,6,8\n",
    ],
)
def test_wide_tables_with_a_header(text: str, tmp_path: Path) -> None:
    found, journal = read(write(tmp_path, "x.csv", text), needs_label=True)
    assert [(row.label, numbers(row)) for row in found] == [
        ("a", [[5], [6], [7]]),
        ("b", [[5], [6], [8]]),
    ]
    assert (journal.form, len(journal.columns), journal.roles) == ("wide", 3, {"label": "label"})


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("0,5,6,7\n1,5,6,8\n", {}),
        ("5,6,7,0\n5,6,8,1\n", {"label": "-1"}),
        ("5,6,7,0\n5,6,8,1\n", {"label": "3"}),
        ("5,0,6,7\n5,1,6,8\n", {"label": "1"}),
        # Cells that are called as options or roles are.
        ("0,5,6,7\n1,5,6,8\n", {"label": "0"}),
        ("9,0,5,6,7\n9,1,5,6,8\n", {"label": "1", "drop": ("0",)}),
        ("0,5,6,7,9\n1,5,6,8,9\n", {"drop": ("-1",)}),
        ("0,7,6,5\n1,8,6,5\n", {"features": ("3", "2", "1")}),
        ("0,5,6,7\n1,5,6,8\n", {"header": False}),
        ("0;5,0;6,0;7,0\n1;5,0;6,0;8,0\n", {}),
        ("0 5 6 7\n1 5 6 8\n", {}),
    ],
)
def test_wide_tables_without_a_header(
    text: str, options: dict[str, object], tmp_path: Path
) -> None:
    path = write(tmp_path, "x.csv", text)
    found, journal = read(path, needs_label=True, **options)
    assert [(row.id, row.label, numbers(row)) for row in found] == [
        ("0", "0", [[5], [6], [7]]),
        ("1", "1", [[5], [6], [8]]),
    ]
    assert journal.num_values == 3
    note = next(note for note in lines_of(journal, path) if "no header line" in note)
    if "label" not in options:
        assert "so column 0 is the label (--label -1 takes the last one)" in note


def test_a_label_that_comes_again_is_no_header(tmp_path: Path) -> None:
    found = rows(write(tmp_path, "y.csv", "a,0,1,2\nb,3,4,5\na,6,7,8\n"))
    assert [(row.label, numbers(row)[0]) for row in found] == [("a", [0]), ("b", [3]), ("a", [6])]
    found = rows(write(tmp_path, "x.csv", "target,5,6\nother,7,8\ntarget,5,7\n"))
    assert [row.label for row in found] == ["target", "other", "target"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0,1,2\n1,2,3\n0,4,5\n", {}, "say --label; or --header none, if the first line is no"),
        ("1,2,3,up\n4,5,6,down\n", {}, "column 3: 'up' is not a number"),
        ("1,2,3,up\n4,5,6,down\n", {}, "--label 3 takes it for the label"),
        ("r0,1,a\nr1,2,b\n", {"label": "kind"}, "no header line, so no column 'kind' (--label)"),
        (
            "My title\nid,x,label\na,1,u\n",
            {},
            "'My title' is one cell, where the next lines have 3",
        ),
        ("id,x,label\n1,a,1,u\n2,b,2,v\n", {}, "the header names 3 columns, where the next lines"),
        ("<html></html>\n", {}, "no column of numbers beside '<html></html>'"),
        (
            'id,x,note,label\na,1,"open,u\nb,2,w,v\n',
            {},
            "x.csv:2: unexpected end of data; is a quo",
        ),
    ],
)
def test_a_first_line_that_is_not_clear(
    text: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    assert message in refuse(write(tmp_path, "x.csv", text), needs_label=True, **options)


def test_header_first_and_none_are_obeyed(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "0,1,2\n1,2,3\n0,4,5\n")
    (only, other), _ = read(path, header=True, label="0")
    assert (only.label, numbers(only), numbers(other)) == ("1", [[2], [3]], [[4], [5]])
    found, _ = read(path, header=False)
    assert [(row.label, numbers(row)) for row in found] == [
        ("0", [[1], [2]]),
        ("1", [[2], [3]]),
        ("0", [[4], [5]]),
    ]


def test_label_none_holds_without_a_header_too(tmp_path: Path) -> None:
    (first, _), journal = read(write(tmp_path, "x.csv", "3,5,6\n4,5,7\n"), label="none")
    assert (first.label, numbers(first), journal.roles) == (None, [[3], [5], [6]], {})


@pytest.mark.parametrize("text", ["rec,x,label\n", "label,0,1,2\n", "id,x\n,\n,\n"])
def test_a_table_without_a_line_has_no_rows(text: str, tmp_path: Path) -> None:
    assert rows(write(tmp_path, "x.csv", text), needs_label=True) == []


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_table_without_anything_is_empty(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv: is empty$"):
        rows(write(tmp_path, "x.csv", text))


# ---- steps of wide tables


def test_steps_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    order = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    text = "label," + ",".join(f"t{i}" for i in order) + "\na," + ",".join(map(str, order)) + "\n"
    path = write(tmp_path, "x.csv", text)
    (row,), journal = read(path)
    assert numbers(row) == [[i] for i in range(12)]
    assert lines_of(journal, path) == [
        "x.csv:1: the steps are 't0', 't1', 't2' ... 't11', in the order of their numbers, which "
        "is not the order of the columns; --features gives another order"
    ]
    (row,), _ = read(path, features=("t11", "t2", "t0"))
    assert numbers(row) == [[11], [2], [0]]


def test_a_short_line_loses_steps_at_the_end_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "label,t0,t1,t2\na,5,6\nb,5,6,\nc,5,,NaN\n")
    found, _ = read(path)
    assert [(numbers(row), row.padding) for row in found] == [
        ([[5], [6]], 0),
        ([[5], [6]], 1),
        ([[5]], 2),
    ]
    # Where the first step stands in the last column, a line that is cut off lacks it.
    path = write(tmp_path, "y.csv", "label,t2,t1,t0\na,7,6,5\nb,7,6\n")
    assert problems(path) == ["y.csv:3: column t0: a missing value; --fill-missing fills such gaps"]


def test_columns_beside_the_steps_are_named(tmp_path: Path) -> None:
    _, journal = read(write(tmp_path, "x.csv", "age,label,t0,t1,t2\n70,a,5,6,7\n80,b,5,6,8\n"))
    assert journal.left_aside == {"age": "not one of the steps 't0', 't1', 't2'"}


def test_a_header_of_words_is_noted(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "label,jan,feb,mar\na,5,6,7\nb,5,6,8\n")
    _, journal = read(path)
    assert lines_of(journal, path) == [
        "x.csv:1: a line is a sequence, whose steps are the columns 'jan', 'feb', 'mar', in this "
        "order; if a line is a step, say --id"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,x0,x1,x2,y0,y1,y2\na,1,2,3,4,5,6\n", "look like several features of a step"),
        ("label,x_1,x_2,x_3,y_1,y_2\na,1,2,3,4,5\n", "look like several features of a step"),
        ("label,t0,t1,t01,t2\na,1,2,3,4\n", "'t1', 't01' are the same step"),
        ("id,t0,t1,t2,label\na,1,2,3,u\na,1,2,3,u\n", "say --form long (a line is a step) or"),
        ("id,t0,t1,t2,label\na,1,2,3,u\nb,1,2,3,v\na,2,2,2,u\n", "x.csv:4: id 'a' comes again;"),
        ("time,id,x,label\n0,a,1,u\n0,b,1,v\n1,a,2,u\n1,b,2,v\n", "sort the lines by their id and"),
        ("rec,x,y,label\na,1,2,u\na,2,2,u\nb,3,1,v\nb,4,1,v\n", "say --id, the column that tells"),
        ("rec,x,y,label\na,1,2,u\na,2,3,u\nb,3,1,v\nb,4,2,v\n", "(perhaps 'rec')"),
        ("subject,x,y,label\n1,1,2,u\n1,2,3,u\n2,3,1,v\n2,4,2,v\n", "(perhaps 'subject')"),
    ],
)
def test_wide_or_long_is_asked_where_it_is_not_clear(
    text: str, message: str, tmp_path: Path
) -> None:
    assert message in refuse(write(tmp_path, "x.csv", text), needs_label=True)


def test_wide_tables_take_id_and_label(tmp_path: Path) -> None:
    lines = [f"{i},1,2,{i},{'ab'[i // 10]}" for i in range(20)]
    path = write(tmp_path, "wide_id.csv", "\n".join(["Id,t0,t1,t2,Class", *lines]))
    for options in ({"id": "Id", "label": "Class"}, {}):
        found, journal = read(path, needs_label=True, **options)
        assert [row.id for row in found] == [str(i) for i in range(20)]
        assert [numbers(row) for row in found] == [[[1], [2], [i]] for i in range(20)]
        assert (found[0].label, found[19].label) == ("a", "b")
        assert (journal.form, journal.columns) == ("wide", ("t0", "t1", "t2"))


# ---- files to predict


MODEL: dict[str, object] = {
    "features": ("t0", "t1", "t2"),
    "num_values": 3,
    "wanted_by": "the model",
    "form": "wide",
    "label": "kind",
    "soft": frozenset({"label"}),
}


@pytest.mark.parametrize(
    ("text", "aside", "truth"),
    [
        ("t0,t1,t2\n9,1,5\n", {}, None),
        ("t2,t1,t0\n5,1,9\n", {}, None),
        (",t2,t1,q,t0\n7,5,1,3,9\n", {"": "no feature of the model", "q": None}, None),
        ("t0,t1,t2,kind\n9,1,5,up\n", {}, "up"),
        ("t0,t1,t2,Target\n9,1,5,up\n", {}, "up"),
        ("0,1,2\n9,1,5\n", {}, None),
        (",0,1,2\n0,9,1,5\n", {"": "no feature of the model"}, None),
        ("0,1,2,label\n9,1,5,up\n", {}, "up"),
        ("9,1,5\n", {}, None),
        ("up,9,1,5\n", {}, "up"),
    ],
)
def test_a_wide_model_finds_its_steps_by_name(
    text: str, aside: dict[str, str | None], truth: str | None, tmp_path: Path
) -> None:
    (row,), journal = read(write(tmp_path, "x.csv", text), **MODEL)
    assert (numbers(row), row.label) == ([[9], [1], [5]], truth)
    reason = "no feature of the model"
    assert journal.left_aside == {name: why or reason for name, why in aside.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t0,t2\n9,1\n", "no column 't1', which the model reads; found t0, t2"),
        ("a,b,c\n9,1,5\n", "no column 't0' and 2 more, which the model reads; found a, b, c"),
        ("0,1,2,3\n9,1,5,4\n", "no column 't0' and 2 more, which the model reads"),
        ("9,1\n", "2 columns, where the model reads 3; which is the label?"),
        ("t0,t1,t1,t2\n9,1,1,5\n", "column 't1' comes twice"),
        ("t0,t1,t2\n9,a,5\n8,b,5\n", "column t1: 'a' is not a number, nor are most cells"),
    ],
)
def test_a_wide_model_refuses_what_lacks_a_step(text: str, message: str, tmp_path: Path) -> None:
    assert message in refuse(write(tmp_path, "x.csv", text), **MODEL)


def test_a_model_without_names_knows_where_the_label_was(tmp_path: Path) -> None:
    options = {
        "num_values": 3,
        "wanted_by": "the model",
        "form": "wide",
        "label": "3",
        "soft": frozenset({"label"}),
        "numbered": True,
    }
    path = write(tmp_path, "x.csv", "9,1,5,1\n9,1,6,0\n")
    found, _ = read(path, **options)
    assert [(row.label, numbers(row)) for row in found] == [
        ("1", [[9], [1], [5]]),
        ("0", [[9], [1], [6]]),
    ]
    (row,), _ = read(write(tmp_path, "y.csv", "9,1,5\n"), **options)
    assert (row.label, numbers(row)) == (None, [[9], [1], [5]])


def test_a_long_model_finds_its_features_by_name(tmp_path: Path) -> None:
    options: dict[str, object] = {
        "features": ("x", "y"),
        "wanted_by": "the model",
        "form": "long",
        "id": "rec",
        "time": "t",
        "soft": frozenset({"id", "time"}),
    }
    path = write(tmp_path, "x.csv", "rec,y,note,x,label\na,1,hi,2,u\na,3,ho,4,u\n")
    (row,), journal = read(path, **options)
    assert (numbers(row), row.features) == ([[2, 1], [4, 3]], ("x", "y"))
    assert journal.left_aside == {"note": "no feature of the model"}
    assert lines_of(journal, path) == [
        "x.csv:1: no column 't', by which the steps of the training files are sorted; the lines "
        "keep their order"
    ]
    message = refuse(write(tmp_path, "y.csv", "rec,y\na,1\na,2\n"), **options)
    assert message == "y.csv:1: no column 'x', which the model reads; found y"


# ---- labels, ids and lines


def test_labels_of_every_kind(tmp_path: Path) -> None:
    labels = ["1", "1.0", "1.0000000e+00", "01", "-1", "nan", "NA", "null", "?", "", "N/A", "a b"]
    text = "label,t0,t1\n" + "".join(f"{label},1,2\n" for label in labels)
    found = rows(write(tmp_path, "x.csv", text))
    assert [row.label for row in found] == [
        *("1", "1", "1", "01", "-1"),
        *[None] * 6,
        "a b",
    ]


def test_a_line_without_an_id_makes_no_sequence(tmp_path: Path) -> None:
    text = "rec,t,x,label\n,s,m/s,\nr0,1,5,a\n,2,6,a\nr1,1,7,b\n"
    path = write(tmp_path, "x.csv", text)
    assert problems(path, id="rec") == [
        "x.csv:2: no id in column rec",
        "x.csv:4: no id in column rec",
    ]
    path = write(tmp_path, "y.csv", "id,t0,t1,t2,label\na,1,2,3,u\n,1,2,3,u\n")
    assert problems(path) == ["y.csv:3: no id in column id"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("r0,2", "2 cells, where the header has 3"),
        ("r0,2,a,9", "4 cells, where the header has 3"),
        ("r0,2,b", "label 'b', where the sequence began with 'a'"),
        ("r0,oops,a", "column x: 'oops' is not a number"),
    ],
)
def test_a_line_that_is_wrong_names_its_place(line: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", f"rec,x,label\nr0,1,a\n{line}\nr1,3,b\nr1,4,b\n")
    (found,) = problems(path, id="rec")
    assert found.startswith(f"x.csv:3: {problem}")
    good = [row for row in read_rows(path, ReadOptions(id="rec")) if not isinstance(row, BadRow)]
    assert [(row.id, numbers(row)) for row in good] == [("r1", [[3], [4]])]


def test_lines_that_hold_nothing_are_no_steps(tmp_path: Path) -> None:
    text = "rec,x,label\nr0,1,a\n,,\n\nr0,2,a\nr1,3,b\n , ,\n,,\n"
    found = rows(write(tmp_path, "x.csv", text), id="rec")
    assert [(row.id, numbers(row)) for row in found] == [("r0", [[1], [2]]), ("r1", [[3]])]


def test_event_logs_are_read_as_tokens(tmp_path: Path) -> None:
    text = "case,step,amount,result\nc0,buy,7,a\nc0,leave,7,a\nc1,leave,7,b\nc1,look,7,b\n"
    path = write(tmp_path, "events.csv", text)
    (first, second), journal = read(path, id="case", label="result")
    assert (first.features, journal.left_aside) == (
        ("amount",),
        {"step": "words: buy, leave, look"},
    )
    (first, second), journal = read(path, id="case", label="result", tokens="step")
    assert (first.steps, second.steps) == (("buy", "leave"), ("leave", "look"))
    assert journal.left_aside == {"amount": "the sequences are the tokens of 'step'"}
    assert "say --id" in refuse(path, label="result", tokens="step")


def test_tokens_are_taken_whole(tmp_path: Path) -> None:
    words = ["x" * 41 + "a", "x" * 41 + "b", "None", "-"]
    text = "id,w,label\n" + "".join(f"s,{word},u\n" for word in words)
    (row,) = rows(write(tmp_path, "x.csv", text), tokens="w")
    assert row.steps == tuple(words)
    text = "id,w,label\ns,buy,u\ns,,u\n"
    assert problems(write(tmp_path, "y.csv", text), tokens="w") == ["y.csv:3: a missing token"]


def test_very_wide_tables(tmp_path: Path) -> None:
    count = 20_000
    names = ",".join(f"t{i}" for i in range(count))
    line = ",".join(str(i % 7) for i in range(count))
    path = write(tmp_path, "x.csv", f"label,{names}\na,{line}\nb,{line}\n")
    found, journal = read(path, needs_label=True)
    assert [len(row.steps) for row in found] == [count, count]
    assert len(journal.columns) == count
    found, _ = read(path, features=journal.columns, wanted_by="the model", num_values=count)
    assert [len(row.steps) for row in found] == [count, count]
