"""Gaps are filled and counted once; numbers far from zero keep their last digits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Capture, call, predict, refusal, table, train
from helpers.files import read_status
from helpers.launching import ROOT
from helpers.reading import write

from seqclf.data.passes import CONSTANT
from seqclf.data.prepared import Dataset, open_dataset
from seqclf.run.weights import load_model

N, T = 60, 8
GENERATOR = np.random.default_rng(0)
NUMBERS = GENERATOR.normal(size=(N, T, 3)).round(3)
NUMBERS[:, :, 0] += np.arange(N)[:, None] % 2
GAPS = np.zeros((N, T, 3), bool)
GAPS[:, :, 0] = (np.arange(N)[:, None] + np.arange(T)) % 4 == 0  # 120 values
GAPS[::10, :, 1] = True  # 6 sequences, 48 values


def write_numbers(
    path: Path, cell: Callable[[int, int, int], str], num_sequences: int = N, num_steps: int = T
) -> Path:
    lines = [
        ",".join(
            [f"r{i}", str(t), *(cell(i, t, feature) for feature in range(3)), ("down", "up")[i % 2]]
        )
        for i in range(num_sequences)
        for t in range(num_steps)
    ]
    return write(path.parent, path.name, "\n".join(["id,t,x,y,z,label", *lines]) + "\n")


def with_gaps(i: int, t: int, feature: int) -> str:
    return "" if GAPS[i, t, feature] else str(NUMBERS[i, t, feature])


def filled(number: int) -> np.ndarray:
    """Return a sequence as it should be, with NaN where it takes the training mean."""
    steps = np.where(GAPS[number], np.nan, NUMBERS[number])
    for feature in range(3):
        known = np.flatnonzero(~GAPS[number, :, feature])
        if len(known):
            steps[:, feature] = np.interp(np.arange(T), known, steps[known, feature])
    return np.hstack([steps, ~GAPS[number][:, :2]])


def numbers_of(dataset: Dataset, split: str) -> list[int]:
    """Return the numbers of a split's sequences, from their ids."""
    origins = dataset.splits[split].origins
    assert origins is not None
    return [int(origins.ids[row][1:]) for row in origins.rows.tolist()]


