"""Several models as one: the mean of their probabilities, in Python and on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import LABELS, VALUES, Capture, N, call, refusal, train, write_jsonl
from helpers.reading import write
from helpers.training import train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import seqclf
from seqclf import UserError
from seqclf.average import Member, predict_rows_together
from seqclf.data.readers.rows import BadRow, Row
from seqclf.data.reading import Reading
from seqclf.model import Architecture
from seqclf.predict import Prediction, predict_rows
from seqclf.report import together
from seqclf.report.page import write_report
from seqclf.report.together import measure_together

SEQUENCES = list(VALUES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs a, b (wider, two directions, stacked) and c (other classes' order)."""
    folder = tmp_path_factory.mktemp("average")
    train(folder, write_jsonl(folder / "x.jsonl"))
    shutil.move(folder / "run", folder / "a")
    settings = {"data.name": "files", "data.path": folder / "data", "train.steps": 25}
    settings |= {"train.batch_size": 16, "seed": 1, "model.stack": 2, "model.hidden_size": 12}
    assert train_tiny(folder / "b", {**settings, "model.bidirectional": True}) == 0
    return folder


def lines_of(path: Path) -> list[dict[str, float]]:
    return [json.loads(line)["probabilities"] for line in path.read_text().splitlines()]


def test_the_mean_has_the_same_bits_in_python_and_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    a, b = folder / "a", folder / "b"
    new, out = write_jsonl(tmp_path / "new.jsonl"), tmp_path / "out.jsonl"
    singles = []
    for runs in ([a], [b], [a, b]):
        code, _, err = call(capsys, "predict", *runs, new, "--out", out)
        assert code == 0
        singles.append(lines_of(out))
    assert f"note: the mean of 2 models: {a}, {b}" in err
    for of_a, of_b, mean in zip(*singles, strict=True):
        assert mean == {name: (of_a[name] + of_b[name]) / 2 for name in of_a}
    classifier = seqclf.load([a, b])
    found = classifier.predict_proba(SEQUENCES)
    assert found.tolist() == [list(line.values()) for line in singles[2]]
    # One of a list is that one.
    assert np.array_equal(
        seqclf.load([b]).predict_proba(SEQUENCES), seqclf.load(b).predict_proba(SEQUENCES)
    )
    summary = classifier.summary()
    assert summary.startswith(f"mean of     2 models\n\nmodel       {a}: ")
    assert f"\nmodel       {b}: " in summary
    assert classifier.evaluate(SEQUENCES, LABELS).count == N


def test_classes_are_matched_by_their_names(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "b/model", turned := tmp_path / "turned")

    def turn(content: dict[str, object]) -> None:
        content["classes"] = ["up", "down"]

    path = turned / "config.json"
    content = json.loads(path.read_text())
    turn(content)
    path.write_text(json.dumps(content))
    a, b = (seqclf.load(folder / name).predict_proba(SEQUENCES) for name in "ab")
    found = seqclf.load([folder / "a", turned]).predict_proba(SEQUENCES)
    assert found == pytest.approx((a + b[:, ::-1]) / 2, abs=1e-15)


