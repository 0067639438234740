"""Predict: a file of sequences -> the class and all probabilities of each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor

from seqclf.data.batches import MAX_EVAL_STEPS, evaluation_batches
from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, ReadOptions, Row
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier, read_images
from seqclf.prefixes import probabilities
from seqclf.processes.device import flush_denormals
from seqclf.run.weights import load_model

MAX_ROWS = 256  # rows of a file that are in memory at once


class Prediction(NamedTuple):
    """The probability of each class for a row of a file."""

    id: str
    label: str | None  # as the file has it
    probabilities: list[float]


def predict_file(
    run_dir: Path,
    path: Path,
    out: Path | None,
    options: ReadOptions,
    file_format: str | None,
    *,
    skip: bool,
) -> int:
    """Write the class and all probabilities of each row of a file, in the order of the file.

    Return the exit code: 0, or 2 if some rows could not be used and `skip` is false. Each of those
    rows is named on stderr. The file `out` appears when it is complete. Raises UserError.
    """
    suffix = out.suffix if out else ".csv"
    if suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    model, architecture = load_model(run_dir)
    classes = architecture.classes
    flush_denormals()  # as in training, whose numbers these are to be
    if torch.cuda.is_available():
        model.cuda()
    rows = read_rows(path, options, format=file_format)
    counts = _Counts()
    with _written(out) as file:
        writer = csv.writer(file)
        if suffix == ".csv":
            writer.writerow(["id", "class", *(f"p({name})" for name in classes)])
        for row in predict_rows(model, architecture, rows):
            if isinstance(row, BadRow):
                # At once and on stderr: predictions may go to a pipe, and the file may be long.
                print(f"left out: {row.where}: {row.problem}", file=sys.stderr)
                counts.bad += 1
                continue
            guess = classes[max(range(len(classes)), key=row.probabilities.__getitem__)]
            counts.predicted += 1
            counts.labelled += bool(row.label)
            counts.hits += row.label == guess
            counts.in_classes += row.label in classes
            if suffix == ".csv":
                writer.writerow([row.id, guess, *(f"{p:.6g}" for p in row.probabilities)])
            else:
                named = dict(zip(classes, row.probabilities, strict=True))
                line = {"id": row.id, "class": guess, "probabilities": named}
                file.write(json.dumps(line) + "\n")
    print(_summary(counts, out), file=sys.stderr)
    return 0 if skip or not counts.bad else 2


@dataclass
class _Counts:
    predicted: int = 0
    bad: int = 0
    # A file to predict may have labels, and they need not be classes of the model.
    labelled: int = 0
    hits: int = 0
    in_classes: int = 0


def _summary(counts: _Counts, out: Path | None) -> str:
    text = f"{counts.predicted:,} predictions" + (f" in {out}" if out is not None else "")
    if counts.labelled:
        share = counts.hits / counts.labelled
        text += f"; {share:.2%} of the {counts.labelled:,} labels in the input agree"
    if counts.bad:
        text += f"; {counts.bad:,} rows were left out, see above"
    if counts.labelled and not counts.in_classes:
        text += "\nnote: none of the labels in the input is a class of the model; are they labels?"
    return text


@contextmanager
def _written(out: Path | None) -> Iterator[TextIO]:
    """Give standard output, or a text file that becomes `out` at the end."""
    if out is None:
        yield sys.stdout
        return
    staging = out.with_name(f".{out.name}.partial")
    try:
        with staging.open("w", encoding="utf-8", newline="") as file:
            yield file
        staging.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)


def predict_rows(
    model: LSTMClassifier, architecture: Architecture, rows: Iterable[Row | BadRow]
) -> Iterator[Prediction | BadRow]:
    """Yield a prediction for each row, or a BadRow, in the order of the rows."""
    token_numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
    waiting: list[Row | BadRow] = []
    values: list[Tensor] = []  # one for each Row that is waiting
    num_steps = 0
    for row in rows:
        if isinstance(row, Row):
            value = to_values(row, architecture, token_numbers)
            if isinstance(value, BadRow):
                row = value
            else:
                values.append(value)
                num_steps += len(value)
        waiting.append(row)
        if len(waiting) == MAX_ROWS or num_steps > MAX_EVAL_STEPS:
            yield from _predict_together(model, architecture, waiting, values)
            waiting = []
            values = []
            num_steps = 0
    yield from _predict_together(model, architecture, waiting, values)


def to_values(
    row: Row, architecture: Architecture, token_numbers: dict[str, int]
) -> Tensor | BadRow:
    """Return a row as the model's training data were, [T, F] or tokens [T], or what is wrong."""
    steps = row.steps
    kind = "tokens" if isinstance(steps, tuple) else "text" if steps.ndim == 1 else "features"
    if not architecture.num_tokens:
        expected = "features"
    else:
        expected = "tokens" if architecture.tokens else "text"
    if kind != expected:
        return BadRow(row.where, f"{kind}, where the model reads {expected}")
    if isinstance(steps, tuple):
        # 0 stands for every token that the training data did not have.
        return torch.tensor([token_numbers.get(token, 0) for token in steps])
    if row.features and architecture.features and row.features != architecture.features:
        # Features are found by their names: a file may have more of them, in another order.
        missing = [name for name in architecture.features if name not in row.features]
        if missing:
            problem = f"no feature {', '.join(missing)}, which the model was trained on"
            return BadRow(row.where, problem)
        steps = steps[:, [row.features.index(name) for name in architecture.features]]
    value = torch.from_numpy(np.ascontiguousarray(steps))
    if kind == "features":
        num_features = read_images(value[None], architecture.read).shape[2]
        if num_features != architecture.input_size:
            problem = (
                f"{num_features} features a step, where the model reads {architecture.input_size}"
            )
            return BadRow(row.where, problem)
    return value


def _predict_together(
    model: LSTMClassifier,
    architecture: Architecture,
    rows: list[Row | BadRow],
    values: list[Tensor],
) -> Iterator[Prediction | BadRow]:
    probabilities_of_rows = iter(_predict_values(model, architecture, values) if values else [])
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        else:
            yield Prediction(row.id, row.label, next(probabilities_of_rows))


def _predict_values(
    model: LSTMClassifier, architecture: Architecture, values: list[Tensor]
) -> list[list[float]]:
    """Return the probabilities of all classes for each sequence, in the order of the sequences."""
    lengths = torch.tensor([len(value) for value in values])
    sequences = Sequences(
        torch.cat(values),
        torch.zeros_like(lengths),
        architecture.classes,
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
    ).cut(architecture.max_length, architecture.keep)
    # A batch pads images with rows, which changes what their columns and pixels are. So images of
    # unequal sizes go one by one, unless the model reads them by rows.
    one_size = architecture.read == "rows" or bool((lengths == lengths[0]).all())
    batch_size = MAX_ROWS if one_size else 1
    result: list[list[float]] = [[]] * len(values)
    for ids in evaluation_batches(sequences.lengths, 0, len(values), batch_size):
        places = torch.arange(len(values))[ids].tolist()
        rows = probabilities(model, *sequences.rows(ids)).tolist()
        for place, row in zip(places, rows, strict=True):
            result[place] = row
    return result
