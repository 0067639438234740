"""A trained model -> an ONNX model of whole sequences."""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np
import onnx
from onnx import TensorProto, helper

from seqclf.export.graph import Graph, number, weights
from seqclf.export.layers import count_above, pool, run_layers, stack_steps
from seqclf.export.raw import embed, inputs_of, read_raw
from seqclf.inputs import what_is_read
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import kind_of, named_features

PROBABILITIES, LOGITS = "probabilities", "logits"
# All fields of an architecture, as export knows them: a test fails if there is another one. These
# change the answer, so the graph has them.
IN_GRAPH = (
    *("input_size", "scale", "read", "hidden_size", "num_layers", "bidirectional", "pooling"),
    *("num_tokens", "embedding_size", "mean", "std", "max_length", "keep", "stack", "rocket"),
    *("dilations", "reading", "lengths", "temperature"),
)
# These do not; the metadata has them. Dropout acts in training only.
IN_METADATA = ("classes", "tokens", "features", "dropout")
# The same of `reading`: these are in the graph, ...
READING_IN_GRAPH = ("offset", "measured", "fill_missing")
# ... these say how a file becomes arrays, which is over before the graph begins.
READING_BEFORE_GRAPH = (
    *("id", "time", "label", "group", "tokens", "text", "form", "header", "columns"),
    *("num_values", "open_end", "own_files", "numbered", "pad_value", "channels_first"),
    *("window", "stride", "on_label_change", "min_share"),
)


def build_network(model: LSTMClassifier, architecture: Architecture) -> onnx.ModelProto:
    """Return a model that maps sequences to `probabilities` and `logits`, both [B, C].

    Raises UserError for a model that cannot be exported.
    """
    graph = Graph()
    raw = read_raw(graph, model, architecture)
    steps = embed(graph, model, architecture, raw.steps)
    num_features = architecture.embedding_size if architecture.num_tokens else model_width(model)
    stacked = stack_steps(graph, steps, architecture.stack, num_features)
    outputs, final_BH = run_layers(graph, model, stacked)
    pooled_BH = pool(graph, model, outputs, final_BH)
    if model.rocket is not None:
        features_BR = count_above(graph, model.rocket, steps)
        pooled_BH = graph.op("Concat", pooled_BH, features_BR, axis=1)
    logits_BC = add_output(graph, model, pooled_BH)
    if raw.has_no_answer is not None:
        logits_BC = graph.op("Where", raw.has_no_answer, number(np.nan), logits_BC)
    onnx_model = finish(graph, logits_BC, inputs_of(architecture), architecture)
    helper.set_model_props(onnx_model, metadata(architecture))
    return onnx_model


def model_width(model: LSTMClassifier) -> int:
    """Return how many numbers the LSTM reads of one step."""
    return model.rnn.input_size // model.stack


def add_output(graph: Graph, model: LSTMClassifier, pooled_BH: str) -> str:
    """Return the logits of the pooled outputs, [B, C]."""
    out = model.out
    return graph.op("Gemm", pooled_BH, weights(out.weight), weights(out.bias), transB=1)


def finish(
    graph: Graph,
    logits_BC: str,
    inputs: list[onnx.ValueInfoProto],
    architecture: Architecture,
    more_outputs: tuple[onnx.ValueInfoProto, ...] = (),
) -> onnx.ModelProto:
    """Return the model, whose first outputs are the probabilities and the logits."""
    softened_BC = logits_BC
    if architecture.temperature != 1:
        softened_BC = graph.op("Div", logits_BC, number(architecture.temperature))
    probabilities_BC = graph.op("Softmax", softened_BC, axis=1)
    shape: list[str | int | None] = ["batch", len(architecture.classes)]
    outputs = [
        helper.make_tensor_value_info(graph.name(value, name), TensorProto.FLOAT, shape)
        for value, name in ((probabilities_BC, PROBABILITIES), (logits_BC, LOGITS))
    ]
    return graph.model(inputs, [*outputs, *more_outputs], version("seqclf"))


def metadata(architecture: Architecture) -> dict[str, str]:
    """Return what a program has to know of the model: each value is JSON."""
    reading = architecture.reading
    facts = {
        "classes": architecture.classes,
        "reads": what_is_read(architecture),
        "kind": kind_of(architecture),
        "features": named_features(architecture) or (),
        "tokens": architecture.tokens,
        "max_length": architecture.max_length,
        "keep": architecture.keep,
        "window": reading.window,
        "stride": reading.stride or reading.window,
        "fills_missing": reading.fill_missing,
        "lengths_in_training": architecture.lengths,
        "architecture": architecture.model_dump(mode="json"),
        "seqclf_version": version("seqclf"),
    }
    return {name: json.dumps(value) for name, value in facts.items()}