def test_gaps_are_filled_measured_and_counted_once(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", with_gaps)
    run = train(tmp_path, source, "--time", "t", "--fill-missing", "--measured")
    dataset = open_dataset(tmp_path / "data")
    assert dataset.info.features == ("x", "y", "z", "x measured", "y measured")
    assert dataset.info.notes == (
        "120 missing values are filled, from their neighbours in time",
        "48 missing values are filled with the feature's mean over train, as the feature has no "
        "value in their sequence",
    )
    in_train = np.concatenate([filled(number) for number in numbers_of(dataset, "train")])
    mean = np.nanmean(in_train.astype(np.float32).astype(float), 0)
    assert dataset.info.mean == pytest.approx(mean, rel=1e-12)
    right = [np.where(np.isnan(filled(i)), mean, filled(i)).astype(np.float32) for i in range(N)]
    for split, sequences in dataset.splits.items():
        for index, number in enumerate(numbers_of(dataset, split)):
            np.testing.assert_array_equal(sequences[index][0], right[number])

    model, _ = load_model(run)
    chances = model(torch.from_numpy(np.stack(right))).softmax(1)[:, 0].tolist()
    lines = predict(capsys, run, source)
    assert [float(line["p(down)"]) for line in lines] == pytest.approx(chances, abs=1e-6)
    of_file = {line["id"]: line for line in lines}
    for line in predict(capsys, run, "--split", "test"):
        assert line == of_file[line["id"]]
    # A file without gaps needs no other words.
    whole = write_numbers(tmp_path / "whole.csv", lambda i, t, f: str(NUMBERS[i, t, f]))
    steps = np.concatenate([NUMBERS, np.ones((N, T, 2))], 2).astype(np.float32)
    chances = model(torch.from_numpy(steps)).softmax(1)[:, 0].tolist()
    lines = predict(capsys, run, whole)
    assert [float(line["p(down)"]) for line in lines] == pytest.approx(chances, abs=1e-6)


def test_a_second_pass_deals_the_same_splits(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", with_gaps)
    found = []
    for words in (["--fill-missing"], ["--fill-missing", "--measured"]):
        out = tmp_path / str(len(words))
        assert call(capsys, "prepare", source, "--out", out, "--drop", "t", *words)[0] == 0
        dataset = open_dataset(out)
        found.append([numbers_of(dataset, split) for split in dataset.splits])
    assert found[0] == found[1]


def test_measured_says_where_there_is_nothing_to_measure(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", lambda i, t, f: str(NUMBERS[i, t, f]))
    words = [str(source), "--out", f"{tmp_path}/d", "--drop", "t", "--measured"]
    assert "--measured: needs --fill-missing" in refusal(capsys, "prepare", *words)
    assert call(capsys, "prepare", *words, "--fill-missing")[0] == 0
    info = open_dataset(tmp_path / "d").info
    assert info.features == ("x", "y", "z")
    assert info.notes == ("--measured: no feature has a gap, so no feature is added",)


# ---- numbers far from zero


def digits(offset: int, outlier: int = 0) -> Callable[[int, int, int], str]:
    """Return cells whose units alone tell the classes apart, and a constant."""

    def cell(i: int, t: int, feature: int) -> str:
        units = 5 * (i % 2) + (i + 3 * t) % 4
        if (i, t) == (3, 2):
            units += outlier
        return str([offset + units, offset, (i * t) % 5][feature])

    return cell


@pytest.mark.parametrize(
    ("offset", "outlier"), [(10**9, 0), (-(10**9), 0), (17 * 10**8, 10**5), (10**12, 0)]
)
def test_the_units_of_large_numbers_are_learnt(
    offset: int, outlier: int, tmp_path: Path, capsys: Capture
) -> None:
    source = write_numbers(tmp_path / "x.csv", digits(offset, outlier), 200, 6)
    run = train(tmp_path, source, "--drop", "t", steps=80)
    info = open_dataset(tmp_path / "data").info
    middle = offset + (outlier + 5 + 3 if outlier else 8) / 2
    assert info.reading.offset == pytest.approx((middle, 0, 0), abs=3)
    assert read_status(run).metrics["test/accuracy"] == 1
    lines = predict(capsys, run, source)
    wrong = [line["id"] for line in lines if line["truth"] != line["class"]]
    assert wrong in ([], ["r3"])  # that of the outlier
    of_file = {line["id"]: line for line in lines}
    for line in predict(capsys, run, "--split", "test"):
        assert line == of_file[line["id"]]
    described = call(capsys, "describe", tmp_path / "data")[1]
    shown = next(line for line in described.splitlines() if line.startswith("x  "))
    assert float(shown.split()[1]) == pytest.approx(offset, abs=2000, rel=1e-9)


def test_a_feature_that_is_constant_and_far_is_zero(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", digits(10**9))
    train(tmp_path, source, "--drop", "t", steps=1)
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.info.mean[1], dataset.info.std[1]) == (10**9, CONSTANT)
    model, _ = load_model(tmp_path / "run")
    assert model.embed(dataset.splits["test"][0][0][None])[0, :, 1].tolist() == [0] * T


def test_ordinary_numbers_are_stored_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", lambda i, t, f: str(NUMBERS[i, t, f] + 100))
    out = call(capsys, "prepare", source, "--out", tmp_path / "d", "--drop", "t")[1]
    assert "second pass" not in out
    dataset = open_dataset(tmp_path / "d")
    assert dataset.info.reading.offset == ()
    expected = (NUMBERS[numbers_of(dataset, "test")[0]] + 100).astype(np.float32)
    np.testing.assert_array_equal(dataset.splits["test"][0][0], expected)


@pytest.mark.parametrize("kind", ["pipe", "standard input"])
def test_what_can_be_read_once_is_read_twice(kind: str, tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", digits(10**9))
    assert call(capsys, "prepare", source, "--out", tmp_path / "d", "--drop", "t")[0] == 0
    name, words = "-", ["--format", "csv"]
    if kind == "pipe":
        name, words = f"{tmp_path}/pipe.csv", []
        os.mkfifo(name)
    words = ["prepare", name, "--out", f"{tmp_path}/twice", "--drop", "t", *words]
    command = [sys.executable, "-m", "seqclf", *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None
        if kind == "pipe":
            Path(name).write_bytes(source.read_bytes())
        else:
            run.stdin.write(source.read_bytes())
        printed = run.communicate()[0].decode()
    assert run.returncode == 0
    assert "second pass" in printed
    infos = [open_dataset(tmp_path / folder).info for folder in ("d", "twice")]
    assert infos[0].fingerprint == infos[1].fingerprint


def test_predict_reads_a_pipe_of_large_numbers(tmp_path: Path, capsys: Capture) -> None:
    source = write_numbers(tmp_path / "x.csv", digits(10**9))
    run = train(tmp_path, source, "--drop", "t", steps=2)
    expected = predict(capsys, run, source)
    words = [sys.executable, "-m", "seqclf", "predict", str(run), "-", "--format", "csv"]
    done = subprocess.run(
        words, cwd=ROOT, input=source.read_bytes(), capture_output=True, check=True
    )
    assert table(done.stdout.decode()) == expected
