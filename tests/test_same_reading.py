"""Files to predict are read as the training files were, whatever their columns and their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.commands import (
    COUNTED,
    IDS,
    LABELS,
    VALUES,
    Capture,
    Line,
    N,
    T,
    as_long,
    call,
    predict,
    refusal,
    table,
    train,
    write_table,
    write_wide,
)
from helpers.reading import write

from seqclf.run.weights import load_model


def chances(lines: list[Line]) -> list[Line]:
    """Return predictions without the truth."""
    return [{name: cell for name, cell in line.items() if name != "truth"} for line in lines]


ODD: dict[str, tuple[Callable[[int, int], Line], list[str], str]] = {
    "plain": (as_long, ["--label", "result", "--time", "t"], ","),
    "commas": (
        lambda n, s: {name: cell.replace(".", ",") for name, cell in as_long(n, s).items()},
        ["--label", "result"],
        ";",
    ),
    "gaps": (
        lambda n, s: (
            as_long(n, s)
            | ({"x": ""} if (n + s) % 4 == 0 else {})
            | ({"y": ""} if n % 9 == 0 else {})
        ),
        ["--label", "result", "--fill-missing", "--measured"],
        ",",
    ),
    "far": (
        lambda n, s: as_long(n, s) | {"x": str(10**9 + 5 * (LABELS[n] == "up") + (n + s) % 4)},
        ["--label", "result"],
        ",",
    ),
    "words": (
        lambda n, s: as_long(n, s) | {"x": ["in", "out"][(n + s) % 2]},
        ["--label", "result", "--tokens", "x", "--drop", "t"],
        ",",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_columns_may_move_lack_and_be_more(kind: str, tmp_path: Path, capsys: Capture) -> None:
    make, words, separator = ODD[kind]
    lines = [make(number, step) for number in range(N) for step in range(T)]
    source = write_table(tmp_path / "x.csv", lines, separator)
    run = train(tmp_path, source, *words)
    expected = predict(capsys, run, source)
    assert [line["id"] for line in expected] == [f"r{number}" for number in range(N)]
    assert [line["truth"] for line in expected] == LABELS
    other = [
        {"more": str(i % 3), **dict(reversed(line.items())), "remark": "words"}
        for i, line in enumerate(lines)
    ]
    moved = write_table(tmp_path / "moved.csv", other, separator)
    assert predict(capsys, run, moved) == expected
    err = call(capsys, "predict", run, moved)[2]
    assert "left aside: more (" in err
    assert "remark (" in err
    unlabelled = [{k: v for k, v in line.items() if k != "result"} for line in lines]
    new = write_table(tmp_path / "new.csv", unlabelled, separator)
    assert predict(capsys, run, new) == chances(expected)
    for name in ("Id", "x") if kind == "words" else ("Id", "x", "y"):
        lacking = [{k: v for k, v in line.items() if k != name} for line in unlabelled]
        path = write_table(tmp_path / "lacking.csv", lacking, separator)
        err = refusal(capsys, "predict", run, path)
        assert f"lacking.csv:1: no column '{name}'" in err
        assert err.count("\n") == 1


def test_a_time_column_that_is_missing_is_noted(tmp_path: Path, capsys: Capture) -> None:
    lines = [as_long(number, step) for number in range(N) for step in range(T)]
    source = write_table(tmp_path / "x.csv", lines)
    run = train(tmp_path, source, "--time", "t", "--label", "result")
    expected = predict(capsys, run, source)
    shuffled = sorted(lines, key=lambda line: (int(line["Id"][1:]), -int(line["t"])))
    assert predict(capsys, run, write_table(tmp_path / "y.csv", shuffled)) == expected
    timeless = [{k: v for k, v in line.items() if k != "t"} for line in lines]
    code, out, err = call(capsys, "predict", run, write_table(tmp_path / "z.csv", timeless))
    assert (code, table(out)) == (0, expected)
    assert "no column 't', by which the steps of the training files are sorted" in err


WIDE = [[str(value) for value in row] for row in VALUES[:, :3, 0].tolist()]


def write_cells(path: Path, header: str, rows: list[list[str]]) -> Path:
    return write(
        path.parent, path.name, "\n".join([*[header] * bool(header), *map(",".join, rows)])
    )


@pytest.mark.parametrize("kind", ["names", "no header", "label last", "pandas"])
def test_wide_tables_are_matched_by_name_or_by_place(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    labelled = [[LABELS[i], *WIDE[i]] for i in range(N)]
    header = {"names": "label,t0,t1,t2", "pandas": "label,0,1,2"}.get(kind, "")
    words = ["--label", "-1"] if kind == "label last" else []
    if kind == "label last":
        labelled = [[*row[1:], row[0]] for row in labelled]
    source = write_cells(tmp_path / "x.csv", header, labelled)
    run = train(tmp_path, source, *words)
    model, _ = load_model(run)
    steps = torch.tensor(VALUES[:, :3, :1], dtype=torch.float32)
    right = model(steps).softmax(1)[:, 0].tolist()

    def check(lines: list[Line]) -> None:
        found = [float(line["p(down)"]) for line in lines]
        assert found == pytest.approx(right, abs=1e-6)
        assert [line["id"] for line in lines] == COUNTED

    assert [line["truth"] for line in predict(capsys, run, source)] == LABELS
    check(predict(capsys, run, source))
    check(predict(capsys, run, write_cells(tmp_path / "bare.csv", "", WIDE)))
    numbered = [[str(number), *row] for number, row in enumerate(WIDE)]
    by_place = [("0,1,2", WIDE), (",0,1,2", numbered)]
    for header, rows in by_place:
        path = write_cells(tmp_path / "pandas.csv", header, rows)
        check(predict(capsys, run, path))
        err = call(capsys, "predict", run, path)[2]
        assert "2 (" not in err  # no step is left aside
        if kind == "names":
            assert "the columns have no names, so they are 't0' to 't2' by their places" in err
    if kind == "names":
        swapped = [row[::-1] for row in WIDE]
        check(predict(capsys, run, write_cells(tmp_path / "moved.csv", "t2,t1,t0", swapped)))
        more = [[*row, "9"] for row in WIDE]
        check(predict(capsys, run, write_cells(tmp_path / "more.csv", "t0,t1,t2,x", more)))
        longer = write_cells(tmp_path / "longer.csv", "t0,t1,t2,t3", more)
        err = call(capsys, "predict", run, longer)[2]
        assert "longer.csv:1: 4 columns are steps, where the model has 3" in err
    if kind != "pandas":
        short = write_cells(tmp_path / "short.csv", "t0,t1", [row[:2] for row in WIDE])
        err = call(capsys, "predict", run, short)[2]
        assert "short.csv:1: 2 columns are steps, where the model has 3" in err


def test_the_smallest_file_that_pandas_writes(tmp_path: Path, capsys: Capture) -> None:
    """A header that counts is no row, and a row has as many steps as the header."""
    source = write_wide(tmp_path / "x.csv", has_ids=False)
    lines = [",".join(line.split(",")[:4]) for line in source.read_text().splitlines()]
    source.write_text("\n".join(lines))
    run = train(tmp_path, source)
    new = write(tmp_path, "new.csv", "0,1,2\n9,1,1\n1,9,1\n")
    code, out, err = call(capsys, "predict", run, new)
    assert (code, len(table(out))) == (0, 2)
    model, _ = load_model(run)
    steps = torch.tensor([[[9.0], [1.0], [1.0]], [[1.0], [9.0], [1.0]]])
    right = model(steps).softmax(1)[:, 0].tolist()
    assert [float(line["p(down)"]) for line in table(out)] == pytest.approx(right, abs=1e-6)
    assert "left aside" not in err
    assert "by their places" in err


def test_a_table_without_a_header_is_read_by_number(tmp_path: Path, capsys: Capture) -> None:
    rows = [[IDS[i], *map(str, VALUES[i, step]), LABELS[i]] for i in range(N) for step in range(T)]
    source = write_cells(tmp_path / "x.csv", "", rows)
    run = train(tmp_path, source, "--id", "0", "--label", "-1")
    expected = predict(capsys, run, source)
    assert [(line["id"], line["truth"]) for line in expected] == list(zip(IDS, LABELS, strict=True))
    new = write_cells(tmp_path / "new.csv", "", [row[:-1] for row in rows])
    assert predict(capsys, run, new) == chances(expected)
    pandas = write_cells(tmp_path / "pandas.csv", "0,1,2,3", rows)
    assert predict(capsys, run, pandas) == expected


def test_a_header_that_somebody_denies_is_denied_again(tmp_path: Path, capsys: Capture) -> None:
    rows = [[LABELS[i], *WIDE[i]] for i in range(N)]
    source = write_cells(tmp_path / "x.csv", "down,0,1,2", rows)
    run = train(tmp_path, source, "--header", "none")
    assert len(predict(capsys, run, source)) == N + 1
