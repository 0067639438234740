"""An array in a file, and the sequences that it holds, read from front to back in pieces."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from seqclf.data.readers.rows import Journal, Progress, ReadOptions, reason_of
from seqclf.errors import UserError

BYTES_AT_ONCE = 2**22  # of an array in memory
HEADERS: dict[tuple[int, int], Callable[[Any], tuple[Any, bool, Any]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What makes numbers of an array x, by the kind of its dtype.
MAKES_NUMBERS = {
    "M": 'save ({x} - {x}.min()) / np.timedelta64(1, "s")',
    "m": 'save {x} / np.timedelta64(1, "s")',
    "V": "save numpy.lib.recfunctions.structured_to_unstructured({x})",
    "S": "save {x}.astype(float); words are read as tokens of a .jsonl",
    "U": "save {x}.astype(float); words are read as tokens of a .jsonl",
}


class ArrayFile:
    """An array in an .npy file, read from front to back in pieces. Raises UserError."""

    def __init__(
        self,
        file: IO[bytes],
        num_bytes: int,
        where: str,
        *,
        name: str = "x",
        remedy: str = "save numbers: x.astype(float)",
    ) -> None:
        self.where = where
        self.name = name  # in the lines that mend it
        self._remedy = remedy  # for Python objects
        self._file = file
        self._num_taken = 0
        self._whole: np.ndarray | None = None  # an array in Fortran order, once it was read
        if not num_bytes:
            raise UserError(f"{where}: is empty")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers that Python 2 wrote
                version = np.lib.format.read_magic(file)
                if version not in HEADERS:
                    raise ValueError(f"version {version[0]}, of arrays that have fields with names")
                self.shape, self.is_fortran, self.dtype = HEADERS[version](file)
                if not self.dtype.itemsize:
                    raise ValueError(f"{self.dtype} holds nothing")
        except Exception as error:  # numpy's parser lets many kinds through
            raise UserError(f"{where}: not an .npy that can be read: {reason_of(error)}") from None
        # In Python's integers, as a damaged header may ask for more than 2**63 bytes.
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        is_too_large = size > num_bytes and not self.dtype.hasobject
        if is_too_large or not all(length >= 0 for length in self.shape):
            raise UserError(f"{where}: {num_bytes:,} bytes, where its header asks for {size:,}")
        self.num_bytes = size

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` entries along the first axis."""
        if not self.is_fortran:
            return self._read((count, *self.shape[1:]))
        # In Fortran order an entry is spread over the whole file.
        if self._whole is None:
            self._whole = self.read_all()
        self._num_taken += count
        return self._whole[self._num_taken - count : self._num_taken]

    def read_all(self) -> np.ndarray:
        """Return the whole array."""
        return self._read(self.shape[::-1]).T if self.is_fortran else self._read(self.shape)

    def check_objects(self) -> None:
        """Refuse an array of Python objects."""
        if self.dtype.hasobject:
            raise UserError(
                f"{self.where}: holds Python objects, which only pickle could read; {self._remedy}"
            )

    def check_numbers(self) -> None:
        """Refuse an array that does not hold real numbers."""
        self.check_objects()
        kind = self.dtype.kind
        if kind in "fiub":
            return
        remedy = MAKES_NUMBERS.get(kind, "save numbers").format(x=self.name)
        if kind == "c":
            join = "concatenate" if len(self.shape) > 2 else "stack"
            remedy = f"save np.{join}([{self.name}.real, {self.name}.imag], -1)"
        raise UserError(
            f"{self.where}: {self.dtype}, shape {self.shape}, where numbers are expected; {remedy}"
        )

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        self.check_objects()
        count = int(np.prod(shape, dtype=object))
        content = self._file.read(count * self.dtype.itemsize)
        if len(content) != count * self.dtype.itemsize:
            raise UserError(f"{self.where}: cut off")
        values = np.frombuffer(content, self.dtype, count).reshape(shape)
        if self.dtype.kind == "U":
            # NumPy keeps a letter as a number of 4 bytes, and Python takes no others for letters.
            letters = np.frombuffer(content, np.dtype("u4").newbyteorder(self.dtype.byteorder))
            if letters.max(initial=0) > sys.maxunicode:
                raise UserError(f"{self.where}: a damaged text, with numbers that are no letters")
        if self.dtype.kind == "f" and self.dtype.itemsize > 8:
            # What the other readers and PyTorch take holds 8 bytes.
            with np.errstate(over="ignore"):
                return values.astype(np.float64)
        return values


