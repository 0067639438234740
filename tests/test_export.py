"""An exported model says in onnxruntime what `predict_proba` says, whatever the architecture."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime")

import onnx

from seqclf import UserError
from seqclf.classifier import Classifier
from seqclf.data.reading import Reading
from seqclf.export import network
from seqclf.export.check import TOLERANCE, compare, open_session, to_inputs
from seqclf.export.network import build_network
from seqclf.model import Architecture, ImageOrder, Pooling

pytestmark = pytest.mark.filterwarnings("ignore:.*(another unit|all 0; is it padding|another length)")
WORDS = ("a", "b", "c", "d")


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Draw a value for every field: one that is missing here fails the test below."""
    kind = draw(st.sampled_from(["features", "features", "tokens", "text", "images"]))
    num_features = draw(st.integers(1, 3))
    lengths = (1, draw(st.integers(1, 12)))
    fields: dict[str, Any] = {
        "input_size": num_features if kind in ("features", "images") else 1,
        "classes": tuple(f"class {number}" for number in range(draw(st.integers(2, 4)))),
        "scale": 1.0,
        "read": "rows",
        "hidden_size": draw(st.integers(1, 6)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "pooling": draw(st.sampled_from(get_args(Pooling))),
        "num_tokens": {"tokens": 1 + len(WORDS), "text": 256}.get(kind, 0),
        "embedding_size": draw(st.integers(1, 4)),
        "mean": (),
        "std": (),
        "tokens": WORDS if kind == "tokens" else (),
        "features": (),
        "max_length": draw(st.none() | st.integers(1, 8)),
        "keep": draw(st.sampled_from(["first", "last"])),
        "stack": draw(st.integers(1, 4)),
        "conv": draw(st.sampled_from([0, 0, 1, 3])),
        "reading": Reading(),
        "lengths": lengths,
    }
    if kind == "images":
        read = draw(st.sampled_from(get_args(ImageOrder)))
        fields |= {"scale": 16.0, "read": read}
        if read == "columns":
            fields["input_size"] = min(num_features, fields["max_length"] or num_features)
        elif read != "rows":
            num_pixels = draw(st.integers(1, 4)) * draw(st.integers(1, 4))
            fields |= {"input_size": 1, "lengths": (num_pixels, num_pixels)}
    if kind == "features":
        names = tuple("xyz"[:num_features])
        has_gaps = draw(st.booleans())
        measured = draw(st.sets(st.sampled_from(names))) if has_gaps else set()
        chosen = tuple(name for name in names if name in measured)
        size = num_features + len(chosen)
        fields |= {
            "input_size": size,
            "features": (*names, *(f"{name} measured" for name in chosen)),
            "mean": tuple(draw(st.sampled_from([-0.5, 0.1])) for _ in range(size)),
            "std": tuple(draw(st.sampled_from([0.3, 2.0])) for _ in range(size)),
            "reading": Reading(
                fill_missing=has_gaps,
                measured=chosen,
                offset=draw(st.sampled_from([(), (1e9,) * num_features])),
            ),
        }
    assert set(fields) == set(Architecture.model_fields)
    return Architecture.model_validate(fields)


def make(architecture: Architecture, seed: int = 0) -> Classifier:
    """Return a classifier with random weights, which tell classes apart."""
    torch.manual_seed(seed)
    model = architecture.build("orthogonal").eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return Classifier(model, architecture)


def simple(**changes: Any) -> Classifier:
    fields = {"input_size": 2, "classes": WORDS, "scale": 1.0, "dropout": 0.5, "read": "rows"}
    fields |= {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    return make(Architecture.model_validate(fields | changes))


def found_by_onnx(classifier: Classifier, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(build_network(classifier._model, classifier._architecture))
    found: np.ndarray = session.run(["probabilities"], inputs)[0]
    return found


@settings(max_examples=150, deadline=None)
@given(architectures(), st.integers(0, 99))
def test_every_architecture_says_the_same(architecture: Architecture, seed: int) -> None:
    classifier = make(architecture, seed)
    onnx_model = build_network(classifier._model, architecture)
    onnx.checker.check_model(onnx_model, full_check=True)
    found = compare(onnx_model, classifier._model, architecture)
    assert found.num_sequences >= 5


def test_every_field_is_known() -> None:
    known = network.IN_GRAPH | network.IN_METADATA
    assert known == set(Architecture.model_fields), "teach seqclf/export the new field"
    known = network.READING_IN_GRAPH | network.READING_BEFORE_GRAPH
    assert known == set(Reading.model_fields), "teach seqclf/export the new field"


def test_an_image_is_cut_before_its_pixels_are_read() -> None:
    image = np.random.default_rng(0).uniform(0, 16, (2, 5, 3)).astype(np.float32)
    for read in ("pixels", "permuted"):
        for keep in ("first", "last"):
            cut = {"max_length": 4, "keep": keep, "lengths": (12, 12), "scale": 16.0}
            classifier = simple(input_size=1, read=read, pooling="attention", **cut)
            expected = classifier.predict_proba(list(image))
            found = found_by_onnx(classifier, {"values": image})
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            with pytest.raises(Exception, match="Reshape" if read == "permuted" else "rank"):
                bad = image[:, :, :2] if read == "permuted" else image[0]
                found_by_onnx(classifier, {"values": bad})


VALUES = np.random.default_rng(1).normal(0, 2, (3, 6, 2)).astype(np.float32)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("keep", ["first", "last"])
@pytest.mark.parametrize("max_length", [None, 4])
@pytest.mark.parametrize("lengths", [[6, 0, 1], [6, 7, 1], [-3, 2, 2]])
def test_a_length_that_cannot_be_is_refused(
    stack: int, keep: str, max_length: int | None, lengths: list[int]
) -> None:
    classifier = simple(stack=stack, keep=keep, max_length=max_length)
    with pytest.raises(Exception, match="sequence_lens"):
        found_by_onnx(classifier, {"values": VALUES, "lengths": np.array(lengths)})


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_cannot_be_has_no_answer(pooling: str, bad: float) -> None:
    classifier = simple(pooling=pooling, conv=2)
    lengths = np.array([6, 2, 4])
    values = VALUES.copy()
    values[0, 3, 1] = bad
    values[1, 2:] = bad  # padding
    found = found_by_onnx(classifier, {"values": values, "lengths": lengths})
    assert np.isnan(found[0]).all()
    expected = classifier.predict_proba([VALUES[1, :2], VALUES[2, :4]])
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-6)


def test_gaps_are_filled_as_predict_fills_them() -> None:
    reading = Reading(fill_missing=True)
    classifier = simple(reading=reading, mean=(0.3, -0.2), std=(2.0, 0.5))
    nan = np.nan
    gaps = [[nan, 1.0, nan, nan, 3.0, nan], [nan, nan], [nan, 0.5], [4.0, nan]]
    sequences = [np.column_stack([gap, np.arange(len(gap))]) for gap in gaps]
    inputs = to_inputs(sequences, classifier._architecture)
    expected = classifier.predict_proba([np.asarray(one, np.float32) for one in sequences])
    np.testing.assert_allclose(found_by_onnx(classifier, inputs), expected, rtol=0, atol=1e-6)
    by_hand = [1.0, 1.0, 1 + 2 / 3, 1 + 4 / 3, 3.0, 3.0], [0.3, 0.3], [0.5, 0.5], [4.0, 4.0]
    filled = [np.column_stack([gap, np.arange(len(gap))]) for gap in by_hand]
    again = found_by_onnx(classifier, to_inputs(filled, classifier._architecture))
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)


def test_a_token_that_cannot_be_is_refused() -> None:
    classifier = simple(input_size=1, num_tokens=5, tokens=WORDS, conv=2)
    lengths = np.array([2, 1])
    tokens = np.array([[1, 4], [2, -9]])
    found = found_by_onnx(classifier, {"values": tokens, "lengths": lengths})
    expected = classifier.predict_proba([["a", "d"], ["b"]])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for bad in (5, -1):
        with pytest.raises(Exception, match="indices element out of data bounds"):
            found_by_onnx(classifier, {"values": np.full((2, 2), bad), "lengths": lengths})


def test_an_offset_is_taken_off_in_float64() -> None:
    offset = (1e9, 1e9)
    classifier = simple(reading=Reading(offset=offset), mean=(0.0, 0.0), std=(1.0, 1.0))
    inputs = to_inputs(list(VALUES.astype(np.float64) + 1e9), classifier._architecture)
    assert inputs["values"].dtype == np.float64
    plain = simple(mean=(0.0, 0.0), std=(1.0, 1.0))
    expected = plain.predict_proba(list(VALUES))
    np.testing.assert_allclose(found_by_onnx(classifier, inputs), expected, rtol=0, atol=1e-6)


def test_what_differs_or_has_diverged_is_not_exported() -> None:
    classifier = simple()
    onnx_model = build_network(classifier._model, classifier._architecture)
    assert compare(onnx_model, classifier._model, classifier._architecture).difference < 1e-6
    with torch.no_grad():
        classifier._model.out.bias[0] += 1e-3
    with pytest.raises(UserError, match=r"a probability differs by 0.0001\d* from torch"):
        compare(onnx_model, classifier._model, classifier._architecture)
    with torch.no_grad():
        classifier._model.out.bias[0] = math.nan
    with pytest.raises(UserError, match="no finite numbers, so it has diverged"):
        compare(onnx_model, classifier._model, classifier._architecture)


def test_permuted_pixels_of_unknown_number_are_refused() -> None:
    classifier = simple(input_size=1, read="permuted")
    with pytest.raises(UserError, match="does not say how many pixels"):
        build_network(classifier._model, classifier._architecture)
