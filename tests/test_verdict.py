"""A result that is none is said in one line at the end of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers.training import Settings, train_tiny

from seqclf.report.page import write_report
from seqclf.run.records import Evaluation
from seqclf.run.verdict import why_no_result


def evaluation(loss: float | None, confusion: list[list[int]]) -> Evaluation:
    classes = tuple("abcdefgh"[: len(confusion)])
    return Evaluation(
        step=1,
        metrics={"test/loss": loss},
        classes=classes,
        confusion=confusion,
        calibration=[],
        mistakes=[],
    )


@pytest.mark.parametrize(
    ("loss", "confusion", "said"),
    [
        (None, [[5, 0], [0, 5]], "the model has diverged: its test loss is not a finite number"),
        (math.inf, [[5, 0], [0, 5]], "the model has diverged"),
        (0.1, [[0, 0], [0, 7]], "all 7 test examples are of class 'b', so the accuracy does not"),
        (0.1, [[6, 0], [4, 0]], "the model names every test example 'a', which 60.00% of them"),
        (0.1, [[0, 6], [0, 4]], "the model names every test example 'b', which 40.00% of them"),
        (
            0.1,
            [[5, 1], [3, 1]],
            "test accuracy 60.00% is no better than naming each example 'a', the commonest class "
            "(60.00%)",
        ),
        (0.1, [[6, 0], [3, 1]], None),  # one better
        (
            0.6932,
            [[6, 0], [3, 1]],
            "test loss 0.6932 is above 0.6931, that of equal probabilities for all 2 classes",
        ),
        (0.6931, [[6, 0], [3, 1]], None),
        (1.0986, [[2, 0, 0], [0, 1, 1], [0, 0, 2]], None),
        (80.0, [[2, 0, 0], [0, 1, 1], [0, 0, 2]], "test loss 80 is above 1.099, that of equal"),
    ],
)
def test_what_a_model_must_beat(
    loss: float | None, confusion: list[list[int]], said: str | None
) -> None:
    found = why_no_result(evaluation(loss, confusion), "test")
    assert (found is None) if said is None else str(found).startswith(said)


def test_the_name_of_a_class_cannot_drive_a_terminal() -> None:
    one = evaluation(0.1, [[6, 0], [4, 0]]).model_copy(update={"classes": ("\x1b[2J", "b")})
    assert "'\\x1b[2J'" in str(why_no_result(one, "test"))


def last_line(run_dir: Path, capsys: pytest.CaptureFixture[str], settings: Settings) -> str:
    """Train on the digits, of which ten classes are as common; return the last line."""
    assert train_tiny(run_dir, settings) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_a_run_ends_with_its_doubts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = last_line(tmp_path / "one", capsys, {"train.steps": 1, "optim.lr": 1e-12})
    assert line.startswith("warning: ")
    assert "the model" in line
    line = last_line(tmp_path / "good", capsys, {"train.steps": 200})
    assert line == f"            seqclf runs {tmp_path}"
    for name, is_said in (("one", True), ("good", False)):
        page = write_report([tmp_path / name], None, {}).read_text()
        assert ("<strong>No result</strong>: " in page) == is_said


def test_an_evaluation_of_other_weights_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_old(*args: object) -> None:
        path = tmp_path / "evaluation" / "test.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(evaluation(9.0, [[1, 0], [1, 0]]).to_json())

    monkeypatch.setattr("seqclf.run.directory.Run.write_evaluation", write_old)
    line = last_line(tmp_path, capsys, {"train.steps": 200})
    assert line == f"            seqclf runs {tmp_path.parent}"
