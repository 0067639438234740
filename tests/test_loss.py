from __future__ import annotations

import math

import pytest
import torch

from seqclf.data.sequences import IGNORED
from seqclf.loss import summed_loss

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
