"""A model that reads one time step after the other and carries its state: constant work a step.

The model says the same of a prefix as if it read the prefix anew, up to rounding. Shapes: B rows,
T steps, F features, H hidden, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqclf.model import Architecture, LSTMClassifier
from seqclf.prefixes import to_probabilities


def reason_against(architecture: Architecture) -> str | None:
    """Return why a model cannot carry its state from step to step, with the remedy; None if it can.

    This is the one place that decides it.
    """
    if architecture.bidirectional:
        return (
            "the model reads in both directions, and the second one begins at the end of a "
            "sequence; train a model with --model.bidirectional false"
        )
    if architecture.rocket:
        return (
            "the model's fixed convolutions look some steps ahead, so it reads each prefix anew; "
            "train a model with --model.rocket 0"
        )
    if architecture.max_length is not None and architecture.keep == "last":
        return (
            f"the model reads the last {architecture.max_length:,} steps of a sequence, which "
            "begin elsewhere after each step; train a model with --data.keep first"
        )
    return None


class Pooled(NamedTuple):
    """The pooled outputs of the steps so far."""

    value: Tensor  # [B, H]
    weight: Tensor  # [B, 1]: how many steps there are; of attention the sum of their weights
    top: Tensor  # [B, 1], of attention: the largest score, which the weights are relative to


class Carried(NamedTuple):
    """What B rows carry from step to step; at first nothing."""

    states: tuple[tuple[Tensor, Tensor], ...] = ()  # of each LSTM layer, both [1, B, H]
    pooled: Pooled | None = None
    waiting: tuple[Tensor, ...] = ()  # [B, F]: steps that are fewer than `stack` as yet

    def select(self, rows: Tensor) -> Carried:
        """Return what these rows carry."""
        return Carried(
            tuple((hidden[:, rows], cell[:, rows]) for hidden, cell in self.states),
            self.pooled and Pooled(*(tensor[rows] for tensor in self.pooled)),
            tuple(step_BF[rows] for step_BF in self.waiting),
        )


def read_step(model: LSTMClassifier, carried: Carried, step: Tensor) -> tuple[Tensor, Carried]:
    """Read one more step of each row, features [B, F] or tokens [B].

    Return the logits of the steps so far, [B, C], and what the rows carry on.
    """
    waiting = (*carried.waiting, model.embed(step[:, None])[:, 0])
    num_missing = model.stack - len(waiting)
    # As at the end of a sequence, zeros stand for the steps that a stack of steps lacks.
    input_B1F = torch.cat([*waiting, *[torch.zeros_like(waiting[0])] * num_missing], 1)[:, None]
    states = []
    for number, lstm in enumerate((model.rnn, *model.upper)):
        input_B1F, state = lstm(input_B1F, carried.states[number] if carried.states else None)
        states.append(state)
    pooled = _pool_step(model, carried.pooled, input_B1F[:, 0])
    logits_BC: Tensor = model.out(pooled.value)
    if num_missing:
        return logits_BC, carried._replace(waiting=waiting)
    return logits_BC, Carried(tuple(states), pooled)


def _pool_step(model: LSTMClassifier, pooled: Pooled | None, output_BH: Tensor) -> Pooled:
    """Return the outputs up to a step, pooled; `pooled` is that of the steps before."""
    score_B1 = torch.zeros_like(output_BH[:, :1])
    if model.attention is not None:
        score_B1 = model.attention(output_BH).float()
    if pooled is None:
        return Pooled(output_BH, torch.ones_like(score_B1), score_B1)
    if model.pooling == "last":
        return pooled._replace(value=output_BH)
    if model.pooling == "max":
        return pooled._replace(value=pooled.value.maximum(output_BH))
    # A running mean: each step moves it towards its output, by its share of the weights so far.
    top_B1 = pooled.top.maximum(score_B1)
    own_B1 = (score_B1 - top_B1).exp()
    weight_B1 = pooled.weight * (pooled.top - top_B1).exp() + own_B1
    share_B1 = (own_B1 / weight_B1).to(output_BH.dtype)
    value_BH = pooled.value + share_B1 * (output_BH - pooled.value)
    return Pooled(value_BH, weight_B1, top_B1)


class Early(NamedTuple):
    """When a sequence is decided: as soon as a class is so probable, else at its end."""

    until: float
    min_steps: int = 1  # no decision before so many steps


class Outcome(NamedTuple):
    """What a model says of a sequence, or of its first `step` steps."""

    probabilities: list[float]
    step: int | None = None  # the last step that was read, from 1; None: the whole sequence was
    is_sure: bool = True  # whether a class reached the threshold
    num_steps: int = 0  # of the whole sequence, where `step` says how many were read


@torch.inference_mode()
def decide(
    model: LSTMClassifier, values: Tensor, lengths: Tensor | None, early: Early
) -> list[Outcome]:
    """Read B rows step by step until each is decided; `lengths` None: every row has all steps.

    A row that is decided is read no further. `values` are images, steps [B, T, F] or tokens [B, T].
    """
    device = model.out.weight.device
    steps = model.steps(values.to(device))
    num_rows, num_steps = steps.shape[:2]
    if lengths is None:
        lengths = torch.full((num_rows,), num_steps)
    outcomes = [Outcome([])] * num_rows
    rows = torch.arange(num_rows)  # those that are not decided yet
    carried = Carried()
    for number in range(1, num_steps + 1):
        logits_BC, carried = read_step(model, carried, steps[rows.to(device), number - 1])
        probabilities_BC = to_probabilities(model, logits_BC)
        is_sure_B = probabilities_BC.amax(1).double() >= early.until
        done_B = (is_sure_B & (number >= early.min_steps)) | (lengths[rows] == number)
        if not done_B.any():
            continue
        for place in done_B.nonzero()[:, 0].tolist():
            outcomes[int(rows[place])] = Outcome(
                probabilities_BC[place].tolist(),
                number,
                bool(is_sure_B[place]),
                int(lengths[rows[place]]),
            )
        if done_B.all():
            break
        rows = rows[~done_B]
        carried = carried.select((~done_B).nonzero()[:, 0].to(device))
    return outcomes


@torch.inference_mode()
def read_through(model: LSTMClassifier, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest probability after each step, float64 [B, T], and its class, int64 [B, T].

    They are what `decide` looks at. Beyond a row's length they mean nothing.
    """
    carried = Carried()
    highest, guesses = [], []
    for step in model.steps(values.to(model.out.weight.device)).unbind(1):
        logits_BC, carried = read_step(model, carried, step)
        best_B, guesses_B = to_probabilities(model, logits_BC).max(1)
        highest.append(best_B.double())
        guesses.append(guesses_B)
    return torch.stack(highest, 1), torch.stack(guesses, 1)
