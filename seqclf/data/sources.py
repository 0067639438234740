"""A data set's name -> its train, validation and test Sequences.

MNIST and its like are read from the original idx files, raw or gzipped, by this module: torchvision
is asked to download them only (its reader would unpickle a legacy `processed/` folder).

    data/MNIST/raw/train-images-idx3-ubyte                    train-, t10k-; -labels-idx1-ubyte
    data/FashionMNIST/raw/, data/KMNIST/raw/                  the same names
    data/EMNIST/raw/emnist-letters-train-images-idx3-ubyte    -train-, -test-; -labels-idx1-ubyte
    data/QMNIST/raw/qmnist-train-images-idx3-ubyte            -train-, -test-; -labels-idx2-int
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqclf.config import Data, UserError
from seqclf.data.batches import mix
from seqclf.data.prepared import open_parts
from seqclf.data.sequences import Sequences
from seqclf.data.splits import by_group, stratified

CONNECT_TIMEOUT_S = 10
DIGITS_TEST_FRACTION = 0.2
DIGITS = tuple("0123456789")
FASHION = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
BY_CLASS = (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase)
MERGED = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")  # the other small letters look as large
EMNIST = {
    "byclass": BY_CLASS,
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": tuple(string.ascii_lowercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
QMNIST_COLUMNS = 8  # of a label: the class, then where the digit comes from
IDX_TYPES = {8: ">u1", 12: ">i4"}


class Source(NamedTuple):
    """A set of four idx files in torchvision's layout."""

    folder: str  # also the name of torchvision's class
    classes: tuple[str, ...]
    train: str = "train"  # what the names of the files begin with
    test: str = "t10k"
    labels: str = "labels-idx1-ubyte"
    first_label: int = 0
    transposed: bool = False  # images lie on their side

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
        *("EMNIST", classes, f"emnist-{split}-train", f"emnist-{split}-test"),
        first_label=int(split == "letters"),
        transposed=True,
    )
    for split, classes in EMNIST.items()
}
IDX_FILES = [(split, kind) for split in ("train", "test") for kind in ("images", "labels")]


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; `validation` is None unless asked for."""

    name: str
    train: Sequences
    validation: Sequences | None
    test: Sequences
    stored_fingerprint: str | None = None  # of a prepared data set, which is not read again

    @property
    def watched(self) -> tuple[str, Sequences]:
        """What is evaluated while training: validation if there is one, else test."""
        return ("test", self.test) if self.validation is None else ("val", self.validation)

    @property
    def measured(self) -> dict[str, Sequences]:
        """What a result is measured on: what was watched, and test."""
        return dict([self.watched]) | {"test": self.test}

    def to(self, device: torch.device) -> Splits:
        """Return the splits held in a device's memory."""
        validation = self.validation and self.validation.to(device)
        train, test = self.train.to(device), self.test.to(device)
        return replace(self, train=train, validation=validation, test=test)

    def fingerprint(self) -> str:
        """Return a sha256 over all parts."""
        if self.stored_fingerprint is not None:
            return self.stored_fingerprint
        parts = (self.train, self.validation, self.test)
        prints = [part.fingerprint() for part in parts if part is not None]
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes that the values of all splits take."""
        parts = (self.train, self.validation, self.test)
        values = {part.values.data_ptr(): part.values for part in parts if part is not None}
        return sum(value.nbytes for value in values.values())


def load(data: Data, *, seed: int) -> Splits:
    """Load the data set `data.name` and split off the validation part.

    Raises UserError if its files are missing or are not what they should be.
    """
    splits = _prepared(data, seed) if data.name == "files" else _images(data, seed)
    parts = (splits.train, splits.validation, splits.test)
    train, validation, test = (part and part.cut(data.max_length, data.keep) for part in parts)
    assert train is not None
    assert test is not None
    return replace(splits, train=train, validation=validation, test=test)


def _prepared(data: Data, seed: int) -> Splits:
    """Open what `seqclf prepare` wrote."""
    assert data.path is not None
    folder = Path(data.path)
    card, parts, groups = open_parts(folder)
    train, validation = parts.get("train"), parts.get("val")
    if train is None or "test" not in parts:
        raise UserError(
            f"{folder}: no example in {'test' if train else 'train'}; prepare it again with "
            "--test, or with --split"
        )
    if data.val_fraction and validation is not None:
        raise UserError(
            f"data.val_fraction: {data.val_fraction}: {folder} has a validation part of its own, "
            f"of {len(validation):,} examples; leave it out"
        )
    if data.val_fraction:
        train, validation = _hold_out(data, train, groups.get("train"), seed)
    return Splits(folder.absolute().name, train, validation, parts["test"], card.fingerprint)


def _hold_out(
    data: Data, train: Sequences, groups: Tensor | None, seed: int
) -> tuple[Sequences, Sequences]:
    """Split `data.val_fraction` of every class off the training examples, by group if need be."""
    seed = mix(seed, "validation")
    if groups is None:
        kept, held_out = stratified(train.labels, data.val_fraction, seed=seed)
    else:
        fractions = (1 - data.val_fraction, data.val_fraction)
        part = by_group(train.labels, groups, fractions, seed=seed)
        kept, held_out = ((part == number).nonzero()[:, 0] for number in (0, 1))
    if not len(held_out) or not len(kept):
        raise UserError(
            f"data.val_fraction: {data.val_fraction} of {len(train)} training examples leaves "
            "a part without any; choose a larger fraction, or 0 for none"
        )
    return train.select(kept), train.select(held_out)


def _images(data: Data, seed: int) -> Splits:
    train, test = _digits() if data.name == "digits" else _idx(data)
    validation = None
    if data.val_fraction:
        train, validation = _hold_out(data, train, None, seed)
    return Splits(data.name, train, validation, test)


def _digits() -> tuple[Sequences, Sequences]:
    """Load scikit-learn's handwritten digits (UCI, 1,797 images of 8x8), a fixed fifth as test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    everything = Sequences(
        values=torch.from_numpy(bunch.images).to(torch.uint8),
        labels=torch.from_numpy(bunch.target).to(torch.int64),
        classes=DIGITS,
        scale=16.0,
    )
    train, test = stratified(everything.labels, DIGITS_TEST_FRACTION, seed=mix("digits"))
    return everything.select(train), everything.select(test)


