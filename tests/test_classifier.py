"""seqclf.load: sequences in memory get the bits that `seqclf predict` writes for a file of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import LABELS, VALUES, Capture, N, call, train
from helpers.files import step_dir
from helpers.reading import write
from helpers.training import train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import seqclf
from seqclf import UserError
from seqclf.classifier import Classifier
from seqclf.data import sources
from seqclf.data.readers.rows import Row
from seqclf.data.reading import Reading
from seqclf.inputs import Reader, as_rows, rows_one_by_one
from seqclf.model import Architecture
from seqclf.predict import fit_row, to_values

LENGTHS = [2 + number % 5 for number in range(N)]
RAGGED = [values[:length] for values, length in zip(VALUES, LENGTHS, strict=True)]
WORDS = [[f"w{round(5 * x) % 7}" for x, _ in values.tolist()] for values in RAGGED]


class Frame:
    """As much of a data frame of pandas as a duck needs."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._columns[name])


def long_lines(has_labels: bool = True) -> list[str]:
    lines = ["rec,t,x,y" + ",label" * has_labels]
    for number, values in enumerate(RAGGED):
        label = f",{LABELS[number]}" * has_labels
        lines += [f"r{number},{t},{x},{y}{label}" for t, (x, y) in enumerate(values.tolist())]
    return lines


def write_long(folder: Path, name: str = "long.csv", has_labels: bool = True) -> Path:
    return write(folder, name, "\n".join(long_lines(has_labels)))


