"""The page of a run: its numbers, its words, and that a browser takes it without a complaint."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import toy_dataset, write_rows
from helpers.files import change_json, read_status
from helpers.training import Settings, train_tiny
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import Tensor

from seqclf.cli.main import main
from seqclf.config.load import config_from
from seqclf.config.settings import settings_by_name
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.model import LSTMClassifier
from seqclf.prefixes import classify_prefixes, decided_at, probabilities, token_lines
from seqclf.report.compare import compare
from seqclf.report.figures import in_blocks
from seqclf.report.intervals import macro_f1_interval, wilson
from seqclf.report.page import headline, page_of_run, write_report
from seqclf.report.reading import choose_evenly, classify_shares
from seqclf.report.render import render
from seqclf.report.run_record import RunRecord, read_run
from seqclf.run.records import Status
from seqclf.run.weights import load_model

SETTINGS: Settings = {
    "model.hidden_size": 64,
    "train.steps": 30,
    "log.every": 10,
    "quiet": True,
}
WITH_PAGE: Settings = {"report": True}


def train(run_dir: Path, settings: Mapping[str, object] = {}) -> Path:
    assert train_tiny(run_dir, {**SETTINGS, **settings}) == 0
    return run_dir


def with_settings(run: RunRecord, settings: Mapping[str, object]) -> RunRecord:
    """Return what a page would read of the run if it had these settings."""
    config = config_from({**settings_by_name(run.config), **settings}, None, "the test")
    return replace(run, config=config)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "digits", WITH_PAGE)


@given(st.integers(1, 500), st.data())
def test_the_ends_of_an_interval_are_196_deviations_from_the_share(
    n: int, data: st.DataObject
) -> None:
    share = (hits := data.draw(st.integers(0, n))) / n
    low, high = wilson(hits, n)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):  # Wilson's definition: the deviation is that of the end, not the share
        assert abs(share - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5, abs=1e-9
        )
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_macro_f1_is_that_of_resampled_examples() -> None:
    matrix = [[50, 3, 0], [2, 20, 5], [0, 1, 4]]
    pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(matrix[i][j])]
    truth, guess = np.array(pairs).T
    rng = np.random.default_rng(1)
    picks = rng.integers(0, len(pairs), (2000, len(pairs)))
    scores = [f1_score(truth[pick], guess[pick], average="macro") for pick in picks]
    found = macro_f1_interval(matrix, draws=20000)
    assert found == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=0.015)
    assert macro_f1_interval([[7, 0], [0, 5]]) == (1.0, 1.0)
    assert macro_f1_interval([[7, 0], [0, 0]]) == (1.0, 1.0)  # a class that does not occur


def test_a_long_curve_is_means_and_ranges_of_blocks() -> None:
    points = [(step, float(step % 7)) for step in range(1, 1001)]
    blocks = in_blocks(points, most=100)
    assert len(blocks) == 100
    assert blocks[0] == (5.5, 2.7, 0.0, 6.0)
    assert in_blocks(points[:100], most=100) == [(s, v, v, v) for s, v in points[:100]]
    assert sum(value for _, value, *_ in blocks) == pytest.approx(
        sum(value for _, value in points) / 10
    )


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
    low, high = wilson(round(359 * found["test/accuracy"]), 359)
    assert (
        f"It names {100 * found['test/accuracy']:.1f} % of 359 unseen examples rightly "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f})."
    ) in page
    anchors = set(re.findall(r'<li><a href="#([^"]+)"', page))
    assert anchors == {"over", "curves", "test", "run", "next"}
    assert all(page.count(f' id="{name}"') == 1 for name in anchors)
    assert f"<code>seqclf demo {digits.name}</code>" in page
    drawn = {file.stem for file in (digits / "report-figures").iterdir()}
    assert {"loss", "accuracy", "drivers", "test-confusion", "test-reliability"} < drawn
    assert {"reading-share", "reading-decided", "reading-example-0"} < drawn
    assert all(
        re.search(r'role="(img|group)" aria-label="[^"]', svg)
        for svg in re.findall("<svg [^>]*>", page)
    )
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)
    assert {"config.yaml", "evaluation/test.json", "model"} < set(links)
    assert all((digits / link).exists() for link in links)
    assert len(page) < 400_000
    identifiers = re.findall(r' id="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_the_test_split_comes_first_and_a_perfect_score_has_no_interval(digits: Path) -> None:
    record = read_run(digits)
    test = record.evaluations["test"]
    perfect = test.model_copy(
        update={"confusion": [[9, 0], [0, 7]], "classes": ("a", "b"), "mistakes": []}
    )
    metrics = {name.replace("test/", "val/"): value for name, value in test.metrics.items()}
    evaluations = {"val": test.model_copy(update={"metrics": metrics}), "test": perfect}
    page = page_of_run(replace(record, evaluations=evaluations), {})
    assert list(page.evaluations) == ["test", "val"]
    text = render(page)
    assert text.count("no mistake, so no interval") == 1
    assert text.count("Validation: watched training, so it is no result") == 1
    assert text.index("test accuracy, n = 16") < text.index("validation accuracy, n = 359")


def test_what_is_no_result_is_no_headline(digits: Path) -> None:
    section = page_of_run(read_run(digits), {}).evaluations["test"]
    assert headline(section) is not None
    perfect = replace(section, is_perfect=True, n=8, accuracy_interval=(0.67559, 1.0))
    assert headline(perfect) == (
        "It names all 8 unseen examples rightly (95 % interval 67.6 to 100.0)."
    )
    assert headline(replace(section, doubt="all predictions are one class")) is None


def test_the_data_must_be_those_of_the_run(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "run")
    change_json(tmp_path / "run" / "run.json", data_fingerprint="0" * 64)
    page = page_of_run(read_run(tmp_path / "run"), {})
    assert page.no_reading_because == f"the data of {tmp_path / 'run'} are others now; name its own"
    assert page.reading is None


def test_the_last_share_of_the_reading_is_the_accuracy(digits: Path) -> None:
    run, (model, _) = read_run(digits), load_model(digits)
    test = sources.load(run.config.data, seed=run.config.seed).test
    ids = choose_evenly(model, test, anew=model.reads_prefixes_anew)
    assert ids.tolist() == list(range(359))
    shares, chances = classify_shares(model, test, ids)
    assert shares == [step / 8 for step in range(1, 9)]
    hits = int((chances[:, -1].argmax(1) == test.labels).sum())
    assert hits / 359 == run.evaluations["test"].metrics["test/accuracy"]


def test_shares_of_sequences_are_rounded_up_to_a_step() -> None:
    lengths = torch.tensor([7, 2, 5])
    values = torch.randn(14, 3)
    starts = lengths.cumsum(0) - lengths
    some = Sequences(values, torch.zeros(3).long(), ("a", "b"), starts=starts, lengths=lengths)
    model = LSTMClassifier(3, 2, hidden_size=4)
    shares, chances = classify_shares(model, some, torch.arange(3))
    assert shares == [step / 7 for step in range(1, 8)]
    for row, length in enumerate(lengths.tolist()):
        for place in range(7):
            prefix = some[row][0][: math.ceil(length * (place + 1) / 7)]
            expected = probabilities(model, prefix[None])[0]
            torch.testing.assert_close(chances[row, place], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_without_a_result_is_read_by_its_newest_checkpoint(
    digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    page, whole = (
        write_report([path], None, {}).read_text() for path in (tmp_path / "run", digits)
    )
    assert "those of step-00000030, as the run has no result yet" in page
    stories = re.findall(r"says [0-9] .*? for good", page)
    assert len(stories) >= 6
    assert stories == re.findall(r"says [0-9] .*? for good", whole)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    page = write_report([tmp_path / "run"], None, {}).read_text()
    assert "Not shown: " in page
    assert "neither a trained model nor a whole checkpoint" in page


def test_where_the_data_are_gone_the_rest_is_shown(tmp_path: Path) -> None:
    data = toy_dataset(tmp_path / "data")
    run_dir = train(tmp_path / "run", {"data.name": "files", "data.path": data})
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
    change_json(tmp_path / "run" / "status.json", state="failed", error="no <more>")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')
    page = write_report([tmp_path / "run"], None, {}).read_text()
    assert "<strong>failed</strong>: no &lt;more&gt;" in page


def test_a_damaged_file_is_as_good_as_a_missing_one(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(digits, run_dir)
    with (run_dir / "evaluation" / "test.json").open("a") as file:
        file.write(" " * 2**20)  # long, but whole
    assert list(read_run(run_dir).evaluations) == ["test"]
    for name in ("status.json", "run.json", "evaluation/test.json"):
        (run_dir / name).write_text('{"step": ')
    for name in ("metrics.jsonl", "sessions.jsonl"):
        text = (run_dir / name).read_text()
        (run_dir / name).write_text(f'\n[3]\n{text}{{"step": ')
    run = read_run(run_dir)
    assert (run.state, run.metrics, run.evaluations) == ("unknown", {}, {})
    assert run.metric_lines == read_run(digits).metric_lines
    assert run.sessions == read_run(digits).sessions
    page = write_report([run_dir], None, {}).read_text()
    assert "<strong>unknown</strong>" in page
    assert "0 of 0" in page
    assert "Learning curves" in page
    assert (
        "<td>unknown</td>" in write_report([digits, run_dir], tmp_path / "2.html", {}).read_text()
    )


def test_runs_are_compared(digits: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", {"seed": 1})
    third = train(tmp_path / "third", {"optim.lr": 0.002})
    out = tmp_path / "all.html"
    page = write_report([digits, other, third], out, {}).read_text()
    for name in ("optim.lr", "seed", "other", "third", "n = 2"):
        assert name in page
    accuracies = [read_run(path).metrics["test/accuracy"] or 0 for path in (digits, other)]
    assert f"{sum(accuracies) / 2:.4f} ± " in page
    drawn = {file.stem for file in (tmp_path / "all-figures").iterdir()}
    assert {"train-loss", "test-accuracy"} < drawn
    loss = (tmp_path / "all-figures/train-loss.svg").read_text()
    assert ">lr 0.01<" in loss  # the legend names what differs
    assert ">lr 0.002<" in loss
    assert "Test accuracy</strong>: lr 0.01: " in page
    assert "cannot be said: it takes two seeds or more" in page
    assert "(McNemar&#39;s exact test: seed 0, of 359 test examples" in page
    assert "Warning: the settings are compared on the test split." in page
    # The page's pair against the predictions that each run writes.
    right = []
    for path in (digits, third):
        assert (
            main(["predict", str(path), "--split", "test", "--out", str(tmp_path / "p.csv")]) == 0
        )
        rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
        right.append([row["truth"] == row["class"] for row in rows])
    only = [sum(a and not b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1])]
    best = max(only)
    assert f"<td>0</td><td>359</td><td>{best}</td><td>{min(only)}</td>" in page


@pytest.mark.slow
def test_windows_of_recordings_get_no_test_of_single_runs(tmp_path: Path) -> None:
    rows = [
        {"steps": [[n % 2 + step] for step in range(6)], "label": "ab"[n % 2]} for n in range(60)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["prepare", str(source), "--out", str(tmp_path / "data"), "--window", "3"]
    assert main(words) == 0
    files: Settings = {"data.name": "files", "data.path": tmp_path / "data", "train.steps": 2}
    runs = [train(tmp_path / f"{lr}", {**files, "optim.lr": lr}) for lr in (0.01, 0.02)]
    page = write_report(runs, tmp_path / "all.html", {}).read_text()
    assert "No test compares single runs: the test examples are parts of longer recordings." in page
    assert "The mean of their probabilities" in page
    assert "McNemar" not in page


def test_runs_on_other_data_and_folds_get_no_test(digits: Path, tmp_path: Path) -> None:
    run = read_run(digits)
    facts = run.facts.model_copy(update={"data_fingerprint": "b" * 64})
    other = replace(run, path=tmp_path / "b", facts=facts)
    for runs, reason in (
        ([run, other], "their data are not the same"),
        ([run, replace(run, status=None)], "1 of the runs has not finished."),
        ([run, with_settings(run, {"data.folds": 3, "data.fold": 2})], "they are folds"),
    ):
        found = compare(runs)
        assert (found.answers, found.pairs) == ([], [])
        assert reason in found.notes[0]
    val: dict[str, float | None] = {"val/accuracy": 0.5, "test/accuracy": 0.25}
    status = Status(state="finished", step=9, metrics=val)
    one = replace(run, status=status)
    found = compare([one, with_settings(one, {"optim.lr": 0.5})])
    assert [title for title, _ in found.answers] == ["Validation accuracy", "Test accuracy"]
    assert found.notes[0].startswith("Choose a setting by its validation accuracy.")
    seeds = compare([run, with_settings(run, {"seed": 5})])
    assert (len(seeds.answers), seeds.notes) == (1, [])  # no setting is chosen


@pytest.mark.slow
def test_a_file_of_the_users_is_not_replaced(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("precious")
    with pytest.raises(UserError, match="choose another --out"):
        write_report([digits], tmp_path / "mine.html", {})
    assert (tmp_path / "mine.html").read_text() == "precious"
    folder = tmp_path / "page-figures"
    folder.mkdir()
    (folder / "mine.svg").write_text("precious")
    write_report([digits], tmp_path / "page.html", {})
    write_report([digits], tmp_path / "page.html", {})
    assert (folder / "mine.svg").read_text() == "precious"
    (folder / "accuracy.svg").write_text("precious")
    with pytest.raises(UserError, match=r"accuracy\.svg: is there already and not ours"):
        write_report([digits], tmp_path / "page.html", {})


def test_what_a_run_lacks_is_not_what_diverged(digits: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "a-very-long-name-that-differs-in-its-middle-only", {"seed": 1})
    metrics = read_status(other).metrics | {"val/accuracy": None}
    change_json(other / "status.json", metrics=metrics)
    change_json(other / "run.json", data_fingerprint="5ca1ab1e" * 8)
    out = tmp_path / "all.html"
    page = write_report([digits, other], out, {}).read_text()
    assert page.count("not finite") == 1
    assert "<td>digits 5ca1ab1e</td>" in page
    assert "<td>1: digits</td>" in page
    loss = (tmp_path / "all-figures/train-loss.svg").read_text()
    assert ">digits 5ca1ab1e<" in loss


def test_the_training_time_is_that_of_the_examples_seen(digits: Path) -> None:
    run = read_run(digits)
    rates = [rate for _, rate in run.points("train/examples_per_s")]
    assert [count for _, count in run.points("train/examples")] == [640, 1280, 1886]
    assert run.training_s == pytest.approx(640 / rates[0] + 640 / rates[1] + 606 / rates[2])


def test_a_letter_stands_on_the_line_of_its_last_byte() -> None:
    text = torch.tensor(list("aé日b".encode()))
    some = Sequences(
        text,
        torch.zeros(1).long(),
        ("a", "b"),
        starts=torch.zeros(1).long(),
        lengths=torch.tensor([7]),
        num_tokens=256,
    )
    assert token_lines(some, text, [1, 2, 3, 4, 5, 6, 7]) == ["a", "", "é", "", "", "日", "b"]
    assert token_lines(some, text[:5], [2, 5]) == ["a", "é\N{REPLACEMENT CHARACTER}"]


def test_long_sequences_are_read_a_few_at_a_time(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (model, _) = read_run(digits), load_model(digits)
    test = sources.load(run.config.data, seed=run.config.seed).test
    shares, expected = classify_shares(model, test, torch.arange(30))
    monkeypatch.setattr("seqclf.report.reading.MAX_EVAL_STEPS", 20)  # two of eight steps
    read: list[int] = []
    honest = classify_prefixes

    def counted(model: LSTMClassifier, values: Tensor, ends: Tensor) -> Tensor:
        read.append(len(values))
        return honest(model, values, ends)

    monkeypatch.setattr("seqclf.report.reading.classify_prefixes", counted)
    found = classify_shares(model, test, torch.arange(30))
    assert read == [2] * 15
    assert found[0] == shares
    torch.testing.assert_close(found[1], expected)
    monkeypatch.setattr("seqclf.report.reading.MOST_FLOP", 1)
    assert len(choose_evenly(model, test, anew=model.reads_prefixes_anew)) == 20


def test_a_run_ends_with_its_page(digits: Path, tmp_path: Path) -> None:
    assert (digits / "report.html").is_file()
    run_dir = train(tmp_path / "run")
    assert not (run_dir / "report.html").exists()


@pytest.mark.slow
def test_nothing_to_do_leaves_the_page_alone(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", WITH_PAGE)
    (run_dir / "report.html").write_text("mine")
    train(run_dir, WITH_PAGE)
    assert (run_dir / "report.html").read_text() == "mine"
    (run_dir / "report.html").unlink()
    train(run_dir, WITH_PAGE)
    assert (run_dir / "report.html").is_file()


def test_no_page_of_a_sweeps_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    run_dir = train(tmp_path / "run", WITH_PAGE)
    assert not (run_dir / "report.html").exists()


def test_a_page_that_fails_is_told_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr("seqclf.report.page.write_report", fail)
    run_dir = train(tmp_path / "run", WITH_PAGE)
    assert "warning: no report: no luck; try again: seqclf report" in capfd.readouterr().err
    assert read_status(run_dir).state == "finished"