# ---- idx files


def source(data: Data) -> Source:
    """Return what is known of a data set that consists of idx files."""
    return IDX_SOURCES[f"emnist-{data.emnist_split}" if data.name == "emnist" else data.name]


def idx_folder(data: Data) -> Path:
    """Return the folder that holds a data set's four idx files."""
    return Path(data.root) / source(data).folder / "raw"


def idx_file(data: Data, split: str, kind: str) -> Path | None:
    """Return the file of a split's `images` or `labels`, raw or .gz, if it is there."""
    folder, name = idx_folder(data), source(data).file(split, kind)
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def missing(data: Data) -> list[str]:
    """Return the names of the files of a data set that are not under `data.root`."""
    if data.name in ("digits", "files"):
        return []
    return [source(data).file(*part) for part in IDX_FILES if idx_file(data, *part) is None]


def fetch(data: Data, announce: Callable[[str], None]) -> None:
    """Make sure that a data set's files are under `data.root`, downloading them if they are not.

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


def _idx(data: Data) -> tuple[Sequences, Sequences]:
    train, test = _read_split(data, "train"), _read_split(data, "test")
    if train.values.shape[1:] != test.values.shape[1:]:
        raise UserError(
            f"{idx_folder(data)}: training images are {tuple(train.values.shape[1:])}, test "
            f"images {tuple(test.values.shape[1:])}; fetch the files again"
        )
    return train, test


def _read_split(data: Data, split: str) -> Sequences:
    known = source(data)
    paths = idx_file(data, split, "images"), idx_file(data, split, "labels")
    if paths[0] is None or paths[1] is None:
        raise UserError(_not_found(data))
    images, labels = read_idx(paths[0]), read_idx(paths[1])
    one_each = (len(images), QMNIST_COLUMNS) if data.name == "qmnist" else (len(images),)
    if images.ndim != 3 or images.dtype != torch.uint8 or labels.shape != one_each:
        raise UserError(
            f"{paths[0]} and {paths[1]}: expected N images [N, rows, columns] of bytes and labels "
            f"[{', '.join(['N', *map(str, one_each[1:])])}], found shapes {tuple(images.shape)} "
            f"and {tuple(labels.shape)}; fetch the files again"
        )
    labels = labels.to(torch.int64).view(len(labels), -1)[:, 0] - known.first_label
    wrong = ((labels < 0) | (labels >= len(known.classes))).nonzero()
    if len(wrong):
        row, last = int(wrong[0]), known.first_label + len(known.classes) - 1
        raise UserError(
            f"{paths[1]}: example {row}: label {int(labels[row]) + known.first_label} is not one "
            f"of {known.first_label} to {last}, the {len(known.classes)} classes of "
            f"'{data.name}'; fetch the file again"
        )
    values = images.mT.contiguous() if known.transposed else images
    return Sequences(values, labels.contiguous(), known.classes, scale=255.0)


def read_idx(path: Path) -> Tensor:
    """Read an idx file (yann.lecun.com/exdb/mnist) of bytes or of 32-bit integers, raw or gzipped.

    Raises UserError naming the file if it is truncated, too long or of another kind.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except PermissionError as error:
        raise UserError(
            f"{path}: cannot read it: {error.strerror}; make the file readable for this user"
        ) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it: {error}; fetch the file again") from None
    kind, ndim = content[2:4] if len(content) >= 4 else (0, 0)
    start = 4 + 4 * ndim
    if (
        content[:2] != b"\0\0"
        or kind not in IDX_TYPES
        or not 1 <= ndim <= 3
        or len(content) < start
    ):
        raise UserError(
            f"{path}: not an idx file of bytes or integers (it starts with "
            f"{content[:4].hex()!r}); fetch the file again"
        )
    dtype, shape = np.dtype(IDX_TYPES[kind]), struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected or expected == start:
        raise UserError(
            f"{path}: {len(content)} bytes where its header {shape} asks for {expected}; "
            "fetch the file again"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))


