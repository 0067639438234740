"""Raw sequences -> the steps that the LSTM reads, as operators of ONNX.

What predict.py does to a sequence before the model sees it, and what the model does first. Shapes:
B batch, T steps, F features, S = B * F * T.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from seqclf.errors import UserError
from seqclf.export.graph import Graph, ints, number, weights
from seqclf.export.layers import Steps, keep
from seqclf.inputs import num_features_of
from seqclf.model import Architecture, LSTMClassifier, permutation

INPUT, LENGTHS = "values", "lengths"
REFUSED = -(2**20)  # the LSTM of onnxruntime fails with a length below 0, and takes one of 0


class Raw(NamedTuple):
    """The input as steps of the model."""

    steps: Steps
    has_no_answer: str | None  # bool [B, 1]: rows with a number that cannot be; None: of no row


def input_type(architecture: Architecture) -> int:
    """Return the type of the numbers: tokens are int64, features float or double."""
    if architecture.num_tokens:
        return int(TensorProto.INT64)
    # What is taken off in float64 must come in float64: float32 would have lost it already.
    return int(TensorProto.DOUBLE if architecture.reading.offset else TensorProto.FLOAT)


def has_lengths(architecture: Architecture) -> bool:
    """Return whether rows may differ in length: those of columns and pixels of images may not."""
    return architecture.read == "rows"


def inputs_of(architecture: Architecture) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a model of whole sequences."""
    shape: list[str | int | None] = ["batch", "steps"]
    if architecture.read == "columns":
        shape = ["batch", architecture.input_size, "columns"]
    elif architecture.read != "rows":
        shape = ["batch", "rows", "columns"]
    elif not architecture.num_tokens:
        shape = ["batch", "steps", num_features_of(architecture)]
    inputs = [helper.make_tensor_value_info(INPUT, input_type(architecture), shape)]
    if has_lengths(architecture):
        inputs.append(helper.make_tensor_value_info(LENGTHS, TensorProto.INT64, ["batch"]))
    return inputs


def read_raw(graph: Graph, model: LSTMClassifier, architecture: Architecture) -> Raw:
    """Turn the inputs of the graph into steps. Raises UserError for a model that cannot be."""
    if not has_lengths(architecture):
        return Raw(Steps(_read_images(graph, architecture), None), None)
    num_steps = graph.op("Shape", INPUT, start=1, end=2)
    is_long = graph.op("Greater", LENGTHS, num_steps)
    is_wrong = graph.op("Or", is_long, graph.op("Less", LENGTHS, ints(1)))
    steps = Steps(INPUT, graph.op("Where", is_wrong, ints(REFUSED), LENGTHS))
    if architecture.num_tokens:
        return Raw(_cut(graph, steps, architecture), None)
    steps = steps._replace(values=_fill(graph, steps, architecture))
    wrong = graph.op("Or", graph.op("IsNaN", steps.values), graph.op("IsInf", steps.values))
    valid_BT1 = steps.valid(graph)
    assert valid_BT1 is not None
    wrong = graph.op("Cast", graph.op("And", wrong, valid_BT1), to=TensorProto.FLOAT)
    most_B1 = graph.op("Squeeze", graph.op("ReduceMax", wrong, ints(1, 2)), ints(2))
    return Raw(_cut(graph, steps, architecture), graph.op("Greater", most_B1, number(0)))


def _read_images(graph: Graph, architecture: Architecture) -> str:
    """Return the columns or the pixels of images [B, rows, columns] as steps."""
    images = INPUT
    most = architecture.max_length
    if most is not None:
        first, end = (0, most) if architecture.keep == "first" else (-most, np.iinfo(np.int64).max)
        images = graph.op("Slice", images, ints(first), ints(end), ints(1))
    if architecture.read == "columns":
        return graph.op("Transpose", images, perm=[0, 2, 1])
    if architecture.read == "pixels":
        return graph.op("Reshape", images, ints(0, -1, 1))
    if architecture.lengths is None:
        raise UserError(
            "data.read permuted: the model does not say how many pixels its images have, as an "
            "older version made it; train it again to export it"
        )
    num_pixels = architecture.lengths[1]
    # An image of another size fails here, because its pixels have another order.
    pixels = graph.op("Reshape", images, ints(0, num_pixels, 1))
    order = permutation(num_pixels, torch.device("cpu")).numpy()
    return graph.op("Gather", pixels, order, axis=1)


def _fill(graph: Graph, steps: Steps, architecture: Architecture) -> str:
    """Return the features as predict.py makes them, float32: gaps filled, the offset taken off."""
    reading = architecture.reading
    values = steps.values
    valid_BT1 = steps.valid(graph)
    assert valid_BT1 is not None
    is_measured = ""
    if reading.fill_missing:
        has_value = graph.op("Not", graph.op("IsNaN", values))
        is_measured = graph.op("And", has_value, valid_BT1)
        values = _interpolate(graph, values, is_measured, input_type(architecture))
    if reading.offset:
        values = graph.op("Sub", values, np.array(reading.offset))
    values = graph.op("Cast", values, to=TensorProto.FLOAT)
    if reading.measured:
        numbers = [architecture.features.index(name) for name in reading.measured]
        measured = graph.op("Gather", is_measured, ints(*numbers), axis=2)
        measured = graph.op("Cast", measured, to=TensorProto.FLOAT)
        values = graph.op("Concat", values, measured, axis=2)
    if reading.fill_missing and architecture.mean:
        # A feature without any value in a sequence has the mean of the training data.
        mean_F = np.array(architecture.mean, dtype=np.float32)
        values = graph.op("Where", graph.op("IsNaN", values), mean_F, values)
    return values


