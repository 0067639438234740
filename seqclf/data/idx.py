"""MNIST and its like: their idx files are downloaded if they are missing, and read.

The files may be raw or gzipped. torchvision only downloads them: its reader would unpickle a legacy
`processed/` folder.

    data/MNIST/raw/train-images-idx3-ubyte                    train-, t10k-; -labels-idx1-ubyte
    data/FashionMNIST/raw/, data/KMNIST/raw/                  the same names
    data/EMNIST/raw/emnist-letters-train-images-idx3-ubyte    -train-, -test-; -labels-idx1-ubyte
    data/QMNIST/raw/qmnist-train-images-idx3-ubyte            -train-, -test-; -labels-idx2-int
"""

from __future__ import annotations

import fcntl
import gzip
import math
import os
import shutil
import socket
import string
import struct
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.config.settings import Data
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError

CONNECT_TIMEOUT_S = 10
DIGITS = tuple("0123456789")
FASHION = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
BY_CLASS = (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase)
MERGED = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")  # other letters look like capitals
EMNIST = {
    "byclass": BY_CLASS,
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": tuple(string.ascii_lowercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
QMNIST_COLUMNS = 8  # a label's first column is the class; the others say who wrote the digit
LONGEST_IDX = 2**30  # bytes; EMNIST's largest file has half of that
IDX_TYPES = {8: ">u1", 12: ">i4"}  # the type code in an idx file's header, as numpy calls it


class Source(NamedTuple):
    """A set of four idx files in torchvision's layout."""

    folder: str  # also the name of torchvision's class
    classes: tuple[str, ...]
    train: str = "train"  # the names of the training files begin with this
    test: str = "t10k"  # the names of the test files begin with this
    labels: str = "labels-idx1-ubyte"  # the names of the files of labels end in this
    first_label: int = 0
    is_transposed: bool = False  # the files hold the columns of images as rows

    def file(self, split: str, kind: str) -> str:
        """Return the name of a split's file of `images` or `labels`."""
        start = self.train if split == "train" else self.test
        return f"{start}-{'images-idx3-ubyte' if kind == 'images' else self.labels}"


IDX_SOURCES = {
    "mnist": Source("MNIST", DIGITS),
    "fashion_mnist": Source("FashionMNIST", FASHION),
    "kmnist": Source("KMNIST", KUZUSHIJI),
    "qmnist": Source("QMNIST", DIGITS, "qmnist-train", "qmnist-test", "labels-idx2-int"),
} | {
    f"emnist-{split}": Source(
        folder="EMNIST",
        classes=classes,
        train=f"emnist-{split}-train",
        test=f"emnist-{split}-test",
        first_label=int(split == "letters"),
        is_transposed=True,
    )
    for split, classes in EMNIST.items()
}
IDX_FILES = [(split, kind) for split in ("train", "test") for kind in ("images", "labels")]


def source_of(data: Data) -> Source:
    """Return the files and classes of a data set that consists of idx files."""
    return IDX_SOURCES[f"emnist-{data.emnist_split}" if data.name == "emnist" else data.name]


def idx_folder(data: Data) -> Path:
    """Return the folder that holds a data set's four idx files."""
    return Path(data.root) / source_of(data).folder / "raw"


def idx_file(data: Data, split: str, kind: str) -> Path | None:
    """Return the file of a split's `images` or `labels`, raw or .gz, None if it is missing."""
    folder, name = idx_folder(data), source_of(data).file(split, kind)
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def missing(data: Data) -> list[str]:
    """Return the names of the files of a data set that are not under `data.root`."""
    if data.name in ("digits", "files"):
        return []
    return [source_of(data).file(*part) for part in IDX_FILES if idx_file(data, *part) is None]


def fetch(data: Data, announce: Callable[[str], None]) -> None:
    """Make sure that a data set's files are under `data.root`: download them if they are not.

    Raises UserError naming the folder, the files and the offline alternative.
    """
    if not missing(data):
        return
    try:
        _download(data, announce)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{_not_found(data)}, and they could not be downloaded ({reason}). Put the files "
            "there, name another folder with --data.root, or train offline on the embedded digits: "
            "--data.name digits"
        ) from None


def _not_found(data: Data) -> str:
    folder, names = idx_folder(data).absolute(), ", ".join(missing(data))
    return f"data set '{data.name}' not found: {folder} lacks {names} (raw or .gz)"


def load_idx(data: Data) -> tuple[Sequences, Sequences]:
    """Read a data set's train and test splits. Raises UserError naming the file that is wrong."""
    train, test = _read_split(data, "train"), _read_split(data, "test")
    if train.values.shape[1:] != test.values.shape[1:]:
        raise UserError(
            f"{idx_folder(data)}: training images are {tuple(train.values.shape[1:])}, test "
            f"images {tuple(test.values.shape[1:])}; fetch the files again"
        )
    return train, test


