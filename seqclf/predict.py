"""Rows of a file, or examples of a split -> the probabilities of all classes for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.data.batches import MAX_EVAL_STEPS, evaluation_batches
from seqclf.data.draft import Adjustment
from seqclf.data.readers.rows import BadRow, ReadOptions, Row, quote
from seqclf.data.sequences import Sequences
from seqclf.data.windows import cut_into_parts
from seqclf.model import Architecture, LSTMClassifier, read_images
from seqclf.prefixes import probabilities

MAX_ROWS = 256  # sequences that are in memory at once
# A sequence that is so many times longer or shorter than all training sequences is noted.
FAR_LENGTH = 2


class Prediction(NamedTuple):
    """The probability of each class for a row of a file, or for a window of it."""

    id: str
    row: int  # counts the rows of the file
    first: int  # the window's first step
    end: int  # the step after its last one
    truth: str | None  # the label, where the file has one
    probabilities: list[float]


class _Waiting(NamedTuple):
    """A sequence that is not yet predicted."""

    prediction: Prediction  # without its probabilities
    values: Tensor


@dataclass
class Tally:
    """What is unlike the training data in the sequences that were predicted."""

    num_long: int = 0
    num_short: int = 0
    first_id: str = ""  # of a sequence of such a length
    shortest: int = 0
    longest: int = 0
    largest: float = 0.0  # the largest number of all

    def notes(self, architecture: Architecture) -> Iterator[str]:
        """Yield a line for each finding."""
        if architecture.lengths is not None and (count := self.num_long + self.num_short):
            shortest, longest = architecture.lengths
            yield (
                f"{count:,} sequences are of another length, {self.shortest:,} to "
                f"{self.longest:,} steps (such as '{quote(self.first_id)}'), than the training "
                f"sequences, {shortest:,} to {longest:,} steps; do not trust these predictions"
            )
        if architecture.scale > 1 and 0 < self.largest <= 1:
            yield (
                f"all pixels lie in 0 to 1, where the model was trained on 0 to "
                f"{architecture.scale:g}; multiply them by {architecture.scale:g}"
            )

    def add(self, row_id: str, values: Tensor, architecture: Architecture) -> None:
        """Look at a sequence."""
        if architecture.scale > 1:
            self.largest = max(self.largest, float(values.max()))
        shortest, longest = architecture.lengths or (0, len(values))
        is_long = len(values) > FAR_LENGTH * longest
        is_short = FAR_LENGTH * len(values) < shortest
        if is_long or is_short:
            self.first_id = self.first_id or row_id
            self.shortest = min(self.shortest or len(values), len(values))
            self.longest = max(self.longest, len(values))
            self.num_long += is_long
            self.num_short += is_short


def options_of_model(architecture: Architecture, given: ReadOptions) -> ReadOptions:
    """Return how to read a file for a model: as its training files were read, and as `given` says.

    A column that the training files had for the label or the group may be missing.
    """
    reading = architecture.reading
    names = ("id", "time", "label", "group", "tokens", "text", "form", "pad_value")
    remembered = {
        name: value
        for name in names
        if getattr(given, name) is None and (value := getattr(reading, name)) is not None
    }
    features = reading.columns or _named_features(architecture)
    options = replace(
        given,
        **remembered,
        soft=frozenset(remembered),
        fill_missing=given.fill_missing or reading.fill_missing,
        channels_first=given.channels_first or reading.channels_first,
        num_values=len(reading.columns) or reading.num_values,
        keep_step_labels=True,
    )
    if features and given.features is None:
        options = replace(options, features=features, wanted_by="the model")
    return options


def _named_features(architecture: Architecture) -> tuple[str, ...] | None:
    """Return the features that a file must have by their names; None if they have no names."""
    names = architecture.features
    if architecture.reading.measured:
        names = names[: -len(architecture.reading.measured)]
    if names == tuple(f"feature {number}" for number in range(len(names))):
        return None
    return names


def predict_rows(
    model: LSTMClassifier,
    architecture: Architecture,
    rows: Iterable[Row | BadRow],
    tally: Tally | None = None,
) -> Iterator[Prediction | BadRow]:
    """Yield a prediction for each row, or for each window of it, or a BadRow, in their order."""
    tally = Tally() if tally is None else tally
    token_numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
    # Windows must not depend on labels, which a file to predict need not have.
    reading = architecture.reading.model_copy(update={"on_label_change": "majority"})
    waiting: list[_Waiting | BadRow] = []
    num_steps = 0
    for number, row in enumerate(rows):
        values = row if isinstance(row, BadRow) else to_values(row, architecture, token_numbers)
        if isinstance(row, BadRow) or isinstance(values, BadRow):
            waiting.append(values)  # type: ignore[arg-type]
            continue
        known = row._replace(label=row.label or "") if row.step_labels is None else row
        for part in cut_into_parts(known, reading).parts:
            truth = part.label or None
            prediction = Prediction(row.id, number, part.first, part.end, truth, [])
            waiting.append(_Waiting(prediction, values[part.first : part.end]))
            tally.add(row.id, values[part.first : part.end], architecture)
            num_steps += part.end - part.first
        if len(waiting) >= MAX_ROWS or num_steps > MAX_EVAL_STEPS:
            yield from _predict_together(model, architecture, waiting)
            waiting = []
            num_steps = 0
    yield from _predict_together(model, architecture, waiting)


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
    if kind == "text":
        return torch.from_numpy(np.ascontiguousarray(steps))
    names = _named_features(architecture)
    if row.features and names and row.features != names:
        # Features are found by their names: a file may have more of them, in another order.
        missing = [name for name in names if name not in row.features]
        if missing:
            problem = f"no feature {', '.join(missing)}, which the model was trained on"
            return BadRow(row.where, problem)
        row = row._replace(steps=steps[:, [row.features.index(name) for name in names]])
    return _adjust(row, architecture)


def _adjust(row: Row, architecture: Architecture) -> Tensor | BadRow:
    """Return a row's numbers [T, F] as the model reads them, or what is wrong."""
    assert isinstance(row.steps, np.ndarray)
    reading = architecture.reading
    num_features = architecture.input_size - len(reading.measured)
    found = read_images(torch.from_numpy(row.steps[None]), architecture.read).shape[2]
    if found != num_features:
        problem = f"{found} features a step, where the model reads {num_features}"
        return BadRow(row.where, problem)
    names = architecture.features
    adjustment = Adjustment(reading.offset, tuple(names.index(name) for name in reading.measured))
    steps_TF = adjustment.apply(row).astype(np.float32)
    gaps_TF = np.isnan(steps_TF)
    if gaps_TF.any():
        # A feature without any value in a sequence has the mean of the training data.
        steps_TF[gaps_TF] = np.broadcast_to(architecture.mean, steps_TF.shape)[gaps_TF]
    return torch.from_numpy(np.ascontiguousarray(steps_TF))


