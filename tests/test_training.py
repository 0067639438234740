"""What the loop decides by a metric: ties, NaN and waits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from seqclf.run.records import State
from seqclf.training import choose


def choices(
    metric: str, evaluations: Iterable[tuple[float, float]], warmup_steps: int = 0
) -> list[tuple[float | None, int, int, int, int]]:
    """Return the best, its step, both waits and the begin of the decay after each evaluation.

    An evaluation is an accuracy and a loss.
    """
    state, answers = State(), []
    for step, (accuracy, loss) in enumerate(evaluations, 1):
        state.step = step
        state.metrics = {"val/accuracy": accuracy, "val/loss": loss}
        choose(state, metric, warmup_steps=warmup_steps, patience=2)
        waits = (state.waited, state.longest_wait)
        answers.append((state.best.get(metric), state.best_step, *waits, state.decay_from))
    return answers


def test_the_loss_decides_between_equals_and_nan_is_not_better() -> None:
    nan = math.nan
    of_accuracy = [(0.5, 1), (0.5, 1), (0.5, 0.9), (0.4, 0.1), (0.6, 9), (nan, 0), (0.6, 9), (1, 1)]
    assert choices("val/accuracy", of_accuracy) == [
        (0.5, 1, 0, 0, 0),
        (0.5, 1, 1, 1, 0),
        (0.5, 3, 0, 1, 0),
        (0.5, 3, 1, 1, 0),
        (0.6, 5, 0, 1, 0),
        (0.6, 5, 1, 1, 0),
        (0.6, 5, 2, 2, 7),
        (1.0, 8, 0, 2, 7),  # the decay goes on, and may find better ones
    ]
    assert choices("val/loss", [(0, nan), (0, 2.0), (1, 2.0), (1, 3.0), (0, 1.0)]) == [
        (None, 0, 1, 1, 0),
        (2.0, 2, 0, 1, 0),
        (2.0, 2, 1, 1, 0),
        (2.0, 2, 2, 2, 4),
        (1.0, 5, 0, 2, 4),
    ]


def test_while_the_rate_rises_nothing_waits() -> None:
    falling = [(0.9, 1.0), (0.8, 2.0), (0.7, 3.0), (0.6, 4.0), (0.5, 5.0)]
    assert [answer[2:] for answer in choices("val/accuracy", falling, warmup_steps=3)] == [
        (0, 0, 0),
        (0, 0, 0),
        (0, 0, 0),
        (1, 1, 0),
        (2, 2, 5),
    ]


def test_a_state_of_an_older_version_loads() -> None:
    state = State.model_validate_json(json.dumps({"step": 7, "judged": 4}))
    assert (state.best, state.best_step, state.waited, state.longest_wait) == ({}, 0, 0, 0)
