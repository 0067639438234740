"""Steps that come one by one, and decisions before the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers.commands import VALUES, Capture, Line, N, call, predict, refusal, train, write_jsonl
from helpers.training import train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf import UserError
from seqclf.classifier import Classifier, load
from seqclf.data.reading import Reading
from seqclf.model import Architecture, Pooling
from seqclf.stepwise import Early, decide

TOLERANCE = 2e-6
WORDS = ("a", "b", "c")


def make(*, sharp: float = 1.0, **changes: Any) -> Classifier:
    """Return a classifier with random weights."""
    torch.manual_seed(changes.pop("seed", 0))
    shape = {"input_size": 2, "classes": WORDS, "scale": 1.0, "dropout": 0.5, "read": "rows"}
    layers = {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    architecture = Architecture.model_validate({**shape, **layers, **changes})
    model = architecture.build("orthogonal").eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if model.attention is not None:
        model.attention.weight.data *= sharp
    return Classifier(model, architecture)


def assert_streams(classifier: Classifier, sequence: Any) -> None:
    """Check that a stream says of each prefix what `predict_proba` says."""
    stream = classifier.stream()
    found = np.array([stream.push(step) for step in sequence])
    ends = range(1, len(sequence) + 1)
    expected = classifier.predict_proba([sequence[:end] for end in ends])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert stream.num_steps == len(sequence)


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    num_features = draw(st.integers(1, 3))
    found: dict[str, Any] = {
        "seed": draw(st.integers(0, 99)),
        "input_size": num_features,
        "hidden_size": draw(st.integers(1, 9)),
        "num_layers": draw(st.integers(1, 3)),
        "pooling": draw(st.sampled_from(get_args(Pooling))),
        "sharp": draw(st.sampled_from([1.0, 1000.0])),
        "stack": draw(st.integers(1, 4)),
        "max_length": draw(st.none() | st.integers(1, 9)),
    }
    if draw(st.booleans()):
        found |= {"mean": (0.5,) * num_features, "std": (2.0,) * num_features}
    window = draw(st.none() | st.integers(1, 6))
    offset = draw(st.sampled_from([(), (1000.0,) * num_features]))
    stride = draw(st.none() | st.integers(1, 9)) if window else None
    found["reading"] = Reading(window=window, stride=stride, offset=offset)
    return found


@pytest.mark.filterwarnings("ignore:.*(kept whole|another unit|all 0; is it padding)")
@settings(max_examples=100, deadline=None)
@given(architectures(), st.integers(1, 24), st.integers(0, 99))
def test_a_stream_is_the_prediction_of_each_prefix(
    architecture: dict[str, Any], length: int, seed: int
) -> None:
    classifier = make(**architecture)
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 2, (length, architecture["input_size"]))
    assert_streams(classifier, values + sum(architecture["reading"].offset[:1]))


@settings(max_examples=100, deadline=None)
@given(architectures(), st.integers(0, 99), st.floats(0.35, 1.0), st.integers(1, 12))
def test_a_batch_is_decided_as_its_streams_are(
    architecture: dict[str, Any], seed: int, until: float, min_steps: int
) -> None:
    classifier = make(**architecture | {"reading": Reading(), "max_length": None})
    model = classifier._members[0].model
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (7,), generator=generator)
    values = torch.randn(7, 11, architecture["input_size"], generator=generator)
    found = decide(model, values, lengths, Early(until, min_steps))
    for value, length, outcome in zip(values.numpy(), lengths.tolist(), found, strict=True):
        stream = classifier.stream()
        for step in value[:length]:
            chances = stream.push(step)
            if abs(chances.max() - until) < 1e-5:
                return  # rounding decides
            if chances.max() >= until and stream.num_steps >= min_steps:
                break
        assert outcome.step == stream.num_steps
        assert outcome.is_sure == (chances.max() >= until)
        np.testing.assert_allclose(outcome.probabilities, chances, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("stack", [1, 3])
def test_tokens_and_texts_stream(stack: int) -> None:
    tokens = make(num_tokens=4, tokens=WORDS, input_size=1, stack=stack)
    assert_streams(tokens, ["a", "c", "c", "b", "a"])
    texts = make(num_tokens=256, input_size=1, stack=stack)
    text = "é, zwei"
    assert_streams(texts, text[1:])
    stream = texts.stream()
    stream.push("é, ")
    found = stream.push("zwei")
    np.testing.assert_allclose(found, texts.predict_proba([text])[0], rtol=0, atol=TOLERANCE)
    assert stream.num_steps == len(text.encode())
    with pytest.raises(UserError, match="step 8: an empty sequence; the model reads texts"):
        stream.push("")


def test_images_stream_as_they_are_read() -> None:
    image = np.random.default_rng(0).integers(0, 17, (5, 2)).astype(np.uint8)
    assert_streams(make(scale=16.0), image)
    stream = (columns := make(scale=16.0, read="columns")).stream()
    for end in range(1, 6):
        found = stream.push(image[end - 1])
        expected = columns.predict_proba([image[:end].T])[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert_streams(make(scale=16.0, read="pixels", input_size=1), image.flatten())


def test_added_features_stream() -> None:
    reading = Reading(measured=("x",), fill_missing=True, pad_value=0.0)
    features = ("x", "y", "x measured")
    classifier = make(
        input_size=3, reading=reading, features=features, mean=(0.1,) * 3, std=(1.0,) * 3
    )
    values = VALUES[0].copy()
    values[2] = 0.0  # no step of a stream is padding
    stream = classifier.stream()
    for end in range(1, 7):
        found = stream.push(values[end - 1])
        if end != 3:
            expected = classifier.predict_proba([values[:end]])[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"bidirectional": True}, "both directions, .* train a model with --model.bidirectional f"),
        ({"rocket": 84, "dilations": (1,)}, "convolutions .* train a model with --model.rocket 0"),
        ({"max_length": 5, "keep": "last"}, "the last 5 steps .* --data.keep first"),
    ],
)
def test_what_cannot_stream_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    classifier = make(**changes)
    with pytest.raises(UserError, match=f"no stream of steps with this model: .*{problem}"):
        classifier.stream()
    assert "stream      the model" in classifier.summary()
    assert "stream      yes" in make(keep="last").summary()


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ([1.0], r"shape \(1,\), where one step \(2,\) is due"),
        ([[1.0, 2.0]], r"shape \(1, 2\), where one step"),
        (3.0, r"shape \(\), where one step"),
        ([1.0, np.nan], r"a missing value \(NaN\)"),
        ([1.0, np.inf], "inf is not finite"),
        (["a", "b"], "<U1, where numbers are expected"),
        ("ab", "a text, where numbers are expected"),
        (None, r"shape \(\), where one step"),
    ],
)
def test_a_bad_step_changes_nothing(step: object, problem: str) -> None:
    classifier = make()
    stream = classifier.stream()
    stream.push([1.0, 2.0])
    with pytest.raises(UserError, match=rf"^step 1: {problem}.*; the model reads arrays \[T, 2\]"):
        stream.push(step)
    found = stream.push(torch.tensor([3, 4]))
    expected = classifier.predict_proba([[[1, 2], [3, 4]]])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    tokens = make(num_tokens=4, tokens=WORDS, input_size=1).stream()
    with pytest.raises(UserError, match="step 0: token 'd', which the training data did not have"):
        tokens.push("d")


def test_what_is_returned_is_the_callers() -> None:
    still: list[dict[str, Any]] = [{"reading": Reading(window=1, stride=5)}, {"max_length": 1}]
    for changes in still:  # the second step changes nothing
        stream = make(**changes).stream()
        first = stream.push([1.0, 2.0])
        kept = first.copy()
        first[:] = 7
        assert np.array_equal(stream.push([3.0, 4.0]), kept)


def test_a_late_step_carries_what_an_early_one_does() -> None:
    reading = Reading(window=10, stride=5)
    stream = make(pooling="attention", stack=2, num_layers=2, reading=reading).stream()
    sizes = []
    for _ in range(200):
        stream.push([1.0, 2.0])
        tensors = [
            tensor
            for one in stream._open
            for tensor in (*sum(one.carried.states, ()), *(one.carried.pooled or ()))
        ]
        sizes.append((len(stream._open), sum(map(torch.numel, tensors))))
    assert sizes[-10:] == sizes[20:30]


# ---- predict --until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with x.jsonl, and a model of it in run/."""
    folder = tmp_path_factory.mktemp("until")
    train(folder, write_jsonl(folder / "x.jsonl"), steps=60)
    return folder


