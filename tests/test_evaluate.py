from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from torch import Tensor, nn

from seqclf import runtime
from seqclf.config import Config, Data, Train
from seqclf.data.sequences import Sequences
from seqclf.evaluate import Metrics, evaluate
from seqclf.runtime import Runtime

CONFIG = Config(device="cpu", data=Data(name="digits", val_fraction=0.1), train=Train(threads=1))


class Echo(nn.Module):
    """Return the only step of every sequence as its logits; refuse to while training."""

    def forward(self, values_BTF: Tensor) -> Tensor:
        assert not self.training
        assert len(values_BTF) <= 10
        return values_BTF[:, 0]


@pytest.fixture(scope="module")
def cpu() -> Runtime:
    return runtime.start(CONFIG)


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
