"""What `prepare` and `predict` say of padding with zeros, other units and windows too long."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launching import ROOT

import seqclf
from seqclf.cli import main
from seqclf.data.prepared import open_dataset
from seqclf.data.readers.rows import Row
from seqclf.data.zero_ends import ZeroSides
from seqclf.model import Architecture
from seqclf.tally import Tally

GENERATOR = np.random.default_rng(0)
PADDED = (
    "{} of {} sequences end in steps that are all 0; is it padding? --pad-value 0 leaves it off"
)


def padded(*lengths: int, num_steps: int = 12) -> np.ndarray:
    x = np.zeros((len(lengths), num_steps, 2))
    for sequence, length in zip(x, lengths, strict=True):
        sequence[:length] = GENERATOR.normal(size=(length, 2)).round(3)
    return x


def notes_of(folder: Path, x: np.ndarray, *words: str) -> list[str]:
    np.savez(folder / "x.npz", x=x, y=np.arange(len(x)) % 2)
    words = ("prepare", f"{folder}/x.npz", "--out", f"{folder}/d", *words)
    assert main.main(list(words)) == 0
    return list(open_dataset(folder / "d")[0].notes)


def note_of_ends(*sequences: object) -> str | None:
    sides = ZeroSides()
    for sequence in sequences:
        sides.add(sequence)
    notes = list(sides.notes())
    assert len(notes) <= 1
    return notes[0] if notes else None


def test_prepare_says_that_sequences_end_in_zeros(tmp_path: Path) -> None:
    x = padded(*[5, 8, 12, 10] * 6)
    assert notes_of(tmp_path, x) == [PADDED.format(18, 24)]
    notes = notes_of(tmp_path, x, "--pad-value", "0", "--overwrite")
    assert notes == ["78 steps of padding are left off, at the ends of sequences"]


def test_prepare_says_that_sequences_begin_with_zeros(tmp_path: Path) -> None:
    """As Keras pads unless it is told otherwise; the lines of docs/data.md take them off."""
    x = padded(*[5, 8, 12, 10] * 6)[:, ::-1]
    note = "18 of 24 sequences begin with steps that are all 0; is it padding? docs/data.md has the"
    [found] = notes_of(tmp_path, x)
    assert found.startswith(note)
    [block] = [b for b in (ROOT / "docs/data.md").read_text().split("```") if "argmax" in b]
    names = {"x": x, "labels": np.arange(len(x)) % 2, "np": np}
    with contextlib.chdir(tmp_path):
        exec(block.removeprefix("python"), names)
    words = ("prepare", f"{tmp_path}/mine.npz", "--out", f"{tmp_path}/d", "--overwrite")
    assert main.main(list(words)) == 0
    info = open_dataset(tmp_path / "d")[0]
    assert not any("padding" in text for text in info.notes)
    assert sum(split.steps for split in info.parts.values()) == 6 * (5 + 8 + 12 + 10)


def test_zeros_that_are_measured_are_no_padding() -> None:
    full = padded(12)[0]
    assert note_of_ends(*padded(5, 8)) == PADDED.format(2, 2)
    assert note_of_ends(*padded(5, 8), *[full] * 18) == PADDED.format(2, 20)
    assert note_of_ends(*padded(5, 8), *[full] * 19) is None  # so few
    assert note_of_ends(*padded(8, 8, 8)) is None  # padding has several lengths
    assert note_of_ends(*padded(11, 12)) is None  # a single step
    assert note_of_ends(*np.zeros((3, 12, 1))) is None
    rest = padded(5, 8)
    rest[:, 1:3] = 0  # at rest before, too
    assert note_of_ends(*rest) is None
    assert note_of_ends(*(sequence[::-1] for sequence in rest)) is None
    image = np.zeros((4, 12, 3))  # which has a margin on both sides
    for index, pixels in enumerate(image):
        pixels[2 + index : 8 + index // 2] = 1
    assert note_of_ends(*image) is None
    assert note_of_ends(np.zeros(9, np.uint8), ("0", "0"), np.zeros(4, np.uint8)) is None


def architecture(**changes: object) -> Architecture:
    return Architecture(
        input_size=2,
        classes=("a", "b"),
        scale=1,
        read="rows",
        hidden_size=2,
        num_layers=1,
        bidirectional=False,
        dropout=0,
        pooling="last",
        features=("x", "y"),
        mean=(0.0, 10.0),
        std=(1.0, 0.5),
    ).model_copy(update=changes)


def notes_on(x: np.ndarray, model: Architecture) -> list[str]:
    tally = Tally()
    for sequence in x:
        values = torch.from_numpy(sequence.astype(np.float32))
        tally.add(["r"], values, torch.tensor([len(values)]), model)
    return list(tally.notes(model))


def test_values_far_from_those_of_training_are_noted() -> None:
    x = GENERATOR.normal(size=(9, 40, 2)) * [1, 0.5] + [0, 10]
    model = architecture()
    assert notes_on(x, model) == []
    (swapped,) = notes_on(x[:, :, ::-1], model)
    assert "0 +- 1 in training; y: " in swapped
    assert swapped.endswith(" 10 +- 0.5 in training; another unit, or another column?")
    (large,) = notes_on(x * [1000, 1], model)  # the mean alone shows nothing
    assert large.startswith("x: ")
    assert large.count("in training") == 1
    (small,) = notes_on(x / [1000, 1], model)
    assert small.startswith("x: ")
    assert "here, 0 +- 1 in training" in small
    assert notes_on(x[:4] / [1000, 1], model) == []  # so few may be alike
    assert notes_on(x * [0, 1], model) == []  # off in all of them
    assert notes_on(x[:1] + np.array([2, 1]), model) == []
    # What people read has the offset that float64 takes off.
    (offset,) = notes_on(
        x + np.array([100, 0]),
        architecture(reading=model.reading.model_copy(update={"offset": (5e8, 0.0)})),
    )
    assert "5e+08 +- 1 in training" in offset
    (nameless,) = notes_on(x[:, :, ::-1], architecture(features=()))
    assert nameless.count("the values: ") == 2


def test_a_feature_without_another_value_in_training_is_not_read_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No example has trained its weights, so another value must not meet them."""
    x = GENERATOR.normal(size=(60, 12, 3))
    x[:, :, 0] += 4 * (np.arange(60) % 2)[:, None]
    x[:, :, 1:] = [5, 0]
    y = np.array(["a", "b"])[np.arange(60) % 2]
    settings = {"train.steps": 60, "train.threads": 1, "tracking.wandb": "disabled"}
    model = seqclf.train(settings, train=(x, y), run_dir=tmp_path / "run", verbose=0).model
    expected = model.predict_proba(x)
    assert (model.predict(x) == y).mean() > 0.9
    for value in (5.01, 1e6, 9.5):
        x[:, :, 1] = value
        with pytest.warns(UserWarning, match="the model does not read what training ex"):
            np.testing.assert_array_equal(model.predict_proba(x), expected)
    np.save(tmp_path / "x.npy", x)
    words = ["predict", f"{tmp_path}/run", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/out.csv"]
    assert main.main(words) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: feature 1: 9.5 +- ")
    assert (
        " here, 5 always in training; the model does not read what training examples had one "
        "value of"
    ) in said
    assert main.main(["describe", f"{tmp_path}/run/data"]) == 0
    assert "feature 1            5     constant" in capsys.readouterr().out


def test_a_sequence_shorter_than_a_window_is_noted(tmp_path: Path) -> None:
    x = padded(*[12] * 20)
    whole = "no sequence has 500 steps (the longest has 12): nothing was cut"
    assert notes_of(tmp_path, x, "--window", "500") == [whole]
    assert notes_of(tmp_path, x, "--window", "12", "--overwrite") == []
    assert notes_of(tmp_path, x, "--window", "5", "--stride", "500", "--overwrite") == [
        "140 steps are in no window",
        "no sequence has a second window: two windows of 5 steps, 500 apart, take 505 steps, and "
        "the longest has 12",
    ]
    x[:3, 8:] = np.nan
    assert "3 sequences shorter than a window of 10 steps: kept whole" in notes_of(
        tmp_path, x, "--window", "10", "--overwrite"
    )


@pytest.mark.parametrize("window", [None, 10])
def test_predict_counts_sequences_shorter_than_a_window(window: int | None) -> None:
    model = architecture()
    reading = model.reading.model_copy(update={"window": window})
    tally = Tally()
    for sequence, length in zip(padded(12, 12, 12), (8, 9, 12), strict=True):
        tally.add_rows([Row("r", sequence[:length], "x")], reading)
    notes = list(tally.notes(model.model_copy(update={"reading": reading})))
    short = ["2 sequences shorter than a window of 10 steps: kept whole"] if window == 10 else []
    assert notes == short


def test_classes_without_a_test_example_are_named(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        x=GENERATOR.normal(size=(40, 9, 2)),
        y=np.array(["a", "b", "c", "d"])[[*[0, 1] * 18, 2, 2, 3, 3]],
        split=np.array(["train"] * 20 + ["test"] * 16 + ["train", "train", "train", "test"]),
    )
    assert main.main(["prepare", f"{tmp_path}/x.npz", "--out", f"{tmp_path}/d"]) == 0
    assert open_dataset(tmp_path / "d")[0].notes == (
        "no example is in val",
        "no test example is of class c: no test figure tells how well it does",
    )
