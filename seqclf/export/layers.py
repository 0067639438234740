"""The layers of an LSTMClassifier as operators of ONNX.

ONNX's LSTM takes the length of each row, so it needs none of the work that torch's LSTM asks of
seqclf/model.py. Shapes: B batch, T steps, F features, D directions, H hidden, C channels or
classes. The LSTM's operators want the steps first: [T, B, F].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn

from seqclf.export.graph import Graph, ints, number, weights
from seqclf.model import LSTMClassifier
from seqclf.rocket import KERNEL_SIZE, OUTSIDE, ROW_EPSILON, RocketFeatures, make_kernels


class Steps(NamedTuple):
    """Sequences, and how many of their steps are real."""

    values: str  # [B, T, F], or [T, B, F] where the name says so
    lengths: str | None  # int64 [B]; None: every row has all steps

    def valid(self, graph: Graph, *, steps_first: bool = False) -> str | None:
        """Return which steps are no padding, bool [B, T, 1] or [T, B, 1]; None: all are."""
        if self.lengths is None:
            return None
        axis = 0 if steps_first else 1
        end = graph.op("Squeeze", graph.op("Shape", self.values, start=axis, end=axis + 1))
        steps_T = graph.op("Range", number(0, np.int64), end, number(1, np.int64))
        if steps_first:
            steps_T1 = graph.op("Unsqueeze", steps_T, ints(1))
            valid = graph.op("Less", steps_T1, self.lengths)
        else:
            valid = graph.op("Less", steps_T, graph.op("Unsqueeze", self.lengths, ints(1)))
        return graph.op("Unsqueeze", valid, ints(2))

    def keep(self, graph: Graph, fill: float = 0.0, *, steps_first: bool = False) -> str:
        """Return the values with another number in place of padding."""
        valid = self.valid(graph, steps_first=steps_first)
        return keep(graph, self.values, valid, fill)


def keep(graph: Graph, values: str, valid: str | None, fill: float = 0.0) -> str:
    """Return values with another number where they are not valid."""
    return values if valid is None else graph.op("Where", valid, values, number(fill))


def stack_steps(graph: Graph, steps: Steps, stack: int, num_features: int) -> Steps:
    """Put every `stack` steps side by side, padded with zeros."""
    if stack == 1:
        return steps
    num_steps = graph.op("Shape", steps.values, start=1, end=2)
    missing = graph.op("Mod", graph.op("Neg", num_steps), ints(stack))
    pads = graph.op("Concat", ints(0, 0, 0, 0), missing, ints(0), axis=0)
    padded = graph.op("Pad", steps.keep(graph), pads)
    values = graph.op("Reshape", padded, ints(0, -1, stack * num_features))
    lengths = steps.lengths
    if lengths is not None:
        lengths = graph.op("Div", graph.op("Add", lengths, ints(stack - 1)), ints(stack))
    return Steps(values, lengths)


def run_layers(graph: Graph, model: LSTMClassifier, steps: Steps) -> tuple[Steps, str]:
    """Return the last layer's outputs, steps first, and its final states [B, H]."""
    values_TBF = graph.op("Transpose", steps.values, perm=[1, 0, 2])
    final_BH = ""
    lengths = "" if steps.lengths is None else graph.op("Cast", steps.lengths, to=TensorProto.INT32)
    for lstm in (model.rnn, *model.upper):
        values_TBF, final_BH = _lstm(graph, lstm, values_TBF, lengths)
    return Steps(values_TBF, steps.lengths), final_BH


def _lstm(graph: Graph, lstm: nn.LSTM, values_TBF: str, lengths: str) -> tuple[str, str]:
    outputs_TDBH, final_DBH = graph.ops(
        "LSTM",
        2,
        values_TBF,
        *lstm_weights(lstm),
        lengths,
        hidden_size=lstm.hidden_size,
        direction="bidirectional" if lstm.bidirectional else "forward",
    )
    width = lstm.hidden_size * (1 + lstm.bidirectional)
    outputs_TBDH = graph.op("Transpose", outputs_TDBH, perm=[0, 2, 1, 3])
    final_BDH = graph.op("Transpose", final_DBH, perm=[1, 0, 2])
    return (
        graph.op("Reshape", outputs_TBDH, ints(0, 0, width)),
        graph.op("Reshape", final_BDH, ints(0, width)),
    )


def lstm_weights(lstm: nn.LSTM) -> list[np.ndarray]:
    """Return the weights of input, state and biases: [D, 4H, F], [D, 4H, H] and [D, 8H]."""
    suffixes = ["_l0", "_l0_reverse"] if lstm.bidirectional else ["_l0"]

    def stacked(name: str) -> np.ndarray:
        return np.stack([_reorder(getattr(lstm, name + suffix)) for suffix in suffixes])

    biases = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1)
    return [stacked("weight_ih"), stacked("weight_hh"), biases]


def _reorder(weight: Tensor) -> np.ndarray:
    """Put the gates in ONNX's order: torch has input, forget, cell, output."""
    entry, forget, cell, output = np.split(weights(weight), 4)
    return np.concatenate([entry, output, forget, cell])


