from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqclf.config.settings import Optim
from seqclf.optim import lr_at, make_optimizer, update

no_deadline = settings(deadline=None)
Schedule = Literal["constant", "linear", "cosine"]
schedules = st.sampled_from(["constant", "linear", "cosine"])


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        ("constant", [1.0] * 6),
        ("linear", [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5 + 0.5 * math.cos(math.pi * i / 6) for i in range(6)]),
    ],
)
def test_the_rate_of_every_step(schedule: Schedule, after_warmup: list[float]) -> None:
    def rates(warmup: float, num_steps: int) -> list[float]:
        optim = Optim(lr=0.3, schedule=schedule, warmup=warmup)
        return [lr_at(step, optim, num_steps) / 0.3 for step in range(num_steps)]

    assert rates(0.25, 8) == pytest.approx([1 / 3, 2 / 3, *after_warmup], rel=1e-12)
    assert rates(0.0, 6) == pytest.approx(after_warmup, rel=1e-12)


@no_deadline
@given(
    schedule=schedules,
    lr=st.floats(1e-8, 1e3),
    warmup=st.floats(0, 1, exclude_max=True),
    num_steps=st.integers(1, 10**6),
    data=st.data(),
)
def test_the_rate_is_above_zero_and_at_most_the_peak(
    schedule: Schedule, lr: float, warmup: float, num_steps: int, data: st.DataObject
) -> None:
    optim = Optim(lr=lr, schedule=schedule, warmup=warmup)
    step = data.draw(st.integers(0, num_steps - 1) | st.just(num_steps - 1))
    assert 0 < lr_at(step, optim, num_steps) <= lr


@no_deadline
@given(schedule=schedules, warmup=st.floats(0, 0.9), num_steps=st.integers(10, 1000))
def test_the_rate_rises_then_falls_without_a_jump(
    schedule: Schedule, warmup: float, num_steps: int
) -> None:
    optim = Optim(lr=1.0, schedule=schedule, warmup=warmup)
    rates = [lr_at(step, optim, num_steps) for step in range(num_steps)]
    peak = round(warmup * num_steps)
    assert rates[peak] == 1.0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    largest_move = max(1 / (peak + 1), math.pi / 2 / (num_steps - peak)) * (1 + 1e-9)
    assert all(abs(b - a) <= largest_move for a, b in pairwise(rates))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def fill_gradients(model: nn.Module, step: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("clip", [None, 1.0, 1e-3])
@pytest.mark.parametrize(("name", "decay"), [("adamw", 0.0), ("adamw", 0.1), ("adam", 0.1)])
def test_update_is_torchs_clipping_and_step(
    name: Literal["adamw", "adam"], decay: float, clip: float | None
) -> None:
    ours, theirs = small_model(), small_model()
    optimizer = make_optimizer(ours, Optim(name=name, weight_decay=decay, betas=(0.8, 0.9)))
    cls = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": decay},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = cls(groups, betas=(0.8, 0.9), foreach=False, fused=False)
    for step, size in enumerate((3.0, 0.01, 1.0, 0.1, 10.0)):
        rate = 0.02 / (step + 1)
        for model in (ours, theirs):
            fill_gradients(model, step, size)
        expected_norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        norm, bad = update(optimizer, rate, clip)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-6)
        assert float(bad) == 0.0
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing(value: float, clip: float | None) -> None:
    def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        moments = [t for p in model.parameters() for t in optimizer.state[p].values()]
        return [*model.parameters(), *moments]

    model = small_model()
    optimizer = make_optimizer(model, Optim(weight_decay=0.1))
    for step in range(2):
        fill_gradients(model, step)
        update(optimizer, 0.01, clip)
    untouched = deepcopy((model, optimizer))
    fill_gradients(model, 2)
    gradient = next(model.parameters()).grad
    assert gradient is not None
    gradient[1, 2] = value
    norm, bad = update(optimizer, 0.01, clip)
    assert not math.isfinite(float(norm))
    assert float(bad) == 1.0

    for next_step in (False, True):
        for each in ((model, optimizer), untouched) if next_step else ():
            fill_gradients(each[0], 3)
            assert float(update(each[1], 0.01, clip)[1]) == 0.0
        pairs = list(zip(everything(model, optimizer), everything(*untouched), strict=True))
        assert len(pairs) == 4 + 4 * 3
        assert all(torch.equal(mine, other) for mine, other in pairs)


def test_weight_decay_leaves_biases_alone() -> None:
    model, untouched = small_model(), small_model().state_dict()
    optimizer = make_optimizer(model, Optim(weight_decay=0.5))
    for _ in range(3):
        fill_gradients(model, 0, size=0.0)
        update(optimizer, 0.1, 1.0)
    for name, weight in model.state_dict().items():
        factor = 0.95**3 if name.endswith("weight") else 1.0
        torch.testing.assert_close(weight, untouched[name] * factor)
