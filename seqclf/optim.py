"""The optimizer, the learning rate of a step, and the update that skips bad steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqclf.config.settings import Optim


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Build fused Adam or AdamW over a model's parameters, without weight decay of biases.

    Only the fused kernel can skip a step on the device, as `update` asks it to.
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


def count_warmup_steps(optim: Optim, num_steps: int) -> int:
    """Return over how many steps the learning rate rises."""
    return round(optim.warmup * num_steps)


def lr_at(step: int, optim: Optim, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    The rate rises linearly to `lr` over the first `warmup` share of the steps, then stays or falls.
    It is above zero even at the last step, so that each step changes the weights.
    """
    warmup_steps = count_warmup_steps(optim, num_steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / (warmup_steps + 1)
    if optim.schedule == "constant":
        return optim.lr
    remaining = (num_steps - step) / max(1, num_steps - warmup_steps)  # from 1 down to above 0
    if optim.schedule == "linear":
        return optim.lr * remaining
    return optim.lr * (0.5 - 0.5 * math.cos(math.pi * remaining))


def update(
    optimizer: torch.optim.Optimizer, lr: float, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Clip the gradients, make one step and clear them; skip the step if they are not finite.

    Return the gradient's norm, and 1.0 if the step was skipped or 0.0 if not: scalars that stay on
    the device, since reading them would wait for it. The norm is that of the reduced gradient. It
    is the same on every rank, so all ranks skip the same steps without asking each other.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in parameters]))
    skipped = (norm * 0).nan_to_num(nan=1.0)  # infinity times 0 is NaN
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    if clip is not None:
        # Clipping costs nothing, because the fused kernel divides by grad_scale anyway.
        optimizer.grad_scale = norm.clamp(min=clip) / clip  # type: ignore[attr-defined]
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None  # as zero_grad, but without its profiling: 1 % of a small step
    return norm, skipped
