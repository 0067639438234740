"""The optimizer, the learning rate of a step, and the update that skips bad steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqclf.config import Optim


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Build fused Adam or AdamW over a model's parameters; biases are not decayed.

    Fused, because that kernel skips a step on the device when told so (`update`).
    """
    cls = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    parameters = list(model.parameters())
    groups = [{"params": parameters, "weight_decay": 0.0}]
    if optim.weight_decay:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return cls(groups, lr=optim.lr, betas=optim.betas, fused=True)


def lr_at(step: int, optim: Optim, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly over the first `warmup` share of the steps to `lr`, then stays or falls; it is
    never zero before the end: the last step of a falling schedule still moves.
    """
    warmup_steps = round(optim.warmup * num_steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / (warmup_steps + 1)
    if optim.schedule == "constant":
        return optim.lr
    left = (num_steps - step) / max(1, num_steps - warmup_steps)  # 1 at the peak, > 0 at the end
    return optim.lr * (left if optim.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def update(
    optimizer: torch.optim.Optimizer, lr: float, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Clip the gradients, make one step, forget them; change nothing if they are not finite.

    Returns the gradient's norm and 1.0 or 0.0, whether the step was skipped: scalars on the device,
    nothing is read back. The norm is that of the reduced gradient, the same on every rank, so all
    ranks agree without a word. Clipping is free: the fused kernel divides by `grad_scale` anyway.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters]))
    bad = (norm * 0).nan_to_num(nan=1.0)  # infinity times 0 is NaN
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    if clip is not None:
        optimizer.grad_scale = norm.clamp(min=clip) / clip  # type: ignore[attr-defined]
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None  # what zero_grad does, without its profiling: 1 % of a small step
    return norm, bad
