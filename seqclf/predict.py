"""Rows of a file, or examples of a split -> the probabilities of all classes for each."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.data.batches import MAX_EVAL_STEPS, evaluation_batches
from seqclf.data.draft import Adjustment
from seqclf.data.readers.rows import BadRow, ReadOptions, Row, count_of
from seqclf.data.sequences import Sequences
from seqclf.data.windows import Part, cut_into_parts
from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier, read_images
from seqclf.prefixes import probabilities
from seqclf.stepwise import Early, Outcome, decide
from seqclf.tally import Tally

MAX_ROWS = 256  # sequences that are predicted at once
Kind = Literal["features", "tokens", "text"]


class Prediction(NamedTuple):
    """The probability of each class for a row of a file, or for a window of it."""

    id: str
    row: int  # counts the rows of the file
    part: Part  # of the row, with the label where the file has one
    probabilities: list[float]
    place: str = ""  # of an example of a data set: the file, and the line or number in it
    step: int | None = None  # after which the model decided, from 1; None: it read all steps
    is_sure: bool = True  # whether a class was as probable then as it had to be
    num_steps: int = 0  # of the whole sequence, where `step` says how many were read
    of_each: tuple[list[float], ...] = ()  # of a mean over models: what each of them says

    @property
    def truth(self) -> str | None:
        """The label, None if it is not known."""
        return self.part.label

    @property
    def guess(self) -> int:
        """The number of the most probable class."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


class _Waiting(NamedTuple):
    """A sequence that is not yet predicted."""

    prediction: Prediction  # without its probabilities
    values: Tensor


def place(model: LSTMClassifier, device: str | torch.device = "auto") -> LSTMClassifier:
    """Return a model on a device; `auto` is the GPU if there is one, else the CPU.

    Raises UserError if torch knows no such device, or finds none here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device '{device}' cannot be used here ({reason}); 'auto' takes what there is"
        ) from None


def count_truth(confusion: Tensor, truth: int, prediction: Prediction) -> float:
    """Count a prediction of class `truth`, by number; return its cross-entropy in nats."""
    confusion[truth, prediction.guess] += 1
    return -math.log(max(prediction.probabilities[truth], sys.float_info.min))


def options_of_model(architecture: Architecture, given: ReadOptions) -> ReadOptions:
    """Return how to read a file for a model: as its training files were read, and as `given` says.

    A column that the training files had for the label or the group may be missing.
    """
    reading = architecture.reading
    names = ("id", "time", "label", "group", "tokens", "text", "form", "header", "pad_value")
    remembered = {
        name: value
        for name in names
        if getattr(given, name) is None and (value := getattr(reading, name)) is not None
    }
    features = reading.columns or named_features(architecture)
    options = replace(
        given,
        **remembered,
        soft=frozenset(remembered),
        numbered=reading.numbered,
        open_end=reading.open_end and not given.drop,
        own_files=reading.own_files and (given.id, given.form) == (None, None),
        fill_missing=given.fill_missing or reading.fill_missing,
        channels_first=given.channels_first or reading.channels_first,
        num_values=len(reading.columns) or reading.num_values,
        keep_step_labels=True,
    )
    if given.features is None:
        options = replace(options, features=features or None, wanted_by="the model")
    return options


def kind_of(architecture: Architecture) -> Kind:
    """Return what a step of a model's sequences is."""
    if not architecture.num_tokens:
        return "features"
    return "tokens" if architecture.tokens else "text"


def named_features(architecture: Architecture) -> tuple[str, ...] | None:
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
    early: Early | None = None,
) -> Iterator[Prediction | BadRow]:
    """Yield a prediction for each row, or for each window of it, or a BadRow, in their order.

    With `early` a sequence is read no further than to its decision.
    """
    waiting: list[_Waiting | BadRow] = []
    num_steps = 0
    for one in _parts_of_rows(architecture, rows, Tally() if tally is None else tally):
        waiting.append(one)
        num_steps += len(one.values) if isinstance(one, _Waiting) else 0
        if len(waiting) >= MAX_ROWS or num_steps > MAX_EVAL_STEPS:
            yield from _predict_together(model, architecture, waiting, early)
            waiting = []
            num_steps = 0
    yield from _predict_together(model, architecture, waiting, early)


