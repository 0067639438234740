"""Canaries: what the design rests on in other people's code; a release that changes it fails."""

from __future__ import annotations

import torch
from helpers.launching import launch
from torch import nn


def test_fused_adamw_honours_found_inf_and_grad_scale_on_the_cpu() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    optimizer.grad_scale = torch.tensor(4.0)  # type: ignore[attr-defined]
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["exp_avg"], torch.full((3,), 0.1 / 4))
    before = weight.detach().clone()
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(weight, before)
    assert optimizer.state[weight]["step"].item() == 1.0


def test_adam_keeps_the_state_that_checkpoints_hold() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[weight]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert (state["step"].dtype, state["step"].shape) == (torch.float32, ())


def test_accelerate_launch_exports_what_we_do_not_take_for_a_request() -> None:
    names = "('ACCELERATE_MIXED_PRECISION', 'OMP_NUM_THREADS')"
    code = f"import os; print({{k: os.environ.get(k) for k in {names}}})"
    done = launch("accelerate", "launch", "--cpu", "--no_python", "python", "-c", code)
    assert "'ACCELERATE_MIXED_PRECISION': 'no'" in done.stdout
    assert "'OMP_NUM_THREADS': '1'" in done.stdout