def test_evaluate_prints_a_line_for_each_run_and_then_the_mean(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    a, b = folder / "a", folder / "b"
    new = write_jsonl(tmp_path / "new.jsonl")
    singles = [json.loads(call(capsys, "evaluate", run, new, "--json")[1]) for run in (a, b)]
    measured = json.loads(call(capsys, "evaluate", a, b, new, "--json")[1])
    assert list(measured["runs"].values()) == singles
    expected = seqclf.load([a, b]).evaluate(SEQUENCES, LABELS)
    assert measured["loss"] == expected.loss
    assert measured["confusion"] == expected.confusion.tolist()
    code, out, _ = call(capsys, "evaluate", a, b)  # the test examples, which both have
    assert code == 0
    rows = out.splitlines()
    assert [row.split()[0] for row in rows[1:3]] == [str(a), str(b)]
    assert rows[3].startswith("the mean of their probabilities")
    call(capsys, "predict", a, b, "--split", "test", "--out", tmp_path / "test.csv")
    assert len((tmp_path / "test.csv").read_text().splitlines()) == 1 + 6


def test_windows_are_averaged_and_then_their_recordings(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, "x.jsonl", write_jsonl(tmp_path / "y.jsonl").read_text())
    runs = []
    for seed in (0, 1):
        train(tmp_path, tmp_path / "x.jsonl", "--window", "3")
        runs.append(tmp_path / str(seed))
        settings = {"data.name": "files", "data.path": tmp_path / "data", "train.steps": 9}
        assert train_tiny(runs[-1], {**settings, "seed": seed}) == 0
    for per in ("window", "recording"):
        out = tmp_path / "out.jsonl"
        words: list[str | Path] = [tmp_path / "x.jsonl", "--per", per, "--out", out]
        found = []
        for chosen in ([runs[0]], [runs[1]], runs):
            assert call(capsys, "predict", *chosen, *words)[0] == 0
            found.append(np.array([list(line.values()) for line in lines_of(out)]))
        assert len(found[2]) == (2 * N if per == "window" else N)
        assert found[2] == pytest.approx((found[0] + found[1]) / 2, abs=1e-15)
    whole = seqclf.load(runs).predict_proba(SEQUENCES)
    assert np.array_equal(whole, found[2])
    measured = call(capsys, "evaluate", *runs, tmp_path / "x.jsonl", "--per", "recording", "--json")
    single = call(capsys, "evaluate", runs[1], tmp_path / "x.jsonl", "--per", "recording", "--json")
    assert json.loads(measured[1])["runs"][str(runs[1])] == json.loads(single[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["down", "left"]}, "other classes; only one of them has "),
        ({"features": ["u", "v"]}, "other features: u, v, there "),
        ({"read": "columns"}, "other read: columns, there rows"),
        ({"reading": {"window": 3}}, "other reading of files: window 3, there None"),
    ],
)
def test_models_that_mean_something_else_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    shutil.copytree(folder / "b/model", other := tmp_path / "other")
    content = json.loads((other / "config.json").read_text())
    reading = {"reading": {**content["reading"], **change.pop("reading", {})}}  # type: ignore[dict-item]
    (other / "config.json").write_text(json.dumps({**content, **reading, **change}))
    with pytest.raises(UserError) as caught:
        seqclf.load([folder / "a", other])
    assert str(caught.value).startswith(
        f"{other}: cannot be averaged with {folder / 'a'}: {message}"
    )


