"""The loss: a sum over examples, which the step divides once by the size of the global batch.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from seqclf.data.sequences import IGNORED
from seqclf.errors import UserError


def summed_loss(
    logits_BC: Tensor, labels_B: Tensor, *, label_smoothing: float, weights_C: Tensor | None = None
) -> Tensor:
    """Return the summed cross-entropy of a batch, a scalar; rows labelled IGNORED add 0.

    It is a sum, because the sums of micro batches, processes and short batches add up exactly. The
    weight of an example's class multiplies the whole term, smoothing included; torch's own `weight`
    would weight the smoothing by every class.
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
    setting: Literal["balanced"] | Sequence[float] | None, labels: Tensor, classes: Sequence[str]
) -> Tensor | None:
    """Return the weight of each class, float32 [C]; their mean over the training labels is 1.

    Raises UserError unless the setting has a weight for each class, and one of a class that occurs
    is above 0.
    """
    if setting is None:
        return None
    counts_C = torch.bincount(labels.cpu(), minlength=len(classes)).double()
    if setting == "balanced":
        weights_C = torch.where(counts_C > 0, 1 / counts_C, 0)
    else:
        weights_C = torch.tensor(setting, dtype=torch.float64)
        if len(weights_C) != len(classes):
            raise UserError(
                f"loss.class_weights: {len(weights_C)} weights for {len(classes)} classes; give "
                f"one of each, in the order {', '.join(classes)}"
            )
    mean = float((weights_C * counts_C).sum() / counts_C.sum())
    if not mean:
        raise UserError("loss.class_weights: all weights of the classes that occur are 0")
    return (weights_C / mean).float()
