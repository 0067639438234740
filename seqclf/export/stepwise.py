"""A trained model -> an ONNX model of one time step, which carries its state (stepwise.py).

Each state is an input, and an output whose name begins with `next_`; at first all are zeros.
Shapes: B rows, L layers, F features of the LSTM's input, H hidden, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from seqclf.errors import UserError
from seqclf.export.graph import Graph, ints, number
from seqclf.export.layers import Steps, attention_scores, lstm_weights
from seqclf.export.network import add_output, finish, metadata, model_width
from seqclf.export.raw import INPUT, embed, input_type
from seqclf.model import Architecture, LSTMClassifier
from seqclf.stepwise import reason_against

NEXT = "next_"


class State(NamedTuple):
    """A state: what comes in, what goes out, and its shape."""

    name: str
    value: str
    shape: tuple[str | int, ...]
    kind: int = TensorProto.FLOAT


def build_step(model: LSTMClassifier, architecture: Architecture) -> onnx.ModelProto:
    """Return a model that reads one step of each row and says `probabilities` of those so far.

    Raises UserError for a model that cannot carry its state.
    """
    reading = architecture.reading
    reason = reason_against(architecture)
    if reason is None and architecture.read != "rows":
        reason = f"the model reads whole images (data.read {architecture.read})"
    if reason is None and reading.measured:
        reason = "the model reads which values were measured; prepare the data without --measured"
    if reason is not None:
        raise UserError(f"--state: {reason}")
    graph = Graph()
    values = INPUT
    if reading.offset:
        values = graph.op("Sub", values, np.array(reading.offset))
    if not architecture.num_tokens:
        values = graph.op("Cast", values, to=TensorProto.FLOAT)
    embedded_BF = embed(graph, model, architecture, Steps(values, None)).values
    logits_BC, states = _add_step(graph, model, architecture, embedded_BF)
    inputs, outputs = [], []
    for state in states:
        inputs.append(helper.make_tensor_value_info(state.name, state.kind, state.shape))
        name = graph.name(state.value, NEXT + state.name)
        outputs.append(helper.make_tensor_value_info(name, state.kind, state.shape))
    shape: list[str | int | None] = ["batch"]
    if not architecture.num_tokens:
        shape.append(architecture.input_size)
    inputs.insert(0, helper.make_tensor_value_info(INPUT, input_type(architecture), shape))
    onnx_model = finish(graph, logits_BC, inputs, architecture, tuple(outputs))
    helper.set_model_props(onnx_model, metadata(architecture))
    return onnx_model


def _add_step(
    graph: Graph, model: LSTMClassifier, architecture: Architecture, embedded_BF: str
) -> tuple[str, list[State]]:
    """Return the logits after this step, and the states after it."""
    hidden_size, num_layers = architecture.hidden_size, architecture.num_layers
    stack, most = architecture.stack, architecture.max_length
    num_features = model_width(model)
    one = ints(1)
    count_B1 = "num_steps"
    next_count_B1 = graph.op("Add", count_B1, one)
    waiting = None
    input_BF = embedded_BF
    if stack > 1:
        # Zeros stand for the steps that a stack of steps lacks.
        place_B1 = graph.op("Mod", count_B1, ints(stack))
        is_here_BS = graph.op("Equal", place_B1, np.arange(stack)[None])
        is_here_BS1 = graph.op("Unsqueeze", is_here_BS, ints(2))
        step_B1F = graph.op("Unsqueeze", embedded_BF, one)
        waiting = graph.op("Where", is_here_BS1, step_B1F, "waiting")
        input_BF = graph.op("Reshape", waiting, ints(0, stack * num_features))
    keeps_B1 = None  # rows whose state stays: their stack of steps is not whole
    if stack > 1:
        keeps_B1 = graph.op("Not", graph.op("Equal", place_B1, ints(stack - 1)))
    ends_B1 = None  # rows that have read all steps that the model reads
    if most is not None:
        ends_B1 = graph.op("GreaterOrEqual", count_B1, ints(most))
    hidden, cells = [], []
    output_TBF = graph.op("Unsqueeze", input_BF, ints(0))
    for layer, lstm in enumerate((model.rnn, *model.upper)):
        initial = [graph.op("Gather", name, ints(layer), axis=0) for name in ("h", "c")]
        outputs_TDBH, hidden_1BH, cell_1BH = graph.ops(
            "LSTM",
            3,
            output_TBF,
            *lstm_weights(lstm),
            "",
            *initial,
            hidden_size=hidden_size,
        )
        output_TBF = graph.op("Squeeze", outputs_TDBH, ints(1))
        hidden.append(hidden_1BH)
        cells.append(cell_1BH)
    output_BH = graph.op("Squeeze", output_TBF, ints(0))
    states = [
        State("h", graph.op("Concat", *hidden, axis=0), (num_layers, "batch", hidden_size)),
        State("c", graph.op("Concat", *cells, axis=0), (num_layers, "batch", hidden_size)),
    ]
    pooled_BH = output_BH
    if model.pooling != "last":
        pooled_BH, more = _pool(graph, model, output_BH, stack)
        states += more
    logits_BC = add_output(graph, model, pooled_BH)
    states = [_kept(graph, state, keeps_B1) for state in states]
    if waiting is not None:
        assert keeps_B1 is not None
        kept_B11 = graph.op("Unsqueeze", keeps_B1, ints(2))
        waiting = graph.op("Where", kept_B11, waiting, number(0))
        states.append(State("waiting", waiting, ("batch", stack, num_features)))
    if most is not None:
        states.append(State("logits_so_far", logits_BC, ("batch", len(architecture.classes))))
        states = [_kept(graph, state, ends_B1) for state in states]
        logits_BC = states[-1].value
    states.append(State("num_steps", next_count_B1, ("batch", 1), TensorProto.INT64))
    return logits_BC, states


def _kept(graph: Graph, state: State, keeps_B1: str | None) -> State:
    """Return a state that stays as it came in for some rows."""
    if keeps_B1 is None:
        return state
    if len(state.shape) == 3 and state.shape[0] == "batch":
        keeps_B1 = graph.op("Unsqueeze", keeps_B1, ints(2))
    return state._replace(value=graph.op("Where", keeps_B1, state.name, state.value))


def _pool(
    graph: Graph, model: LSTMClassifier, output_BH: str, stack: int
) -> tuple[str, list[State]]:
    """Return the outputs so far, pooled, and the states that this takes."""
    shape = ("batch", model.rnn.hidden_size)
    is_first_B1 = graph.op("Less", "num_steps", ints(stack))
    if model.pooling == "max":
        pooled_BH = graph.op("Max", "pooled", output_BH)
        pooled_BH = graph.op("Where", is_first_B1, output_BH, pooled_BH)
        return pooled_BH, [State("pooled", pooled_BH, shape)]
    # A running mean: each step moves it towards its output, by its share of the weights so far.
    states = []
    if model.attention is None:
        weight_B1 = graph.op("Add", "weight", number(1))
        share_B1 = graph.op("Div", number(1), weight_B1)
    else:
        score_B1 = attention_scores(graph, model.attention, output_BH)
        top_B1 = graph.op("Max", "top", score_B1)
        top_B1 = graph.op("Where", is_first_B1, score_B1, top_B1)
        own_B1 = graph.op("Exp", graph.op("Sub", score_B1, top_B1))
        before_B1 = graph.op("Exp", graph.op("Sub", "top", top_B1))
        before_B1 = graph.op("Where", is_first_B1, number(0), before_B1)
        weight_B1 = graph.op("Add", graph.op("Mul", "weight", before_B1), own_B1)
        share_B1 = graph.op("Div", own_B1, weight_B1)
        states.append(State("top", top_B1, ("batch", 1)))
    moved_BH = graph.op("Mul", share_B1, graph.op("Sub", output_BH, "pooled"))
    pooled_BH = graph.op("Add", "pooled", moved_BH)
    pooled = State("pooled", pooled_BH, shape)
    return pooled_BH, [pooled, State("weight", weight_B1, ("batch", 1)), *states]
