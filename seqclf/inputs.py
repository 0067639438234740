"""Sequences of a Python program -> rows, as the readers of files make them.

Arrays, tensors, lists and data frames. Messages say where a fault is as Python does: `X[3][0, 1]`
is step 0, feature 1 of sequence 3. Shapes: N sequences, T steps, F features, S steps of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.data.readers.roles import KNOWN, list_names
from seqclf.data.readers.rows import Journal, ReadOptions, Row, RowError, Steps, finish_steps, quote
from seqclf.data.readers.times import Times
from seqclf.errors import UserError
from seqclf.model import Architecture
from seqclf.predict import kind_of, named_features, options_of_model

UnknownTokens = Literal["error", "keep"]
MOST_NAMED = 8  # features or tokens in a message
AT_ONCE = 1024  # sequences that are looked at together


class Reader(NamedTuple):
    """How a model reads a sequence."""

    architecture: Architecture
    options: ReadOptions
    known_tokens: frozenset[str] | None  # None: a token may be unknown
    is_training: bool = False  # the model does not exist yet
    prefix: str = ""  # of all places in messages: whose X it is, where there are several

    @classmethod
    def of(cls, architecture: Architecture, unknown_tokens: UnknownTokens = "error") -> Reader:
        """Return how a model reads; with `keep` an unknown token is read as such."""
        known = frozenset(architecture.tokens) if unknown_tokens == "error" else None
        return cls(architecture, options_of_model(architecture, ReadOptions()), known)

    def refuse(self, where: str, problem: str) -> UserError:
        """Return the error of a sequence that cannot be read."""
        expected = what_is_read(self.architecture)
        who = "training" if self.is_training else "the model"
        return UserError(f"{self.prefix}{where}: {problem}; {who} reads {expected}")


def num_features_of(architecture: Architecture) -> int:
    """Return how many numbers a step of a user's sequence holds."""
    return architecture.input_size - len(architecture.reading.measured)


def what_is_read(architecture: Architecture) -> str:
    """Return what a model reads, in words."""
    kind = kind_of(architecture)
    if kind == "text":
        return "texts (str), byte by byte"
    if kind == "tokens":
        some = ", ".join(repr(token) for token in map(quote, architecture.tokens[:MOST_NAMED]))
        return f"lists of tokens: {some}{', ...' * (len(architecture.tokens) > MOST_NAMED)}"
    num_features = num_features_of(architecture)
    if architecture.read in ("pixels", "permuted"):
        return "images [rows, columns], pixel by pixel"
    if architecture.read == "columns":
        return f"images [{num_features}, columns], column by column"
    text = f"arrays [T, {num_features}] of T steps" + " or [T]" * (num_features == 1)
    if names := named_features(architecture):
        more = ", ..." * (len(names) > MOST_NAMED)
        text += f" of the features {', '.join(map(quote, names[:MOST_NAMED]))}{more}"
    return text


def as_rows(sequences: object, reader: Reader) -> Iterator[Row]:
    """Yield a row for each sequence, in their order. Raises UserError that names the sequence."""
    if is_frame(sequences):
        yield from _frame_rows(sequences, reader)
        return
    sequences = as_sequences(sequences)
    # An array holds shorter sequences only by padding them. A list need not.
    is_array = isinstance(sequences, np.ndarray | Tensor)
    items = iter(_items(sequences, reader))
    first = 0
    while some := list(islice(items, AT_ONCE)):
        rows = _sound_rows(some, first, reader)
        yield from rows_one_by_one(some, first, reader, is_array) if rows is None else rows
        first += len(some)


