from __future__ import annotations

import math

import pytest
import torch

from seqclf.data.sequences import IGNORED
from seqclf.errors import UserError
from seqclf.loss import class_weights, summed_loss

LOGITS = [[0.5, -1.0, 2.0], [3.0, 0.0, -0.5], [0.1, 0.2, 0.3], [-4.0, 4.0, 0.0]]
LABELS = [2, 1, 0, 1]


def by_hand(smoothing: float, rows: list[int]) -> float:
    total = 0.0
    for i in rows:
        log_sum = math.log(sum(math.exp(x) for x in LOGITS[i]))
        costs = [log_sum - x for x in LOGITS[i]]
        total += (1 - smoothing) * costs[LABELS[i]] + smoothing * sum(costs) / 3
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 2], [3], []])
def test_the_loss_is_the_sum_over_the_rows_not_ignored(rows: list[int], smoothing: float) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([label if i in rows else IGNORED for i, label in enumerate(LABELS)])
    loss = summed_loss(logits, labels, label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == pytest.approx(by_hand(smoothing, rows), rel=1e-12)
    assert logits.grad is not None
    assert logits.grad.any(1).tolist() == [i in rows for i in range(4)]
    parts = [
        summed_loss(logits[i:j], labels[i:j], label_smoothing=smoothing)
        for i, j in ((0, 1), (1, 4))
    ]
    assert sum(part.item() for part in parts) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_weight_multiplies_the_smoothed_loss_of_its_class(smoothing: float) -> None:
    logits, labels = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor([2, 1, IGNORED, 1])
    weights = torch.tensor([5.0, 0.25, 3.0], dtype=torch.float64)
    loss = summed_loss(logits, labels, label_smoothing=smoothing, weights_C=weights)
    expected = 3 * by_hand(smoothing, [0]) + 0.25 * by_hand(smoothing, [1, 3])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_class_weights_have_a_mean_of_1_over_the_training_examples() -> None:
    labels, classes = torch.tensor([0, 0, 0, 2]), ("a", "b", "c")
    balanced = class_weights("balanced", labels, classes)
    assert balanced is not None
    torch.testing.assert_close(balanced, torch.tensor([2 / 3, 0.0, 2.0]))
    given = class_weights((1.0, 7.0, 5.0), labels, classes)
    assert given is not None
    torch.testing.assert_close(given, torch.tensor([0.5, 3.5, 2.5]))
    assert float(given[labels].mean()) == 1.0
    assert class_weights(None, labels, classes) is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [((1.0, 2.0), "2 weights for 3 classes.* a, b, c"), ((0.0, 1.0, 0.0), "are 0")],
)
def test_class_weights_that_cannot_be_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weights(weights, torch.tensor([0, 0, 2]), ("a", "b", "c"))