def _download(data: Data, announce: Callable[[str], None]) -> None:
    """Fetch a data set's files with torchvision, one process a host at a time.

    Raises OSError or RuntimeError if that fails; then nothing is left behind.
    """
    root = Path(data.root)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    lock = root / ".download.lock"
    staging = None
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        timeout = socket.getdefaulttimeout()
        try:
            if not missing(data):
                return  # another process was first
            folder = idx_folder(data)
            announce(f"downloading {data.name} to {folder} ...")
            staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
            socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
            _call_torchvision(data, staging)
            staged = data.model_copy(update={"root": str(staging)})
            if missing(staged):
                raise OSError(f"the download holds no {', '.join(missing(staged))}")
            folder.mkdir(parents=True, exist_ok=True)
            for path in idx_folder(staged).iterdir():  # EMNIST's one archive holds all its sets
                if path.suffix not in (".gz", ".zip"):
                    os.replace(path, folder / path.name)
        finally:
            socket.setdefaulttimeout(timeout)
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            lock.unlink(missing_ok=True)
            with suppress(OSError):
                for parent in made:  # if they were made for nothing
                    parent.rmdir()


def _call_torchvision(data: Data, folder: Path) -> None:
    from torchvision import datasets

    download = getattr(datasets, source(data).folder)
    if data.name == "emnist":
        download(str(folder), split=data.emnist_split, download=True)
    elif data.name == "qmnist":
        for train in (True, False):
            download(str(folder), train=train, download=True)
    else:
        download(str(folder), download=True)