def test_mistakes_are_named(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    a, b = folder / "a", folder / "b"
    new = write_jsonl(tmp_path / "new.jsonl")
    err = refusal(capsys, "predict", a, tmp_path / "typo", new)
    assert f"{tmp_path / 'typo'}: no trained model; only the last path may be a file" in err
    err = refusal(capsys, "evaluate", a, a / "model", new)
    assert f"{a / 'model'}: the same model as {a}; name each model once" in err
    assert "several runs need INPUT" in refusal(capsys, "predict", a, b)
    err = refusal(capsys, "predict", a, b, new, "--until", "0.9")
    assert "--until 0.9: one model decides, and 2 are named: name one" in err
    settings = {"data.name": "digits", "train.steps": 2}
    assert train_tiny(tmp_path / "digits", settings) == 0
    assert "cannot be averaged with" in refusal(capsys, "evaluate", a, tmp_path / "digits")
    held_out = {"data.val_fraction": 0.2, "data.name": "digits", "train.steps": 2}
    runs = [tmp_path / "0", tmp_path / "1"]
    for seed, run in enumerate(runs):
        assert train_tiny(run, {**held_out, "seed": seed}) == 0
    assert call(capsys, "evaluate", *runs)[0] == 0  # all seeds have the same test examples
    err = refusal(capsys, "predict", *runs, "--split", "val")
    assert f"{runs[1]}: has other val examples than {runs[0]}" in err
    with pytest.raises(UserError, match="no stream of steps with the mean of 2 models"):
        seqclf.load(runs).stream()
    with pytest.raises(UserError, match="an empty list of models"):
        seqclf.load([])


def test_all_examples_are_read_once_and_bad_rows_are_said_once(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = write_jsonl(tmp_path / "x.jsonl").read_text().splitlines()
    row = json.loads(text[2])
    row["steps"] = [[1.0]]
    text[2] = json.dumps(row)
    new = write(tmp_path, "x.jsonl", "\n".join(text))
    runs = (folder / "a", folder / "b")
    code, out, err = call(capsys, "predict", *runs, new, "--on-bad-row", "skip")
    assert code == 0
    assert err.count("left out: ") == 1
    assert len(out.splitlines()) == N


def make(seed: int, **changes: object) -> Member:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        architecture = Architecture.model_validate(
            {
                "input_size": 2,
                "classes": ("a", "b", "c"),
                "scale": 1.0,
                "read": "rows",
                "hidden_size": 3,
                "num_layers": 1,
                "bidirectional": False,
                "dropout": 0.0,
                "pooling": "last",
                "features": ("x", "y"),
                "mean": (0.0, 1.0 + seed),
                "std": (1.0, 2.0 + seed),
                "reading": Reading(),
                **changes,
            }
        )
        return Member(str(seed), architecture.build().eval(), architecture)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=300),
    st.sets(st.integers(0, 299), max_size=9),
    st.integers(1, 4),
)
def test_each_row_has_the_mean_of_what_each_model_says_of_it(
    lengths: list[int], bad: set[int], count: int
) -> None:
    generator = np.random.default_rng(len(lengths))
    arrays = [generator.normal(size=(length, 2)) for length in lengths]

    def rows() -> Iterator[Row | BadRow]:
        for number, steps in enumerate(arrays):
            if number in bad:
                yield BadRow(str(number), "bad")
            else:
                yield Row(str(number), steps, where=str(number))

    members = [make(seed, stack=1 + seed % 2) for seed in range(count)]
    each = [list(predict_rows(m.model, m.architecture, rows())) for m in members]
    found = list(predict_rows_together(members, rows()))
    assert len(found) == len(arrays)
    for number, (one, *alone) in enumerate(zip(found, *each, strict=True)):
        if number in bad:
            assert one == BadRow(str(number), "bad")
            continue
        assert isinstance(one, Prediction)
        assert one.id == str(number)
        expected = np.mean([p.probabilities for p in alone if isinstance(p, Prediction)], axis=0)
        assert one.probabilities == expected.tolist()


def test_the_page_of_several_runs_has_their_mean(folder: Path, tmp_path: Path) -> None:
    runs = [folder / "a", folder / "b"]
    page = write_report(runs, tmp_path / "page.html", {}).read_text()
    measured = measure_together(runs, {})
    assert measured.n == 6
    assert f"{100 * measured.accuracy:.2f} % test accuracy, n = 6" in page
    singles = [f"{run} {100 * measured.of_each[str(run)]:.2f} %" for run in runs]
    assert f"Each alone: {', '.join(singles)}." in page
    assert train_tiny(tmp_path / "digits", {"data.name": "digits", "train.steps": 2}) == 0
    text = write_report([runs[0], tmp_path / "digits"], tmp_path / "other.html", {}).read_text()
    assert "Not computed: " in text
    assert "cannot be averaged with" in text


def test_a_mean_that_takes_long_is_left_to_evaluate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "MOST_FLOP", 1.0)
    with pytest.raises(UserError, match="it would take long; seqclf evaluate with these runs"):
        measure_together([folder / "a", folder / "b"], {})
