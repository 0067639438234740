"""A prepared data set holds what the files hold, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import toy_dataset, toy_rows, write_rows
from helpers.launching import ROOT, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqclf.cli import main
from seqclf.data.prepared import INDEX, VALUES, open_dataset, verify
from seqclf.data.splits import deal_by_group
from seqclf.errors import UserError


def prepare(*words: str | Path) -> int:
    return main.main(["prepare", *map(str, words)])


def refusal(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert prepare(*words) == 2
    return capsys.readouterr().err


def content(folder: Path, split: str) -> list[tuple[str, list[list[float]]]]:
    """Return a split's labels and steps."""
    sequences = open_dataset(folder).splits[split]
    examples = [sequences[number] for number in range(len(sequences))]
    return [(sequences.classes[int(label)], value.tolist()) for value, label in examples]


# ---- what is written is what was read


def test_splits_of_files_hold_their_rows_in_order(tmp_path: Path) -> None:
    train, test = toy_rows(40), toy_rows(20, seed=1)
    write_rows(tmp_path / "train.jsonl", train)
    write_rows(tmp_path / "test.jsonl", test)
    out = tmp_path / "out"
    inputs = ("--train", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl")
    assert prepare(*inputs, "--out", out) == 0
    for split, rows in (("train", train), ("test", test)):
        for (label, steps), row in zip(content(out, split), rows, strict=True):
            assert label == row["label"]
            np.testing.assert_array_equal(steps, np.array(row["steps"], np.float32))
    info, splits, _ = open_dataset(out)
    together = np.concatenate([np.array(row["steps"], np.float32) for row in train]).astype(float)
    assert info.mean == pytest.approx(together.mean(0), rel=1e-6)
    assert info.std == pytest.approx(together.std(0), rel=1e-6)
    assert info.parts["train"].classes == Counter(row["label"] for row in train)
    assert info.parts["train"].steps == len(together)
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", INDEX, VALUES]
    verify(out)
    assert splits["train"].values.shape[1] == 3


def test_the_fingerprint_is_the_contents(tmp_path: Path) -> None:
    first, again = toy_dataset(tmp_path / "a"), toy_dataset(tmp_path / "b")
    other = toy_dataset(tmp_path / "c", seed=5)
    prints = [open_dataset(folder)[0].fingerprint for folder in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_split_is_stratified_and_a_function_of_the_seed(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", toy_rows(200))
    splits = {}
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        out = tmp_path / name
        options = ("--split", "0.5,0.25,0.25", "--seed", seed)
        assert prepare(tmp_path / "x.jsonl", "--out", out, *options) == 0
        splits[name] = load_file(out / INDEX)["parts"]
        info = open_dataset(out)[0]
        total = Counter(row["label"] for row in toy_rows(200))
        for split, fraction in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
            for label, count in info.parts[split].classes.items():
                assert abs(count - fraction * total[label]) <= 1
    assert torch.equal(splits["a"], splits["b"])
    assert not torch.equal(splits["a"], splits["c"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=120),
    st.integers(0, 5),
)
def test_groups_stay_together(pairs: list[tuple[int, int]], seed: int) -> None:
    labels, groups = torch.tensor(pairs).unbind(1)
    splits = deal_by_group(labels, groups, (0.6, 0.2, 0.2), seed=seed)
    for group in groups.unique():
        assert len(splits[groups == group].unique()) == 1
    assert torch.equal(splits, deal_by_group(labels, groups, (0.6, 0.2, 0.2), seed=seed))


def test_rows_may_come_before_the_first_one_that_names_a_group(tmp_path: Path) -> None:
    rows = toy_rows(60)
    grouped = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(toy_rows(60, seed=1))]
    write_rows(tmp_path / "x.jsonl", [*rows, *grouped])
    assert prepare(tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    groups = load_file(tmp_path / "out" / INDEX)["groups"]
    assert groups.tolist() == [*range(60), *[60, 61] * 30]


def test_groups_are_dealt_by_fractions(tmp_path: Path) -> None:
    rows = [{**row, "group": f"person {i % 30}"} for i, row in enumerate(toy_rows(600))]
    write_rows(tmp_path / "x.jsonl", rows)
    assert prepare(tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    info, _, groups = open_dataset(tmp_path / "out")
    members = {split: set(ids.tolist()) for split, ids in groups.items()}
    assert sum(map(len, members.values())) == len(set.union(*members.values())) == 30
    assert abs(info.parts["train"].examples - 480) <= 30


def test_windows_of_a_recording_stay_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"steps": [[100 * i + t] for t in range(10 + i)], "label": "ab"[i % 2]} for i in range(20)
    ]
    write_rows(tmp_path / "x.jsonl", rows)
    out = tmp_path / "out"
    assert prepare(tmp_path / "x.jsonl", "--out", out, "--window", "8", "--stride", "3") == 0
    recordings: dict[str, set[int]] = {}
    count = 0
    for split in ("train", "val", "test"):
        for _, steps in content(out, split):
            first = int(steps[0][0])
            assert [int(step[0]) for step in steps] == list(range(first, first + 8))
            assert first % 100 % 3 == 0
            recordings.setdefault(split, set()).add(first // 100)
            count += 1
    assert sum(map(len, recordings.values())) == len(set.union(*recordings.values())) == 20
    assert count == sum((10 + i - 8) // 3 + 1 for i in range(20))


def test_a_split_column_is_followed(tmp_path: Path) -> None:
    splits = ["train", "train", "test"] * 20
    rows = [{**row, "split": split} for row, split in zip(toy_rows(60), splits, strict=True)]
    write_rows(tmp_path / "x.jsonl", rows)
    assert prepare(tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    info = open_dataset(tmp_path / "out")[0]
    assert {name: split.examples for name, split in info.parts.items()} == {"train": 40, "test": 20}


def test_tokens_are_numbered_by_training(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["b", "a"], "label": "x", "split": "train"},
        {"tokens": ["c"], "label": "y", "split": "train"},
        {"tokens": ["a", "new", "c"], "label": "x", "split": "test"},
    ]
    write_rows(tmp_path / "x.jsonl", rows * 2)
    assert prepare(tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    info, splits, _ = open_dataset(tmp_path / "out")
    assert (info.tokens, info.num_tokens) == (("a", "b", "c"), 4)
    assert [splits["train"][number][0].tolist() for number in range(2)] == [[2, 1], [3]]
    assert splits["test"][0][0].tolist() == [1, 0, 3]


def test_classes_stand_in_their_natural_order(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in ["10", "9", "up", "-1", "Down"] * 20]
    write_rows(tmp_path / "x.jsonl", rows)
    assert prepare(tmp_path / "x.jsonl", "--out", tmp_path / "out") == 0
    assert open_dataset(tmp_path / "out")[0].classes == ("-1", "9", "10", "Down", "up")


# ---- what cannot be used


def test_bad_rows_are_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{**row} for row in toy_rows(30)]
    rows[4]["steps"] = [[1.0, 2.0]]
    rows[9]["steps"] = [[1.0, None, 2.0]]
    rows[11]["label"] = None
    rows[13]["label"] = "typo"
    write_rows(tmp_path / "x.jsonl", rows)
    message = refusal(capsys, tmp_path / "x.jsonl", "--out", tmp_path / "out")
    for line in (
        "4 bad rows; mend them, or leave them out with --on-bad-row skip:",
        "x.jsonl:5: 2 features, where rows before have 3",
        "x.jsonl:10: step 1, feature 2: a missing value; --fill-missing fills such gaps",
        "x.jsonl:12: no label; give it one, or name its column with --label",
        "x.jsonl:14: label 'typo': the only example of its class; give it more, or none",
    ):
        assert line in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]

    out = tmp_path / "out"
    assert prepare(tmp_path / "x.jsonl", "--out", out, "--on-bad-row", "skip") == 0
    printed = capsys.readouterr().out
    assert "left out    4 rows" in printed
    assert len((out / "skipped.txt").read_text().splitlines()) == 4
    info = open_dataset(out)[0]
    assert (sum(split.examples for split in info.parts.values()), info.left_out) == (26, 4)
    assert "typo" not in info.classes


def test_a_class_unknown_to_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "a.jsonl", toy_rows(10))
    write_rows(tmp_path / "b.jsonl", [{"steps": [[1, 2, 3]], "label": "left"}] * 2)
    words = ("--train", tmp_path / "a.jsonl", "--test", tmp_path / "b.jsonl")
    problem = "label 'left': unknown to training (2 examples, none of them in train)"
    assert f"b.jsonl:1: {problem}" in refusal(capsys, *words, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "OUT"], "name INPUT files to split, or --train and --test"),
        (["X", "--out", "OUT", "--split", "0.5,0.5"], "expected three shares"),
        (["X", "--out", "OUT", "--split", "0.5,0.2,0.2"], "the sum must be 1"),
        (["X", "--out", "OUT", "--split", "0.5,nan,0.5"], "the sum must be 1"),
        (["X", "--out", "OUT", "--split-column", "part"], "'part' (--split-column) among"),
        (["X", "--out", "OUT", "--stride", "3"], "--stride 3: needs --window"),
        (["X", "--out", "OUT", "--window", "0"], "--window 0: must be at least 1"),
        (
            ["--train", "X", "--test", "X", "--out", "OUT", "--split", "1,0,0"],
            "which part they are",
        ),
        (["X", "--out", "OUT", "--time", "t"], "no key 't' (--time)"),
        (["X", "--out", "X"], "exists already"),
        (["X", "--out", "FULL"], "exists already"),
        (["X", "--out", "FULL", "--overwrite"], "holds something else than a data set"),
        (["EMPTY", "--out", "OUT"], "no sequences there"),
        (
            ["TWO", "--out", "OUT"],
            "no example is left for test: 4 examples, split 0.8,0.1,0.1; --split ",
        ),
        (["ONE", "--out", "OUT"], "one class alone, 'b': there is nothing to tell apart"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / f"{name.lower()}.jsonl" for name in ("X", "EMPTY", "TWO", "ONE")}
    write_rows(paths["X"], toy_rows(60))
    paths["EMPTY"].write_text("\n")
    write_rows(paths["TWO"], [{"text": "a", "label": label} for label in "aabb"])
    write_rows(paths["ONE"], [{"text": "a", "label": "b"}] * 20)
    paths |= {"OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    paths["FULL"].mkdir()
    (paths["FULL"] / "thesis.tex").write_text("all of it")
    assert message in refusal(capsys, *(paths.get(word, word) for word in words))
    assert not paths["OUT"].exists()
    assert (paths["FULL"] / "thesis.tex").read_text() == "all of it"


def test_overwriting_replaces_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = toy_dataset(tmp_path / "out")
    write_rows(tmp_path / "x.jsonl", toy_rows(60, seed=7))
    before = open_dataset(out)[0].fingerprint
    assert "exists already" in refusal(capsys, tmp_path / "x.jsonl", "--out", out)
    assert prepare(tmp_path / "x.jsonl", "--out", out, "--overwrite") == 0
    assert open_dataset(out)[0].fingerprint != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.jsonl"]


def test_a_killed_preparation_leaves_no_data_set_and_is_swept(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    words = ["prepare", f"{tmp_path}/x.jsonl", "--out", f"{tmp_path}/out"]
    process = subprocess.Popen([sys.executable, "-m", "seqclf", *words], cwd=ROOT)
    with (tmp_path / "x.jsonl").open("w") as pipe:
        pipe.writelines(json.dumps(row) + "\n" for row in toy_rows(60))
        pipe.flush()
        wait_for((tmp_path / ".out.partial" / VALUES).exists)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    toy_dataset(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.jsonl"]


# ---- a data set that is damaged


def test_every_file_cut_or_deleted_is_refused(tmp_path: Path) -> None:
    out = toy_dataset(tmp_path / "out")
    for path in sorted(out.iterdir()):
        saved = path.read_bytes()
        for damaged in (None, b"", saved[:-1], saved + b"x"):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            if path.suffix == ".json" and damaged == saved[:-1]:
                continue  # its last line's end
            with pytest.raises(UserError, match=r"prepare"):
                open_dataset(out)
            path.write_bytes(saved)
    open_dataset(out)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_a_clear_error_or_seen_by_verify(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    origin = tmp_path_factory.getbasetemp() / "flipped-origin"
    if not origin.exists():
        toy_dataset(origin)
    out = tmp_path_factory.mktemp("flip") / "out"
    shutil.copytree(origin, out)
    path = data.draw(st.sampled_from([out / "dataset.json", out / INDEX, out / VALUES]))
    changed = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(changed) - 1))
    changed[offset] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        info, splits, _ = open_dataset(out)
    except UserError:
        return
    for split in splits.values():
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(info.classes)
        split.rows(torch.arange(len(split)))
    if path.suffix == ".safetensors":
        with pytest.raises(UserError, match="another sha256"):
            verify(out)


def test_indexes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    out = toy_dataset(tmp_path / "out")
    good = load_file(out / INDEX)
    changes: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("offsets", lambda x: x.flip(0)),
        ("offsets", lambda x: x + 1),
        ("labels", lambda x: x + 99),
        ("labels", lambda x: x - 99),
        ("parts", lambda x: x * 0),
    ]
    for name, change in changes:
        save_file(good | {name: change(good[name]).contiguous()}, out / INDEX)
        with pytest.raises(UserError, match=r"index\.safetensors: .*prepare the data set again"):
            open_dataset(out)
    save_file(good, out / INDEX)
    open_dataset(out)


# ---- looking at it


def test_describe_shows_lengths_classes_and_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = toy_dataset(tmp_path / "out")
    assert main.main(["describe", str(out), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "3 features a step, 2 classes" in printed
    assert "1 to 15 steps each" in printed
    assert "feature 2" in printed
    assert printed.endswith("verified: all files are as they were written\n")
    with (out / VALUES).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert main.main(["describe", str(out), "--verify"]) == 2
    assert "values.safetensors: damaged (another sha256)" in capsys.readouterr().err


def test_describe_a_folder_without_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["describe", str(tmp_path)]) == 2
    assert "no prepared data set there" in capsys.readouterr().err
