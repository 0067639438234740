"""The loss of contract C2: a sum over examples, divided once by the global batch's size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqclf.data.sequences import IGNORED


def summed_loss(logits_BC: Tensor, labels_B: Tensor, *, label_smoothing: float) -> Tensor:
    """Return the cross-entropies of a batch added up, a scalar; rows labelled IGNORED add 0.

    A sum, because sums over micro batches, processes and short batches add up exactly.
    """
    return F.cross_entropy(
        logits_BC,
        labels_B,
        reduction="sum",
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
