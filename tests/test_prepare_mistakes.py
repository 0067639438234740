"""What `seqclf prepare` refuses, and that each message names a remedy that works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.data import toy_rows, write_rows

from seqclf.cli import main
from seqclf.data.prepared import open_dataset


def prepare(*words: str | Path) -> int:
    return main.main(["prepare", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert prepare(*words) == 2
    return capsys.readouterr().err


def test_the_split_that_is_offered_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    num_offers = 0
    for number in range(40):
        rows: list[dict[str, object]] = [
            {
                "label": "abc"[generator.integers(3)],
                "steps": [0.5] * int(generator.integers(2, 30)),
                **({"group": int(generator.integers(4))} if number % 3 == 0 else {}),
            }
            for _ in range(generator.integers(4, 14))
        ]
        write_rows(tmp_path / "x.jsonl", rows)
        words = ["--window", "5"] * (number % 2) + ["--on-bad-row", "skip"] * (number % 4 < 2)
        base: list[str | Path] = [
            tmp_path / "x.jsonl",
            "--out",
            tmp_path / "out",
            "--overwrite",
            *words,
        ]
        code = prepare(*base)
        err = capsys.readouterr().err
        assert code in (0, 2)
        if offer := re.search(r"no example is left for test.*; --split ([\d.,]+) works", err):
            num_offers += 1
            assert prepare(*base, "--split", offer[1]) == 0
    assert num_offers > 10


def test_labels_that_are_numbers_to_predict_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [round(0.1 + number * 0.37, 3) for number in range(50)]
    write_rows(tmp_path / "x.jsonl", [{"label": value, "steps": [1, 2]} for value in values])
    assert refusal(capsys, tmp_path / "x.jsonl", "--out", tmp_path / "out") == (
        "error: 50 different labels, such as '0.1', '0.47', '0.84', of which 50 have one example: "
        "are they numbers to predict, or ids? seqclf tells classes apart, of which it takes at "
        "most 10,000; name the column of the class with --label\n"
    )
    words = [f"{tmp_path}/x.jsonl", "--out", f"{tmp_path}/out", "--on-bad-row", "skip"]
    assert "no class has two examples, so none is left" in refusal(capsys, *words)


def test_many_classes_are_refused_soon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"label {number % 30_000},1,2" for number in range(60_000)]
    (tmp_path / "x.csv").write_text("\n".join(["label,t0,t1", *lines]))
    message = refusal(capsys, tmp_path / "x.csv", "--out", tmp_path / "out")
    assert "30,000 different labels, such as 'label 0', 'label 1', 'label 2', of which 0" in message


@pytest.mark.parametrize("out", [".", "", "/", ".."])
def test_no_folder_that_is_in_use_is_replaced(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "x.jsonl", toy_rows(60))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    message = refusal(capsys, "../x.jsonl", "--out", out, "--overwrite")
    if out == "..":
        problem = f"{tmp_path}: holds something else than a data set"
    else:
        problem = f"{out or '.'}: is the folder you are in, or the root"
    assert message == f"error: --out {problem}; name another folder\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "x.jsonl"]


def test_a_file_that_is_named_twice_is_noted(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", toy_rows(60))
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    assert prepare("--train", path, "--test", path, "--out", out) == 0
    notes = open_dataset(out)[0].notes
    assert notes[0] == f"{path} is named 2 times, for train and test"


def test_a_split_column_does_not_contradict_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        rows = [{**row, "split": "test"} for row in toy_rows(60)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    words = ["--train", f"{tmp_path}/a.jsonl", "--test", f"{tmp_path}/b.jsonl"]
    message = refusal(capsys, *words, "--out", tmp_path / "out")
    assert (
        "a.jsonl:1: split 'test', but --train names this file; name it without --train" in message
    )


def test_describe_prints_nothing_that_moves_the_cursor_and_cuts_long_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"x\x1b[31m{number}" for number in range(120)]
    lines = [
        ",".join([f"r{number // 2}", f"class {number // 4}", *["1"] * 120]) for number in range(600)
    ]
    (tmp_path / "x.csv").write_text("\n".join([",".join(["id", "label", *names]), *lines]))
    out = tmp_path / "out"
    words = ["--id", "id", "--split", "0.5,0,0.5"]
    assert prepare(tmp_path / "x.csv", "--out", out, *words) == 0
    capsys.readouterr()
    assert main.main(["describe", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "x\\x1b[31m0, " in printed
    assert printed.count("and 50 more\n") == 1
    assert printed.count("and 20 more\n") == 1
    assert sum(line.startswith("class ") for line in printed.splitlines()) == 1 + 100