def _read_split(data: Data, split: str) -> Sequences:
    source = source_of(data)
    images_path = idx_file(data, split, "images")
    labels_path = idx_file(data, split, "labels")
    if images_path is None or labels_path is None:
        raise UserError(_not_found(data))
    images = read_idx(images_path)
    labels = read_idx(labels_path)
    expected = (len(images), QMNIST_COLUMNS) if data.name == "qmnist" else (len(images),)
    if images.ndim != 3 or images.dtype != torch.uint8 or labels.shape != expected:
        raise UserError(
            f"{images_path} and {labels_path}: expected N images [N, rows, columns] of bytes and "
            f"labels [{', '.join(['N', *map(str, expected[1:])])}], found shapes "
            f"{tuple(images.shape)} and {tuple(labels.shape)}; fetch the files again"
        )
    labels = labels.to(torch.int64).view(len(labels), -1)[:, 0] - source.first_label
    wrong = ((labels < 0) | (labels >= len(source.classes))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        last_label = source.first_label + len(source.classes) - 1
        raise UserError(
            f"{labels_path}: example {row}: label {int(labels[row]) + source.first_label} is not "
            f"one of {source.first_label} to {last_label}, the {len(source.classes)} classes of "
            f"'{data.name}'; fetch the file again"
        )
    values = images.mT.contiguous() if source.is_transposed else images
    return Sequences(values, labels.contiguous(), source.classes, scale=255.0)


def _announced_bytes(header: bytes) -> int:
    """Return how long a file's header says it is; 0 for what is no header."""
    if len(header) < 4 or header[2] not in IDX_TYPES or not 1 <= header[3] <= 3:
        return 0
    start = 4 + 4 * header[3]
    lengths = (int.from_bytes(header[at : at + 4], "big") for at in range(4, start, 4))
    return start + math.prod(lengths) * np.dtype(IDX_TYPES[header[2]]).itemsize


def read_idx(path: Path) -> Tensor:
    """Read an idx file (yann.lecun.com/exdb/mnist) of bytes or of 32-bit integers, raw or gzipped.

    Raises UserError naming the file if it is truncated, too long or of another kind.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(16)  # the header of three dimensions
            # One byte more shows a file that is too long; a .gz may unpack to any length.
            announced = min(_announced_bytes(content), LONGEST_IDX) + 1
            content += file.read(max(0, announced - len(content)))
    except PermissionError as error:
        raise UserError(
            f"{path}: cannot read it: {error.strerror}; make the file readable for this user"
        ) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it: {error}; fetch the file again") from None
    if len(content) > LONGEST_IDX:
        raise UserError(
            f"{path}: more than {LONGEST_IDX:,} bytes by its header, the most that are read; fetch "
            "the file again"
        )
    # Two zeros, the type, the number of dimensions, then the length of each in 4 bytes.
    type_code, ndim = content[2:4] if len(content) >= 4 else (0, 0)
    start = 4 + 4 * ndim
    if (
        content[:2] != b"\0\0"
        or type_code not in IDX_TYPES
        or not 1 <= ndim <= 3
        or len(content) < start
    ):
        raise UserError(
            f"{path}: not an idx file of bytes or integers (it starts with "
            f"{content[:4].hex()!r}); fetch the file again"
        )
    dtype = np.dtype(IDX_TYPES[type_code])
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected or expected == start:
        more = "or more " if len(content) > expected else ""
        raise UserError(
            f"{path}: {len(content)} bytes {more}where its header {shape} asks for {expected}; "
            "fetch the file again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def _download(data: Data, announce: Callable[[str], None]) -> None:
    """Download a data set's files with torchvision; on each host one process does so at a time.

    Raises OSError or RuntimeError if that fails; then nothing is left behind.
    """
    root = Path(data.root)
    new_folders = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    lock = root / ".download.lock"
    staging = None
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        timeout = socket.getdefaulttimeout()
        try:
            # Another process may have downloaded them while this one waited for the lock.
            if not missing(data):
                return
            folder = idx_folder(data)
            announce(f"downloading {data.name} to {folder} ...")
            staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
            # Where packets are dropped, urllib would wait for two minutes.
            socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
            _call_torchvision(data, staging)
            staged = data.model_copy(update={"root": str(staging)})
            if missing(staged):
                raise OSError(f"the download holds no {', '.join(missing(staged))}")
            folder.mkdir(parents=True, exist_ok=True)
            # EMNIST is one archive of all its data sets, and all of them are kept.
            for path in idx_folder(staged).iterdir():
                if path.suffix not in (".gz", ".zip"):
                    os.replace(path, folder / path.name)
        finally:
            socket.setdefaulttimeout(timeout)
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            lock.unlink(missing_ok=True)
            # Only empty folders can be removed, so this undoes a failure alone.
            with suppress(OSError):
                for parent in new_folders:
                    parent.rmdir()


def _call_torchvision(data: Data, folder: Path) -> None:
    from torchvision import datasets

    download = getattr(datasets, source_of(data).folder)
    if data.name == "emnist":
        download(str(folder), split=data.emnist_split, download=True)
    elif data.name == "qmnist":
        for train in (True, False):
            download(str(folder), train=train, download=True)
    else:
        download(str(folder), download=True)