def pool(graph: Graph, model: LSTMClassifier, outputs: Steps, final_BH: str) -> str:
    """Return what a row's outputs, steps first, come to: [B, H]."""
    if model.pooling == "last":
        return final_BH
    if model.pooling == "max":
        values = outputs.keep(graph, -math.inf, steps_first=True)
        return graph.op("ReduceMax", values, ints(0), keepdims=0)
    values_TBH = outputs.keep(graph, steps_first=True)
    if model.attention is not None:
        scores_TB1 = attention_scores(graph, model.attention, values_TBH)
        valid_TB1 = outputs.valid(graph, steps_first=True)
        shares_TB1 = graph.op("Softmax", keep(graph, scores_TB1, valid_TB1, -math.inf), axis=0)
        values_TBH = graph.op("Mul", values_TBH, shares_TB1)
        return graph.op("ReduceSum", values_TBH, ints(0), keepdims=0)
    if outputs.lengths is None:
        return graph.op("ReduceMean", values_TBH, ints(0), keepdims=0)
    count_B1 = graph.op(
        "Cast", graph.op("Unsqueeze", outputs.lengths, ints(1)), to=TensorProto.FLOAT
    )
    return graph.op("Div", graph.op("ReduceSum", values_TBH, ints(0), keepdims=0), count_B1)


def attention_scores(graph: Graph, attention: nn.Linear, outputs: str) -> str:
    """Return a score for each output, [..., 1]."""
    product = graph.op("MatMul", outputs, weights(attention.weight).T)
    return graph.op("Add", product, weights(attention.bias))


def count_above(graph: Graph, features: RocketFeatures, steps: Steps) -> str:
    """Return the features of fixed convolutions, [B, R]."""
    values_BFT = graph.op("Transpose", steps.values, perm=[0, 2, 1])
    valid_BT1 = steps.valid(graph)
    valid_B1T = None
    if valid_BT1 is None or steps.lengths is None:
        count = graph.op("Shape", steps.values, start=1, end=2)
    else:
        valid_B1T = graph.op("Transpose", valid_BT1, perm=[0, 2, 1])
        count = graph.op("Unsqueeze", steps.lengths, ints(1))
    count = graph.op("Cast", count, to=TensorProto.FLOAT)
    rows_BFT, outside_BF1 = centre_rows(graph, values_BFT, valid_B1T, count)
    if valid_B1T is not None:
        rows_BFT = graph.op("Where", valid_B1T, rows_BFT, outside_BF1)
    sums = []
    tables = zip(
        features.dilations, features.inputs, features.thresholds, features.widths, strict=True
    )
    for dilation, inputs_KF, thresholds_QK, widths_QK in tables:
        kernels_KFS = inputs_KF[:, :, None] * make_kernels()[:, None]
        reach = dilation * (KERNEL_SIZE // 2)
        outside_BFT = graph.op("Expand", outside_BF1, ints(1, 1, reach))
        read_BFT = graph.op("Concat", outside_BFT, rows_BFT, outside_BFT, axis=2)
        found_BKT = graph.op("Conv", read_BFT, weights(kernels_KFS), dilations=[dilation])
        for threshold_K, width_K in zip(thresholds_QK, widths_QK, strict=True):
            over_BKT = graph.op("Sub", found_BKT, weights(threshold_K[:, None]))
            scaled_BKT = graph.op("Mul", over_BKT, weights(6 / width_K[:, None]))
            above_BKT = graph.op("HardSigmoid", scaled_BKT, alpha=1 / 6, beta=0.5)
            above_BKT = keep(graph, above_BKT, valid_B1T)
            sums.append(graph.op("ReduceSum", above_BKT, ints(2), keepdims=0))
    shares_BR = graph.op("Div", graph.op("Concat", *sums, axis=1), count)
    return graph.op(
        "Mul", graph.op("Sub", shares_BR, weights(features.mean)), weights(features.factor)
    )


def centre_rows(graph: Graph, values: str, valid: str | None, count: str) -> tuple[str, str]:
    """Return rows with mean 0, after them the same with variance 1, [B, 2 F, T], and their outside.

    `values` is [B, F, T], `valid` bool [B, 1, T] or None, `count` the number of valid steps, [B, 1]
    or [1]. The outside, [B, 2 F, 1], is that of seqclf/rocket.py.
    """
    count = graph.op("Unsqueeze", count, ints(-1))

    def mean(values: str) -> str:
        # The runtime adds up one number after the other, which rounds long rows of float32.
        exact = graph.op("Cast", keep(graph, values, valid), to=TensorProto.DOUBLE)
        total = graph.op("ReduceSum", exact, ints(2))
        return graph.op("Div", graph.op("Cast", total, to=TensorProto.FLOAT), count)

    first = graph.op("Gather", values, ints(0), axis=2)
    changes = graph.op("Sub", values, first)
    mean_change = mean(changes)
    centred = graph.op("Sub", changes, mean_change)
    variance = graph.op("Add", mean(graph.op("Mul", centred, centred)), number(ROW_EPSILON))
    normal = graph.op("Div", centred, graph.op("Sqrt", variance))
    below = graph.op("Sub", number(OUTSIDE), graph.op("Add", first, mean_change))
    outside = graph.op("Concat", below, graph.op("Mul", below, number(0.0)), axis=1)
    return graph.op("Concat", centred, normal, axis=1), outside
