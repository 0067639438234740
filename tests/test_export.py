"""An exported model says in onnxruntime what `predict_proba` says, whatever the architecture."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.architectures import WORDS, architectures, make
from helpers.commands import Capture, call, refusal
from helpers.training import tiny_config, train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf import UserError, load, load_model
from seqclf.classifier import Classifier
from seqclf.cli.predicting import evaluate_run
from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.data.reading import Reading
from seqclf.export import network
from seqclf.export.check import (
    compare,
    compare_steps,
    first_states,
    open_session,
    run_step,
    to_inputs,
)
from seqclf.export.files import write_triton
from seqclf.export.network import build_network
from seqclf.export.stepwise import build_step
from seqclf.model import Architecture, Pooling

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(another unit|all 0; is it padding|another length)"
)


def simple(**changes: Any) -> Classifier:
    fields = {"input_size": 2, "classes": WORDS, "scale": 1.0, "dropout": 0.5, "read": "rows"}
    fields |= {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    return make(Architecture.model_validate(fields | changes))


def found_by_onnx(classifier: Classifier, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(build_network(classifier._members[0].model, classifier._architecture))
    found: np.ndarray = session.run(["probabilities"], inputs)[0]
    return found


def check_network(architecture: Architecture, seed: int) -> None:
    """Assert that the whole graph of an architecture says what the model says."""
    classifier = make(architecture, seed)
    onnx_model = build_network(classifier._members[0].model, architecture)
    onnx.checker.check_model(onnx_model, full_check=True)
    found = compare(onnx_model, classifier._members[0].model, architecture)
    assert found.num_sequences >= 5


@settings(max_examples=15, deadline=None)
@given(architectures(), st.integers(0, 99))
def test_every_architecture_says_the_same(architecture: Architecture, seed: int) -> None:
    check_network(architecture, seed)


@pytest.mark.slow  # a minute
@settings(max_examples=150, deadline=None)
@given(architectures(), st.integers(0, 99))
def test_many_more_architectures_say_the_same(architecture: Architecture, seed: int) -> None:
    check_network(architecture, seed)


def test_every_field_is_known() -> None:
    known = {*network.IN_GRAPH, *network.IN_METADATA}
    assert known == set(Architecture.model_fields), "teach seqclf/export the new field"
    known = {*network.READING_IN_GRAPH, *network.READING_BEFORE_GRAPH}
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
            bad = image[:, :, :2] if read == "permuted" else image[0]
            with pytest.raises(Exception, match="Reshape" if read == "permuted" else "rank"):
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
    classifier = simple(pooling=pooling, rocket=84, dilations=(1,))
    lengths = np.array([6, 2, 4])
    values = VALUES.copy()
    values[0, 3, 1] = bad
    values[1, 2:] = bad  # padding
    found = found_by_onnx(classifier, {"values": values, "lengths": lengths})
    assert np.isnan(found[0]).all()
    expected = classifier.predict_proba([VALUES[1, :2], VALUES[2, :4]])
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-6)


def test_long_quiet_rows_say_the_same() -> None:
    """Where steps lie close to each other, the last digits of a mean move many at once."""
    generator = torch.Generator().manual_seed(0)
    rows = 5 + 1e-4 * torch.randn(8, 20_000, 2, generator=generator)
    rows[:, ::400] += 3 * torch.randn(8, 50, 2, generator=generator)
    classifier = simple(rocket=84 * 3 * 6, dilations=(1, 2, 4))
    features = classifier._members[0].model.rocket
    assert features is not None
    features.fit(lambda: [(rows, None)])
    lengths = np.full(len(rows), rows.shape[1])
    found = found_by_onnx(classifier, {"values": rows.numpy(), "lengths": lengths})
    expected = classifier.predict_proba(list(rows.numpy()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


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
    classifier = simple(input_size=1, num_tokens=5, tokens=WORDS)
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
    model = classifier._members[0].model
    onnx_model = build_network(classifier._members[0].model, classifier._architecture)
    assert (
        compare(onnx_model, classifier._members[0].model, classifier._architecture).difference
        < 1e-6
    )
    with torch.no_grad():
        classifier._members[0].model.out.bias[0] += 1e-3
    with pytest.raises(UserError, match=r"a probability differs by 0.0001\d* from torch"):
        compare(onnx_model, model, classifier._architecture)
    with torch.no_grad():
        model.out.bias[0] = math.nan
    with pytest.raises(UserError, match="no finite numbers, so it has diverged"):
        compare(onnx_model, model, classifier._architecture)


def test_permuted_pixels_of_unknown_number_are_refused() -> None:
    classifier = simple(input_size=1, read="permuted")
    with pytest.raises(UserError, match="does not say how many pixels"):
        build_network(classifier._members[0].model, classifier._architecture)


# ---- a step at a time


def check_step(architecture: Architecture, seed: int) -> None:
    """Assert that the graph of a step says what a stream says, or is refused."""
    changes = {"bidirectional": False, "rocket": 0, "dilations": (), "keep": "first"}
    architecture = architecture.model_copy(update=changes)
    classifier = make(architecture, seed)
    if architecture.read != "rows" or architecture.reading.measured:
        with pytest.raises(UserError, match="--state: the model reads"):
            build_step(classifier._members[0].model, architecture)
        return
    # A stream takes no gaps.
    reading = architecture.reading.model_copy(update={"fill_missing": False})
    architecture = architecture.model_copy(update={"reading": reading})
    onnx_model = build_step(classifier._members[0].model, architecture)
    onnx.checker.check_model(onnx_model, full_check=True)
    assert compare_steps(onnx_model, classifier._members[0].model, architecture).num_sequences >= 8


@settings(max_examples=15, deadline=None)
@given(architectures(), st.integers(0, 99))
def test_a_step_says_what_a_stream_says(architecture: Architecture, seed: int) -> None:
    check_step(architecture, seed)


@pytest.mark.slow  # a minute
@settings(max_examples=150, deadline=None)
@given(architectures(), st.integers(0, 99))
def test_many_more_steps_say_what_a_stream_says(architecture: Architecture, seed: int) -> None:
    check_step(architecture, seed)


def test_rows_of_a_batch_may_be_at_different_steps() -> None:
    classifier = simple(pooling="mean", stack=3, num_layers=2, max_length=5)
    session = open_session(build_step(classifier._members[0].model, classifier._architecture))
    ahead = first_states(session, num_rows=1)
    for step in VALUES[0, :2]:
        _, ahead = run_step(session, step[None], ahead)
    behind = first_states(session, num_rows=1)
    axes = {name: 1 if name in ("h", "c") else 0 for name in ahead}
    both = {name: np.concatenate([ahead[name], behind[name]], axes[name]) for name in ahead}
    for number in range(4):
        steps = np.stack([VALUES[0, number + 2], VALUES[1, number]])
        found, both = run_step(session, steps, both)
        expected = classifier.predict_proba([VALUES[0, : number + 3], VALUES[1, : number + 1]])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"bidirectional": True}, {"rocket": 84, "dilations": (1,)}])
def test_a_model_that_looks_ahead_has_no_steps(changes: dict[str, Any]) -> None:
    classifier = simple(**changes)
    with pytest.raises(UserError, match="--state: the model"):
        build_step(classifier._members[0].model, classifier._architecture)


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("export") / "my run"
    assert train_tiny(run, {"train.steps": 30}) == 0
    return run


def test_the_command_writes_what_predict_says(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "model.onnx"
    code, said, _ = call(capsys, "export", run, "--out", out)
    assert code == 0
    assert f"wrote       {out}" in said
    session = onnxruntime.InferenceSession(out)
    images = sources.load(tiny_config().data, seed=0).test.values.numpy()
    inputs = {"values": images.astype(np.float32), "lengths": np.full(len(images), 8)}
    probabilities, logits = session.run(None, inputs)
    expected = load(run).predict_proba(list(images))
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
    assert logits.argmax(1).tolist() == expected.argmax(1).tolist()
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(map(str, range(10)))
    assert json.loads(facts["reads"]) == "arrays [T, 8] of T steps"
    assert Architecture.model_validate_json(facts["architecture"]) == load_model(run)[1]


def test_a_file_that_is_there_stays(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    assert "exists already; replace it with --overwrite" in refusal(
        capsys, "export", run, "--out", out
    )
    assert out.read_text() == "mine"
    assert call(capsys, "export", run / "model", "--out", out, "--overwrite")[0] == 0
    assert out.stat().st_size > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_mistakes_of_the_command(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", tmp_path / "x.onnx")
    assert "say where to" in refusal(capsys, "export", run)
    assert "say where to" in refusal(capsys, "export", run, *out, "--triton", tmp_path)
    assert "ends in .onnx" in refusal(capsys, "export", run, "--out", tmp_path / "x.csv")
    assert "--int8: not with --state" in refusal(capsys, "export", run, *out, "--int8", "--state")
    assert "--triton: not with --state" in refusal(
        capsys, "export", run, "--triton", tmp_path, "--state"
    )
    assert "without its data" in refusal(capsys, "export", run / "model", *out, "--int8")
    assert "neither a trained model" in refusal(capsys, "export", tmp_path, *out)
    bad = tmp_path / "no" / "x.onnx"
    assert "cannot write it: No such file" in refusal(capsys, "export", run, "--out", bad)
    for name in [name for name in sys.modules if name.startswith("seqclf.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = refusal(capsys, "export", run, *out)
    assert "export needs onnx, which is not installed: pip install onnx onnxruntime" in said
    assert not list(tmp_path.iterdir())


def test_int8_is_measured(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "x.onnx"
    code, said, _ = call(capsys, "export", run, "--out", out, "--int8")
    assert code == 0
    assert len(re.findall(r"test accuracy [\d.]+%, loss [\d.]+, n = 359", said)) == 2
    metrics = evaluate_run(load_config(run / "config.yaml")[0], run)
    assert f"{metrics['test/accuracy']:.2%}, loss {metrics['test/loss']:.4f}" in said
    assert "classes" in onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map


def test_a_model_repository_of_triton(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert call(capsys, "export", run / "model", "--triton", tmp_path)[0] == 0
    folder = tmp_path / "my_run"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
    config = (folder / "config.pbtxt").read_text()
    assert config.startswith('name: "my_run"\nbackend: "onnxruntime"\n')
    assert '{ name: "values" data_type: TYPE_FP32 dims: [-1, 8] }' in config
    assert '{ name: "lengths" data_type: TYPE_INT64 dims: [1] reshape: { shape: [] } }' in config
    assert (folder / "labels.txt").read_text().split() == list(map(str, range(10)))
    assert "exists already" in refusal(capsys, "export", run, "--triton", tmp_path)


def test_the_labels_of_triton_are_the_names_of_the_classes(tmp_path: Path) -> None:
    odd = ("\U0001f469\u200d\U0001f467", "\u200fשלום", "two\nlines")
    classifier = simple(classes=odd)
    model = build_network(classifier._members[0].model, classifier._architecture)
    write_triton(model, tmp_path / "m", odd)
    labels = (tmp_path / "m" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == [*odd[:2], "two lines"]
