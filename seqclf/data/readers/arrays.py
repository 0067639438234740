"""Arrays: .npy files, and what they have in common with the arrays of an .npz."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqclf.data.readers.array_file import ArrayFile as ArrayFile
from seqclf.data.readers.array_file import Layout, find_layout, read_sequences
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Names,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    parse_name,
    printable,
    quote,
)
from seqclf.errors import UserError

ONE_EACH = ("label", "group", "split", "id")  # arrays that hold one value for each sequence


class Beside(NamedTuple):
    """What is known of the sequences of an array, besides their steps."""

    values: Mapping[str, Sequence[object] | np.ndarray]  # a word of ONE_EACH -> one of each
    split: str | None = None  # of all of them
    features: tuple[str, ...] | None = None
    order: tuple[int, ...] | None = None  # the features of the array that are taken; None: all
    first_id: int = 0  # the number of the first sequence, where they have no ids


def read_npy(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of an array N x T x F or N x T."""
    with path.open("rb") as file:
        remedy = save_without_objects("steps", "x", "")
        values = ArrayFile(file, path.stat().st_size, str(path), remedy=remedy)
        layout = find_layout(values, None, None, options, journal)
        if options.labels is None and options.needs_label:
            raise UserError(
                f"{path}: no labels; say --labels y.npy, or a text with a label in each line"
            )
        one_each = {}
        if options.labels is not None:
            one_each["label"] = _read_labels(options.labels, values, layout)
        if options.test_ids is not None:
            is_test = _read_test_ids(options.test_ids, layout.num_sequences)
            one_each["split"] = np.where(is_test, "test", "train")
            journal.note(
                f"{options.test_ids}: {is_test.sum():,} of {len(is_test):,} sequences are test, "
                "all others train"
            )
        yield from read_array_rows(values, layout, Beside(one_each), options, progress)


def _read_test_ids(path: Path, count: int) -> np.ndarray:
    """Return which of `count` sequences a text names by their numbers, from 0, one a line."""
    lines_of = np.zeros(count, np.int64)  # the line that names a sequence; 0: none
    try:
        for line, text in enumerate(TextFile.of(path).lines(), 1):
            word = text.strip()
            number = int(word) if re.fullmatch("[0-9]{1,18}", word) else count
            if number >= count:
                raise UserError(
                    f"{path}:{line}: '{quote(word)}': expected the number of a sequence, from 0 to "
                    f"{count - 1:,}, one a line"
                )
            if lines_of[number]:
                raise UserError(
                    f"{path}:{line}: {number} stands twice, first in line {lines_of[number]}"
                )
            lines_of[number] = line
    except OSError as error:
        raise UserError(f"--test-ids {path}: cannot read it: {error.strerror or error}") from None
    return lines_of > 0


def _read_labels(path: Path, steps: ArrayFile, layout: Layout) -> Sequence[object] | np.ndarray:
    """Read the labels beside an .npy: another .npy, or a text with a label in each line."""
    where = f"--labels {path}"
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                remedy = "save y.astype(str)"
                array = ArrayFile(file, path.stat().st_size, where, name="y", remedy=remedy)
                return read_one_each(array, "label", steps, layout.num_sequences)
        lines = [line.strip() for line in TextFile.of(path).lines()]
    except OSError as error:
        raise UserError(f"{where}: cannot read it: {error.strerror or error}") from None
    while len(lines) > layout.num_sequences and not lines[-1]:
        lines.pop()
    if len(lines) != layout.num_sequences:
        hint = ""
        if len(lines) == layout.num_sequences + 1:
            hint = f"; if the first line, '{quote(lines[0])}', is a header, leave it out"
        raise UserError(
            f"{where}: {len(lines):,} labels, one a line, but {layout.num_sequences:,} sequences "
            f"in {steps.where}, shape {steps.shape}{hint}"
        )
    return lines


def save_without_objects(role: str, name: str, suffix: str) -> str:
    """Return the line of Python that saves an array of objects such that it can be read."""
    if role == "steps":
        return (
            f'np.savez("x.npz", values{suffix}=np.concatenate({name}), offsets{suffix}=np.cumsum('
            f"[0, *map(len, {name})]), labels{suffix}=y{suffix}) saves numbers (docs/data.md)"
        )
    kind = "int" if role in ("offsets", "lengths") else "str"
    return f"np.savez(..., {name}={name}.astype({kind})) saves what can be read"


def read_one_each(array: ArrayFile, role: str, steps: ArrayFile, count: int) -> np.ndarray:
    """Read an array that holds one value for each of `count` sequences. Raises UserError."""
    array.check_objects()
    name, shape = array.name, array.shape
    size = int(np.prod(shape, dtype=object))
    if not shape or size != count or max(shape) != count:
        problem = (
            f"{steps.where}: shape {steps.shape}, {count:,} sequences, but {size:,} {role}s in "
            f"{array.where}, shape {shape}"
        )
        if role == "label" and len(shape) == 2 and shape[0] == count:
            raise UserError(f"{problem}; if its rows are classes as one-hot, save {name}.argmax(1)")
        raise UserError(f"{problem}; save one for each sequence")
    if array.dtype.kind not in "biufSU":
        remedy = f"{name}.astype(str)"
        if array.dtype.names:
            remedy = f"one of its fields, such as {name}['{printable(array.dtype.names[0])}']"
        raise UserError(
            f"{array.where}: {array.dtype}, shape {shape}, where a text or a number is the {role}; "
            f"save {remedy}"
        )
    return array.read_all().ravel()


def read_array_rows(
    values: ArrayFile, layout: Layout, beside: Beside, options: ReadOptions, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of an array with what is known of each."""
    for index, sequence in enumerate(read_sequences(values, layout, options, progress)):
        where = f"{values.where}[{index}]"
        try:
            names = {
                role: parse_name(_as_plain(of_all[index]), role)
                for role, of_all in beside.values.items()
            }
            row_id = names.pop("id", None) or str(beside.first_id + index)
            num_padded = len(sequence)
            if layout.lengths is not None:
                sequence = sequence[: layout.lengths[index]]
            num_beyond = num_padded - len(sequence)
            if beside.order is not None:
                sequence = sequence.reshape(len(sequence), -1)[:, list(beside.order)]
            finished = finish_steps(sequence, options)
        except RowError as error:
            yield BadRow(where, error.message())
        else:
            finished = finished._replace(padding=finished.padding + num_beyond)
            found = Names(split=beside.split)._asdict() | names
            yield Row(row_id, where=where, features=beside.features, **found, **finished._asdict())


def _as_plain(value: object) -> object:
    """Return a float of any size as Python's, with the digits that it shows: 0.1 stays 0.1."""
    return float(str(value)) if isinstance(value, np.floating) else value
