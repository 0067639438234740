"""The page of a run: its numbers, its words, and that a browser takes it without a complaint."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import toy_dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from seqclf import cli
from seqclf.config import UserError
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier
from seqclf.predict import load_model, probabilities
from seqclf.report import decided_at, read_run, read_shares, spread, wilson, write_report

HOSTILE = '"><script>alert(1)</script>$\\frac{'
FLAGS = ["--train.steps", "30", "--log.every", "10", "--tracking.wandb", "disabled", "--quiet"]


def train(run_dir: Path, *words: str) -> Path:
    assert cli.main(["train", "--run-dir", str(run_dir), *FLAGS, *words]) == 0
    return run_dir


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "digits", "--data.name", "digits")


@given(st.integers(1, 500), st.data())
def test_intervals_are_scipys(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_decided_is_where_the_guess_stays(guesses: list[int]) -> None:
    expected = next(i for i in range(len(guesses)) if len(set(guesses[i:])) == 1)
    assert decided_at(torch.tensor([guesses])).tolist() == [expected]


def test_a_page_says_what_the_evaluation_found(digits: Path) -> None:
    page = write_report([digits], None, {}).read_text()
    found = json.loads((digits / "evaluation" / "test.json").read_text())
    assert f"{100 * found['test/accuracy']:.2f} %" in page
    assert f"{found['test/macro_f1']:.4f}" in page
    assert "test accuracy, n = 359" in page
    assert "Over 359 of 359 test examples" in page
    drawn = {file.stem for file in (digits / "report-figures").iterdir()}
    assert {"train-loss", "test-accuracy", "test-confusion", "test-reliability"} < drawn
    assert {"reading-share", "reading-decided", "reading-example-0"} < drawn
    assert page.count("<figure role=") == page.count("<svg aria-hidden=") == len(drawn)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert len(page) < 3e6
    identifiers = re.findall(r' id="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_the_last_share_of_the_reading_is_the_accuracy(digits: Path) -> None:
    run, (model, _) = read_run(digits), load_model(digits)
    test = sources.load(run.config.data, seed=run.config.seed).test
    ids = spread(model, test)
    assert ids.tolist() == list(range(359))
    shares, chances = read_shares(model, test, ids)
    assert shares == [step / 8 for step in range(1, 9)]
    hits = int((chances[:, -1].argmax(1) == test.labels).sum())
    assert hits / 359 == run.evaluations["test"]["test/accuracy"]


def test_shares_of_sequences_are_rounded_up_to_a_step() -> None:
    lengths = torch.tensor([7, 2, 5])
    values = torch.randn(14, 3)
    starts = lengths.cumsum(0) - lengths
    some = Sequences(values, torch.zeros(3).long(), ("a", "b"), starts=starts, lengths=lengths)
    model = LSTMClassifier(3, 2, hidden_size=4)
    shares, chances = read_shares(model, some, torch.arange(3))
    assert shares == [step / 7 for step in range(1, 8)]
    for row, length in enumerate(lengths.tolist()):
        for place in range(7):
            prefix = some[row][0][: math.ceil(length * (place + 1) / 7)]
            expected = probabilities(model, prefix[None])[0]
            torch.testing.assert_close(chances[row, place], expected, rtol=0, atol=1e-6)


def test_where_the_data_are_gone_the_rest_is_shown(tmp_path: Path) -> None:
    data = toy_dataset(tmp_path / "data")
    run_dir = train(tmp_path / "run", "--data.path", str(data))
    assert "The model reading" in write_report([run_dir], None, {}).read_text()
    data.rename(tmp_path / "moved")
    page = write_report([run_dir], None, {}).read_text()
    assert "Not shown: " in page
    assert "Learning curves" in page
    page = write_report([run_dir], None, {"data.path": str(tmp_path / "moved")}).read_text()
    assert "Not shown: " not in page


def test_an_unfinished_run_has_a_page(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    status = json.loads((digits / "status.json").read_text())
    status |= {"state": "failed", "error": "no <more>"}
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')
    page = write_report([tmp_path / "run"], None, {}).read_text()
    assert "<strong>failed</strong>: no &lt;more&gt;" in page


def test_runs_are_compared(digits: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", "--data.name", "digits", "--seed", "1")
    third = train(tmp_path / "third", "--data.name", "digits", "--optim.lr", "0.002")
    out = tmp_path / "all.html"
    page = write_report([digits, other, third], out, {}).read_text()
    for name in ("optim.lr", "seed", "other", "third", "n = 2"):
        assert name in page
    accuracies = [
        json.loads((path / "status.json").read_text())["metrics"]["test/accuracy"]
        for path in (digits, other)
    ]
    assert f"{sum(accuracies) / 2:.4f} ± " in page
    assert {"train-loss", "test-accuracy"} < {f.stem for f in (tmp_path / "all-figures").iterdir()}


def test_a_file_of_the_users_is_not_replaced(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("precious")
    with pytest.raises(UserError, match="choose another --out"):
        write_report([digits], tmp_path / "mine.html", {})
    assert (tmp_path / "mine.html").read_text() == "precious"


@pytest.mark.parametrize("kind", ["series", "text"])
def test_hostile_names_are_only_names_in_a_browser(tmp_path: Path, kind: str) -> None:
    rows = [
        {"steps": [[n % 2, 0.5]] * (2 + n % 5), "label": [HOSTILE, "ok"][n % 2]}
        if kind == "series"
        else {"text": f"{HOSTILE} {n}" * (1 + n % 2), "label": [HOSTILE, "ok"][n % 2]}
        for n in range(60)
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["prepare", str(source), "--out", str(tmp_path / "data")]) == 0
    run_dir = train(tmp_path / "run", "--data.path", str(tmp_path / "data"))
    out = write_report([run_dir], None, {})
    assert "<script>alert" not in out.read_text()
    for figure in (run_dir / "report-figures").iterdir():
        assert "<script" not in figure.read_text()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"),
            *("--dump-dom", f"file://{out}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<script") == 1
    assert done.stdout.count("<svg") == len(list((run_dir / "report-figures").iterdir()))


def test_a_run_ends_with_its_page(digits: Path, tmp_path: Path) -> None:
    assert (digits / "report.html").is_file()
    run_dir = train(tmp_path / "run", "--data.name", "digits", "--report", "false")
    assert not (run_dir / "report.html").exists()


def test_no_page_of_a_sweeps_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    run_dir = train(tmp_path / "run", "--data.name", "digits")
    assert not (run_dir / "report.html").exists()


def test_a_page_that_fails_is_told_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr("seqclf.report.write_report", fail)
    run_dir = train(tmp_path / "run", "--data.name", "digits")
    assert "warning: no report: no luck; try again: seqclf report" in capfd.readouterr().out
    assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
