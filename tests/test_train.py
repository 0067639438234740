"""What the loop decides by a metric: ties, NaN and waits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from seqclf.run.records import State
from seqclf.train import choose


def choices(metric: str, values: Iterable[float]) -> list[tuple[float | None, int, int, int]]:
    """Return the best, its step, the wait and the longest wait after each of some evaluations."""
    state, answers = State(), []
    for step, value in enumerate(values, 1):
        state.step = step
        state.metrics = {metric: value}
        choose(state, metric)
        answers.append((state.best.get(metric), state.best_step, state.waited, state.longest_wait))
    return answers


def test_neither_a_tie_nor_nan_is_better() -> None:
    assert choices("val/accuracy", [0.5, 0.5, 0.4, 0.6, math.nan, 0.6]) == [
        (0.5, 1, 0, 0),
        (0.5, 1, 1, 1),
        (0.5, 1, 2, 2),
        (0.6, 4, 0, 2),
        (0.6, 4, 1, 2),
        (0.6, 4, 2, 2),
    ]
    assert choices("val/loss", [math.nan, 2.0, 2.0, 3.0, 1.0]) == [
        (None, 0, 1, 1),
        (2.0, 2, 0, 1),
        (2.0, 2, 1, 1),
        (2.0, 2, 2, 2),
        (1.0, 5, 0, 2),
    ]


def test_a_state_of_an_older_version_loads() -> None:
    state = State.model_validate_json(json.dumps({"step": 7, "judged": 4}))
    assert (state.best, state.best_step, state.waited, state.longest_wait) == ({}, 0, 0, 0)
