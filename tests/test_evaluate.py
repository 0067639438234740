from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.files import read_status
from helpers.training import train_tiny
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from torch import Tensor, nn

from seqclf.cli import main
from seqclf.cli.predicting import evaluate_run
from seqclf.config.load import load_config
from seqclf.config.settings import Config, Data, Train
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.evaluate import NUM_BINS, NUM_MISTAKES, Metrics, evaluate
from seqclf.prefixes import probabilities
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime
from seqclf.run.weights import load_model

CONFIG = Config(device="cpu", data=Data(name="digits", val_fraction=0.1), train=Train(threads=1))


class Echo(nn.Module):
    """Return the only step of every sequence as its logits; refuse to while training."""

    def forward(self, values_BTF: Tensor, lengths: None = None) -> Tensor:
        assert not self.training
        assert len(values_BTF) <= 10
        return values_BTF[:, 0]


@pytest.fixture(scope="module")
def cpu() -> Runtime:
    return start_runtime(CONFIG)


def data(count: int, num_classes: int, occurring: int) -> Sequences:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(count, 1, num_classes, generator=generator) * 2
    logits[:, :, occurring:] -= 50
    labels = torch.randint(0, occurring, (count,), generator=generator)
    return Sequences(logits, labels, tuple(map(str, range(num_classes))), 1.0)


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize(
    ("count", "num_classes", "occurring"),
    [(97, 5, 5), (100, 10, 10), (1, 5, 5), (7, 10, 4), (53, 2, 1)],
)
def test_metrics_are_scikit_learns(
    cpu: Runtime, count: int, num_classes: int, occurring: int, batch_size: int
) -> None:
    sequences = data(count, num_classes, occurring)
    found = evaluate(cpu, Echo(), sequences, batch_size=batch_size)
    logits = sequences.values[:, 0].double()
    truth, guess = sequences.labels.numpy(), logits.argmax(1).numpy()
    names = list(range(num_classes))
    expected = {
        "val/loss": log_loss(truth, logits.softmax(1).numpy(), labels=names),
        "val/accuracy": accuracy_score(truth, guess),
        "val/macro_f1": f1_score(truth, guess, average="macro"),
    }
    assert found.count == count
    assert found.confusion.tolist() == confusion_matrix(truth, guess, labels=names).tolist()
    assert found.named("val") == pytest.approx(expected, rel=1e-6)
    assert found.accuracy == expected["val/accuracy"]


@pytest.mark.parametrize("shards", [1, 4])
def test_mistakes_and_calibration_are_those_of_the_probabilities(cpu: Runtime, shards: int) -> None:
    sequences = data(997, 5, 5)
    found = evaluate(cpu, Echo(), sequences, batch_size=10, shards=shards)
    chances, guesses = sequences.values[:, 0].softmax(1).max(1)
    truths = sequences.labels
    wrong = [i for i in range(997) if guesses[i] != truths[i]]
    worst = sorted(wrong, key=lambda i: (-float(chances[i]), i))[:NUM_MISTAKES]
    assert len(wrong) > NUM_MISTAKES
    assert [tuple(mistake) for mistake in found.mistakes] == [
        (i, int(truths[i]), int(guesses[i]), float(chances[i])) for i in worst
    ]
    for number, row in enumerate(found.calibration.tolist()):
        low, high = number / NUM_BINS, (number + 1) / NUM_BINS
        inside = [i for i in range(997) if low <= float(chances[i]) < high]
        hits = sum(bool(guesses[i] == truths[i]) for i in inside)
        total = sum(float(chances[i]) for i in inside)
        assert row == pytest.approx([len(inside), hits, total])


def test_a_model_that_diverged_has_mistakes_of_no_confidence(cpu: Runtime) -> None:
    sequences = data(20, 5, 5)
    sequences.values[:] = float("nan")
    found = evaluate(cpu, Echo(), sequences, batch_size=10)
    assert {mistake.probability for mistake in found.mistakes} == {0.0}
    assert found.calibration[0, 0] == 20


def test_a_loss_over_many_batches_is_summed_in_float64(cpu: Runtime) -> None:
    sequences = data(1, 5, 5).select(torch.zeros(4_000, dtype=torch.int64))
    one = evaluate(cpu, Echo(), data(1, 5, 5), batch_size=1).loss
    assert evaluate(cpu, Echo(), sequences, batch_size=1).loss == pytest.approx(one, rel=1e-12)


def test_the_confusion_matrix_has_a_row_for_each_true_class() -> None:
    metrics = Metrics(0.0, torch.tensor([[1, 2, 0], [0, 3, 0], [0, 0, 0]]))
    assert (metrics.count, metrics.accuracy) == (6, 4 / 6)
    assert metrics.macro_f1 == pytest.approx((2 / 4 + 6 / 8) / 2)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_in_its_mode(cpu: Runtime, training: bool) -> None:
    model = Echo().train(training)
    evaluate(cpu, model, data(3, 2, 2), batch_size=10)
    assert model.training is training


def test_a_count_that_is_not_the_splits_is_an_error(
    cpu: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "sum", lambda _, values: 2 * values)
    with pytest.raises(RuntimeError, match="evaluated 14 examples of 7"):
        evaluate(cpu, Echo(), data(7, 2, 2), batch_size=10)


@pytest.mark.parametrize("read", ["rows", "columns", "pixels", "permuted"])
def test_a_run_is_measured_and_predicted_again_as_it_was_read(
    read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.augment.shift": 1, "train.steps": 12}
    assert train_tiny(tmp_path, settings, data__read=read) == 0
    closing = capsys.readouterr().out
    shape = {"rows": "8 steps of 8 features (rows)", "columns": "8 steps of 8 features (columns)"}
    assert shape.get(read, f"64 steps of 1 feature ({read})") in closing
    config, _ = load_config(tmp_path / "config.yaml")
    found = evaluate_run(config, tmp_path)
    assert found == read_status(tmp_path).metrics
    capsys.readouterr()
    assert main.main(["predict", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() in closing
    model, architecture = load_model(tmp_path)
    assert (model.read, architecture.read) == (read, read)
    test = sources.load(config.data, seed=0).test
    hits = probabilities(model, test.values).argmax(1) == test.labels
    assert int(hits.sum()) / len(test) == found["test/accuracy"]
    other = "columns" if read == "rows" else "rows"
    with pytest.raises(UserError, match=rf"data\.read: '{read}' there, '{other}' now"):
        train_tiny(tmp_path, settings, data__read=other)
