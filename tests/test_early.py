"""Deciding early, measured: accuracy, earliness, and their harmonic mean."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from helpers.commands import LABELS, Capture, N, T, call, refusal, table, train, write_jsonl
from helpers.training import train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf.data.sequences import Sequences
from seqclf.measure import harmonic_mean
from seqclf.model import LSTMClassifier
from seqclf.report.early import THRESHOLDS, decide_at_each, watch_decisions
from seqclf.report.page import write_report
from seqclf.stepwise import Early, decide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.jsonl, and a model of it in run/."""
    folder = tmp_path_factory.mktemp("early")
    train(folder, write_jsonl(folder / "x.jsonl"))
    return folder


@pytest.mark.parametrize("min_steps", [1, 3])
def test_evaluate_measures_the_decisions_that_predict_writes(
    folder: Path, tmp_path: Path, capsys: Capture, min_steps: int
) -> None:
    new = write_jsonl(tmp_path / "new.jsonl")
    words = (folder / "run", new, "--until", "0.7", "--min-steps", str(min_steps))
    lines = table(call(capsys, "predict", *words)[1])
    hits = [line["class"] == label for line, label in zip(lines, LABELS, strict=True)]
    steps = [int(line["step"]) for line in lines]
    assert len(set(steps)) > 1
    found = json.loads(call(capsys, "evaluate", *words, "--json")[1])
    assert found["examples"] == N
    assert found["accuracy"] == statistics.mean(hits)
    assert found["earliness"] == pytest.approx(statistics.mean(steps) / T)
    assert found["unsure"] == [line["sure"] for line in lines].count("no")
    parts = [found["accuracy"], 1 - found["earliness"]]
    assert found["harmonic_mean"] == pytest.approx(statistics.harmonic_mean(parts))
    shown = call(capsys, "evaluate", *words)[1]
    assert f"\nearliness {found['earliness']:.4f}: " in shown
    assert f"1 - earliness {found['harmonic_mean']:.4f}" in shown
    own = json.loads(call(capsys, "evaluate", folder / "run", "--until", "0.7", "--json")[1])
    assert own["examples"] == 6  # the test split


def test_a_sequence_read_to_its_end_is_not_early(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    new = write_jsonl(tmp_path / "new.jsonl")
    whole = json.loads(call(capsys, "evaluate", folder / "run", new, "--json")[1])
    late = call(capsys, "evaluate", folder / "run", new, "--until", "1", "--json")[1]
    assert json.loads(late)["accuracy"] == whole["accuracy"]
    assert json.loads(late)["earliness"] == 1
    assert "earliness" not in whole


def test_models_that_cannot_are_refused(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, {"model.bidirectional": True, "train.steps": 2}) == 0
    err = refusal(capsys, "evaluate", run, "--until", "0.9")
    assert "--until 0.9: the model reads in both directions" in err
    page = write_report([run], tmp_path / "page.html", {}).read_text()
    assert "<h3>Deciding early</h3><p>Not shown: the model reads in both directions" in page


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_the_harmonic_mean_lies_between_its_parts(accuracy: float, earliness: float) -> None:
    found = harmonic_mean(accuracy, earliness)
    low, high = sorted([accuracy, 1 - earliness])
    assert low - 1e-12 <= found <= high + 1e-12
    assert found == pytest.approx(statistics.harmonic_mean([accuracy, 1 - earliness]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.integers(1, 3), st.sampled_from(["last", "mean", "max", "attention"]))
def test_a_page_decides_as_predict_does(seed: int, stack: int, pooling: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LSTMClassifier(3, 2, hidden_size=6, stack=stack, pooling=pooling).eval()  # type: ignore[arg-type]
        lengths = torch.randint(1, 9, (12,))
        values = torch.randn(int(lengths.sum()), 3) * 3
        labels = torch.randint(0, 2, (12,))
    model.out.weight.data *= 8
    starts = lengths.cumsum(0) - lengths
    test = Sequences(values, labels, ("a", "b"), starts=starts, lengths=lengths)
    ids = torch.arange(12)
    hits, shares = decide_at_each(model, test, ids)
    padded, padded_lengths = test.rows(ids)
    for number, until in enumerate(THRESHOLDS):
        outcomes = decide(model, padded, padded_lengths, Early(until))
        guesses = [one.probabilities.index(max(one.probabilities)) for one in outcomes]
        assert hits[number].tolist() == [
            float(g == y) for g, y in zip(guesses, labels, strict=True)
        ]
        assert shares[number].tolist() == pytest.approx(
            [(one.step or 0) / one.num_steps for one in outcomes]
        )
        assert [one.num_steps for one in outcomes] == lengths.tolist()


def test_the_page_has_the_curve(folder: Path, tmp_path: Path) -> None:
    page = write_report([folder / "run"], tmp_path / "page.html", {}).read_text()
    assert (tmp_path / "page-figures/early.svg").exists()
    assert "The best harmonic mean of accuracy and 1 - earliness is 0." in page


def test_the_best_threshold_is_the_one_of_the_highest_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = LSTMClassifier(3, 2, hidden_size=6).eval()
    test = Sequences(
        torch.randn(40, 3),
        torch.arange(10) % 2,
        ("a", "b"),
        starts=torch.arange(0, 40, 4),
        lengths=torch.full((10,), 4),
    )
    section = watch_decisions(model, test)
    hits, shares = decide_at_each(model, test, torch.arange(10)).mean(2)
    means = [harmonic_mean(h, s) for h, s in zip(hits.tolist(), shares.tolist(), strict=True)]
    assert section.best.harmonic_mean == pytest.approx(max(means))
    assert len(set(shares.tolist())) > 1
    assert set(section.figures) == {"early"}
    model.out.weight.data.zero_()
    model.out.bias.data.zero_()
    # Of a model that is never sure there is one point, which is no curve.
    monkeypatch.setattr("seqclf.report.early.THRESHOLDS", (0.9, 0.99))
    assert watch_decisions(model, test).figures == {}
    assert section.num_read == 10