def check(lines: list[Line], classifier: Classifier, until: float, min_steps: int = 1) -> None:
    """Check a table of VALUES against their streams."""
    for line, values in zip(lines, VALUES, strict=True):
        stream = classifier.stream()
        for step in values:
            chances = stream.push(step)
            if stream.num_steps >= min_steps and chances.max() >= until:
                break
        assert int(line["step"]) == stream.num_steps
        assert line["sure"] == ("yes" if chances.max() >= until else "no")
        assert line["class"] == classifier.classes_[chances.argmax()]
        assert float(line["probability"]) == pytest.approx(chances.max(), abs=1e-5)
        assert float(line["p(up)"]) == pytest.approx(chances[1], abs=1e-5)


def test_until_writes_when_each_sequence_is_decided(folder: Path, capsys: Capture) -> None:
    run = folder / "run"
    classifier = load(run, device="cpu")
    ends = classifier.predict_proba(VALUES)
    until = float(np.quantile(ends.max(1), 0.25))
    code, out, err = call(capsys, "predict", run, folder / "x.jsonl", "--until", f"{until}")
    assert code == 0
    header = "id,truth,class,step,sure,probability,p(down),p(up)"
    assert out.splitlines()[0].strip() == header
    lines = predict(capsys, run, folder / "x.jsonl", "--until", f"{until}")
    check(lines, classifier, until)
    assert len({line["step"] for line in lines}) > 2
    unsure = sum(line["sure"] == "no" for line in lines)
    assert 0 < unsure < N
    assert (
        f"note: {unsure} of {N} sequences never reach {until:g} and are decided at their end"
    ) in err
    words = ["--until", f"{until}", "--min-steps", "4"]
    lines = predict(capsys, run, folder / "x.jsonl", *words)
    check(lines, classifier, until, 4)
    assert min(int(line["step"]) for line in lines) == 4


