"""Arrays: .npy and .npz files."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    parse_name,
    quote,
    reason_of,
)
from seqclf.errors import UserError

BYTES_AT_ONCE = 2**22  # of an array in memory
SUFFIXES = {None: "", "train": "_train", "val": "_val", "test": "_test"}  # of names in an .npz


def read_npy(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of an array N x T x F or N x T."""
    with path.open("rb") as file:
        labels = None if options.labels is None else _read_labels(options.labels)
        values = ArrayFile(file, path.stat().st_size, str(path))
        yield from _from_array(values, options, progress, labels=labels, offsets=None)


def _read_labels(path: Path) -> np.ndarray:
    """Read the labels beside an .npy: another .npy, or a text with a label in each line."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return ArrayFile(file, path.stat().st_size, str(path)).read_all()
        return np.array([line.strip() for line in TextFile.of(path).lines()])
    except OSError as error:
        raise UserError(f"--labels {path}: cannot read it: {error.strerror or error}") from None


def read_npz(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of x and y, or values, offsets and labels; or of x_train, y_train ..."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()
            }
            # The arrays that hold the steps: x if there is one, else values.
            names = {
                split: name + suffix
                for split, suffix in SUFFIXES.items()
                for name in ("values", "x")
                if name + suffix in members
            }
            if not names:
                raise UserError(
                    f"{path}: expected x and y, or values, offsets and labels, or x_train, "
                    f"y_train, x_test and y_test; found {quote(', '.join(members))}"
                )
            for split, name in names.items():
                suffix = SUFFIXES[split]
                y = members.get(f"y{suffix}") or members.get(f"labels{suffix}")
                labels = _read_member(archive, y)
                is_cut = name.startswith("values")
                offsets = _read_member(archive, members.get(f"offsets{suffix}")) if is_cut else None
                with _open_member(archive, members[name]) as values:
                    rows = _from_array(values, options, progress, labels=labels, offsets=offsets)
                    for row in rows:
                        yield row._replace(split=split) if isinstance(row, Row) else row
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not an .npz that can be read: {reason_of(error)}") from None


@contextmanager
def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[ArrayFile]:
    with archive.open(info) as file:
        yield ArrayFile(file, info.file_size, f"{archive.filename}: {info.filename}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> np.ndarray | None:
    if info is None:
        return None
    with _open_member(archive, info) as array:
        return array.read_all()


class ArrayFile:
    """An array in an .npy file, read from front to back in pieces. Raises UserError."""

    def __init__(self, file: IO[bytes], num_bytes: int, where: str) -> None:
        self.where = where
        self._file = file
        self._num_taken = 0
        self._whole: np.ndarray | None = None  # an array in Fortran order, once it was read
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about headers that Python 2 wrote
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                self.shape, self._is_fortran, self.dtype = read_header(file)
        except Exception as error:  # numpy's parser lets many kinds through
            raise UserError(f"{where}: not an .npy that can be read: {reason_of(error)}") from None
        if self.dtype.hasobject:
            raise UserError(
                f"{where}: holds Python objects, which only pickle could read; save numbers: "
                "values, offsets and labels for sequences of unequal length (docs/data.md)"
            )
        # In Python's integers, as a damaged header may ask for more than 2**63 bytes.
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        if not all(length >= 0 for length in self.shape) or size > num_bytes:
            raise UserError(f"{where}: {num_bytes:,} bytes, where its header asks for {size:,}")

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` entries along the first axis."""
        if not self._is_fortran:
            return self._read((count, *self.shape[1:]))
        # In Fortran order an entry is spread over the whole file.
        if self._whole is None:
            self._whole = self.read_all()
        self._num_taken += count
        return self._whole[self._num_taken - count : self._num_taken]

    def read_all(self) -> np.ndarray:
        """Return the whole array."""
        return self._read(self.shape[::-1]).T if self._is_fortran else self._read(self.shape)

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        content = self._file.read(count * self.dtype.itemsize)
        if len(content) != count * self.dtype.itemsize:
            raise UserError(f"{self.where}: cut off")
        return np.frombuffer(content, self.dtype, count).reshape(shape)


def _from_array(
    values: ArrayFile,
    options: ReadOptions,
    progress: Progress,
    *,
    labels: np.ndarray | None,
    offsets: np.ndarray | None,
) -> Iterator[Row | BadRow]:
    """Yield the entries of an array along its first axis, or the pieces between offsets."""
    if values.dtype.kind not in "fiub":
        raise UserError(f"{values.where}: {values.dtype}, where numbers are expected")
    if offsets is None and len(values.shape) not in (2, 3):
        raise UserError(
            f"{values.where}: shape {values.shape}, where sequences x steps x features, or "
            "sequences x steps, are expected"
        )
    if offsets is not None:
        offsets = _check_offsets(values, offsets.ravel())
    num_sequences = values.shape[0] if offsets is None else len(offsets) - 1
    if labels is not None and labels.size != num_sequences:
        raise UserError(f"{values.where}: {num_sequences:,} sequences, but {labels.size:,} labels")
    names = None if labels is None else labels.ravel()
    for index, sequence in enumerate(_sequences(values, offsets, progress)):
        where = f"{values.where}[{index}]"
        try:
            label = None if names is None else parse_name(names[index], "label")
            finished = finish_steps(sequence, options)
        except RowError as error:
            yield BadRow(where, error.message())
        else:
            yield Row(str(index), where=where, label=label, **finished._asdict())


def _sequences(
    values: ArrayFile, offsets: np.ndarray | None, progress: Progress
) -> Iterator[np.ndarray]:
    if offsets is not None:
        for length in np.diff(offsets).tolist():
            sequence = values.take(length)
            progress(sequence.nbytes)
            yield sequence
        return
    num_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=object))
    at_once = max(1, BYTES_AT_ONCE // max(1, num_bytes))
    for first in range(0, values.shape[0], at_once):
        sequences = values.take(min(at_once, values.shape[0] - first))
        progress(sequences.nbytes)
        yield from sequences


def _check_offsets(values: ArrayFile, offsets: np.ndarray) -> np.ndarray:
    """Return offsets [N + 1] as int64. Raises UserError if they do not cut the values."""
    if len(values.shape) not in (1, 2):
        raise UserError(
            f"{values.where}: shape {values.shape}, where steps x features are expected"
        )
    if offsets.dtype.kind not in "iu" or len(offsets) < 1:
        raise UserError(f"{values.where}: its offsets are {offsets.dtype}, expected whole numbers")
    offsets = offsets.astype(np.int64)
    if offsets[0] or offsets[-1] != values.shape[0] or (np.diff(offsets) < 0).any():
        raise UserError(
            f"{values.where}: offsets must rise from 0 to its {values.shape[0]:,} steps, found "
            f"{offsets[0]:,} to {offsets[-1]:,}"
        )
    return offsets
