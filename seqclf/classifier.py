"""A trained model for Python: classes and probabilities of sequences in memory.

    classifier = seqclf.load("runs/mine")
    classifier.predict_proba(sequences)

Shapes: N sequences, T steps, F features, C classes.
"""

from __future__ import annotations

import html
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from seqclf import hub
from seqclf.average import Member, load_members, predict_rows_together
from seqclf.data.readers.rows import BadRow, RowError, parse_name, quote
from seqclf.errors import UserError, printable_lines
from seqclf.evaluate import Metrics
from seqclf.inputs import Reader, UnknownTokens, as_rows, num_features_of, what_is_read
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import (
    Prediction,
    by_recording,
    count_truth,
    kind_of,
    named_features,
)
from seqclf.run.weights import save_model
from seqclf.stepwise import reason_against
from seqclf.stream import Stream
from seqclf.tally import Tally

MOST_NAMED = 20  # classes or features in a line of `summary`


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    device: str | torch.device = "auto",
    *,
    unknown_tokens: UnknownTokens = "error",
    raw: bool = False,
) -> Classifier:
    """Load a trained model, ready to predict; of a list of them, the mean of their probabilities.

    `path` is the directory of a run, its folder model/, or one of its checkpoints; or a model of
    the Hugging Face Hub, `hf://ORG/NAME` or `hf://ORG/NAME@REVISION`, which is downloaded. Of a run
    without a result the newest checkpoint is taken, and a warning says so. `device` is `auto`
    (the GPU if there is one, else the CPU), or what torch calls a device, such as `cpu` or
    `cuda:1`. A token that the training data did not have is an error; with
    `unknown_tokens="keep"` it is read as an unknown token, as `seqclf predict` does. `raw` leaves
    the temperature out that was fitted on validation examples.

    Raises UserError (a ValueError) if there is no model, if it is damaged, if there is no such
    device, or if the models of a list have other classes, features or ways to read files.

    >>> classifier = seqclf.load("runs/mine")  # doctest: +SKIP
    >>> classifier.predict([[[0.12, 9.81], [0.15, 9.79]]])  # doctest: +SKIP
    array(['walk'], dtype='<U4')
    """
    if unknown_tokens not in get_args(UnknownTokens):
        raise UserError(f"unknown_tokens '{unknown_tokens}': expected 'error' or 'keep'")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise UserError("an empty list of models; name one or more")
    with _on_disk(paths) as (places, names):
        members, loaded = load_members(places, device, raw=raw)
    members = [one._replace(name=names.get(one.name, one.name)) for one in members]
    for where, saved in loaded:
        is_chosen = os.path.realpath(saved.file.parent) == os.path.realpath(where)
        if saved.step is not None and not is_chosen:
            text = f"{where}: no result yet; the weights are of step {saved.step}"
            warnings.warn(text, stacklevel=2)
    first, *others = members
    return Classifier(
        first.model,
        first.architecture,
        name=first.name,
        others=others,
        unknown_tokens=unknown_tokens,
    )


