"""model/ stands alone: its card says what the run knows, and names in it stay names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Capture, call, refusal, train
from helpers.files import read_metrics
from helpers.training import train_tiny

from seqclf import load
from seqclf.report.card import escape
from seqclf.report.intervals import wilson


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("card") / "run"
    assert train_tiny(run, {"train.steps": 30, "data.val_fraction": 0.1}) == 0
    return run


@pytest.mark.filterwarnings("ignore:.*(another length|all 0|lie in 0 to 1)")
def test_the_card_says_what_the_run_knows(run: Path) -> None:
    card = json.loads((run / "model" / "card.json").read_text())
    facts = json.loads((run / "run.json").read_text())
    assert card["data"]["name"] == "digits"
    assert card["data"]["fingerprint"] == facts["data_fingerprint"]
    assert card["versions"] == facts["versions"]
    assert card["settings"]["train.steps"] == 30
    assert "run_dir" not in {name for name, value in card["settings"].items() if value}
    accuracy = read_metrics(run)[-1]["test/accuracy"]
    assert card["test_accuracy"]["value"] == accuracy
    interval = wilson(round(accuracy * 359), 359)
    assert card["test_accuracy"]["interval_95"] == list(interval)
    page = (run / "model" / "README.md").read_text()
    assert f"{accuracy:.2%} of n = 359 test examples" in page
    assert f"{interval[0]:.2%} to {interval[1]:.2%}, Wilson" in page
    assert "- Classes: 0, 1, 2" in page
    probabilities = load(run / "model").predict_proba([card["example"]])
    assert np.isfinite(probabilities).all()


def test_the_card_says_which_classes_no_test_example_has(tmp_path: Path) -> None:
    lines = [f"{i},{t},{i % 3},{'abc'[i % 3]},{'test' if i % 4 == i % 3 else 'train'}"
             for i in range(24) if (i % 4 != i % 3 or i % 3 != 1) for t in range(2)]  # fmt: skip
    (tmp_path / "new.csv").write_text("\n".join(["id,t,x,label,split", *lines]))
    run = train(tmp_path, tmp_path / "new.csv", "--time", "t", steps=2)
    card = json.loads((run / "model" / "card.json").read_text())
    assert card["classes_without_test"] == ["b"]
    page = (run / "model" / "README.md").read_text()
    assert "\nNo test example is of the class b.\nThe figures hold" in page


def test_a_hostile_name_is_shown_as_it_is() -> None:
    shown = escape("<b>|[x](http://y)\n`*_\x1b[1m")
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert "<" not in shown
    assert "\\|\\[x\\]\\(http\\://y\\)" in shown
    assert "\\`\\*\\_" in shown


@pytest.mark.filterwarnings("ignore:.*(another length|all 0|lie in 0 to 1)")
def test_every_command_that_takes_a_run_takes_model_or_says_why(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    np.savez(tmp_path / "new.npz", X=np.zeros((2, 8, 8), np.float32), y=["0", "1"])
    assert call(capsys, "predict", model, tmp_path / "new.npz")[0] == 0
    assert call(capsys, "evaluate", model, tmp_path / "new.npz")[0] == 0
    assert call(capsys, "export", model, "--out", tmp_path / "x.onnx")[0] == 0
    assert "a model without its run" in refusal(capsys, "predict", model)
    assert "a model without its run" in refusal(capsys, "evaluate", model)
    assert "a model without its run" in refusal(capsys, "checkpoints", model)
    refusal(capsys, "report", model)
