"""`seqclf evaluate RUN FILE` measures what `predict` writes, and says what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import (
    IDS,
    LABELS,
    Capture,
    N,
    T,
    as_long,
    call,
    refusal,
    table,
    train,
    write_jsonl,
    write_table,
)
from helpers.reading import write
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from seqclf.evaluate import Metrics
from seqclf.terminal import WIDTH, metrics_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.jsonl, and a model of it in run/."""
    folder = tmp_path_factory.mktemp("predictions")
    train(folder, write_jsonl(folder / "x.jsonl"))
    return folder


def test_metrics_are_those_of_the_written_predictions(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    new = write_jsonl(tmp_path / "new.jsonl")
    rows = [json.loads(line) for line in new.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["label"] = ["up", "down"][number % 2]
    write(tmp_path, "new.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call(capsys, "evaluate", folder / "run", new, "--json")
    assert (code, err) == (0, "")
    metrics = json.loads(out)
    call(capsys, "predict", folder / "run", new, "--out", tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    truth, guess = ([line[key] for line in lines] for key in ("truth", "class"))
    classes = ["down", "up"]
    shares = np.array([[line["probabilities"][name] for name in classes] for line in lines])
    assert metrics["classes"] == classes
    assert metrics["examples"] == N
    assert metrics["accuracy"] == accuracy_score(truth, guess) < 1
    assert metrics["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    shares = shares / shares.sum(1, keepdims=True)
    assert metrics["loss"] == pytest.approx(log_loss(truth, shares, labels=classes), rel=1e-6)
    assert metrics["confusion"] == confusion_matrix(truth, guess, labels=classes).tolist()
    shown = call(capsys, "evaluate", folder / "run", new)[1].splitlines()
    assert shown[:2] == ["examples  60", f"accuracy  {metrics['accuracy']:.2%}"]
    assert [line.split() for line in shown[6:]] == [
        ["down", "up"],
        ["down", *map(str, metrics["confusion"][0])],
        ["up", *map(str, metrics["confusion"][1])],
    ]


def test_evaluate_needs_labels_that_are_classes(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = folder / "run"
    rows = [json.loads(line) for line in write_jsonl(tmp_path / "x.jsonl").read_text().splitlines()]

    def write_labels(**labels: object) -> Path:
        for number, label in labels.items():
            rows[int(number[1:])]["label"] = label
        return write(tmp_path, "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    path = write_labels(r3=None, r7=None)
    assert refusal(capsys, "evaluate", run, path) == (
        f"error: {path}: 2 sequences, the first of them '{IDS[3]}', have no label; --on-bad-row "
        "skip leaves them out\n"
    )
    code, out, err = call(capsys, "evaluate", run, path, "--on-bad-row", "skip")
    assert (code, out.splitlines()[0]) == (0, "examples  58")
    assert err == "2 sequences without a label were left out\n"
    path = write_labels(r3="sideways", r7="up")
    assert refusal(capsys, "evaluate", run, path) == (
        f"left out: {path}, '{IDS[3]}': label 'sideways': no class of the model; its classes are "
        "down, up\n"
        "error: 1 row cannot be measured, see above; --on-bad-row skip leaves them out\n"
    )
    assert call(capsys, "evaluate", run, path, "--on-bad-row", "skip")[1].startswith("examples  59")
    path = write_jsonl(tmp_path / "x.jsonl", label=None)
    assert refusal(capsys, "evaluate", run, path) == (
        f"error: {path}: no sequence has a label; name their column with --label, or a file of "
        "labels with --labels\n"
    )
    lines = [as_long(number, step) for number in range(N) for step in range(T)]
    path = write_table(tmp_path / "x.csv", lines)
    err = refusal(capsys, "evaluate", run, path)
    assert err.startswith(f"error: {path}:1: ")
    assert "--label" in err
    assert "'result' (" in err


def test_a_label_that_changes_is_no_truth_where_sequences_are_whole(
    tmp_path: Path, capsys: Capture
) -> None:
    lines = [as_long(number, step) for number in range(N) for step in range(T)]
    run = train(tmp_path, write_table(tmp_path / "x.csv", lines), "--label", "result")
    lines[3]["result"] = "up" if lines[3]["result"] == "down" else "down"
    path = write_table(tmp_path / "y.csv", lines)
    code, out, err = call(capsys, "predict", run, path)
    assert (code, [line["truth"] for line in table(out)]) == (0, ["", *LABELS[1:]])
    assert "note: 1 sequences have no truth: no label stands at enough of their steps" in err
    assert f"left out: {path}, 'r0': more than one label" in refusal(capsys, "evaluate", run, path)


def metrics_of(confusion: list[list[int]]) -> Metrics:
    return Metrics(0.5, torch.tensor(confusion))


def test_a_matrix_that_is_wide_is_numbered_or_listed() -> None:
    few = metrics_text(metrics_of([[1200, 3], [0, 7]]), ("walk", "run"))
    assert few.splitlines()[5:] == [
        "rows: the truth; columns: the guess",
        "      walk   run",
        "walk 1,200     3",
        "run      0     7",
    ]
    names = tuple(f"a long name {number}" for number in range(10))
    numbered = metrics_text(metrics_of(torch.eye(10, dtype=torch.int64).tolist()), names)
    assert numbered.splitlines()[6:8] == [
        " " * 15 + "".join(f" {number}" for number in range(10)),
        "0 a long name 0" + " 1" + " 0" * 9,
    ]
    confusion = torch.eye(100, dtype=torch.int64) * 5
    confusion[7, 3], confusion[2, 98], confusion[0, 1] = 2, 1200, 2
    many = metrics_text(metrics_of(confusion.tolist()), tuple(f"c{n}" for n in range(100)))
    assert many.splitlines()[5:] == [
        "truth  guess  errors",
        "c2     c98    1,200",
        "c0     c1     2",
        "c7     c3     2",
        "--json prints the whole confusion matrix",
    ]
    confusion = torch.ones(100, 100, dtype=torch.int64)
    most = metrics_text(metrics_of(confusion.tolist()), tuple(f"c{n}" for n in range(100)))
    assert most.splitlines()[-1].startswith("and 9,868 more pairs; --json")
    for text in (few, numbered, many, most):
        assert max(map(len, text.splitlines())) <= WIDTH