def _sound_rows(sequences: list[object], first: int, reader: Reader) -> list[Row] | None:
    """Return rows of arrays that have nothing to find fault with, to change or to say.

    They equal those of `rows_one_by_one`, which takes all others, and takes ten times as long.
    """
    if kind_of(reader.architecture) != "features" or reader.architecture.read != "rows":
        return None
    if reader.options.pad_value is not None or is_frame(sequences[0]):
        return None
    try:
        arrays = [to_array(sequence) for sequence in sequences]
        shapes = {array.shape[1:] for array in arrays}
        is_flat = num_features_of(reader.architecture) == 1 and shapes == {()}
        if not is_flat and shapes != {(num_features_of(reader.architecture),)}:
            return None
        if len({array.dtype for array in arrays}) > 1 or not all(map(len, arrays)):
            return None
        found = finish_steps(np.concatenate(arrays), reader.options, nan_is_padding=False)
    except (RowError, ValueError, TypeError):
        return None
    if found.filled:
        return None
    ends = np.cumsum([len(array) for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    return [
        Row(str(index), found.steps[start:end], f"X[{index}]")
        for index, (start, end) in enumerate(zip(starts, ends, strict=True), first)
    ]


def rows_one_by_one(
    sequences: list[object], first: int, reader: Reader, is_array: bool
) -> Iterator[Row]:
    """Yield rows of any sequences, whose places begin at `first`. Raises UserError for a fault."""
    for index, sequence in enumerate(sequences, first):
        where = f"X[{index}]"
        try:
            row = as_row(sequence, reader, nan_is_padding=is_array)
        except RowError as error:
            raise reader.refuse(
                where + _place(error, sequence), problem_of(error, reader)
            ) from None
        yield row._replace(id=str(index), where=where)


def _place(error: RowError, sequence: object) -> str:
    """Return where in a sequence a fault is, as Python writes it."""
    if not error.has_position:
        return ""
    has_features = getattr(sequence, "ndim", 1) == 2 or error.feature > 0
    return f"[{error.step}, {error.feature}]" if has_features else f"[{error.step}]"


def problem_of(error: RowError, reader: Reader) -> str:
    """Return what is wrong with a sequence, in the words of Python."""
    if "--fill-missing" not in error.problem:
        return error.problem
    if reader.is_training:
        return "a missing value (NaN); fill_missing=True fills it from its neighbours in time"
    return "a missing value (NaN), and the model's training data had none; fill it"


def as_row(sequence: object, reader: Reader, *, nan_is_padding: bool = False) -> Row:
    """Return one sequence as a row, without its id and place. Raises RowError."""
    kind = kind_of(reader.architecture)
    if kind == "tokens":
        return Row("", _tokens(sequence, reader), "")
    if kind == "text":
        return Row("", _text(sequence), "")
    if is_frame(sequence):
        frame = _Frame(sequence, reader)
        values = frame.numbers(frame.features())
    else:
        values = to_array(sequence)
    num_features = num_features_of(reader.architecture)
    if (
        values.ndim == 2
        and reader.architecture.read == "rows"
        and values.shape[0] == num_features != values.shape[1]
    ):
        raise RowError(f"shape {values.shape}: is it features x steps? give its transpose")
    found = finish_steps(values, reader.options, nan_is_padding=nan_is_padding)
    return Row("", where="", **found._asdict())


def as_sequences(values: object) -> object:
    """Return sequences that can be read twice: arrays of other libraries as those of numpy."""
    if isinstance(values, np.ndarray | Tensor | list | tuple | str | bytes) or is_frame(values):
        return values
    if hasattr(values, "__array__"):
        return np.asarray(values)
    return list(values) if isinstance(values, Iterator) else values


def _items(sequences: object, reader: Reader) -> Iterable[object]:
    """Return the sequences one by one. Raises UserError if there is not one in each place."""
    if isinstance(sequences, str | bytes):
        raise reader.refuse("X", "one text, where a list of sequences is expected: [x]")
    if kind_of(reader.architecture) == "features" and isinstance(sequences, np.ndarray | Tensor):
        if isinstance(sequences, np.ndarray) and sequences.dtype == object:
            return list(sequences)
        can_be_flat = num_features_of(reader.architecture) == 1
        if sequences.ndim != 3 and not (sequences.ndim == 2 and can_be_flat):
            raise reader.refuse(
                "X",
                f"one array of shape {tuple(sequences.shape)}, where sequences [N, T, F] are "
                "expected, or a list of them; for one sequence x give [x]",
            )
        try:
            return list(to_array(sequences))
        except RowError as error:
            raise reader.refuse("X", error.problem) from None
    if not isinstance(sequences, Iterable):
        raise reader.refuse("X", f"a {type(sequences).__name__}, where sequences are expected")
    return sequences


def to_array(values: object) -> np.ndarray:
    """Return numbers as an array. Raises RowError."""
    if isinstance(values, str | bytes):
        raise RowError("a text, where numbers are expected")
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        if isinstance(values, np.ma.MaskedArray):
            return np.ma.filled(values.astype(np.float64), np.nan)
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError):
        raise RowError("no array of numbers: its steps have unequal lengths, perhaps") from None


def _tokens(sequence: object, reader: Reader) -> tuple[str, ...]:
    """Return the names of tokens. Raises RowError."""
    if isinstance(sequence, str | bytes):
        raise RowError("a text, where a list of tokens is expected; text.split() makes one")
    if isinstance(sequence, np.ndarray | Tensor):
        sequence = sequence.tolist()
    if not isinstance(sequence, Iterable):
        raise RowError(f"a {type(sequence).__name__}, where a list of tokens is expected")
    names = []
    for number, token in enumerate(sequence):
        token = token.item() if isinstance(token, np.generic) else token
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise RowError(f"a {type(token).__name__}, where a token is a text", number)
        name = str(token)
        if reader.known_tokens is not None and name not in reader.known_tokens:
            raise RowError(
                f"token '{quote(name)}', which the training data did not have; "
                "load(..., unknown_tokens='keep') takes it for an unknown one",
                number,
            )
        names.append(name)
    if not names:
        raise RowError("an empty sequence")
    return tuple(names)


def _text(sequence: object) -> np.ndarray:
    """Return the bytes of a text. Raises RowError."""
    if not isinstance(sequence, str):
        raise RowError(f"a {type(sequence).__name__}, where a text is expected")
    if not sequence:
        raise RowError("an empty sequence")
    try:
        return np.frombuffer(sequence.encode(), np.uint8)
    except UnicodeEncodeError:
        raise RowError("a text that is not UTF-8") from None


# ---- data frames, whatever library they are of


def is_frame(values: object) -> bool:
    """Return whether something has columns by their names, as data frames of pandas have."""
    return hasattr(values, "columns") and hasattr(values, "__getitem__")


def names_of(frame: Any) -> list[str]:
    """Return the names of a data frame's columns."""
    return [str(name) for name in getattr(frame, "column_names", None) or frame.columns]


class _Frame:
    """The columns of a data frame. `reader` says what they mean."""

    def __init__(self, frame: Any, reader: Reader) -> None:
        self._frame = frame
        self.names = names_of(frame)
        self._keys = dict(zip(self.names, getattr(frame, "column_names", frame.columns)))  # noqa: B905
        self.reader = reader
        reading = reader.architecture.reading
        given = {role: getattr(reading, role, None) for role in KNOWN}
        # The names of the training files, or names that everybody knows.
        self.roles = {
            role: found
            for role, known in KNOWN.items()
            if (found := self._find((given[role],) if given[role] else known)) is not None
        }

    def _find(self, known: Sequence[str | None]) -> str | None:
        return next((name for name in self.names if name in known or name.lower() in known), None)

    def column(self, name: str) -> np.ndarray:
        """Return a column. Raises UserError if there is none, or several."""
        if name not in self.names:
            raise self.reader.refuse("X", f"no column '{quote(name)}' in {list_names(self.names)}")
        values = np.asarray(self._frame[self._keys[name]])
        if values.ndim != 1:
            raise self.reader.refuse("X", f"column '{quote(name)}' comes twice")
        return values

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Return columns of numbers, [S, F]. Raises UserError."""
        columns = []
        for name in names:
            column = self.column(name)
            try:
                if column.dtype.kind not in "fiub":
                    column = column.astype(np.float64)
                columns.append(column)
            except (ValueError, TypeError):
                raise self.reader.refuse("X", f"column '{quote(name)}' holds no numbers") from None
        return np.column_stack(columns)

    def features(self) -> list[str]:
        """Return the columns of the features: by their names, or all that mean nothing else."""
        names = named_features(self.reader.architecture)
        if names is not None:
            return list(names)
        rest = [name for name in self.names if name not in self.roles.values()]
        expected = num_features_of(self.reader.architecture)
        if len(rest) != expected:
            problem = f"{len(rest)} columns of features ({list_names(rest)})"
            raise self.reader.refuse("X", f"{problem}, where {expected} are expected")
        return rest


def _frame_rows(frame: object, reader: Reader) -> Iterator[Row]:
    """Yield the sequences of a data frame: a step in a line, or a sequence in a line."""
    table = _Frame(frame, reader)
    reading = reader.architecture.reading
    kind = kind_of(reader.architecture)
    values: np.ndarray
    if kind == "features":
        values = table.numbers(reading.columns or table.features())
    else:
        values = table.column((reading.text if kind == "text" else reading.tokens) or kind)
    if kind == "text" or reading.form == "wide":
        for number, line in enumerate(values):
            is_words = kind == "tokens" and isinstance(line, str)
            cells = line.split() if is_words else line
            yield _finish(cells, reader, f"X, line {number}", str(number), nan_is_padding=True)
        return
    if "id" not in table.roles:
        problem = f"no column '{reading.id or 'id'}' that tells sequences apart, in "
        raise reader.refuse("X", problem + list_names(table.names))
    ids, members_of = _groups(table.column(table.roles["id"]), reader)
    time = table.roles.get("time")
    moments = None if time is None else _moments(table.column(time), reader)
    for row_id, members in zip(ids, members_of, strict=True):
        if moments is not None:
            members = members[np.argsort(moments[members], kind="stable")]
        yield _finish(values[members], reader, f"X, id '{quote(row_id)}'", row_id)


def _finish(
    values: object, reader: Reader, where: str, row_id: str, *, nan_is_padding: bool = False
) -> Row:
    """Return a sequence of a data frame as a row. Raises UserError."""
    try:
        if kind_of(reader.architecture) == "features":
            steps = finish_steps(np.asarray(values), reader.options, nan_is_padding=nan_is_padding)
        else:
            steps = Steps(as_row(values, reader).steps)
    except RowError as error:
        raise reader.refuse(where + _place(error, values), problem_of(error, reader)) from None
    return Row(row_id, where=where, **steps._asdict())


def _groups(ids: np.ndarray, reader: Reader) -> tuple[list[str], list[np.ndarray]]:
    """Return the ids in the order in which they first come, and the lines of each."""
    if ids.dtype.kind == "O":
        missing = [number for number, name in enumerate(ids) if name is None or name != name]
        ids = np.array(list(map(str, ids)))
    else:
        missing = np.flatnonzero(ids != ids).tolist()
    if missing:
        raise reader.refuse(f"X, line {missing[0]}", "no id")
    names, first_S, number_S = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first_S)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rank_S = rank[number_S]
    lines_S = np.argsort(rank_S, kind="stable")
    cuts = np.flatnonzero(np.diff(rank_S[lines_S])) + 1
    members = np.split(lines_S, cuts) if len(lines_S) else []
    return [str(name) for name in names[order]], members


def _moments(times: np.ndarray, reader: Reader) -> np.ndarray:
    """Return numbers that sort the times of all steps. Raises UserError."""
    if times.dtype.kind in "iufM":
        missing = np.flatnonzero(times != times)  # NaN, or no time
        if len(missing):
            raise reader.refuse(f"X, line {missing[0]}", "no time")
        return times
    journal = Journal()
    parser = Times(journal)
    moments = []
    for number, time in enumerate(times):
        try:
            moments.append(parser.parse(str(time), f"line {number}"))
        except RowError as error:
            raise reader.refuse(f"X, line {number}", error.problem) from None
    for note in journal.notes:
        warnings.warn(note, stacklevel=2)
    return np.array(moments, dtype=object)
