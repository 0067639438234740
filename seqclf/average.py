"""Several models as one: the mean of their probabilities, by the names of the classes.

Each model normalises and reads a sequence itself, so models of other widths, other layers and other
training examples may take part. What a file holds has to mean the same to all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from seqclf.data.readers.roles import list_names
from seqclf.data.readers.rows import BadRow, Row, quote
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import Prediction, kind_of, place, predict_rows, predict_split
from seqclf.run.weights import SavedWeights, find_weights
from seqclf.stepwise import Early
from seqclf.tally import Tally


class Member(NamedTuple):
    """One of the models whose probabilities are averaged, mostly the only one."""

    name: str
    model: LSTMClassifier
    architecture: Architecture


def load_members(
    paths: Sequence[Path], device: str | torch.device = "auto", *, raw: bool = False
) -> tuple[list[Member], list[tuple[Path, SavedWeights]]]:
    """Load models on a device; return them, and what was loaded of each path.

    `raw` leaves their temperatures out. Raises UserError if one is missing or damaged, if a path
    comes twice, or if they cannot be averaged.
    """
    found = [(path, find_weights(path)) for path in paths]
    members: dict[str, Member] = {}
    for path, saved in found:
        file = os.path.realpath(saved.file)
        if file in members:
            raise UserError(f"{path}: the same model as {members[file].name}; name each model once")
        used = saved.raw() if raw else saved
        members[file] = Member(str(path), place(used.build(), device), used.architecture)
    loaded = list(members.values())
    for member in loaded[1:]:
        if (difference := _difference(loaded[0].architecture, member.architecture)) is not None:
            raise UserError(
                f"{member.name}: cannot be averaged with {loaded[0].name}: other {difference}"
            )
    return loaded, found


def _difference(first: Architecture, other: Architecture) -> str | None:
    """Return what a sequence or a class means to one model and not to the other, if anything."""
    for what in ("classes", "tokens"):
        names, others = getattr(first, what), getattr(other, what)
        if set(names) != set(others):
            lone = [name for name in (*names, *others) if (name in names) != (name in others)]
            return f"{what}; only one of them has {list_names(tuple(lone))}"
    if kind_of(first) != kind_of(other):
        return f"sequences: {kind_of(other)}, there {kind_of(first)}"
    if first.features != other.features:
        return f"features: {list_names(other.features)}, there {list_names(first.features)}"
    for name in ("input_size", "read"):
        if getattr(first, name) != getattr(other, name):
            return f"{name}: {getattr(other, name)}, there {getattr(first, name)}"
    ours, theirs = first.reading.model_dump(), other.reading.model_dump()
    for name in ours.keys() - {"offset"}:  # each model takes its own off
        if ours[name] != theirs[name]:
            return f"reading of files: {name} {_shown(theirs[name])}, there {_shown(ours[name])}"
    return None


def _shown(value: object) -> str:
    return quote(str(value))


def predict_rows_together(
    members: Sequence[Member],
    rows: Iterable[Row | BadRow],
    tally: Tally | None = None,
    early: Early | None = None,
) -> Iterator[Prediction | BadRow]:
    """Yield the mean prediction for each row, or for each window of it, or a BadRow."""
    copies = tee(rows, len(members))
    streams = [
        # One counts for all of them what is unlike the training data: the first.
        predict_rows(member.model, member.architecture, copy, None if number else tally, early)
        for number, (member, copy) in enumerate(zip(members, copies, strict=True))
    ]
    return _averaged(members, streams)


def predict_split_together(
    members: Sequence[Member], splits: Sequence[Sequences], early: Early | None = None
) -> Iterator[Prediction]:
    """Yield the mean prediction for each example; `splits` are the same examples for each model."""
    streams = [
        predict_split(member.model, sequences, early)
        for member, sequences in zip(members, splits, strict=True)
    ]
    for one in _averaged(members, streams):
        assert isinstance(one, Prediction)
        yield one


def _averaged(
    members: Sequence[Member],
    streams: Sequence[Iterator[Prediction] | Iterator[Prediction | BadRow]],
) -> Iterator[Prediction | BadRow]:
    if len(members) == 1:
        yield from streams[0]
        return
    classes = members[0].architecture.classes
    orders = [[member.architecture.classes.index(name) for name in classes] for member in members]
    for together in zip(*streams, strict=True):
        if bad := next((one for one in together if isinstance(one, BadRow)), None):
            yield bad
            continue
        predictions = [one for one in together if isinstance(one, Prediction)]
        of_each = tuple(
            [one.probabilities[number] for number in order]
            for one, order in zip(predictions, orders, strict=True)
        )
        mean = np.mean(of_each, axis=0).tolist()
        yield predictions[0]._replace(probabilities=mean, of_each=of_each)