class WholeNumbers(NamedTuple):
    """The offsets or the lengths of sequences, int64, in an array of this name."""

    where: str
    name: str
    values: np.ndarray


class Layout(NamedTuple):
    """How an array holds sequences."""

    num_sequences: int
    num_features: int  # of a step
    lengths: np.ndarray | None = None  # int64 [N], in steps; None: all are as long as the array
    is_joined: bool = False  # the steps of all sequences stand one after the other, unpadded


def find_layout(
    values: ArrayFile,
    offsets: WholeNumbers | None,
    lengths: WholeNumbers | None,
    options: ReadOptions,
    journal: Journal,
) -> Layout:
    """Return how an array holds sequences. Raises UserError if it holds none that can be told.

    An array is N x T x F or N x T, with lengths if it is padded; or its steps stand one after the
    other, S x F or S, and offsets [N + 1] or lengths [N] cut them.
    """
    values.check_numbers()
    if offsets is not None:
        layout = _cut_at_offsets(values, offsets)
        if lengths is not None and lengths.values.tolist() != np.diff(offsets.values).tolist():
            raise UserError(
                f"{lengths.where}: not the lengths that {offsets.name} gives; leave one of both out"
            )
    elif lengths is not None:
        layout = _cut_to_lengths(values, lengths, options, journal)
    else:
        layout = _equal_lengths(values, options)
    if options.channels_first and layout.is_joined:
        journal.note(
            f"--channels-first is of cases x channels x time; {values.where} holds steps one "
            "after the other, which stay as they are"
        )
    elif options.channels_first and len(values.shape) == 2:
        raise UserError(
            f"{values.where}: shape {values.shape}, where --channels-first expects cases x "
            f"channels x time; save {values.name}[:, None, :], or leave the option out"
        )
    if not layout.num_sequences:
        raise UserError(f"{values.where}: shape {values.shape}, which holds no sequence")
    if 0 in values.shape[1:]:
        raise UserError(f"{values.where}: shape {values.shape}, which holds no value")
    return layout