def frame_of(order: np.ndarray | None = None) -> Frame:
    steps = np.concatenate(RAGGED)
    order = np.arange(len(steps)) if order is None else order
    ids = np.repeat([f"r{number}" for number in range(N)], LENGTHS)
    times = np.concatenate([np.arange(length) for length in LENGTHS])
    return Frame(y=steps[order, 1], t=times[order], x=steps[order, 0], rec=ids[order])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with long.csv, and a model of it in run/."""
    folder = tmp_path_factory.mktemp("classifier")
    train(folder, write_long(folder), "--id", "rec", "--time", "t")
    return folder


def by_command(capsys: Capture, out: Path, *words: str | Path) -> list[list[float]]:
    """Return the probabilities that `seqclf predict` writes."""
    assert call(capsys, "predict", *words, "--out", out)[0] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [list(line["probabilities"].values()) for line in lines]


def load(path: Path, **options: Any) -> Classifier:
    return seqclf.load(path, **options)


# ---- the same bits as the command's


def test_a_file_and_its_arrays_have_the_same_bits(folder: Path, tmp_path: Path) -> None:
    new = write_long(tmp_path, has_labels=False)
    words = [sys.executable, "-m", "seqclf", "predict", str(folder / "run"), str(new)]
    subprocess.run([*words, "--out", "x.jsonl"], cwd=tmp_path, check=True)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    classifier = load(folder / "run")
    found = classifier.predict_proba(RAGGED)
    assert found.shape == (N, 2)
    assert found.dtype == np.float64
    assert found.tolist() == [list(line["probabilities"].values()) for line in lines]
    assert classifier.predict(RAGGED).tolist() == [line["class"] for line in lines]
    assert classifier.classes_.tolist() == ["down", "up"]
    assert classifier.features_ == ("x", "y")
    assert len(set(map(tuple, found.tolist()))) == N


@pytest.mark.parametrize(
    "form",
    [
        lambda: [torch.from_numpy(values) for values in RAGGED],
        lambda: [values.tolist() for values in RAGGED],
        lambda: tuple(RAGGED),
        lambda: (values for values in RAGGED),
        lambda: [Frame(y=values[:, 1], other=values[:, 1], x=values[:, 0]) for values in RAGGED],
        lambda: padded(np.nan),
        lambda: torch.from_numpy(padded(np.nan)),
        lambda: frame_of(),
        lambda: frame_of(np.lexsort((-np.arange(sum(LENGTHS)), np.repeat(np.arange(N), LENGTHS)))),
        lambda: np.array([*RAGGED, None], dtype=object)[:-1],
    ],
    ids=[
        "tensors",
        "lists",
        "tuple",
        "generator",
        "frames",
        "padded",
        "tensor",
        "frame",
        "backwards",
        "objects",
    ],
)
def test_every_form_is_the_same_sequences(folder: Path, form: Callable[[], object]) -> None:
    classifier = load(folder / "run", device="cpu")
    expected = classifier.predict_proba(RAGGED)
    assert np.array_equal(classifier.predict_proba(form()), expected)


def padded(pad: float) -> np.ndarray:
    values = np.full((N, max(LENGTHS), 2), pad)
    for row, sequence in zip(values, RAGGED, strict=True):
        row[: len(sequence)] = sequence
    return values


NUMBERS = st.sampled_from([0.0, -0.0, 1.5, -3.0, 1e-40, 255.0, 1e39, math.nan, math.inf])
TYPES = ["f8", "f4", "f2", "i8", "u1", "b1"]


@st.composite
def lists_of_arrays(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    """Draw how many features a model reads, and sequences of which most have so many."""
    num_features = draw(st.integers(1, 3))
    kinds = st.sampled_from(draw(st.sampled_from([["f8"], ["f4"], ["u1"], TYPES])))
    numbers = draw(st.sampled_from([st.sampled_from([0.0, 1.5, 7.0]), NUMBERS]))
    found = []
    for _ in range(draw(st.integers(1, 5))):
        fault = draw(st.sampled_from([None] * 20 + ["width", "empty"]))
        width = num_features + (fault == "width")
        least = 0 if fault == "empty" else width
        values = draw(st.lists(numbers, min_size=least, max_size=6 * width * (fault != "empty")))
        table = np.array(values[: len(values) // width * width], "f8").reshape(-1, width)
        if width == 1 and draw(st.booleans()):
            table = table[:, 0]
        with np.errstate(invalid="ignore", over="ignore"):
            found.append(table.astype(draw(kinds)))
    return num_features, found


@given(lists_of_arrays(), st.sampled_from([None, 0.0]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_sequences_that_are_read_together_are_those_read_one_by_one(
    case: tuple[int, list[np.ndarray]], pad_value: float | None, fill_missing: bool
) -> None:
    num_features, sequences = case
    reading = Reading(pad_value=pad_value, fill_missing=fill_missing)
    reader = Reader.of(bare(input_size=num_features, reading=reading))

    def result_of(rows: Iterator[Row]) -> object:
        try:
            found = [(np.asarray(row.steps), row._replace(steps=(), measured=None)) for row in rows]
        except UserError as error:
            return str(error)
        return [(steps.dtype, steps.shape, steps.tobytes(), row) for steps, row in found]

    one_by_one = rows_one_by_one(list(sequences), 0, reader, is_array=False)
    assert result_of(as_rows(sequences, reader)) == result_of(one_by_one)
    if len({(one.shape, one.dtype) for one in sequences}) == 1:
        one_by_one = rows_one_by_one(list(sequences), 0, reader, is_array=True)
        as_one = np.stack(sequences)
        if as_one.ndim == 3 or num_features == 1:
            assert result_of(as_rows(as_one, reader)) == result_of(one_by_one)


def test_a_frame_orders_sequences_by_their_first_line(folder: Path) -> None:
    classifier = load(folder / "run")
    order = np.random.default_rng(0).permutation(sum(LENGTHS))
    frame = frame_of(order)
    seen = list(dict.fromkeys(frame["rec"].tolist()))
    expected = classifier.predict_proba([RAGGED[int(name[1:])] for name in seen])
    assert np.array_equal(classifier.predict_proba(frame), expected)
    days = [np.datetime64("2026-01-01") + int(t) for t in frame["t"]]
    for times in (days, list(map(str, days)), np.array(days)):
        dated = Frame(rec=frame["rec"], t=times, x=frame["x"], y=frame["y"])
        assert np.array_equal(classifier.predict_proba(dated), expected)


@pytest.mark.filterwarnings("ignore:.*shorter than a window of 3 steps. kept whole")
def test_windows_are_cut_inside(tmp_path: Path, capsys: Capture) -> None:
    words = ["--id", "rec", "--time", "t", "--window", "3", "--stride", "2"]
    run = train(tmp_path, write_long(tmp_path), *words)
    new = write_long(tmp_path, "new.csv", has_labels=False)
    expected = by_command(capsys, tmp_path / "x.jsonl", run, new, "--per", "recording")
    classifier = load(run)
    assert classifier.predict_proba(RAGGED).tolist() == expected
    assert "windows     of 3 steps, one every 2" in classifier.summary()


def test_gaps_are_filled_as_in_files(tmp_path: Path, capsys: Capture) -> None:
    gappy = [values.copy() for values in RAGGED]
    for values in gappy[::3]:
        values[1, 0] = np.nan
    gappy[4][:, 1] = np.nan
    rows = [
        {"label": label, "steps": [[None if x != x else x for x in step] for step in values]}
        for label, values in zip(LABELS, map(np.ndarray.tolist, gappy), strict=True)
    ]
    file = write(tmp_path, "gaps.jsonl", "\n".join(map(json.dumps, rows)))
    run = train(tmp_path, file, "--fill-missing", "--measured")
    expected = by_command(capsys, tmp_path / "x.jsonl", run, file)
    classifier = load(run)
    assert classifier.predict_proba(gappy).tolist() == expected
    assert "[T, 2]" in classifier.summary()
    assert classifier.features_ == ()


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_tokens_and_texts(kind: str, tmp_path: Path, capsys: Capture) -> None:
    texts = [" ".join(words) + "é" for words in WORDS]
    values: list[Any] = WORDS if kind == "tokens" else texts
    rows = [{"label": label, kind: value} for label, value in zip(LABELS, values, strict=True)]
    file = write(tmp_path, "x.jsonl", "\n".join(map(json.dumps, rows)))
    run = train(tmp_path, file)
    expected = by_command(capsys, tmp_path / "out.jsonl", run, file)
    classifier = load(run)
    assert classifier.predict_proba(values).tolist() == expected
    column = np.array([*values, None], dtype=object)[:-1]
    assert classifier.predict_proba(column).tolist() == expected
    if kind == "text":
        assert classifier.predict_proba(np.array(values)).tolist() == expected
        assert classifier.predict_proba(Frame(text=texts, more=texts)).tolist() == expected
        return
    ids = np.repeat(np.arange(N), LENGTHS)
    frame = Frame(id=ids, tokens=[word for words in WORDS for word in words])
    assert classifier.predict_proba(frame).tolist() == expected
    unknown = write(tmp_path, "new.jsonl", '{"tokens": ["w1", "new", "w2"]}')
    expected = by_command(capsys, tmp_path / "out.jsonl", run, unknown)
    keeping = load(run, unknown_tokens="keep")
    assert keeping.predict_proba([["w1", "new", "w2"]]).tolist() == expected
    for wrong, problem in (
        ([["w1"], ["w1", "new"]], r"X\[1\]\[1\]: token 'new', which the training data did not"),
        (["w1 w2"], r"X\[0\]: a text, where a list of tokens is expected; text.split\(\)"),
        ([["w1"], []], r"X\[1\]: an empty sequence"),
        ([["w1"], 3], r"X\[1\]: a int, where a list of tokens"),
        ([[1.5]], r"X\[0\]\[0\]: a float, where a token is a text"),
        ("w1", r"X: one text, where a list of sequences is expected"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            classifier.predict(wrong)
        assert "; the model reads lists of tokens: 'w" in str(caught.value)


def test_images_are_read_as_in_training(tmp_path: Path, capsys: Capture) -> None:
    for read in ("rows", "columns", "permuted"):
        run = tmp_path / read
        assert train_tiny(run, {"data.read": read, "train.steps": 5}) == 0
        out = tmp_path / "x.jsonl"
        expected = by_command(capsys, out, run, "--split", "test")
        config = seqclf.load_config(run / "config.yaml", {})[0]
        images = sources.load(config.data, seed=config.seed).test
        classifier = load(run)
        found = classifier.predict_proba(images.values)
        assert found.tolist() == expected
        # One by one, as those of other sizes are.
        assert np.allclose(classifier.predict_proba(list(images.values[:3])), found[:3], atol=1e-6)
        metrics = classifier.evaluate(images.values.numpy(), images.labels.tolist())
        truths = images.labels.numpy()
        assert metrics.accuracy == (found.argmax(1) == truths).mean()
        assert metrics.loss == pytest.approx(-np.log(found[np.arange(len(truths)), truths]).mean())
        with pytest.warns(UserWarning, match="all pixels lie in 0 to 1"):
            classifier.predict(images.values[:2] / 16)


def test_what_was_measured_follows_the_features_in_another_order() -> None:
    reading = Reading(measured=("x",), fill_missing=True)
    names = ("x", "y", "x measured")
    numbers = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    architecture = bare(input_size=3, features=names, reading=reading, **numbers)
    x_is_missing = np.array([[False, True], [True, True]])
    row = Row("a", np.array([[1.0, 2.0], [3.0, 4.0]]), "", features=("x", "y"))
    row = row._replace(measured=x_is_missing)
    turned = row._replace(
        steps=row.steps[:, ::-1],  # type: ignore[call-overload]
        measured=x_is_missing[:, ::-1],
        features=("y", "x"),
    )
    values = []
    for one in (row, turned):
        fitted = fit_row(one, architecture)
        assert isinstance(fitted, Row)
        values.append(to_values([fitted], architecture, {}).tolist())
    assert values == [[[1.0, 2.0, 0.0], [3.0, 4.0, 1.0]]] * 2


def test_no_more_numbers_than_memory_has_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    classifier = in_memory()
    sequences = [np.full((length, 2), 0.5) for length in (3, 1, 2, 4, 1, 1)]
    expected = classifier.predict_proba(sequences)

    def count(rows: list[Row], *others: Any) -> torch.Tensor:
        together.append(len(rows))
        return to_values(rows, *others)

    monkeypatch.setattr("seqclf.predict.to_values", count)
    monkeypatch.setattr("seqclf.predict.MAX_NUMBERS", 7)
    assert np.allclose(classifier.predict_proba(sequences), expected, atol=1e-6)
    assert together == [2, 2, 2]


@pytest.mark.parametrize("read", ["pixels", "columns"])
def test_images_of_several_sizes_are_read_one_by_one(read: str) -> None:
    classifier = in_memory(input_size=1 if read == "pixels" else 4, read=read)
    generator = np.random.default_rng(0)
    images = [generator.normal(size=(4, width)) for width in (5, 3, 3, 5)]
    each = [classifier.predict_proba([image])[0] for image in images]
    assert np.allclose(classifier.predict_proba(images), each, atol=1e-6)


def test_a_threads_denormal_numbers_change_no_bit() -> None:
    architecture = bare(input_size=1)
    model = architecture.build().eval()
    model.out.bias.data.copy_(torch.tensor([0.0, -90.0]))
    classifier = Classifier(model, architecture)
    flushed = []
    for flushes in (True, False):
        torch.set_flush_denormal(flushes)
        flushed.append(classifier.predict_proba([[1.0]]).tolist())
    assert flushed == [[[1.0, 0.0]]] * 2


# ---- what can be loaded


def bare(**changes: Any) -> Architecture:
    shape = {"input_size": 2, "classes": ("a", "b"), "scale": 1.0, "dropout": 0.0, "read": "rows"}
    layers = {"hidden_size": 5, "num_layers": 1, "bidirectional": False, "pooling": "last"}
    return Architecture.model_validate({**shape, **layers, **changes})


def in_memory(**changes: Any) -> Classifier:
    torch.manual_seed(0)
    architecture = bare(**changes)
    return Classifier(architecture.build("orthogonal"), architecture)


def test_run_model_and_checkpoint_are_one(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    run = folder / "run"
    expected = load(run).predict_proba(RAGGED)
    places: list[Path | str] = [run / "model", str(run), step_dir(run, 20)]
    for place in places:
        assert np.array_equal(seqclf.load(place).predict_proba(RAGGED), expected)
    out = tmp_path / "x.jsonl"
    words = [step_dir(run, 20), write_long(tmp_path, has_labels=False)]
    assert by_command(capsys, out, *words) == expected.tolist()
    with pytest.raises(UserError, match="neither a trained model nor a whole checkpoint"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json: missing or damaged"):
        load(tmp_path)


def test_a_run_without_a_result_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(run, {"train.steps": 9, "checkpoint.every": 4}, stop_at=5)
    with pytest.warns(UserWarning, match="no result yet; the weights are of step 5"):
        load(run)
    load(step_dir(run, 4))


def test_a_device_that_is_not_there(folder: Path) -> None:
    assert load(folder / "run", device=torch.device("cpu")).device.type == "cpu"
    for device in ("cuda:99", "gpu", "meta:x"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used here"):
            load(folder / "run", device=device)
    with pytest.raises(UserError, match="unknown_tokens 'skip': expected 'error' or 'keep'"):
        load(folder / "run", unknown_tokens="skip")


def test_the_summary_says_what_is_read(folder: Path) -> None:
    lines = load(folder / "run", device="cpu").summary().splitlines()
    assert lines[0] == f"model       {folder}/run: 402 parameters, on cpu"
    assert lines[1:] == [
        "reads       arrays [T, 2] of T steps of the features x, y",
        "classes     2: down, up",
        "LSTM        1 of 8 units, one direction, pooling last, stack 1",
        "lengths     2 to 6 steps in training",
        "stream      yes",
    ]
    assert repr(load(folder / "run", device="cpu")) == (
        "<Classifier of features, 2 classes, on cpu>"
    )


def test_seqclf_is_imported_in_no_time() -> None:
    code = "import time; t = time.perf_counter(); import seqclf; print(time.perf_counter() - t)"
    times = [
        float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)
    ]
    assert min(times) <= 0.1
    assert {"load", "Classifier", "load_model"} <= set(dir(seqclf))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        seqclf.lode  # noqa: B018


# ---- what cannot be read


@pytest.mark.parametrize(
    ("sequences", "problem"),
    [
        ([VALUES[0], VALUES[1][:, :1]], r"X\[1\]: 1 feature a step, where the model reads 2"),
        ([VALUES[0, :, 0]], r"X\[0\]: 1 feature a step"),
        ([VALUES[0], VALUES[1].T], r"X\[1\]: shape \(2, 6\): is it features x steps\?"),
        ([VALUES[0], VALUES[:3]], r"X\[1\]: shape \(3, 6, 2\), where steps x features"),
        ([VALUES[0], VALUES[1][:0]], r"X\[1\]: an empty sequence"),
        ([[[1, 2], [3, 4]], [[1, 2], [3, np.nan]]], r"X\[1\]\[1, 1\]: a missing value \(NaN\)"),
        ([np.array([[1, 2], [3, np.inf]])], r"X\[0\]\[1, 1\]: inf is not finite"),
        ([np.array([[1, 2], [3, 1e300]])], r"X\[0\]\[1, 1\]: 1e\+300 is too large for float32"),
        (np.full((2, 3, 2), np.nan), r"X\[0\]: an empty sequence: all of its values are missing"),
        ([VALUES[0], VALUES[1].astype(complex)], r"X\[1\]: complex128, where numbers"),
        ([VALUES[0], VALUES[1].astype(str)], r"X\[1\]: <U\d+, where numbers"),
        ([VALUES[0], None], r"X\[1\]: object, where numbers"),
        ([VALUES[0], [[1, 2], [3]]], r"X\[1\]: no array of numbers: its steps have unequal"),
        ([VALUES[0], "abc"], r"X\[1\]: a text, where numbers"),
        (["abc"], r"X\[0\]: a text, where numbers"),
        (VALUES[0], r"X: one array of shape \(6, 2\), where sequences \[N, T, F\]"),
        (VALUES[0, 0], r"X: one array of shape \(2,\)"),
        (torch.zeros(2, 2, 3, 4), r"X: one array of shape \(2, 2, 3, 4\)"),
        (3, "X: a int, where sequences are expected"),
        (np.ma.masked_less(VALUES, -0.5), r"X\[\d+\]\[\d, \d\]: a missing value"),
        (Frame(t=[1], x=[1], y=[1]), "X: no column 'rec' that tells sequences apart, in t, x, y"),
        (Frame(rec=["a"], x=[1]), "X: no column 'y' in rec, x"),
        (Frame(rec=["a"], x=["?"], y=[1]), "X: column 'x' holds no numbers"),
        (Frame(rec=["a", None], x=[1, 1], y=[1, 1]), "X, line 1: no id"),
        (Frame(rec=[0, np.nan], x=[1, 1], y=[1, 1]), "X, line 1: no id"),
        (Frame(rec=[0, 0], t=[0, np.nan], x=[1, 1], y=[1, 1]), "X, line 1: no time"),
        (Frame(rec=[0, 0], t=["1", "b"], x=[1, 1], y=[1, 1]), "X, line 1: time 'b' is neither"),
        (Frame(rec=[0, 7], x=[1, np.nan], y=[1, 1]), r"X, id '7'\[0, 0\]: a missing value"),
        (Frame(rec=[0], x=np.array([{}], object), y=[1]), "X: column 'x' holds no numbers"),
        (Frame(rec=[0], x=np.zeros((1, 2)), y=[1]), "X: column 'x' comes twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "x",
)
def test_a_sequence_that_cannot_be_read_is_named(
    folder: Path, sequences: object, problem: str
) -> None:
    classifier = load(folder / "run")
    with pytest.raises(UserError, match=problem) as caught:
        classifier.predict_proba(sequences)
    assert str(caught.value).endswith(
        "; the model reads arrays [T, 2] of T steps of the features x, y"
    )
    assert isinstance(caught.value, ValueError)


def test_a_step_of_one_number_needs_no_brackets() -> None:
    classifier = in_memory(input_size=1)
    found = classifier.predict_proba(VALUES[:, :, :1])
    assert np.array_equal(classifier.predict_proba(VALUES[:, :, 0]), found)
    assert np.array_equal(classifier.predict_proba(list(VALUES[:, :, 0])), found)
    assert classifier.predict_proba([]).shape == (0, 2)
    assert classifier.predict([]).shape == (0,)
    assert "arrays [T, 1] of T steps or [T]" in classifier.summary()
    frame = Frame(id=[0, 0, 1], value=[1.0, 2.0, 3.0])
    assert np.array_equal(classifier.predict_proba(frame), classifier.predict_proba([[1, 2], [3]]))
    with pytest.raises(UserError, match=r"X: 2 columns of features \(v, w\), where 1 are expected"):
        classifier.predict(Frame(id=[0], v=[1], w=[1]))
    with pytest.raises(UserError, match=r"X\[1\]\[1\]: a missing value"):
        classifier.predict([[1.0], [1.0, np.nan]])


def test_a_wide_frame_is_a_sequence_a_line() -> None:
    reading = Reading(form="wide", columns=("t1", "t2", "t3"))
    classifier = in_memory(input_size=1, reading=reading)
    frame = Frame(t1=[1, 4], t3=[3, np.nan], t2=[2, 5], other=["a", "b"])
    expected = classifier.predict_proba([[1, 2, 3], [4, 5]])
    assert np.array_equal(classifier.predict_proba(frame), expected)


def test_numbers_of_bfloat16_and_of_whole_type_are_numbers() -> None:
    classifier = in_memory()
    whole = torch.tensor([[[1, 2], [3, 4]]])
    expected = classifier.predict_proba(whole.double())
    for dtype in (torch.int64, torch.uint8, torch.bfloat16, torch.float16):
        assert np.array_equal(classifier.predict_proba(whole.to(dtype)), expected)
    assert np.array_equal(classifier.predict_proba(whole.double().requires_grad_()), expected)


def test_lengths_beyond_training_warn() -> None:
    classifier = in_memory(lengths=(5, 6))
    with pytest.warns(UserWarning, match=r"1 sequences are of another length, 30 steps") as caught:
        classifier.predict([np.zeros((30, 2)), np.zeros((6, 2))])
    assert caught[0].filename == __file__


# ---- evaluate


def test_evaluate_counts_as_the_command_does(folder: Path, capsys: Capture) -> None:
    classifier = load(folder / "run")
    metrics = classifier.evaluate(RAGGED, LABELS)
    code, out, _ = call(capsys, "evaluate", folder / "run", folder / "long.csv", "--json")
    expected = json.loads(out)
    assert code == 0
    assert metrics.to_json(("down", "up")) == expected
    assert classifier.evaluate(RAGGED, np.array(LABELS)).loss == metrics.loss


def test_labels_that_cannot_be_measured(folder: Path) -> None:
    classifier = load(folder / "run")
    with pytest.raises(UserError, match=r"y\[1\]: label 'sideways', .* of the model: down, up"):
        classifier.evaluate(RAGGED[:2], ["up", "sideways"])
    with pytest.raises(UserError, match="2 sequences and 1 labels; give as many"):
        classifier.evaluate(RAGGED[:2], ["up"])
    with pytest.raises(UserError, match="0 sequences and 0 labels"):
        classifier.evaluate([], [])
    with pytest.raises(UserError, match=r"y\[0\]: label 'None'"):
        classifier.evaluate(RAGGED[:1], [None])


# ---- nothing outside changes


def test_threads_share_a_classifier(folder: Path) -> None:
    classifier = load(folder / "run", device="cpu")
    parts = [RAGGED[number::4] for number in range(4)]
    expected = [classifier.predict_proba(part) for part in parts]
    found: dict[int, list[bool]] = {number: [] for number in range(4)}

    def predict(number: int) -> None:
        for _ in range(10):
            same = np.array_equal(classifier.predict_proba(parts[number]), expected[number])
            found[number].append(same)

    threads = [threading.Thread(target=predict, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same == [True] * 10 for same in found.values())


def test_torch_stays_as_it_was(folder: Path) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.random.get_rng_state().tolist(),
            sys.float_info.min / 2 == 0,  # denormal numbers are flushed
        )

    torch.set_flush_denormal(False)
    before = state()
    classifier = load(folder / "run")
    classifier.predict(RAGGED)
    assert state() == before
