"""`prepare X.npy --labels y.npy --test-ids FILE`: the folds of MONSTER."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Capture, call

from seqclf.data.prepared import open_dataset

COUNT = 20


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    """The words of a command that reads 20 sequences of 2 channels x 5 steps, numbered in them."""
    values = np.zeros((COUNT, 2, 5), np.float32)
    values[:, 0] = np.arange(COUNT)[:, None]
    values[:, 1, :] = np.random.default_rng(0).normal(size=(COUNT, 5))
    np.save(tmp_path / "X.npy", values)
    np.save(tmp_path / "y.npy", np.arange(COUNT) % 2)
    options: list[str | Path] = [
        "--channels-first",
        "--labels",
        tmp_path / "y.npy",
        "--out",
        tmp_path / "d",
    ]
    return ["prepare", tmp_path / "X.npy", *options, "--test-ids", tmp_path / "fold.txt"]


def test_the_named_sequences_are_test(
    words: list[str | Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "fold.txt").write_text("19\n0\n 07\r\n4")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert f"{tmp_path}/fold.txt: 4 of 20 sequences are test, all others train" in out
    splits = open_dataset(tmp_path / "d").splits
    found = {name: split.rows(slice(0, 20))[0][:, 0, 0].tolist() for name, split in splits.items()}
    assert found == {"test": [0, 4, 7, 19], "train": sorted({*range(20)} - {0, 4, 7, 19})}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "1\n20\n",
            "fold.txt:2: '20': expected the number of a sequence, from 0 to 19, one a line",
        ),
        ("-1\n", "fold.txt:1: '-1': expected the number"),
        ("1\n2.0\n", "fold.txt:2: '2.0': expected the number"),
        ("1\n\n2\n", "fold.txt:2: '': expected the number"),
        ("1 2\n", "fold.txt:1: '1 2': expected the number"),
        ("²\n", "fold.txt:1: '²': expected the number"),
        ("3\n4\n03\n", "fold.txt:3: 3 stands twice, first in line 1"),
        (None, "fold.txt: cannot read it: No such file"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    content: str | None, message: str, words: list[str | Path], tmp_path: Path, capsys: Capture
) -> None:
    if content is not None:
        (tmp_path / "fold.txt").write_text(content)
    code, _, err = call(capsys, *words)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("more", [["--split", "0.8,0.1,0.1"], ["--train", "X.npy"], ["y.csv"]])
def test_other_words_on_the_splits_are_refused(
    more: list[str], words: list[str | Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "fold.txt").write_text("1\n2\n")
    code, _, err = call(capsys, words[0], words[1], *more, *words[2:])
    assert code == 2
    assert "--test-ids" in err or "name INPUT files to split, or" in err
