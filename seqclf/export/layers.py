"""The layers of an LSTMClassifier as operators of ONNX.

ONNX's LSTM takes the length of each row, so it needs none of the work that torch's LSTM asks of
seqclf/model.py. Shapes: B batch, T steps, F features, D directions, H hidden, C channels or
classes. The LSTM's operators want the steps first: [T, B, F].
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn

from seqclf.conv import EPSILON, ROW_EPSILON, ConvBranch, Layer
from seqclf.export.graph import Graph, ints, number, weights
from seqclf.model import LSTMClassifier


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


def convolve(graph: Graph, branch: ConvBranch, steps: Steps) -> str:
    """Return what the convolution branch finds, [B, C]."""
    found_BCT = graph.op("Transpose", steps.values, perm=[0, 2, 1])
    valid_BT1 = steps.valid(graph)
    valid_B1T = None
    if valid_BT1 is None or steps.lengths is None:
        count = graph.op("Shape", steps.values, start=1, end=2)
    else:
        valid_B1T = graph.op("Transpose", valid_BT1, perm=[0, 2, 1])
        count = graph.op("Unsqueeze", steps.lengths, ints(1))
    count = graph.op("Cast", count, to=TensorProto.FLOAT)
    changes_BFT = graph.op("Sub", found_BCT, graph.op("Gather", found_BCT, ints(0), axis=2))
    normal_BFT = normalise_rows(graph, changes_BFT, valid_B1T, count)
    found_BCT = graph.op("Concat", found_BCT, normal_BFT, axis=1)
    for layer in cast(list[Layer], list(branch.layers)):
        # Zeros stand before and after each row, where the convolution reaches beyond it.
        found_BCT = keep(graph, found_BCT, valid_B1T)
        options = {"pads": list(layer.pad), "group": layer.conv.groups}
        found_BCT = graph.op("Conv", found_BCT, weights(layer.conv.weight), **options)
        normal_BCT = normalise(graph, layer, found_BCT, valid_B1T, count)
        scaled_BCT = graph.op("Mul", normal_BCT, weights(layer.scale))
        found_BCT = graph.op("Relu", graph.op("Add", scaled_BCT, weights(layer.shift)))
    sum_BC = graph.op("ReduceSum", keep(graph, found_BCT, valid_B1T), ints(2), keepdims=0)
    return graph.op("Div", sum_BC, count)


def normalise(graph: Graph, layer: Layer, found: str, valid: str | None, count: str) -> str:
    """Normalise the first channels by the reference rows, the others over each row, [B, C, T].

    `valid` is bool [B, 1, T] or None, `count` the number of valid steps, [B, 1] or [1].
    """
    num_channels = len(layer.scale)
    sizes = ints(layer.num_by_reference, num_channels - layer.num_by_reference)
    by_reference, by_row = graph.ops("Split", 2, found, sizes, axis=1)
    centred = graph.op("Sub", by_reference, weights(layer.mean))
    spread_D1 = weights((layer.variance + EPSILON).rsqrt())
    by_reference = graph.op("Mul", centred, spread_D1)
    by_row = normalise_rows(graph, by_row, valid, count)
    return graph.op("Concat", by_reference, by_row, axis=1)


def normalise_rows(graph: Graph, found: str, valid: str | None, count: str) -> str:
    """Normalise each channel of each row over its valid steps, [B, C, T]."""
    count = graph.op("Unsqueeze", count, ints(-1))

    def mean(values: str) -> str:
        total = graph.op("ReduceSum", keep(graph, values, valid), ints(2))
        return graph.op("Div", total, count)

    centred = graph.op("Sub", found, mean(found))
    variance = graph.op("Add", mean(graph.op("Mul", centred, centred)), number(ROW_EPSILON))
    return graph.op("Div", centred, graph.op("Sqrt", variance))
