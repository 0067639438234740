"""Whether sequences of one class are alike at the same place, or start anywhere.

Shapes: T steps, F features, P pieces, K sequences of a class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seqclf.data.sequences import Sequences, spread_over_classes

PIECES = 32  # of a sequence of usual length; the mean over a piece has less noise than a step
MOST_ROWS, MOST_FEATURES = 256, 64  # the first ones are enough for a mean


def alignment(examples: Sequences) -> float:
    """Return how alike two sequences of a class are at the same place: a mean correlation.

    The same sequences give 1. Near 0 they start anywhere, as windows of a long recording do. NaN if
    no two sequences of a class can be compared: images, tokens, single examples, values that do not
    change.
    """
    if examples.num_tokens or examples.lengths is None:
        return math.nan
    width = max(1, round(int(examples.lengths.median()) / PIECES))
    count = max(MOST_ROWS, 2 * len(examples.classes))
    of_classes: dict[int, list[Tensor]] = {}
    for index in spread_over_classes(examples.labels, count).tolist():
        values_1TF, _ = examples.rows(torch.tensor([index]))
        values_TF = values_1TF[0, : 2 * PIECES * width, :MOST_FEATURES].cpu().double()
        of_classes.setdefault(int(examples.labels[index]), []).append(_pieces(values_TF, width))
    products, squares = 0.0, 0.0
    for rows in of_classes.values():
        pieces_KPF = pad_sequence(rows, batch_first=True)
        lengths_K = torch.tensor([len(row) for row in rows])
        count_P1 = (torch.arange(pieces_KPF.shape[1]) < lengths_K[:, None]).sum(0)[:, None]
        has_pairs_P = count_P1[:, 0] > 1
        square_PF = pieces_KPF.square().sum(0)
        # Of all pairs: the square of a sum holds each product of two rows twice, and the squares.
        product_PF = pieces_KPF.sum(0).square() - square_PF
        products += float((product_PF / (count_P1 - 1))[has_pairs_P].sum())
        squares += float(square_PF[has_pairs_P].sum())
    return products / squares if squares else math.nan


def _pieces(values_TF: Tensor, width: int) -> Tensor:
    """Return the means over pieces of a sequence, [P, F], each feature with mean 0 and variance 1.

    Steps at the end that fill no piece do not count.
    """
    width = min(width, len(values_TF))
    whole_TF = values_TF[: len(values_TF) // width * width]
    means_PF = whole_TF.unflatten(0, (-1, width)).mean(1)
    centred_PF = means_PF - means_PF.mean(0)
    deviation_F = centred_PF.square().mean(0).sqrt()
    normal_PF: Tensor = (centred_PF / deviation_F).where(deviation_F > 0, 0)
    return normal_PF