@contextmanager
def _on_disk(
    paths: Sequence[str | os.PathLike[str]],
) -> Iterator[tuple[list[Path], dict[str, str]]]:
    """Yield where models are, and the names of those that are downloaded meanwhile, by folder.

    A UserError of the body names a model of the Hub, not its folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        places: list[Path] = []
        names: dict[str, str] = {}
        for number, each in enumerate(paths):
            if isinstance(each, str) and each.startswith(hub.PREFIX):
                places.append(Path(folder, f"model-{number:04}"))  # begins as no other one does
                hub.fetch(hub.parse_name(each), places[-1])
                names[str(places[-1])] = each
            else:
                places.append(Path(each))
        try:
            yield places, names
        except UserError as error:
            message = str(error)
            for place, name in names.items():
                message = message.replace(place, name)
            raise UserError(message) from None


class Classifier:
    """A trained model that names the classes of sequences. `seqclf.load` makes one.

    All methods take sequences X in one of these forms (docs/python.md shows each):

    - a list of arrays, tensors or lists [T, F], or [T] if a step is one number; T may differ;
    - one array or tensor N x T x F, or N x T; at the end of a sequence NaN is padding;
    - a list of lists of tokens, or a list of texts;
    - a data frame with a step in a line: the columns have the names of the training files. The
      order of the sequences is that in which their ids first come.

    The numbers are raw: the model normalises them, and cuts windows, as in training. Of a model
    that was trained on windows a sequence gets the mean of its windows' probabilities. The results
    have the bits that `seqclf predict` writes for a file of these sequences (with windows: with
    --per recording) on the same device and with as many threads.

    A sequence that the model cannot read raises UserError, a ValueError, with its place in X and
    what the model reads. Sequences that are unlike the training data give a warning. A classifier
    changes nothing of torch's settings and keeps no state, so threads may share it.
    """

    def __init__(
        self,
        model: LSTMClassifier,
        architecture: Architecture,
        *,
        name: str = "",
        others: Sequence[Member] = (),
        unknown_tokens: UnknownTokens = "error",
    ) -> None:
        self._members = [Member(name or "in memory", model.eval(), architecture), *others]
        self._architecture = architecture
        self._reader = Reader.of(architecture, unknown_tokens)

    @property
    def classes_(self) -> np.ndarray:
        """The names of the classes, str [C], in the order of the columns of probabilities."""
        return np.array(self._architecture.classes, dtype=str)

    @property
    def features_(self) -> tuple[str, ...]:
        """The names of the features that the training files named; empty if they named none."""
        return named_features(self._architecture) or ()

    @property
    def num_features(self) -> int | None:
        """How many numbers a step has; None of tokens and texts."""
        architecture = self._architecture
        return None if architecture.num_tokens else num_features_of(architecture)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._members[0].model.out.weight.device

    def predict_proba(self, X: object) -> np.ndarray:
        """Return the probability of each class for each sequence, float64 [N, C].

        The numbers are those of float32, or means of them. Raises UserError for a sequence that
        the model cannot read.

        >>> classifier.predict_proba([walk, run])[:, 0]  # doctest: +SKIP
        array([0.03, 0.98])
        """
        return _table([one.probabilities for one in self._predict(X)], len(self.classes_))

    def predict(self, X: object) -> np.ndarray:
        """Return the name of the most probable class of each sequence, str [N].

        Raises UserError for a sequence that the model cannot read.

        >>> classifier.predict([walk, run])  # doctest: +SKIP
        array(['walk', 'run'], dtype='<U4')
        """
        guesses = [one.guess for one in self._predict(X)]
        names: np.ndarray = self.classes_[np.array(guesses, dtype=np.int64)]
        return names

    def evaluate(self, X: object, y: Iterable[object]) -> Metrics:
        """Measure the model on N sequences and their N labels.

        Labels are the names of classes; whole numbers stand for their digits, as in files. The
        result has `accuracy`, `macro_f1`, `loss` (nats) and `confusion`, int64 [C, C]: its row is
        the truth, its column the guess. Raises UserError for a label that is no class, for another
        number of labels than of sequences, and if there is no sequence.

        >>> classifier.evaluate(sequences, labels).accuracy  # doctest: +SKIP
        0.975
        """
        truths = [self._number_of(label, index) for index, label in enumerate(y)]
        predictions = self._predict(X)
        if len(predictions) != len(truths) or not truths:
            raise UserError(f"{len(predictions)} sequences and {len(truths)} labels; give as many")
        confusion = torch.zeros(len(self.classes_), len(self.classes_), dtype=torch.int64)
        losses = [
            count_truth(confusion, truth, one)
            for truth, one in zip(truths, predictions, strict=True)
        ]
        return Metrics(sum(losses) / len(losses), confusion)

    def stream(self) -> Stream:
        """Return a stream, which reads a sequence step by step at a constant cost a step.

        Raises UserError for a model that cannot: one that reads in both directions, that has
        fixed convolutions, that is a mean of several, or that keeps the last steps of a sequence
        (`data.keep: last`).

        >>> stream = classifier.stream()  # doctest: +SKIP
        >>> stream.push([0.12, 9.81])  # doctest: +SKIP
        array([0.93, 0.07])
        """
        if len(self._members) > 1:
            raise UserError(
                f"no stream of steps with the mean of {len(self._members)} models; load one"
            )
        return Stream(self._members[0].model, self._architecture, self._reader)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder, which `seqclf.load` and `seqclf predict` read.

        The files are those of a run's folder model/, and replace those of another model. Raises
        UserError if the folder holds something else, or cannot be written.
        """
        if len(self._members) > 1:
            raise UserError(f"{folder}: one model is saved, not the mean of {len(self._members)}")
        save_model(Path(folder), self._members[0].model, self._architecture)

    def summary(self) -> str:
        """Return some lines about the model: what it reads, its classes, its layers."""
        if len(self._members) > 1:
            ones = [
                Classifier(model, architecture, name=name).summary()
                for name, model, architecture in self._members
            ]
            return "\n\n".join([f"mean of     {len(ones)} models", *ones])
        architecture = self._architecture
        reading = architecture.reading
        layers = f"{architecture.num_layers} of {architecture.hidden_size} units"
        directions = "both directions" if architecture.bidirectional else "one direction"
        lines = [
            f"model       {self.title}, on {self.device}",
            f"reads       {what_is_read(architecture)}",
            f"classes     {len(architecture.classes)}: {_some(architecture.classes)}",
            f"LSTM        {layers}, {directions}, pooling {architecture.pooling}, stack "
            f"{architecture.stack}",
        ]
        if architecture.rocket:
            lines.append(f"convolution {architecture.rocket:,} fixed features beside the LSTM")
        if architecture.lengths is not None:
            shortest, longest = architecture.lengths
            lines.append(f"lengths     {shortest:,} to {longest:,} steps in training")
        if reading.window is not None:
            stride = reading.stride or reading.window
            lines.append(
                f"windows     of {reading.window:,} steps, one every {stride:,}; a sequence gets "
                "their mean"
            )
        if architecture.temperature != 1:
            lines.append(
                f"temperature {architecture.temperature:.3g}, fitted on validation examples"
            )
        lines.append(f"stream      {reason_against(architecture) or 'yes'}")
        return "\n".join(lines)

    @property
    def title(self) -> str:
        """What the model is called, and how large it is."""
        first = self._members[0]
        return f"{first.name}: {first.architecture.num_parameters:,} parameters"

    def _repr_html_(self) -> str:
        """Show the summary in a notebook."""
        return f"<pre>{html.escape(printable_lines(self.summary()))}</pre>"

    def __repr__(self) -> str:
        kind = kind_of(self._architecture)
        return f"<Classifier of {kind}, {len(self.classes_)} classes, on {self.device}>"

    def _predict(self, sequences: object) -> list[Prediction]:
        tally = Tally()
        rows = as_rows(sequences, self._reader)
        found = []
        for one in by_recording(predict_rows_together(self._members, rows, tally)):
            if isinstance(one, BadRow):
                raise self._reader.refuse(one.where, one.problem)
            found.append(one)
        for note in tally.notes(self._architecture):
            warnings.warn(note, stacklevel=3)
        return found

    def _number_of(self, label: object, index: int) -> int:
        """Return the number of a label's class. Raises UserError."""
        try:
            name = parse_name(label, "label")
            return self._architecture.classes.index(name or "")
        except (RowError, ValueError):
            raise UserError(
                f"y[{index}]: label '{quote(str(label))}', which is no class of the model: "
                f"{_some(self._architecture.classes)}"
            ) from None


def _table(rows: list[list[float]], num_columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(len(rows), num_columns)


def _some(names: tuple[str, ...]) -> str:
    """Return names for a line: of many, the first ones and how many there are more."""
    rest = len(names) - MOST_NAMED
    return ", ".join(map(quote, names[:MOST_NAMED])) + f" and {rest:,} more" * (rest > 0)