def read_sequences(
    values: ArrayFile, layout: Layout, options: ReadOptions, progress: Progress
) -> Iterator[np.ndarray]:
    """Yield each sequence, [T, F] or [T], with the padding beyond its length."""
    if layout.is_joined:
        assert layout.lengths is not None
        for length in layout.lengths.tolist():
            sequence = values.take(length)
            progress(sequence.nbytes)
            yield sequence
        return
    num_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=object))
    at_once = max(1, BYTES_AT_ONCE // num_bytes)
    for first in range(0, layout.num_sequences, at_once):
        sequences = values.take(min(at_once, layout.num_sequences - first))
        progress(sequences.nbytes)
        yield from sequences.swapaxes(1, 2) if options.channels_first else sequences


def _equal_lengths(
    values: ArrayFile, options: ReadOptions, lengths: WholeNumbers | None = None
) -> Layout:
    """Return the layout of N x T x F or N x T, where a length for each sequence may be known."""
    shape, x = values.shape, values.name
    if len(shape) not in (2, 3):
        remedy = ""
        if len(shape) == 1 and lengths is None:
            remedy = f"; save {x}[None] if it is one sequence, else its offsets or lengths too"
        elif len(shape) > 3:
            remedy = f"; save {x}.reshape(*{x}.shape[:2], -1), whose last axis is the features"
        raise UserError(
            f"{values.where}: shape {shape}, where sequences x steps x features, or sequences x "
            f"steps, are expected{remedy}"
        )
    steps_axis = 2 if options.channels_first and len(shape) == 3 else 1
    num_features = 1 if len(shape) == 2 else shape[3 - steps_axis]
    is_model = options.wanted_by != "--features"
    if lengths is None:
        if len(shape) == 2 and is_model and shape[1] == len(options.features or ()) > 1:
            raise UserError(
                f"{values.where}: shape {shape}, where sequences x steps x features are expected, "
                f"as {options.wanted_by} reads {shape[1]} features; save {x}[None] if it is one "
                "sequence"
            )
        return Layout(shape[0], num_features)
    bad = np.flatnonzero((lengths.values < 1) | (lengths.values > shape[steps_axis]))
    if len(bad):
        raise UserError(
            f"{lengths.where}[{bad[0]}] is {lengths.values[bad[0]]:,}: expected 1 to "
            f"{shape[steps_axis]:,}, the steps of {x}, shape {shape}"
        )
    return Layout(shape[0], num_features, lengths=lengths.values)


def _cut_to_lengths(
    values: ArrayFile, lengths: WholeNumbers, options: ReadOptions, journal: Journal
) -> Layout:
    numbers = lengths.values
    shape, x = values.shape, values.name
    total = sum(numbers.tolist())  # in Python's integers, which do not overflow
    is_each = len(shape) in (2, 3) and len(numbers) == shape[0]
    is_joined = len(shape) in (1, 2) and total == shape[0] and not (numbers < 0).any()
    if is_each and is_joined:
        is_each = bool((numbers <= shape[1]).all())
        if is_each and shape[1] > 1:
            raise UserError(
                f"{values.where}: shape {shape}: with these {lengths.name} it may be padded "
                "sequences, or steps one after the other; save "
                f"{x}[:, :, None] if it is padded, else {x}[:, None, :]"
            )
    if is_each:
        if len(shape) == 2:
            journal.note(
                f"{values.where}: a row is a sequence of one number a step, cut to its length in "
                f"{lengths.name}"
            )
        return _equal_lengths(values, options, lengths)
    if is_joined:
        journal.note(f"{values.where}: steps one after the other, cut by {lengths.name}")
        if (numbers < 1).any():
            raise UserError(
                f"{lengths.where}[{int(numbers.argmin())}] is 0: a sequence has a step at least"
            )
        return _joined(values, numbers)
    if len(shape) > 3 or not shape:
        return _equal_lengths(values, options, lengths)  # which says what is wrong
    problem = f"{len(numbers):,} lengths with the sum {total:,}, where {x} has shape {shape}"
    expected = [f"a length for each of its {shape[0]:,} sequences"] * (len(shape) > 1)
    if len(shape) < 3:
        expected.append(f"lengths whose sum is its {shape[0]:,} steps")
    if len(numbers) and numbers.min() < 0:
        index = int(numbers.argmin())
        problem += f", and {lengths.name}[{index}] is {numbers[index]}"
    raise UserError(f"{lengths.where}: {problem}; expected {', or '.join(expected)}")


def _cut_at_offsets(values: ArrayFile, offsets: WholeNumbers) -> Layout:
    if len(values.shape) not in (1, 2):
        raise UserError(
            f"{values.where}: shape {values.shape}, where steps x features are expected, which "
            f"{offsets.name} cuts"
        )
    numbers = offsets.values
    num_steps = values.shape[0]
    falls = np.flatnonzero(numbers[1:] < numbers[:-1])
    if len(numbers) and not numbers[0] and numbers[-1] == num_steps and not len(falls):
        return _joined(values, np.diff(numbers))
    problem = f"offsets must rise from 0 to its {num_steps:,} steps, found "
    if not len(numbers):
        problem += "none"
    elif len(falls):
        index = int(falls[0])
        problem += (
            f"{numbers[index + 1]:,} after {numbers[index]:,}, at {offsets.name}[{index + 1}]"
        )
    else:
        problem += f"{numbers[0]:,} to {numbers[-1]:,}"
        if not numbers[0] and numbers[-1] < num_steps:
            problem += f"; save np.append({offsets.name}, {num_steps}) if they are the beginnings"
        elif numbers[0] and numbers[-1] == num_steps:
            problem += f"; save np.append(0, {offsets.name}) if they are the ends"
    raise UserError(f"{values.where}: {problem}")


def _joined(values: ArrayFile, lengths: np.ndarray) -> Layout:
    num_features = values.shape[1] if len(values.shape) == 2 else 1
    return Layout(len(lengths), num_features, lengths, is_joined=True)


def read_whole_numbers(array: ArrayFile) -> WholeNumbers:
    """Read an array of whole numbers, [N]. Raises UserError if it is of another kind or shape."""
    array.check_objects()
    if array.dtype.kind not in "iu":
        raise UserError(
            f"{array.where}: {array.dtype}, expected whole numbers; save {array.name}.astype(int)"
        )
    if not array.shape or sum(length != 1 for length in array.shape) > 1:
        raise UserError(f"{array.where}: shape {array.shape}, expected a list of numbers")
    numbers = array.read_all().astype(np.int64).ravel()
    return WholeNumbers(array.where, array.name, numbers)
