"""The loss of contract C2: a sum over examples, divided once by the global batch's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seqclf.config import UserError
from seqclf.data.sequences import IGNORED


def summed_loss(
    logits_BC: Tensor, labels_B: Tensor, *, label_smoothing: float, weights_C: Tensor | None = None
) -> Tensor:
    """Return the cross-entropies of a batch added up, a scalar; rows labelled IGNORED add 0.

    A sum, because sums over micro batches, processes and short batches add up exactly. Each is
    times its class's weight, smoothing included (torch's own `weight` weighs the two apart).
    """
    loss = F.cross_entropy(
        logits_BC,
        labels_B,
        reduction="sum" if weights_C is None else "none",
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
    if weights_C is None:
        return loss
    return (loss * weights_C[labels_B.clamp(min=0)]).sum()


def class_weights(
    wanted: Literal["balanced"] | Sequence[float] | None, labels: Tensor, classes: Sequence[str]
) -> Tensor | None:
    """Return the classes' weights, float32 [C], whose mean over the training labels is 1.

    Raises UserError unless there is one of each class, and one above 0 that occurs.
    """
    if wanted is None:
        return None
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).double()
    if wanted == "balanced":
        given = torch.where(counts > 0, 1 / counts, 0)
    else:
        given = torch.tensor(wanted, dtype=torch.float64)
        if len(given) != len(classes):
            raise UserError(
                f"loss.class_weights: {len(given)} weights for {len(classes)} classes; give one of "
                f"each, in the order {', '.join(classes)}"
            )
    mean = float((given * counts).sum() / counts.sum())
    if not mean:
        raise UserError("loss.class_weights: all weights of the classes that occur are 0")
    return (given / mean).float()
