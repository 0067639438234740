"""The temperature of a result: fitted on validation examples alone, and kept beside the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Capture, call
from helpers.files import files_in, read_metrics, read_status, weights_of
from helpers.ranks import run_ranks
from helpers.training import TINY, train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import seqclf
from seqclf import calibrate
from seqclf.calibrate import HIGHEST, LOWEST, fit_to_logits, mean_cross_entropy
from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier
from seqclf.prefixes import to_probabilities
from seqclf.processes.runtime import Runtime
from seqclf.report.evaluation import calibration_error
from seqclf.report.page import write_report
from seqclf.run.records import CONFIG, find_evaluation
from seqclf.run.weights import find_weights

HELD_OUT = {"data.val_fraction": 0.2, "train.steps": 120, "train.shards": 2, "train.threads": None}


def draw(seed: int, scale: float, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels drawn from the probabilities of logits / scale."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3 * scale, (count, 4))
    noise = generator.gumbel(size=logits.shape)
    return logits, (logits / scale + noise).argmax(1)


# ---- the fit


@settings(deadline=None)
@given(st.integers(0, 999), st.floats(0.1, 8))
def test_the_temperature_has_the_lowest_loss(seed: int, scale: float) -> None:
    logits, labels = draw(seed, scale)
    value, line = fit_to_logits(logits, labels)

    def loss(log_temperature: float) -> float:
        return mean_cross_entropy(logits / math.exp(log_temperature), labels)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert loss(math.log(value)) == pytest.approx(best.fun, abs=1e-9)
    assert value == pytest.approx(math.exp(best.x), rel=1e-3)
    assert f"validation loss {loss(0):.4f} to {best.fun:.4f}" in line


def test_the_temperature_is_that_of_the_labels() -> None:
    logits, labels = draw(0, 2.5, count=50_000)
    assert fit_to_logits(logits, labels).value == pytest.approx(2.5, rel=0.02)


SURE = np.eye(3)[np.arange(60) % 3] * 5
RIGHT = np.arange(60) % 3
ONE_WRONG = np.where(np.arange(60) == 7, 0, RIGHT)


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (SURE[:49], ONE_WRONG[:49], "49 validation examples are too few; hold out 50 or more"),
        (SURE, RIGHT, "all 60 validation examples are named rightly, so no loss bounds it"),
        (np.where(SURE == 5, np.nan, 0), ONE_WRONG, "not all logits of the validation examples"),
        (SURE / 1000, ONE_WRONG, f"the best one is below {LOWEST:g}"),
        (SURE * 100, ONE_WRONG, f"the best one is above {HIGHEST:g}"),
        (SURE, (RIGHT + 1) % 3, f"the best one is above {HIGHEST:g}"),
    ],
)
def test_no_temperature_is_fitted_and_the_line_says_why(
    logits: np.ndarray, labels: np.ndarray, reason: str
) -> None:
    value, line = fit_to_logits(logits, labels)
    assert value == 1
    assert line.startswith(f"temperature none: {reason}")


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1),
    st.floats(LOWEST, HIGHEST),
)
def test_the_class_stays_the_same(rows: list[list[float]], temperature: float) -> None:
    logits = torch.tensor(rows)
    model = LSTMClassifier(2, 3, hidden_size=2)
    raw = to_probabilities(model, logits)
    model.temperature = temperature
    calibrated = to_probabilities(model, logits)
    assert calibrated.sum(1).tolist() == pytest.approx([1] * len(rows))
    for logits_C, raw_C, calibrated_C in zip(logits, raw, calibrated, strict=True):
        first, second = raw_C.topk(2).values.tolist()
        if first > second:
            assert calibrated_C.argmax() == logits_C.argmax() == raw_C.argmax()


def test_a_temperature_of_1_changes_no_bit() -> None:
    logits = torch.randn(50, 7)
    assert torch.equal(to_probabilities(LSTMClassifier(2, 7), logits), logits.softmax(1))


# ---- of a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "run"
    assert train_tiny(path, HELD_OUT) == 0
    return path


def validation_of(run: Path) -> Sequences:
    config, _ = load_config(run / CONFIG)
    validation = sources.load(config.data, seed=config.seed).validation
    assert validation is not None
    return validation


def logits_of(run: Path, sequences: Sequences) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = find_weights(run).build()(*sequences.rows(slice(None)))
    return logits


def test_a_run_keeps_the_temperature_of_its_weights(run: Path) -> None:
    validation = validation_of(run)
    logits = logits_of(run, validation).double().numpy()
    expected = fit_to_logits(logits, validation.labels.numpy()).value
    found = json.loads((run / "model/config.json").read_text())["temperature"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found - 1) > 0.02
    assert json.loads((run / "run.json").read_text())["architecture"]["temperature"] == found


def test_only_what_is_said_of_the_result_changes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "fit_to_logits", lambda *_: calibrate.Temperature(1.0, ""))
    assert train_tiny(tmp_path / "run", HELD_OUT) == 0
    for read in (weights_of, read_metrics):
        assert read(tmp_path / "run") == read(run)
    ours, theirs = (find_evaluation(path, "test") for path in (tmp_path / "run", run))
    assert ours is not None
    assert theirs is not None
    assert theirs.calibrated is not None
    assert ours.calibrated is None
    assert ours == theirs.model_copy(update={"calibrated": None})


def test_any_number_of_processes_fits_the_same_bits(run: Path, tmp_path: Path) -> None:
    assert run_ranks(2, train_tiny, tmp_path / "run", HELD_OUT) == [0, 0]
    for file in ("model/config.json", "evaluation/test.json"):
        assert (tmp_path / "run" / file).read_bytes() == (run / file).read_bytes()


def test_a_signal_ends_the_fit_and_a_resume_repeats_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = calibrate.gather_logits

    def signalled(*arguments: object, **options: object) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Runtime, "stop_requested", True)
            return gather(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "gather_logits", signalled)
    assert train_tiny(tmp_path / "run", HELD_OUT) == 143
    assert read_status(tmp_path / "run").state == "preempted"
    assert not (tmp_path / "run/model").exists()
    monkeypatch.undo()
    assert train_tiny(tmp_path / "run", HELD_OUT) == 0
    name = "model/config.json"
    assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()
    before = files_in(tmp_path / "run")
    assert train_tiny(tmp_path / "run", HELD_OUT) == 0
    assert {k: v for k, v in files_in(tmp_path / "run").items() if k in before} == before


def test_predictions_use_it_and_raw_does_not(run: Path, tmp_path: Path, capsys: Capture) -> None:
    config, _ = load_config(run / CONFIG)
    test = sources.load(config.data, seed=config.seed).test
    temperature = find_weights(run).architecture.temperature
    logits = logits_of(run, test).double()
    images = list(test.values.numpy())
    for flags, divisor in ([], temperature), (["--raw"], 1.0):
        out = tmp_path / "out.jsonl"
        assert call(capsys, "predict", run, "--split", "test", "--out", out, *flags)[0] == 0
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        found = torch.tensor([list(line["probabilities"].values()) for line in lines])
        assert torch.allclose(found, (logits / divisor).softmax(1).float(), atol=1e-5)
        python = seqclf.load(run, raw=bool(flags)).predict_proba(images)
        assert python.tolist() == [list(line["probabilities"].values()) for line in lines]
    stream = seqclf.load(run).stream()
    for row in images[0]:
        last = stream.push(row)
    assert last == pytest.approx((logits[0] / temperature).softmax(0).numpy(), abs=1e-5)


def test_the_report_shows_both_calibrations(run: Path, tmp_path: Path) -> None:
    config, _ = load_config(run / CONFIG)
    test = sources.load(config.data, seed=config.seed).test
    evaluation = find_evaluation(run, "test")
    assert evaluation is not None
    assert evaluation.calibrated is not None
    temperature = evaluation.calibrated.temperature
    logits, labels = logits_of(run, test).double().numpy(), test.labels.numpy()
    loss = mean_cross_entropy(logits / temperature, labels)
    assert evaluation.calibrated.loss == pytest.approx(loss, rel=1e-5)
    shares = torch.from_numpy(logits / temperature).softmax(1).numpy()
    best = shares.max(1)
    bins = np.minimum((best * 15).astype(int), 14)
    is_right = shares.argmax(1) == labels
    gaps = [abs((is_right[bins == b] - best[bins == b]).sum()) for b in range(15)]
    error = calibration_error(evaluation.calibrated.calibration)
    assert error == pytest.approx(sum(gaps) / len(labels), abs=2e-3)
    page = write_report([run], tmp_path / "page.html", {}).read_text()
    assert f"{error:.4f} with temperature {temperature:.3g}" in page
    assert (tmp_path / "page-figures/test-reliability-calibrated.svg").exists()


def test_without_a_validation_part_nothing_is_fitted(tmp_path: Path, capsys: Capture) -> None:
    assert train_tiny(tmp_path / "run", {**TINY, "train.steps": 2}) == 0
    assert "\ntemperature" not in capsys.readouterr().out
    assert find_weights(tmp_path / "run").architecture.temperature == 1
    code, _, err = call(capsys, "predict", tmp_path / "run", "--split", "test", "--raw")
    assert code == 0
    assert "has no temperature that --raw could leave out" in err


def test_a_model_of_before_loads(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files_in(run / "model").items():
        (folder / name).write_bytes(content)
    content = json.loads((folder / "config.json").read_text())
    del content["temperature"]
    (folder / "config.json").write_text(json.dumps(content))
    assert find_weights(folder).architecture.temperature == 1
