"""Deciding early, on a page: the accuracy that each threshold keeps, and what it saves.

Shapes: B batch, N examples, T steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqclf.data.batches import MAX_EVAL_STEPS
from seqclf.data.sequences import Sequences
from seqclf.measure import harmonic_mean
from seqclf.model import LSTMClassifier
from seqclf.prefixes import most_steps
from seqclf.report.figures import draw_early
from seqclf.report.reading import AT_ONCE, choose_evenly
from seqclf.stepwise import read_through

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


class Threshold(NamedTuple):
    """What `--until` with this threshold comes to."""

    until: float
    accuracy: float
    earliness: float

    @property
    def harmonic_mean(self) -> float:
        """The harmonic mean of accuracy and 1 - earliness."""
        return harmonic_mean(self.accuracy, self.earliness)


class EarlySection(NamedTuple):
    """What a page shows of decisions before the end of a sequence."""

    num_read: int
    best: Threshold
    figures: dict[str, str]
    """None where every threshold comes to the same."""


def watch_decisions(model: LSTMClassifier, test: Sequences) -> EarlySection:
    """Let the model read test examples step by step, and decide at each of THRESHOLDS."""
    ids_N = choose_evenly(model, test, anew=False)
    size = min(AT_ONCE, max(1, MAX_EVAL_STEPS // most_steps(model, test)))
    rows = [decide_at_each(model, test, ids_B) for ids_B in ids_N.split(size)]
    hits, shares = torch.cat(rows, 2).mean(2)
    points = [
        Threshold(until, accuracy, earliness)
        for until, accuracy, earliness in zip(
            THRESHOLDS, hits.tolist(), shares.tolist(), strict=True
        )
    ]
    best = max(points, key=lambda point: point.harmonic_mean)
    figures = {}
    if len({point.earliness for point in points}) > 1:
        figures["early"] = draw_early(
            [(point.earliness, point.accuracy, point.until) for point in points]
        )
    return EarlySection(len(ids_N), best, figures)


def decide_at_each(model: LSTMClassifier, test: Sequences, ids_B: Tensor) -> Tensor:
    """Return, for each threshold and example, whether it is right, and the share that was read.

    Both are float64, [2, thresholds, B].
    """
    values, lengths_B = test.rows(ids_B)
    best_BT, guesses_BT = read_through(model, values)
    if lengths_B is None:
        lengths_B = torch.full([len(ids_B)], best_BT.shape[1])
    is_last_BT = torch.arange(1, best_BT.shape[1] + 1) == lengths_B[:, None]
    labels_B = test.labels[ids_B].cpu()
    found = []
    for until in THRESHOLDS:
        step_B = ((best_BT >= until) | is_last_BT).long().argmax(1)  # the first of them
        guesses_B = guesses_BT.gather(1, step_B[:, None])[:, 0]
        found.append([guesses_B == labels_B, (step_B + 1) / lengths_B])
    return torch.stack(
        [torch.stack([row.double() for row in rows]) for rows in zip(*found, strict=True)]
    )