def test_until_of_a_split_and_as_jsonl(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    run, out = folder / "run", tmp_path / "x.jsonl"
    of_file = predict(capsys, run, folder / "x.jsonl", "--until", "0.55")
    of_id = {line["id"]: line for line in of_file}
    of_test = predict(capsys, run, "--split", "test", "--until", "0.55")
    for line in of_test:
        assert {**line, "probability": ""} == {**of_id[line["id"]], "probability": ""}
    assert call(capsys, "predict", run, folder / "x.jsonl", "--until", "0.55", "--out", out)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["step"] for row in rows] == [int(line["step"]) for line in of_file]
    assert [row["sure"] for row in rows] == [line["sure"] == "yes" for line in of_file]
    assert list(rows[0]) == [
        *["id", "truth", "class", "step", "sure", "probability", "probabilities"]
    ]
    code, _, err = call(capsys, "predict", run, folder / "x.jsonl", "--until", "0.01")
    assert code == 0
    assert "never reach" not in err


def test_windows_and_images_are_decided(tmp_path: Path, capsys: Capture) -> None:
    file = write_jsonl(tmp_path / "x.jsonl")
    run = train(tmp_path, file, "--window", "3")
    lines = predict(capsys, run, file, "--until", "0.52")
    assert len(lines) == 2 * N
    assert {line["step"] for line in lines} <= {"1", "2", "3"}
    err = refusal(capsys, "predict", run, file, "--until", "0.9", "--per", "recording")
    assert "--until 0.9: decides each window; leave --per recording out" in err
    digits = tmp_path / "digits"
    assert train_tiny(digits, {"train.steps": 5}) == 0
    lines = predict(capsys, digits, "--split", "test", "--until", "0.12")
    assert {line["step"] for line in lines} <= set("12345678")


def test_what_until_refuses(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    run, file = folder / "run", folder / "x.jsonl"
    for words, problem in (
        (["--until", "0"], "--until 0: must be above 0 and at most 1"),
        (["--until", "1.5"], "--until 1.5: must be above 0 and at most 1"),
        (["--until", "nan"], "--until nan: must be above 0 and at most 1"),
        (["--until", "0.9", "--min-steps", "0"], "--min-steps 0: must be at least 1"),
        (["--min-steps", "3"], "--min-steps 3: needs --until"),
    ):
        assert problem in refusal(capsys, "predict", run, file, *words)
    assert "--until 0.9: needs INPUT, --split or --out" in refusal(
        capsys, "predict", run, "--until", "0.9"
    )
    both = tmp_path / "both"
    assert train_tiny(both, {"model.bidirectional": True, "train.steps": 2}) == 0
    err = refusal(capsys, "predict", both, "--split", "test", "--until", "0.9")
    assert "--until 0.9: the model reads in both directions" in err
