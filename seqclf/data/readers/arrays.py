"""Arrays: .npy and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqclf.data.readers.array_file import ArrayFile as ArrayFile
from seqclf.data.readers.array_file import (
    Layout,
    WholeNumbers,
    find_layout,
    read_sequences,
    read_whole_numbers,
)
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.roles import list_names
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
    reason_of,
)
from seqclf.errors import UserError

# The names of arrays in an .npz, in any case, by what they hold; the first that is there is taken.
NAMES = {
    "steps": ("x", "data", "values"),
    "label": ("y", "labels", "label", "target", "targets"),
    "group": ("groups", "group", "subjects", "subject", "subject_ids", "subject_id", "group_id"),
    "split": ("split", "splits", "parts"),
    "id": ("ids", "id"),
    "offsets": ("offsets",),
    "lengths": ("lengths", "length", "lens", "seq_lengths", "seq_lens", "seq_len"),
    "features": ("feature_names", "features"),
}
ONE_EACH = ("label", "group", "split", "id")  # one value for each sequence
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
# What a name in an .npz means: x_train, train_x and xtrain are the steps of train.
_MEANINGS = {
    spelling: (role, None if split is None else split)
    for role, names in NAMES.items()
    for name in names
    for split, words in {None: ("",), **SPLITS}.items()
    for word, between in product(words, ("_", ""))
    for spelling in ((f"{name}{between}{word}", f"{word}{between}{name}") if word else (name,))
}


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
        remedy = _save_without_objects("steps", "x", "")
        values = ArrayFile(file, path.stat().st_size, str(path), remedy=remedy)
        layout = find_layout(values, None, None, options, journal)
        if options.labels is None and options.needs_label:
            raise UserError(
                f"{path}: no labels; say --labels y.npy, or a text with a label in each line"
            )
        labels = {}
        if options.labels is not None:
            labels = {"label": _read_labels(options.labels, values, layout)}
        yield from _read_rows(values, layout, Beside(labels), options, progress)


def _read_labels(path: Path, steps: ArrayFile, layout: Layout) -> Sequence[object] | np.ndarray:
    """Read the labels beside an .npy: another .npy, or a text with a label in each line."""
    where = f"--labels {path}"
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                remedy = "save y.astype(str)"
                array = ArrayFile(file, path.stat().st_size, where, name="y", remedy=remedy)
                return _read_one_each(array, "label", steps, layout.num_sequences)
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


def read_npz(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of x, data or values, with what the arrays beside it say of them.

    x_train, x_val and x_test, in any spelling, are the parts. An array that is not read is kept in
    the journal.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, path)
            parts = _find_parts(archive, options)
            _say(archive, parts, journal)
            first_id = 0
            for split, names in parts.items():
                with archive.open(names["steps"], "steps") as values:
                    cuts = (archive.whole_numbers(names, role) for role in ("offsets", "lengths"))
                    layout = find_layout(values, *cuts, options, journal)
                    beside = _read_beside(archive, names, values, layout, options, journal)
                    beside = beside._replace(split=split, first_id=first_id)
                    yield from _read_rows(values, layout, beside, options, progress)
                first_id += layout.num_sequences
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not an .npz that can be read: {reason_of(error)}") from None


class _Archive:
    """The arrays of an .npz by their names. Raises UserError."""

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._file = file
        self.members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}

    @contextmanager
    def open(self, name: str, role: str) -> Iterator[ArrayFile]:
        info = self.members[name]
        split = _MEANINGS.get(name.lower(), ("", None))[1]
        remedy = _save_without_objects(role, name, f"_{split}" if split else "")
        where = f"{self.path}: {printable(name)}"
        with self._file.open(info) as file:
            yield ArrayFile(file, info.file_size, where, name=printable(name), remedy=remedy)

    def describe(self, name: str) -> str:
        """Return an array's dtype and shape."""
        try:
            with self.open(name, "") as array:
                return f"{array.dtype}, shape {array.shape}"
        except UserError:
            return "no array that can be read"

    def whole_numbers(self, names: Mapping[str, str], role: str) -> WholeNumbers | None:
        """Read the offsets or lengths, if they are there."""
        if role not in names:
            return None
        with self.open(names[role], role) as array:
            return read_whole_numbers(array)


def _save_without_objects(role: str, name: str, suffix: str) -> str:
    """Return the line of Python that saves an array of objects such that it can be read."""
    if role == "steps":
        return (
            f'np.savez("x.npz", values{suffix}=np.concatenate({name}), offsets{suffix}=np.cumsum('
            f"[0, *map(len, {name})]), labels{suffix}=y{suffix}) saves numbers (docs/data.md)"
        )
    kind = "int" if role in ("offsets", "lengths") else "str"
    return f"np.savez(..., {name}={name}.astype({kind})) saves what can be read"
