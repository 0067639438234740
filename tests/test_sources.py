from __future__ import annotations

import gc
import gzip
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from seqclf.config import Data, UserError
from seqclf.data.sources import fetch, load, read_idx

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(content: bytes, *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


FILES = {
    IMAGES: idx(bytes(range(240)), 12, 4, 5),
    LABELS: idx(bytes([0, 1, 2] * 4), 12),
    "t10k-images-idx3-ubyte": idx(bytes(range(120, 240)), 6, 4, 5),
    "t10k-labels-idx1-ubyte": idx(bytes([2, 1, 0] * 2), 6),
}


def write_files(root: Path, *, gzipped: bool = False) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(
            gzip.compress(content) if gzipped else content
        )
    return folder


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx_files_are_read_raw_and_gzipped(tmp_path: Path, gzipped: bool) -> None:
    write_files(tmp_path, gzipped=gzipped)
    splits = load(Data(name="mnist", root=str(tmp_path)), seed=0)
    pixels = torch.arange(240).view(12, 4, 5)
    assert splits.train.values.tolist() == pixels.tolist()
    assert splits.test.values.tolist() == pixels[6:].tolist()
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert splits.test.labels.tolist() == [2, 1, 0] * 2
    assert splits.train.values.dtype == torch.uint8
    assert (splits.train.classes, splits.train.scale) == (tuple("0123456789"), 255.0)
    assert splits.num_bytes == 18 * 20


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        (
            IMAGES,
            idx(bytes(239), 12, 4, 5),
            r"255 bytes where its header \(12, 4, 5\) asks for 256",
        ),
        (IMAGES, idx(bytes(241), 12, 4, 5), "257 bytes where"),
        (IMAGES, b"\x00\x00\x0d\x03" + bytes(12), "not an idx file of bytes"),
        (IMAGES, b"<html>not found</html>", "not an idx file of bytes"),
        (IMAGES, idx(b"", 12, 4)[:6], "not an idx file of bytes"),
        (IMAGES, b"", "not an idx file of bytes"),
        (IMAGES, idx(bytes(240), 12, 20), r"found shapes \(12, 20\) and \(12,\)"),
        (LABELS, idx(bytes(11), 11), r"found shapes \(12, 4, 5\) and \(11,\)"),
        (LABELS, idx(b"", 0), ": "),
        (
            LABELS,
            idx(bytes(7) + b"\x0a" + bytes(4), 12),
            "example 7: label 10 is not one of the 10",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    file = write_files(tmp_path) / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=part) as caught:
        load(Data(name="mnist", root=str(tmp_path)), seed=0)
    assert str(file) in str(caught.value)


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole, path = gzip.compress(FILES[LABELS]), tmp_path / "x.gz"
    flipped = [whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :] for i in range(len(whole))]
    refused = []
    for content in (b"not gzip", whole[: len(whole) // 2], *flipped):
        path.write_bytes(content)
        try:
            labels = read_idx(path).tolist()
        except UserError as error:
            refused.append(str(error))
        else:  # gzip does not check the time and system in its header
            assert labels == [0, 1, 2] * 4
    assert len(refused) >= len(flipped) + 2 - 7
    assert all(str(path) in message for message in refused)


def test_missing_files_are_named_with_their_folder(tmp_path: Path) -> None:
    (write_files(tmp_path) / LABELS).unlink()
    with pytest.raises(UserError, match=r"'mnist' not found in /.*MNIST/raw"):
        load(Data(name="mnist", root=str(tmp_path)), seed=0)


def images(*parts: Tensor) -> Counter[tuple[int, ...]]:
    return Counter(map(tuple, torch.cat(parts).flatten(1).tolist()))


def test_the_digits_are_split_once_and_for_all() -> None:
    first, again = (load(Data(name="digits"), seed=seed) for seed in (0, 1))
    bunch = load_digits()
    assert first.fingerprint() == again.fingerprint()
    assert first.validation is None
    assert images(first.train.values, first.test.values) == images(torch.tensor(bunch.images))
    in_all, in_test = Counter(bunch.target.tolist()), Counter(first.test.labels.tolist())
    assert in_test == {label: round(n / 5) for label, n in in_all.items()}
    assert (first.train.scale, int(first.train.values.max())) == (16.0, 16)


def test_validation_is_stratified_seeded_and_taken_from_the_training_set() -> None:
    whole = load(Data(name="digits"), seed=0)
    one, same, other = (load(Data(name="digits", val_fraction=0.2), seed=s) for s in (0, 0, 1))
    assert one.validation is not None
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.test.fingerprint() == other.test.fingerprint() == whole.test.fingerprint()
    counts = whole.train.labels.bincount().tolist()
    assert one.validation.labels.bincount().tolist() == [round(0.2 * n) for n in counts]
    assert images(one.train.values, one.validation.values) == images(whole.train.values)
    assert [*whole.watched(last=False)] == [*whole.watched(last=True)] == ["test"]
    assert [*one.watched(last=False)] == ["val"]
    assert one.watched(last=True) == {"val": one.validation, "test": one.test}


def test_a_validation_part_without_examples_is_refused() -> None:
    with pytest.raises(UserError, match="val_fraction"):
        load(Data(name="digits", val_fraction=0.001), seed=0)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder of gzipped files as torchvision's only mirror."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        resources = [(f"{name}.gz", None) for name in FILES]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("mirror")
def test_files_are_downloaded_once(tmp_path: Path) -> None:
    root, said = tmp_path / "a" / "data", list[str]()
    fetch("mnist", root, said.append)
    fetch("mnist", root, said.append)
    assert said == [f"downloading mnist to {root}/MNIST/raw ..."]
    assert {p.name: p.read_bytes() for p in (root / "MNIST/raw").iterdir()} == FILES
    assert [p.name for p in root.iterdir()] == ["MNIST"]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # torchvision keeps the 404's socket
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_failed_download_leaves_nothing_behind(mirror: Path, tmp_path: Path, damage: str) -> None:
    last = mirror / "t10k-labels-idx1-ubyte.gz"
    last.unlink() if damage == "missing" else last.write_bytes(b"garbage")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    for root in (kept, tmp_path / "new", tmp_path / "deep" / "new"):
        with pytest.raises(UserError, match=r"'mnist' not found: /.*--data.name digits") as caught:
            fetch("mnist", root, lambda _: None)
        assert str(root / "MNIST" / "raw") in str(caught.value)
        assert "\n" not in str(caught.value)
    gc.collect()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "mirror"]
    assert [p.name for p in kept.iterdir()] == ["mine.txt"]
    assert socket.getdefaulttimeout() is None


def test_mnist_is_the_known_one(mnist_root: str) -> None:
    splits = load(Data(name="mnist", root=mnist_root), seed=0)
    assert splits.train.values.shape == (60000, 28, 28)
    assert splits.test.values.shape == (10000, 28, 28)
    assert splits.train.labels.bincount().tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert splits.test.labels.bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert round(float(splits.train.values.double().mean()) / 255, 4) == 0.1307
