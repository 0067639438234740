"""Windows and stretches: which steps they hold, their labels, and that predictions cut alike."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reading import write
from helpers.training import train_tiny
from hypothesis import given
from hypothesis import strategies as st

from seqclf.cli import main
from seqclf.data.prepared import open_dataset
from seqclf.data.readers.rows import Row
from seqclf.data.reading import LabelChange, Reading
from seqclf.data.windows import Part, cut_into_parts
from seqclf.run.weights import load_model


def row(labels: str, num_steps: int | None = None) -> Row:
    """Return a row; a letter of `labels` is the label of a step, and _ stands for none."""
    steps = np.zeros((num_steps or len(labels), 1))
    if num_steps:
        return Row("r", steps, "x", label=labels)
    return Row("r", steps, "x", step_labels=tuple(letter.strip("_") for letter in labels))


def shown(parts: list[Part]) -> str:
    """Return parts as text, such as 0-4:a; a label that is undecided is ?."""
    names = [part.label or ("?" if part.is_undecided else "-") for part in parts]
    return " ".join(f"{p.first}-{p.end}:{name}" for p, name in zip(parts, names, strict=True))


@pytest.mark.parametrize(
    ("labels", "window", "stride", "mode", "share", "expected", "num_lost"),
    [
        ("aaaaaaaaaa", 4, None, "majority", 0, "0-4:a 4-8:a", 2),
        ("aaaaaaaaaa", 4, 3, "majority", 0, "0-4:a 3-7:a 6-10:a", 0),
        ("aaaaaaaaaa", 3, 4, "majority", 0, "0-3:a 4-7:a", 1 + 3),
        ("aaa", 4, None, "majority", 0, "0-3:a", 0),
        ("aaab", 4, None, "majority", 0, "0-4:a", 0),
        ("aabb", 4, None, "majority", 0, "0-4:?", 0),
        ("aabc", 4, None, "majority", 0, "0-4:a", 0),
        ("aaab", 4, None, "majority", 0.75, "0-4:a", 0),
        ("aaab", 4, None, "majority", 0.76, "0-4:?", 0),
        ("a__b", 4, None, "majority", 0, "0-4:?", 0),
        ("aa_b", 4, None, "majority", 0, "0-4:a", 0),
        ("a___bbbb", 4, None, "majority", 0, "0-4:? 4-8:b", 0),
        ("aabbb_cc", None, None, "cut", 0, "0-2:a 2-5:b 5-6:? 6-8:c", 0),
        ("aaaaabbb", 2, None, "cut", 0, "0-2:a 2-4:a 5-7:b", 1 + 1),
        ("aaaaab", 2, None, "cut", 0, "0-2:a 2-4:a 5-6:b", 1),
        ("abab", None, None, "error", 0, "0-4:?", 0),
        ("a__a", None, None, "error", 0, "0-4:a", 0),
    ],
)
def test_parts_of_a_row(
    labels: str,
    window: int | None,
    stride: int | None,
    mode: LabelChange,
    share: float,
    expected: str,
    num_lost: int,
) -> None:
    reading = Reading(window=window, stride=stride, on_label_change=mode, min_share=share)
    parts = cut_into_parts(row(labels), reading)
    assert (shown(parts.parts), parts.num_lost) == (expected, num_lost)


def test_a_row_with_one_label_is_cut_whatever_the_label() -> None:
    for mode in ("majority", "cut"):
        reading = Reading(window=4, on_label_change=mode)
        parts = cut_into_parts(row("walk", 10), reading)
        assert (shown(parts.parts), parts.num_lost) == ("0-4:walk 4-8:walk", 2)
    unknown = cut_into_parts(row("walk", 10)._replace(label=None), Reading(window=4))
    assert shown(unknown.parts) == "0-4:- 4-8:-"


@given(
    st.text("ab_", min_size=1, max_size=40),
    st.integers(1, 9) | st.none(),
    st.integers(1, 9),
    st.sampled_from(["majority", "cut"]),
)
def test_every_step_is_in_a_part_or_counted(
    labels: str, window: int | None, stride: int, mode: LabelChange
) -> None:
    reading = Reading(window=window, stride=stride if window else None, on_label_change=mode)
    parts, num_lost, lengths = cut_into_parts(row(labels), reading)
    assert sum(lengths) == len(labels)
    inside = {step for part in parts for step in range(part.first, part.end)}
    assert len(inside) + num_lost == len(labels)
    for part in parts:
        mine = labels[part.first : part.end]
        assert part.is_undecided == (part.label is None)
        if part.label is not None:
            assert mine.count(part.label) > max(mine.count(x) for x in "ab_" if x != part.label)
        if window is not None and len(mine) != window:
            assert len(mine) < window


# ---- through the commands


LENGTHS = (600, 40, 32, 5, 100)  # steps of the recordings


def label_of(recording: int, step: int) -> str:
    return ("run", "walk")[(step // 50 + recording) % 2]


def values_of(recording: int) -> np.ndarray:
    generator = np.random.default_rng(recording)
    num_steps = LENGTHS[recording % 5]
    means = [1.0 if label_of(recording, step) == "walk" else -1.0 for step in range(num_steps)]
    return np.stack([generator.normal(means, 1), generator.normal(size=num_steps)], 1).round(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of activities, with and without labels, and a model of windows."""
    folder = tmp_path_factory.mktemp("windows")
    lines = [
        f"r{recording},{step},{x},{y},{label_of(recording, step)}"
        for recording in range(20)
        for step, (x, y) in enumerate(values_of(recording))
    ]
    write(folder, "x.csv", "\n".join(["rec,t,x,y,act", *lines]))
    unlabelled = [line.rpartition(",")[0] for line in lines]
    write(folder, "new.csv", "\n".join(["rec,t,x,y", *unlabelled]))
    words = ["--id", "rec", "--time", "t", "--label", "act", "--window", "32", "--stride", "16"]
    words += ["--min-share", "0.8", "--split", "0.5,0.25,0.25"]
    assert main.main(["prepare", f"{folder}/x.csv", "--out", f"{folder}/data", *words]) == 0
    settings = {"data.name": "files", "data.path": folder / "data", "train.steps": 20}
    assert train_tiny(folder / "run", settings) == 0
    return folder


