"""Predictions -> a table of them, or metrics where the labels are known."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import torch

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, quote
from seqclf.data.sequences import Sequences
from seqclf.errors import USAGE_ERROR, UserError
from seqclf.evaluate import Metrics
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import (
    MAX_ROWS,
    Prediction,
    Tally,
    by_recording,
    options_of_model,
    predict_rows,
    predict_split,
)
from seqclf.processes.device import flush_denormals
from seqclf.run.weights import find_weights

LISTED = 10  # bad rows that are named one by one
SUFFIXES = (".csv", ".jsonl")
Per = Literal["window", "recording"]


class Source(NamedTuple):
    """A file to predict, and how to read it."""

    path: Path
    options: ReadOptions
    format: str | None
    skip_bad: bool


@dataclass
class _Counts:
    """What the predictions of a file came to."""

    predicted: int = 0
    bad: list[BadRow] = field(default_factory=list)  # the first LISTED ones
    num_bad: int = 0
    # A file to predict may have labels, and they need not be classes of the model.
    labelled: int = 0
    hits: int = 0
    in_classes: int = 0

    def add_bad(self, bad: BadRow) -> None:
        """Count a bad row, and name it: at once, as the file may be long."""
        self.num_bad += 1
        if self.num_bad <= LISTED:
            print(f"left out: {bad.where}: {bad.problem}", file=sys.stderr)

    def add(self, prediction: Prediction, classes: tuple[str, ...]) -> None:
        """Count a prediction."""
        self.predicted += 1
        self.labelled += prediction.truth is not None
        self.hits += prediction.truth == guess_of(prediction, classes)
        self.in_classes += prediction.truth in classes


def load_predictor(path: Path) -> tuple[LSTMClassifier, Architecture]:
    """Load a model to predict with, on the GPU if there is one; say so if it is not finished."""
    saved = find_weights(path)
    if saved.step is not None:
        print(f"note: no result yet; the weights are of step {saved.step}", file=sys.stderr)
    flush_denormals()  # as in training, whose numbers these are to be
    model = saved.build()
    return model.cuda() if torch.cuda.is_available() else model, saved.architecture


def predict_file(model_path: Path, source: Source, out: Path | None, per: Per | None) -> int:
    """Write the class and all probabilities of each row of a file, in the order of the file.

    Return the exit code: 0, or 2 if some rows could not be used and are not to be skipped. Each of
    the first LISTED of those rows is named on stderr. The file `out` appears when it is complete,
    and one that exists already stays as it is if the exit code is 2. Raises UserError.
    """
    _check_out(out)
    model, architecture = load_predictor(model_path)
    journal = Journal()
    tally = Tally()
    predictions = _predictions(model, architecture, source, journal, tally, per)
    has_parts = architecture.reading.window is not None and per != "recording"
    counts = _Counts()
    # A call that fails never touches a file that is there.
    is_precious = out is not None and out.exists() and not source.skip_bad
    with _written(out, keeps=lambda: is_precious and counts.num_bad > 0) as file:
        start = list(islice(predictions, MAX_ROWS))
        # A table has a column for the truth if its first rows have labels.
        has_truth = any(isinstance(one, Prediction) and one.truth is not None for one in start)
        table = _Table(file, out, architecture.classes, has_parts=has_parts, has_truth=has_truth)
        for one in chain(start, predictions):
            if isinstance(one, BadRow):
                counts.add_bad(one)
            else:
                counts.add(one, architecture.classes)
                table.write(one)
    _say(journal, tally, architecture)
    where = "" if out is None else f" in {out}"
    if is_precious and counts.num_bad:
        where = f"; {out} is left as it was, --on-bad-row skip writes it"
    print(_summary(counts, where), file=sys.stderr)
    return USAGE_ERROR if counts.num_bad and not source.skip_bad else 0


def _check_out(out: Path | None) -> None:
    if out is not None and out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: expected a name that ends in .csv or .jsonl")


@contextmanager
def _written(out: Path | None, keeps: Callable[[], bool] = lambda: False) -> Iterator[TextIO]:
    """Give standard output, or a text file that becomes `out` at the end, unless it `keeps`."""
    if out is None:
        yield sys.stdout
        return
    staging = out.with_name(f".{out.name}.partial")
    try:
        with staging.open("w", encoding="utf-8", newline="") as file:
            yield file
        if not keeps():
            staging.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)


def _predictions(
    model: LSTMClassifier,
    architecture: Architecture,
    source: Source,
    journal: Journal,
    tally: Tally,
    per: Per | None,
) -> Iterator[Prediction | BadRow]:
    if per is not None and architecture.reading.window is None:
        raise UserError(f"--per {per}: the model was not trained on windows")
    options = options_of_model(architecture, source.options)
    rows = read_rows(source.path, options, journal, format=source.format)
    predictions = predict_rows(model, architecture, rows, tally)
    return by_recording(predictions) if per == "recording" else predictions


def write_split(
    model: LSTMClassifier,
    architecture: Architecture,
    sequences: Sequences,
    out: Path | None,
    per: Per | None,
) -> None:
    """Write id, truth, class and all probabilities of each example of a split."""
    _check_out(out)
    if per is not None and architecture.reading.window is None:
        raise UserError(f"--per {per}: the model was not trained on windows")
    origins = sequences.origins
    predictions: Iterable[Prediction | BadRow] = predict_split(model, sequences)
    if per == "recording":
        predictions = by_recording(predictions)
    has_parts = origins is not None and origins.has_parts and per != "recording"
    counts = _Counts()
    with _written(out) as file:
        table = _Table(file, out, architecture.classes, has_parts=has_parts, has_truth=True)
        for one in predictions:
            assert isinstance(one, Prediction)
            counts.add(one, architecture.classes)
            table.write(one)
    print(_summary(counts, "" if out is None else f" in {out}"), file=sys.stderr)


class _Table:
    """A .csv or .jsonl of predictions."""

    def __init__(
        self,
        file: TextIO,
        out: Path | None,
        classes: tuple[str, ...],
        *,
        has_parts: bool,
        has_truth: bool,
    ) -> None:
        self._file = file
        self._classes = classes
        self._has_parts = has_parts
        self._has_truth = has_truth
        self._csv = csv.writer(file) if out is None or out.suffix == ".csv" else None
        if self._csv:
            parts = ["first_step", "last_step"] * has_parts
            names = ["id", *parts, *["truth"] * has_truth, "class"]
            self._csv.writerow([*names, *(f"p({name})" for name in classes)])

    def write(self, prediction: Prediction) -> None:
        """Write a line."""
        line: dict[str, object] = {"id": prediction.id}
        if self._has_parts:
            # People count steps from 1, and the last step is in the window.
            line |= {"first_step": prediction.first + 1, "last_step": prediction.end}
        if self._has_truth:
            line["truth"] = prediction.truth
        line["class"] = guess_of(prediction, self._classes)
        if self._csv:
            shown = (f"{p:.6g}" for p in prediction.probabilities)
            self._csv.writerow([*line.values(), *shown])
        else:
            named = dict(zip(self._classes, prediction.probabilities, strict=True))
            self._file.write(json.dumps({**line, "probabilities": named}) + "\n")


def guess_of(prediction: Prediction, classes: tuple[str, ...]) -> str:
    """Return the most probable class."""
    return classes[max(range(len(classes)), key=prediction.probabilities.__getitem__)]


def measure_file(
    model_path: Path, source: Source, per: Per | None
) -> tuple[Metrics, tuple[str, ...]]:
    """Return a model's metrics on a file with labels, and its classes.

    Raises UserError for rows that cannot be measured.
    """
    model, architecture = load_predictor(model_path)
    classes = architecture.classes
    journal = Journal()
    tally = Tally()
    counts = _Counts()
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    loss = 0.0
    for one in _predictions(model, architecture, source, journal, tally, per):
        if isinstance(one, Prediction) and one.truth not in classes:
            problem = (
                f"label '{quote(one.truth)}': no class of the model" if one.truth else "no label"
            )
            one = BadRow(f"{source.path}, '{quote(one.id)}'", problem)
        if isinstance(one, BadRow):
            counts.add_bad(one)
            continue
        truth = classes.index(one.truth or "")
        guess = max(range(len(classes)), key=one.probabilities.__getitem__)
        confusion[truth, guess] += 1
        loss -= math.log(max(one.probabilities[truth], sys.float_info.min))
        counts.add(one, classes)
    _say(journal, tally, architecture)
    if counts.num_bad and not source.skip_bad:
        raise UserError(
            f"{counts.num_bad:,} rows cannot be measured, see above; --on-bad-row skip leaves them "
            "out"
        )
    if not counts.predicted:
        raise UserError(f"{source.path}: no sequences there")
    if counts.num_bad:
        print(f"{counts.num_bad:,} rows were left out, see above", file=sys.stderr)
    return Metrics(loss / counts.predicted, confusion), classes


def _say(journal: Journal, tally: Tally, architecture: Architecture) -> None:
    """Print on stderr what the reading decided, and what is unlike the training data."""
    aside = [f"{name or repr(name)} ({why})" for name, why in journal.left_aside.items()]
    if aside:
        more = f" and {len(aside) - LISTED} more" * (len(aside) > LISTED)
        print(f"left aside: {', '.join(aside[:LISTED])}{more}", file=sys.stderr)
    for note in [*journal.notes, *tally.notes(architecture)]:
        print(f"note: {note}", file=sys.stderr)


def _summary(counts: _Counts, where: str) -> str:
    text = f"{counts.predicted:,} predictions{where}"
    if counts.labelled:
        share = counts.hits / counts.labelled
        text += f"; {share:.2%} of the {counts.labelled:,} labels in the input agree"
    if counts.num_bad:
        text += f"; {counts.num_bad:,} rows were left out"
        text += (
            f", the first {LISTED} are named above" if counts.num_bad > LISTED else ", see above"
        )
    if counts.labelled and not counts.in_classes:
        text += "\nnote: none of the labels in the input is a class of the model; are they labels?"
    return text