def _interpolate(graph: Graph, values: str, is_measured: str, kind: int) -> str:
    """Fill gaps: on the line between the neighbours in time, at the ends the nearest value.

    The values of each feature of each row lie one after the other, [S]. The numbers of all values
    that are measured, in their order, tell each gap its neighbours.
    """
    shape = graph.op("Shape", graph.op("Transpose", values, perm=[0, 2, 1]))
    values_S = _flatten(graph, graph.op("Cast", values, to=TensorProto.DOUBLE))
    is_measured_S = _flatten(graph, is_measured)
    size = graph.op("Shape", values_S)
    zero, one = number(0, np.int64), number(1, np.int64)
    places_S = graph.op("Range", zero, graph.op("Squeeze", size), one)
    found = graph.op("Squeeze", graph.op("NonZero", is_measured_S), ints(0))
    found = graph.op("Concat", ints(-1), found, size, axis=0)
    measured_S = graph.op("Cast", is_measured_S, to=TensorProto.INT64)
    count_S = graph.op("CumSum", measured_S, zero)
    next_S = graph.op("Add", graph.op("Sub", count_S, measured_S), ints(1))
    before_S = graph.op("Gather", found, count_S)
    after_S = graph.op("Gather", found, next_S)
    num_steps = graph.op("Gather", shape, ints(2))
    row_S = graph.op("Sub", places_S, graph.op("Mod", places_S, num_steps))
    has_before_S = graph.op("GreaterOrEqual", before_S, row_S)
    has_after_S = graph.op("Less", after_S, graph.op("Add", row_S, num_steps))
    # A place without a neighbour takes itself for one; its value is chosen below.
    before_S = graph.op("Where", has_before_S, before_S, places_S)
    after_S = graph.op("Where", has_after_S, after_S, places_S)
    first_S = graph.op("Gather", values_S, before_S)
    last_S = graph.op("Gather", values_S, after_S)
    distance_S = graph.op("Max", graph.op("Sub", after_S, before_S), ints(1))
    rise_S = graph.op("Sub", last_S, first_S)
    slope_S = graph.op("Div", rise_S, graph.op("Cast", distance_S, to=TensorProto.DOUBLE))
    way_S = graph.op("Cast", graph.op("Sub", places_S, before_S), to=TensorProto.DOUBLE)
    line_S = graph.op("Add", first_S, graph.op("Mul", slope_S, way_S))
    line_S = graph.op("Where", has_after_S, line_S, first_S)
    line_S = graph.op("Where", has_before_S, line_S, last_S)
    filled_S = graph.op("Where", is_measured_S, values_S, line_S)
    filled = graph.op("Transpose", graph.op("Reshape", filled_S, shape), perm=[0, 2, 1])
    return graph.op("Cast", filled, to=kind)


def _flatten(graph: Graph, values_BTF: str) -> str:
    """Return all values, [S]: the steps of a feature of a row follow each other."""
    return graph.op("Reshape", graph.op("Transpose", values_BTF, perm=[0, 2, 1]), ints(-1))


def _cut(graph: Graph, steps: Steps, architecture: Architecture) -> Steps:
    """Leave the first or the last `max_length` steps of each row."""
    most = architecture.max_length
    if most is None:
        return steps
    lengths = graph.op("Min", steps.lengths or "", ints(most))
    if architecture.keep == "first":
        return Steps(graph.op("Slice", steps.values, ints(0), ints(most), ints(1)), lengths)
    num_skipped_B = graph.op("Sub", steps.lengths or "", lengths)
    num_steps = graph.op("Shape", steps.values, start=1, end=2)
    num_kept = graph.op("Squeeze", graph.op("Min", num_steps, ints(most)))
    places_T = graph.op("Range", number(0, np.int64), num_kept, number(1, np.int64))
    places_BT = graph.op("Add", graph.op("Unsqueeze", num_skipped_B, ints(1)), places_T)
    # Beyond a row's length padding may be any step.
    places_BT = graph.op("Min", places_BT, graph.op("Sub", num_steps, ints(1)))
    places_BT1 = graph.op("Unsqueeze", places_BT, ints(2))
    return Steps(graph.op("GatherND", steps.values, places_BT1, batch_dims=1), lengths)


def embed(graph: Graph, model: LSTMClassifier, architecture: Architecture, steps: Steps) -> Steps:
    """Return the LSTM's input, [B, T, F]: features normalised, tokens embedded, padding zero."""
    valid_BT1 = steps.valid(graph)
    values = steps.values
    if model.embedding is not None:
        if valid_BT1 is not None:  # padding may be any number
            valid_BT = graph.op("Squeeze", valid_BT1, ints(2))
            values = graph.op("Where", valid_BT, values, ints(0))
        # ONNX counts numbers below 0 from the end. An unknown number must fail.
        is_below_0 = graph.op("Less", values, ints(0))
        values = graph.op("Where", is_below_0, ints(architecture.num_tokens), values)
        values = graph.op("Gather", weights(model.embedding.weight), values)
    else:
        values = graph.op("Div", values, number(model.scale))
        if model.mean is not None and model.std is not None:
            values = graph.op("Sub", values, weights(model.mean))
            values = graph.op("Div", values, weights(model.std))
    return steps._replace(values=keep(graph, values, valid_BT1))