def windows_of(recording: int) -> list[tuple[int, int]]:
    num_steps = LENGTHS[recording % 5]
    if num_steps <= 32:
        return [(0, num_steps)]
    return [(first, first + 32) for first in range(0, num_steps - 31, 16)]


def label_of_window(recording: int, first: int, end: int) -> str | None:
    labels = [label_of(recording, step) for step in range(first, end)]
    return next((x for x in ("run", "walk") if labels.count(x) >= 0.8 * len(labels)), None)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def predict(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main.main(["predict", *map(str, words)]) == 0
    return table(capsys.readouterr().out)


def test_prepare_counts_what_is_in_no_window(folder: Path) -> None:
    info, splits, _ = open_dataset(folder / "data")
    expected = {
        (f"r{recording}", first, end - first): label
        for recording in range(20)
        for first, end in windows_of(recording)
        if (label := label_of_window(recording, first, end))
    }
    found = {}
    recordings = []
    for sequences in splits.values():
        origins, lengths = sequences.origins, sequences.lengths
        assert origins is not None
        assert lengths is not None
        recordings.append({origins.ids[row] for row in origins.rows.tolist()})
        for index in range(len(sequences)):
            place = int(origins.first_steps[index]), int(lengths[index])
            label = sequences.classes[int(sequences.labels[index])]
            row_id = origins.ids[int(origins.rows[index])]
            found[(row_id, *place)] = label
            values = values_of(int(row_id[1:]))[place[0] : sum(place)]
            np.testing.assert_array_equal(sequences[index][0], values.astype(np.float32))
    assert found == expected
    assert sum(map(len, recordings)) == len(set.union(*recordings))
    num_undecided = sum(len(windows_of(recording)) for recording in range(20)) - len(expected)
    num_lost = sum(
        LENGTHS[recording % 5] - max(end for _, end in windows_of(recording))
        for recording in range(20)
    )
    assert info.notes == (
        f"{num_undecided} windows are left out: too few of their steps have one label",
        f"{num_lost} steps are in no window",
        "4 sequences shorter than a window of 32 steps: kept whole",
    )
    assert (num_undecided, num_lost) == (52, 80)


def test_predict_cuts_alike_whether_there_are_labels_or_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = predict(capsys, folder / "run", folder / "x.csv")
    blind = predict(capsys, folder / "run", folder / "new.csv")
    truths = [line.pop("truth") for line in lines]
    assert lines == blind
    model, architecture = load_model(folder / "run")
    places = [(number, *place) for number in range(20) for place in windows_of(number)]
    for line, truth, (number, first, end) in zip(lines, truths, places, strict=True):
        assert (line["id"], line["first_step"], line["last_step"]) == (
            f"r{number}",
            str(first + 1),
            str(end),
        )
        assert truth == (label_of_window(number, first, end) or "")
        steps = torch.tensor(values_of(number)[first:end][None], dtype=torch.float32)
        chances = model(steps).softmax(1)[0].tolist()
        for name, chance in zip(architecture.classes, chances, strict=True):
            assert float(line[f"p({name})"]) == pytest.approx(chance, abs=1e-6)


def test_a_recording_has_the_mean_of_its_windows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = predict(capsys, folder / "run", folder / "x.csv")
    recordings = predict(capsys, folder / "run", folder / "x.csv", "--per", "recording")
    assert [line["id"] for line in recordings] == [f"r{number}" for number in range(20)]
    assert "first_step" not in recordings[0]
    for line in recordings:
        mine = [window for window in windows if window["id"] == line["id"]]
        mean = np.mean([float(window["p(run)"]) for window in mine])
        assert float(line["p(run)"]) == pytest.approx(mean, abs=2e-6)
        truths = {window["truth"] for window in mine} - {""}
        assert line["truth"] == (truths.pop() if len(truths) == 1 else "")


def test_windows_of_another_length_are_noted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The shortest training sequence has 5 steps.
    lines = [f"{name},0,1,2" for name in ("long",) * 600 + ("short",) * 2]
    write(tmp_path, "new.csv", "\n".join(["rec,t,x,y", *lines]))
    assert main.main(["predict", str(folder / "run"), f"{tmp_path}/new.csv"]) == 0
    out, err = capsys.readouterr()
    assert [line["id"] for line in table(out)] == ["long"] * 36 + ["short"]
    assert (
        "note: 1 windows are of another length, 2 steps (such as 'short'), than those of training, "
        "5 to 32 steps; do not trust these predictions" in err
    )


def test_evaluate_measures_the_windows_that_have_a_label(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = predict(capsys, folder / "run", folder / "x.csv")
    labelled = [line for line in lines if line["truth"]]
    share = sum(line["class"] == line["truth"] for line in labelled) / len(labelled)
    assert main.main(["evaluate", str(folder / "run"), f"{folder}/x.csv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"examples  {len(labelled)}\naccuracy  {share:.2%}\n")
    assert "note: 52 windows have no truth: no label stands at enough of their steps" in err


def test_splits_are_written_by_window_and_by_recording(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file = {
        (line["id"], line["first_step"]): line
        for line in predict(capsys, folder / "run", folder / "x.csv")
    }
    recordings = []
    count = 0
    for split in ("train", "val", "test"):
        lines = predict(capsys, folder / "run", "--split", split)
        assert all(line == of_file[line["id"], line["first_step"]] for line in lines)
        count += len(lines)
        whole = predict(capsys, folder / "run", "--split", split, "--per", "recording")
        assert [line["id"] for line in whole] == list(dict.fromkeys(line["id"] for line in lines))
        recordings += [line["id"] for line in whole]
    assert count == sum(bool(line["truth"]) for line in of_file.values())
    assert len(recordings) == len(set(recordings)) == 20


# ---- stretches


@pytest.mark.parametrize("window", [None, 32])
def test_stretches_are_predicted_alike(
    window: int | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--id", "rec", "--label", "act", "--on-label-change", "cut", "--drop", "t"]
    words += ["--window", str(window)] if window else []
    data, run = tmp_path / "data", tmp_path / "run"
    assert main.main(["prepare", f"{folder}/x.csv", "--out", str(data), *words]) == 0
    settings = {"data.name": "files", "data.path": data, "train.steps": 2}
    assert train_tiny(run, settings) == 0
    lines = predict(capsys, run, folder / "x.csv")
    places = []
    for number in range(20):
        for start in range(0, LENGTHS[number % 5], 50):
            end = min(start + 50, LENGTHS[number % 5])
            end = start + 32 if window and end - start > 32 else end
            places.append((f"r{number}", str(start + 1), str(end), label_of(number, start)))
    found = [(x["id"], x["first_step"], x["last_step"], x["truth"]) for x in lines]
    assert found == places
    written = [
        line
        for split in ("train", "val", "test")
        for line in predict(capsys, run, "--split", split)
    ]
    key = lambda line: (line["id"], int(line["first_step"]))  # noqa: E731
    assert sorted(written, key=key) == sorted(lines, key=key)

    assert main.main(["predict", str(run), f"{folder}/new.csv"]) == 0
    out, err = capsys.readouterr()
    assert "note: 20 sequences are not cut, as they have no labels" in err
    assert len(table(out)) == (20 if window is None else sum(max(1, n // 32) for n in LENGTHS) * 4)


def test_a_label_at_one_step_is_that_of_the_recording_and_at_some_it_is_theirs(
    tmp_path: Path,
) -> None:
    lines = []
    for number in range(12):
        for part, labels in (("once", "a" + "_" * 29), ("some", "a" * 10 + "_" * 20)):
            name = "ab"[number % 2]
            lines += [
                f"{part}{number},{step},{name if letter == 'a' else ''}"
                for step, letter in enumerate(labels)
            ]
    write(tmp_path, "x.csv", "\n".join(["id,x,label", *lines]))
    words = ["prepare", f"{tmp_path}/x.csv", "--out", f"{tmp_path}/d", "--window", "10"]
    assert main.main(words) == 0
    info, splits, _ = open_dataset(tmp_path / "d")
    counts = {"once": 0, "some": 0}
    for sequences in splits.values():
        assert sequences.origins is not None
        for row_number in sequences.origins.rows.tolist():
            counts[sequences.origins.ids[row_number][:4]] += 1
    assert counts == {"once": 36, "some": 12}
    assert info.notes[0] == "24 windows are left out: too few of their steps have one label"


def test_nothing_left_is_an_error_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"r{step // 30},{step},{'ab'[step // 5 % 2]}" for step in range(300)]
    write(tmp_path, "x.csv", "\n".join(["id,x,label", *lines]))
    words = ["prepare", f"{tmp_path}/x.csv", "--out", f"{tmp_path}/d", "--window", "7"]
    assert main.main([*words, "--min-share", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: no window is left: 40 have no label that enough of their steps have; choose a "
        "smaller --window or --min-share\n"
    )
