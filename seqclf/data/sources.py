"""A data set's name -> its train, validation and test Sequences.

MNIST and its like are read from the original idx files, raw or gzipped, by this module: torchvision
is asked to download them only (its reader would unpickle a legacy `processed/` folder).
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqclf.config import Data, UserError
from seqclf.data.batches import mix
from seqclf.data.sequences import Sequences

CONNECT_TIMEOUT_S = 10
DIGITS_TEST_FRACTION = 0.2
FASHION = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
# torchvision's class name, which is also its folder's, and the classes
IDX_SOURCES = {
    "mnist": ("MNIST", tuple("0123456789")),
    "fashion_mnist": ("FashionMNIST", FASHION),
}
IDX_FILES = {
    (split, kind): f"{prefix}-{kind}-idx{ndim}-ubyte"
    for split, prefix in (("train", "train"), ("test", "t10k"))
    for kind, ndim in (("images", 3), ("labels", 1))
}


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; `validation` is None unless asked for."""

    name: str
    train: Sequences
    validation: Sequences | None
    test: Sequences

    def watched(self, *, last: bool) -> dict[str, Sequences]:
        """Return what to evaluate: validation if there is one, else test; at the end both."""
        if self.validation is None:
            return {"test": self.test}
        return {"val": self.validation} | ({"test": self.test} if last else {})

    def to(self, device: torch.device) -> Splits:
        """Return the splits held in a device's memory."""
        validation = self.validation and self.validation.to(device)
        return Splits(self.name, self.train.to(device), validation, self.test.to(device))

    def fingerprint(self) -> str:
        """Return a sha256 over all parts."""
        parts = (self.train, self.validation, self.test)
        prints = [part.fingerprint() for part in parts if part is not None]
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes that the values of all splits take."""
        parts = (self.train, self.validation, self.test)
        return sum(part.values.nbytes for part in parts if part is not None)


def load(data: Data, *, seed: int) -> Splits:
    """Load the data set `data.name` and split off the validation part.

    Raises UserError if its files are missing or are not what they should be.
    """
    train, test = _digits() if data.name == "digits" else _idx(data.name, Path(data.root))
    validation = None
    if data.val_fraction:
        kept, held_out = stratified(train.labels, data.val_fraction, seed=mix(seed, "validation"))
        if not len(held_out) or not len(kept):
            raise UserError(
                f"data.val_fraction: {data.val_fraction} of {len(train)} training examples leaves "
                "a part without any; choose a larger fraction, or 0 for none"
            )
        train, validation = train.select(kept), train.select(held_out)
    return Splits(data.name, train, validation, test)


def stratified(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions into (kept, held out), `fraction` of every class held out, in data order."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _digits() -> tuple[Sequences, Sequences]:
    """Load scikit-learn's handwritten digits (UCI, 1,797 images of 8x8), a fixed fifth as test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    everything = Sequences(
        values=torch.from_numpy(bunch.images).to(torch.uint8),
        labels=torch.from_numpy(bunch.target).to(torch.int64),
        classes=tuple("0123456789"),
        scale=16.0,
    )
    train, test = stratified(everything.labels, DIGITS_TEST_FRACTION, seed=mix("digits"))
    return everything.select(train), everything.select(test)


# ---- idx files


def idx_folder(name: str, root: Path) -> Path:
    """Return the folder that holds a data set's four idx files."""
    return root / IDX_SOURCES[name][0] / "raw"


def find_idx(name: str, root: Path) -> dict[tuple[str, str], Path] | None:
    """Return the four files of a data set, raw or .gz, or None if one is missing."""
    folder = idx_folder(name, root)
    found = {}
    for key, file in IDX_FILES.items():
        candidates = [path for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
        if not candidates:
            return None
        found[key] = candidates[0]
    return found


def fetch(name: str, root: Path, announce: Callable[[str], None]) -> None:
    """Make sure that a data set's files are under `root`, downloading them if they are not.

    Raises UserError naming the folder, the files and the offline alternative.
    """
    if name not in IDX_SOURCES or find_idx(name, root) is not None:
        return
    folder = idx_folder(name, root).absolute()
    try:
        _download(name, root, announce)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data set '{name}' not found: {folder} lacks one of {', '.join(IDX_FILES.values())} "
            f"(raw or .gz), and they could not be downloaded ({reason}). Put the files there, name "
            "another folder with --data.root, or train offline on the embedded digits: "
            "--data.name digits"
        ) from None


def _idx(name: str, root: Path) -> tuple[Sequences, Sequences]:
    files = find_idx(name, root)
    if files is None:
        raise UserError(f"data set '{name}' not found in {idx_folder(name, root).absolute()}")
    classes = IDX_SOURCES[name][1]

    def read(split: str) -> Sequences:
        images, labels = (read_idx(files[split, kind]) for kind in ("images", "labels"))
        where = f"{files[split, 'images']} and {files[split, 'labels']}"
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
            raise UserError(
                f"{where}: expected N images [N, rows, columns] and N labels, found shapes "
                f"{tuple(images.shape)} and {tuple(labels.shape)}; fetch the files again"
            )
        if int(labels.max()) >= len(classes):
            row = int(labels.argmax())
            raise UserError(
                f"{files[split, 'labels']}: example {row}: label {int(labels[row])} is not one of "
                f"the {len(classes)} classes of '{name}'; fetch the file again"
            )
        return Sequences(images, labels.to(torch.int64), classes, scale=255.0)

    train, test = read("train"), read("test")
    if train.values.shape[1:] != test.values.shape[1:]:
        raise UserError(
            f"{idx_folder(name, root)}: training images are {tuple(train.values.shape[1:])}, test "
            f"images {tuple(test.values.shape[1:])}; fetch the files again"
        )
    return train, test


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes (yann.lecun.com/exdb/mnist), raw or gzipped.

    Raises UserError naming the file if it is truncated, too long or of another kind.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot read it: {error}; fetch the file again") from None
    ndim = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * ndim
    if content[:3] != b"\x00\x00\x08" or not 1 <= ndim <= 3 or len(content) < start:
        raise UserError(f"{path}: not an idx file of bytes (it starts with {content[:4].hex()!r})")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + torch.Size(shape).numel()
    if len(content) != expected or expected == start:
        raise UserError(
            f"{path}: {len(content)} bytes where its header {shape} asks for {expected}; "
            "fetch the file again"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def _download(name: str, root: Path, announce: Callable[[str], None]) -> None:
    """Fetch a data set's files with torchvision, one process a host at a time.

    Raises OSError or RuntimeError if that fails; then nothing is left behind.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    lock = root / ".download.lock"
    staging = None
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        timeout = socket.getdefaulttimeout()
        try:
            if find_idx(name, root) is not None:
                return  # another process was first
            folder = idx_folder(name, root)
            announce(f"downloading {name} to {folder} ...")
            from torchvision import datasets

            staging = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
            socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
            getattr(datasets, IDX_SOURCES[name][0])(str(staging), download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for idx_file in IDX_FILES.values():
                os.replace(idx_folder(name, staging) / idx_file, folder / idx_file)
        finally:
            socket.setdefaulttimeout(timeout)
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            lock.unlink(missing_ok=True)
            with suppress(OSError):
                for parent in made:  # if they were made for nothing
                    parent.rmdir()
