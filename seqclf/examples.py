"""Sequences and labels of a Python program -> labelled rows, for a model that does not exist yet.

Messages say where a fault is as Python does: `X[3]`, `y[3]`, or `test X[3]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from seqclf.data.prepare import LISTED, MOST_CLASSES
from seqclf.data.prepared import NUM_BYTE_VALUES
from seqclf.data.readers.roles import KNOWN
from seqclf.data.readers.rows import ReadOptions, Row, RowError, parse_name, quote
from seqclf.data.reading import Reading
from seqclf.errors import UserError
from seqclf.inputs import Reader, as_rows, as_sequences, is_frame, names_of, to_array
from seqclf.model import Architecture


class Examples(NamedTuple):
    """Sequences and the names of their classes."""

    X: object
    labels: list[str]
    prefix: str = ""  # of their places in messages, such as "test "


def label_names(y: object, prefix: str = "") -> list[str]:
    """Return labels as the names of classes. Raises UserError for what is no label."""
    if isinstance(y, Tensor):
        y = y.tolist()
    if isinstance(y, str | bytes) or not isinstance(y, Iterable):
        raise UserError(f"{prefix}y: a {type(y).__name__}, where a list of labels is expected")
    names = []
    for index, label in enumerate(y):
        try:
            name = parse_name(label, "label")
        except RowError as error:
            raise UserError(f"{prefix}y[{index}]: {error.problem}") from None
        if name is None:
            raise UserError(f"{prefix}y[{index}]: no label; leave its sequence out of X, too")
        names.append(name)
    return names


def take_examples(examples: object, prefix: str = "") -> Examples:
    """Return a pair (X, y) as examples. Raises UserError if it is none."""
    if not isinstance(examples, Sequence) or isinstance(examples, str) or len(examples) != 2:
        raise UserError(
            f"{prefix.strip() or 'train'}: a {type(examples).__name__}, where a pair (X, y) of "
            "sequences and labels is expected"
        )
    X, y = examples
    return Examples(as_sequences(X), label_names(y, prefix), prefix)


def check_classes(train: Examples, others: Iterable[Examples]) -> None:
    """Refuse labels that nothing can be learnt from. Raises UserError."""
    counts = Counter(train.labels)
    if len(counts) == 1:
        raise UserError(
            f"{train.prefix}y: one class alone, '{quote(train.labels[0])}': there is nothing to "
            "tell apart; add another"
        )
    num_single = sum(count == 1 for count in counts.values())
    are_mostly_single = num_single > LISTED and 2 * num_single > len(counts)
    if len(counts) > MOST_CLASSES or are_mostly_single:
        raise UserError(
            f"{train.prefix}y: {len(counts):,} different labels, of which {num_single:,} have one "
            "example: are they numbers to predict, or ids? seqclf tells classes apart"
        )
    for other in others:
        for index, name in enumerate(other.labels):
            if name not in counts:
                raise UserError(
                    f"{other.prefix}y[{index}]: label '{quote(name)}', which no training example "
                    "has; is it misspelt?"
                )


def make_reader(train: Examples, options: ReadOptions, reading: Reading) -> Reader:
    """Return how training sequences are read: the first one says what all of them are.

    Raises UserError if there is none.
    """
    first, features = _first(train)
    num_tokens = 0
    tokens: tuple[str, ...] = ()
    input_size = 1
    if isinstance(first, str):
        num_tokens = NUM_BYTE_VALUES
    elif _is_tokens(first):
        num_tokens = 2
        tokens = ("",)  # their names are not known yet
    elif features:
        input_size = len(features)
    else:
        try:
            values = to_array(first)
        except RowError:  # reading it raises this once more, and says where
            values = np.zeros(1)
        input_size = values.shape[1] if values.ndim == 2 else 1
    architecture = Architecture(
        input_size=input_size,
        classes=("",),
        scale=1.0,
        read="rows",
        hidden_size=1,
        num_layers=1,
        bidirectional=False,
        dropout=0.0,
        pooling="last",
        num_tokens=num_tokens,
        tokens=tokens,
        features=features,
        reading=reading,
    )
    return Reader(architecture, options, None, is_training=True, prefix=train.prefix)


def _first(train: Examples) -> tuple[object, tuple[str, ...]]:
    """Return the first sequence, and the names of the features if a data frame names them."""
    X = train.X
    where = f"{train.prefix}X"
    if isinstance(X, str | bytes):
        raise UserError(f"{where}: one text, where a list of sequences is expected: [x]")
    if hasattr(X, "toarray") and not isinstance(X, np.ndarray):
        raise UserError(f"{where}: a sparse matrix, where arrays are expected; X.toarray() is one")
    if is_frame(X):
        return X, features_of(X)
    if not isinstance(X, Iterable):
        raise UserError(f"{where}: a {type(X).__name__}, where sequences are expected")
    first = next(iter(X), None)
    if first is None:
        raise UserError(f"{where}: no sequence")
    return first, features_of(first) if is_frame(first) else ()


def _is_tokens(sequence: object) -> bool:
    """Return whether the first step of a sequence is a word."""
    if is_frame(sequence) or not isinstance(sequence, Iterable):
        return False
    return isinstance(next(iter(sequence), None), str)


def features_of(frame: object) -> tuple[str, ...]:
    """Return the columns of a data frame that are features: those that mean nothing else."""
    known = {name for names in KNOWN.values() for name in names}
    return tuple(name for name in names_of(frame) if name.lower() not in known)


def role_of(frame: object, role: str) -> str | None:
    """Return the column of a data frame that means something by its name, such as the id."""
    return next((name for name in names_of(frame) if name.lower() in KNOWN[role]), None)


def rows_of(examples: Examples, reader: Reader) -> Callable[[], Iterator[Row]]:
    """Return a function that yields the labelled rows of examples, each time from the first.

    It raises UserError for a sequence that cannot be read, and if there are more or fewer labels.
    """
    reader = reader._replace(prefix=examples.prefix)
    features = reader.architecture.features or None

    def read() -> Iterator[Row]:
        labels = iter(examples.labels)
        count = 0
        for row in as_rows(examples.X, reader):
            count += 1
            label = next(labels, None)
            if label is None:
                break
            where = examples.prefix + row.where
            yield row._replace(label=label, where=where, features=features)
        if count != len(examples.labels):
            num_rows = f"{count} or more" if count > len(examples.labels) else str(count)
            raise UserError(
                f"{examples.prefix}X and y: {num_rows} sequences, {len(examples.labels)} labels; "
                "give as many"
            )

    return read
