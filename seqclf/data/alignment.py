"""Whether sequences of one class are alike at the same step, or what tells classes apart moves.

Shapes: R rows, T steps, F features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqclf.data.sequences import Sequences, spread_over_classes

# The first of each: enough for a mean over all pairs, and small in memory.
MOST_ROWS, MOST_STEPS, MOST_FEATURES = 256, 4096, 64


def alignment(examples: Sequences) -> float:
    """Return the mean correlation of two sequences of a class, at the same step: up to 1.

    Near 0 they start anywhere, as windows of a long recording do. NaN if no two sequences of a
    class can be compared: tokens, single examples, values that do not change.
    """
    if examples.num_tokens:
        return math.nan
    ids = spread_over_classes(examples.labels, MOST_ROWS)
    labels_R = examples.labels.cpu()[ids]
    values, lengths = examples.rows(ids)
    values_RTF = values[:, :MOST_STEPS, :MOST_FEATURES].cpu().double()
    num_steps = values_RTF.shape[1]
    lengths_R = (
        torch.full((len(ids),), num_steps) if lengths is None else lengths.clamp(max=num_steps)
    )
    valid_RT1 = (torch.arange(num_steps) < lengths_R[:, None])[..., None]
    normal_RTF = _normalise(values_RTF, valid_RT1)
    products, squares = 0.0, 0.0
    for label in labels_R.unique():
        is_label_R = labels_R == label
        count_T1 = valid_RT1[is_label_R].sum(0)
        has_pairs_T = count_T1[:, 0] > 1
        square_TF = normal_RTF[is_label_R].square().sum(0)
        # Of all pairs: the square of a sum holds each product of two rows twice, and the squares.
        product_TF = normal_RTF[is_label_R].sum(0).square() - square_TF
        products += float((product_TF / (count_T1 - 1))[has_pairs_T].sum())
        squares += float(square_TF[has_pairs_T].sum())
    return products / squares if squares else math.nan


def _normalise(values_RTF: Tensor, valid_RT1: Tensor) -> Tensor:
    """Give each feature of each row mean 0 and variance 1 over its valid steps; padding is 0."""
    count_R11 = valid_RT1.sum(1, keepdim=True)
    # The first step is taken off before: the rounding of a high level is as large as small changes.
    changes_RTF = (values_RTF - values_RTF[:, :1]).where(valid_RT1, 0)
    centred_RTF = (changes_RTF - changes_RTF.sum(1, keepdim=True) / count_R11).where(valid_RT1, 0)
    deviation_R1F = (centred_RTF.square().sum(1, keepdim=True) / count_R11).sqrt()
    return (centred_RTF / deviation_R1F).where(deviation_R1F > 0, 0)