def _parts_of_rows(
    architecture: Architecture, rows: Iterable[Row | BadRow], tally: Tally
) -> Iterator[_Waiting | BadRow]:
    """Yield all sequences that rows make, as the model reads them, and count them."""
    token_numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
    reading = architecture.reading
    for number, row in enumerate(rows):
        values = row if isinstance(row, BadRow) else to_values(row, architecture, token_numbers)
        if isinstance(row, BadRow) or isinstance(values, BadRow):
            yield values  # type: ignore[misc]
            continue
        tally.add_row(row, reading)
        is_labelled = row.label is not None or row.step_labels is not None
        tally.num_uncut += reading.on_label_change == "cut" and not is_labelled
        for part in cut_into_parts(row, reading).parts:
            part_values = values[part.first : part.end]
            tally.add(row.id, part_values, architecture)
            tally.num_undecided += part.is_undecided
            yield _Waiting(Prediction(row.id, number, part, []), part_values)


def to_values(
    row: Row, architecture: Architecture, token_numbers: dict[str, int]
) -> Tensor | BadRow:
    """Return a row as the model's training data were, [T, F] or tokens [T], or what is wrong."""
    steps = row.steps
    kind = "tokens" if isinstance(steps, tuple) else "text" if steps.ndim == 1 else "features"
    if kind != (expected := kind_of(architecture)):
        return BadRow(row.where, f"{kind}, where the model reads {expected}")
    if isinstance(steps, tuple):
        # 0 stands for every token that the training data did not have.
        return torch.tensor([token_numbers.get(token, 0) for token in steps])
    if kind == "text":
        return torch.from_numpy(steps.copy())  # a reader's bytes may be read-only
    names = named_features(architecture)
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
        problem = f"{count_of(found, 'feature')} a step, where the model reads {num_features}"
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
    model: LSTMClassifier,
    architecture: Architecture,
    waiting: list[_Waiting | BadRow],
    early: Early | None,
) -> Iterator[Prediction | BadRow]:
    values = [one.values for one in waiting if isinstance(one, _Waiting)]
    found = iter(_predict_values(model, architecture, values, early) if values else [])
    for one in waiting:
        if isinstance(one, BadRow):
            yield one
        else:
            yield one.prediction._replace(**next(found)._asdict())


def _predict_values(
    model: LSTMClassifier,
    architecture: Architecture,
    values: list[Tensor],
    early: Early | None,
) -> list[Outcome]:
    """Return what the model says of each sequence, in the order of the sequences."""
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
    return _outcomes_of(model, sequences, early, batch_size=MAX_ROWS if one_size else 1)


def _outcomes_of(
    model: LSTMClassifier, sequences: Sequences, early: Early | None, *, batch_size: int
) -> list[Outcome]:
    result = [Outcome([])] * len(sequences)
    for ids in evaluation_batches(sequences.lengths, 0, len(sequences), batch_size):
        positions = torch.arange(len(sequences))[ids].tolist()
        values, lengths = sequences.rows(ids)
        if early is None:
            outcomes = list(map(Outcome, probabilities(model, values, lengths).tolist()))
        else:
            outcomes = decide(model, values, lengths, early)
        for position, outcome in zip(positions, outcomes, strict=True):
            result[position] = outcome
    return result


def predict_split(
    model: LSTMClassifier, sequences: Sequences, early: Early | None = None
) -> Iterator[Prediction]:
    """Yield a prediction for each example of a split, in their order."""
    origins = sequences.origins
    for index, outcome in enumerate(_outcomes_of(model, sequences, early, batch_size=MAX_ROWS)):
        length = sequences.shape[0] if sequences.lengths is None else int(sequences.lengths[index])
        truth = sequences.classes[int(sequences.labels[index])]
        if origins is None:
            found = Prediction(str(index), index, Part(0, length, truth), [])
        else:
            number, first = int(origins.rows[index]), int(origins.first_steps[index])
            part = Part(first, first + length, truth)
            found = Prediction(origins.ids[number], number, part, [], origins.place(index))
        yield found._replace(**outcome._asdict())


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
        truths = {window.truth for window in windows} - {None}
        truth = truths.pop() if len(truths) == 1 else None
        is_undecided = truth is None and any(
            window.truth or window.part.is_undecided for window in windows
        )
        whole = Part(windows[0].part.first, windows[-1].part.end, truth, is_undecided)
        of_each = tuple(
            np.mean(windows_of_one, axis=0).tolist()
            for windows_of_one in zip(*(window.of_each for window in windows), strict=True)
        )
        yield windows[0]._replace(part=whole, probabilities=mean.tolist(), of_each=of_each)
