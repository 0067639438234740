"""Rows of a file, or examples of a split -> the probabilities of all classes for each."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.data.batches import evaluation_batches
from seqclf.data.draft import Adjustment
from seqclf.data.readers.rows import BadRow, ReadOptions, Row, count_of
from seqclf.data.sequences import Sequences
from seqclf.data.windows import Part, cut_into_parts
from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier
from seqclf.prefixes import probabilities
from seqclf.stepwise import Early, Outcome, decide
from seqclf.tally import Tally

MAX_ROWS = 256  # sequences that are predicted at once
# Sequences, and numbers in them, among which those of similar lengths are predicted at once.
MAX_GROUP, MAX_NUMBERS = 2048, 2**23
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

    def with_outcome(self, outcome: Outcome) -> Prediction:
        """Return the prediction with what the model says."""
        if outcome.step is None:
            return self._replace(probabilities=outcome.probabilities)
        return self._replace(**outcome._asdict())


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
    tally = Tally() if tally is None else tally
    token_numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
    fitted = (one if isinstance(one, BadRow) else fit_row(one, architecture) for one in rows)
    for group in _groups(fitted):
        found: list[Prediction | BadRow] = []
        starts = []
        num_steps = 0
        for number, row in group:
            if isinstance(row, BadRow):
                found.append(row)
                continue
            for part in cut_into_parts(row, architecture.reading).parts:
                found.append(Prediction(row.id, number, part, []))
                starts.append(num_steps + part.first)
            num_steps += len(row.steps)
        good = [row for _, row in group if isinstance(row, Row)]
        if not good:
            yield from found
            continue
        values = to_values(good, architecture, token_numbers)
        predictions = [one for one in found if isinstance(one, Prediction)]
        lengths = torch.tensor([one.part.end - one.part.first for one in predictions])
        tally.add_rows(good, architecture.reading)
        tally.add([one.id for one in predictions], values, lengths, architecture)
        tally.num_undecided += sum(one.part.is_undecided for one in predictions)
        outcomes = _outcomes_of_parts(model, architecture, values, starts, lengths, early)
        for one in found:
            yield one if isinstance(one, BadRow) else one.with_outcome(next(outcomes))


def _groups(rows: Iterable[Row | BadRow]) -> Iterator[list[tuple[int, Row | BadRow]]]:
    """Yield rows with their numbers, in their order: groups of those that are sorted together.

    The steps of a group have one shape. (Images that are read by columns or pixels may be of
    several widths.)
    """
    group: list[tuple[int, Row | BadRow]] = []
    num_numbers = 0
    shape = None
    for number, row in enumerate(rows):
        if isinstance(row, Row):
            found = None if isinstance(row.steps, tuple) else row.steps.shape[1:]
            if found != shape or num_numbers > MAX_NUMBERS:
                yield group
                group, num_numbers, shape = [], 0, found
            num_numbers += getattr(row.steps, "size", len(row.steps))
        group.append((number, row))
        if len(group) == MAX_GROUP:
            yield group
            group, num_numbers = [], 0
    yield group


def fit_row(row: Row, architecture: Architecture) -> Row | BadRow:
    """Return a row with the features of the model in their order, or what is wrong with it."""
    steps = row.steps
    kind = "tokens" if isinstance(steps, tuple) else "text" if steps.ndim == 1 else "features"
    if kind != (expected := kind_of(architecture)):
        return BadRow(row.where, f"{kind}, where the model reads {expected}")
    if isinstance(steps, tuple) or kind == "text":
        return row
    if row.features and (names := named_features(architecture)) and row.features != names:
        # Features are found by their names: a file may have more of them, in another order.
        missing = [name for name in names if name not in row.features]
        if missing:
            problem = f"no feature {', '.join(missing)}, which the model was trained on"
            return BadRow(row.where, problem)
        columns = [row.features.index(name) for name in names]
        measured = None if row.measured is None else row.measured[:, columns]
        steps = steps[:, columns]
        row = row._replace(steps=steps, measured=measured)
    num_features = architecture.input_size - len(architecture.reading.measured)
    found = 1  # of an image that is read pixel by pixel
    if architecture.read in ("rows", "columns"):
        found = steps.shape[architecture.read == "rows"]
    if found != num_features:
        problem = f"{count_of(found, 'feature')} a step, where the model reads {num_features}"
        return BadRow(row.where, problem)
    return row


def to_values(
    rows: Sequence[Row], architecture: Architecture, token_numbers: Mapping[str, int]
) -> Tensor:
    """Return the steps of rows that fit the model, one row after the other, [S, F] or tokens [S].

    They are as those of the model's training data were.
    """
    kind = kind_of(architecture)
    if kind == "tokens":
        # 0 stands for every token that the training data did not have.
        return torch.tensor([token_numbers.get(token, 0) for row in rows for token in row.steps])
    steps = np.concatenate([row.steps for row in rows])
    if kind == "text":
        return torch.from_numpy(steps)
    reading = architecture.reading
    measured = None
    if reading.measured:
        measured = np.concatenate([_measured(row) for row in rows])
    names = architecture.features
    adjustment = Adjustment(reading.offset, tuple(names.index(name) for name in reading.measured))
    steps_SF = adjustment.apply(Row("", steps, "", measured=measured)).astype(np.float32)
    gaps_SF = np.isnan(steps_SF)
    if gaps_SF.any():
        # A feature without any value in a sequence has the mean of the training data.
        steps_SF[gaps_SF] = np.broadcast_to(architecture.mean, steps_SF.shape)[gaps_SF]
    return torch.from_numpy(np.ascontiguousarray(steps_SF))


def _measured(row: Row) -> np.ndarray:
    return np.ones(np.shape(row.steps), bool) if row.measured is None else row.measured


def _outcomes_of_parts(
    model: LSTMClassifier,
    architecture: Architecture,
    values: Tensor,
    starts: Sequence[int],
    lengths: Tensor,
    early: Early | None,
) -> Iterator[Outcome]:
    """Yield what the model says of each part of the steps, in their order."""
    sequences = Sequences(
        values,
        torch.zeros_like(lengths),
        architecture.classes,
        starts=torch.tensor(starts),
        lengths=lengths,
    ).cut(architecture.max_length, architecture.keep)
    assert sequences.lengths is not None
    lengths = sequences.lengths
    # A batch pads images with rows, which changes what their columns and pixels are. So images of
    # unequal sizes go one by one, unless the model reads them by rows.
    one_size = architecture.read == "rows" or bool((lengths == lengths[0]).all())
    for ids in torch.arange(len(sequences)).split(MAX_GROUP):
        some = sequences.select(ids)
        yield from _outcomes_of(model, some, early, batch_size=MAX_ROWS if one_size else 1)


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
        yield found.with_outcome(outcome)


def by_recording(predictions: Iterable[Prediction | BadRow]) -> Iterator[Prediction | BadRow]:
    """Combine the windows of each row: the mean of their probabilities, and their label if one."""

    def key(prediction: Prediction | BadRow) -> int:
        return -1 if isinstance(prediction, BadRow) else prediction.row

    for number, members in groupby(predictions, key):
        if number < 0:
            yield from members
            continue
        windows = [member for member in members if isinstance(member, Prediction)]
        if len(windows) == 1:
            yield windows[0]
            continue
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