def _predict_together(
    model: LSTMClassifier, architecture: Architecture, waiting: list[_Waiting | BadRow]
) -> Iterator[Prediction | BadRow]:
    values = [one.values for one in waiting if isinstance(one, _Waiting)]
    found = iter(_predict_values(model, architecture, values) if values else [])
    for one in waiting:
        if isinstance(one, BadRow):
            yield one
        else:
            yield one.prediction._replace(probabilities=next(found))


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
    return _probabilities_of(model, sequences, batch_size=MAX_ROWS if one_size else 1)


def _probabilities_of(
    model: LSTMClassifier, sequences: Sequences, *, batch_size: int
) -> list[list[float]]:
    result: list[list[float]] = [[]] * len(sequences)
    for ids in evaluation_batches(sequences.lengths, 0, len(sequences), batch_size):
        places = torch.arange(len(sequences))[ids].tolist()
        rows = probabilities(model, *sequences.rows(ids)).tolist()
        for place, row in zip(places, rows, strict=True):
            result[place] = row
    return result


def predict_split(model: LSTMClassifier, sequences: Sequences) -> Iterator[Prediction]:
    """Yield a prediction for each example of a split, in their order."""
    origins = sequences.origins
    for index, row in enumerate(_probabilities_of(model, sequences, batch_size=MAX_ROWS)):
        length = sequences.shape[0] if sequences.lengths is None else int(sequences.lengths[index])
        truth = sequences.classes[int(sequences.labels[index])]
        if origins is None:
            yield Prediction(str(index), index, 0, length, truth, row)
        else:
            number, first = int(origins.rows[index]), int(origins.first_steps[index])
            yield Prediction(origins.ids[number], number, first, first + length, truth, row)


def by_recording(predictions: Iterable[Prediction | BadRow]) -> Iterator[Prediction | BadRow]:
    """Combine the windows of each row: the mean of their probabilities, and their label if one."""

    def key(prediction: Prediction | BadRow) -> int:
        return -1 if isinstance(prediction, BadRow) else prediction.row

    for number, members in groupby(predictions, key):
        if number < 0:
            yield from members
            continue
        windows = [member for member in members if isinstance(member, Prediction)]
        mean = np.mean([window.probabilities for window in windows], axis=0)
        truths = {window.truth for window in windows}
        yield windows[0]._replace(
            end=windows[-1].end,
            truth=truths.pop() if len(truths) == 1 else None,
            probabilities=mean.tolist(),
        )
