from __future__ import annotations

import gc
import gzip
import socket
import struct
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from seqclf.config.settings import Data
from seqclf.data.idx import fetch, missing, read_idx
from seqclf.data.sources import load
from seqclf.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(content: bytes, *shape: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


FILES = {
    IMAGES: idx(bytes(range(240)), 12, 4, 5),
    LABELS: idx(bytes([0, 1, 2] * 4), 12),
    "t10k-images-idx3-ubyte": idx(bytes(range(120, 240)), 6, 4, 5),
    "t10k-labels-idx1-ubyte": idx(bytes([2, 1, 0] * 2), 6),
}


def qmnist_labels(classes: list[int]) -> bytes:
    rows = [(label, *(-1, 2**30, 3, 4, 5, 6, 7)) for label in classes]
    return idx(struct.pack(f">{8 * len(rows)}i", *sum(rows, ())), len(rows), 8, kind=12)


def emnist_files(split: str, first_label: int) -> dict[str, bytes]:
    labels = bytes(first_label + i for i in [0, 1, 2] * 4)
    names = [f"emnist-{split}-{part}-{kind}" for part in ("train", "test") for kind in KINDS]
    images = FILES[IMAGES], FILES["t10k-images-idx3-ubyte"]
    return dict(
        zip(names, (images[0], idx(labels, 12), images[1], idx(labels[:6], 6)), strict=True)
    )


KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
QMNIST_FILES = {
    "qmnist-train-images-idx3-ubyte": FILES[IMAGES],
    "qmnist-train-labels-idx2-int": qmnist_labels([0, 1, 2] * 4),
    "qmnist-test-images-idx3-ubyte": FILES["t10k-images-idx3-ubyte"],
    "qmnist-test-labels-idx2-int": qmnist_labels([2, 1, 0] * 2),
}


def write_files(
    root: Path,
    *,
    gzipped: bool = False,
    of: str = "MNIST",
    files: Mapping[str, bytes] = FILES,
) -> Path:
    folder = root / of / "raw"
    folder.mkdir(parents=True)
    for name, content in files.items():
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
        (IMAGES, idx(bytes(241), 12, 4, 5), "257 bytes or more where"),
        (IMAGES, b"\x00\x00\x0d\x03" + bytes(12), "not an idx file of bytes"),
        (IMAGES, idx(bytes(240), 12, 4, 5, kind=12), "where its header .* asks for 976"),
        (IMAGES, idx(bytes(960), 12, 4, 5, kind=12), r"of bytes and labels \[N\], found"),
        (IMAGES, b"<html>not found</html>", "not an idx file of bytes"),
        (IMAGES, idx(b"", 12, 4)[:6], "not an idx file of bytes"),
        (IMAGES, b"", "not an idx file of bytes"),
        (IMAGES, idx(bytes(240), 12, 20), r"found shapes \(12, 20\) and \(12,\)"),
        (LABELS, idx(bytes(11), 11), r"found shapes \(12, 4, 5\) and \(11,\)"),
        (LABELS, idx(b"", 0), ": "),
        (
            LABELS,
            idx(bytes(7) + b"\x0a" + bytes(4), 12),
            "example 7: label 10 is not one of 0 to 9, the 10 classes of 'mnist'",
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
    data = Data(name="mnist", root=str(tmp_path))
    assert missing(data) == [LABELS]
    assert missing(Data(name="digits")) == []
    with pytest.raises(UserError, match=rf"'mnist' not found: /.*MNIST/raw lacks {LABELS} \(raw"):
        load(data, seed=0)


@pytest.mark.parametrize(
    ("name", "folder", "last"),
    [("fashion_mnist", "FashionMNIST", "boot"), ("kmnist", "KMNIST", "wo")],
)
def test_sets_with_mnists_names_have_folders_of_their_own(
    tmp_path: Path, name: Literal["fashion_mnist", "kmnist"], folder: str, last: str
) -> None:
    write_files(tmp_path, of=folder)
    splits = load(Data(name=name, root=str(tmp_path)), seed=0)
    assert splits.train.values.flatten().tolist() == list(range(240))
    assert (splits.name, splits.train.classes[9], len(splits.train.classes)) == (name, last, 10)


@pytest.mark.parametrize("gzipped", [False, True])
def test_qmnist_takes_the_class_from_the_first_of_eight_columns(
    tmp_path: Path, gzipped: bool
) -> None:
    write_files(tmp_path, of="QMNIST", files=QMNIST_FILES, gzipped=gzipped)
    splits = load(Data(name="qmnist", root=str(tmp_path)), seed=0)
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert splits.test.labels.tolist() == [2, 1, 0] * 2
    assert splits.test.values.flatten().tolist() == list(range(120, 240))


def test_idx_integers_are_big_endian_and_signed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(qmnist_labels([9, 258]))
    assert read_idx(path).tolist() == [[label, -1, 2**30, 3, 4, 5, 6, 7] for label in (9, 258)]
    assert read_idx(path).dtype == torch.int32


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (qmnist_labels([3, -2] * 6), "example 1: label -2 is not one of 0 to 9"),
        (FILES[LABELS], r"labels \[N, 8\], found shapes \(12, 4, 5\) and \(12,\)"),
        (idx(bytes(12 * 7 * 4), 12, 7, kind=12), r"found shapes \(12, 4, 5\) and \(12, 7\)"),
        (qmnist_labels([3] * 11), r"and \(11, 8\)"),
        (qmnist_labels([3] * 12)[:-1], "395 bytes where its header"),
    ],
)
def test_wrong_qmnist_labels_are_named(tmp_path: Path, content: bytes, part: str) -> None:
    file = write_files(tmp_path, of="QMNIST", files=QMNIST_FILES) / "qmnist-train-labels-idx2-int"
    file.write_bytes(content)
    with pytest.raises(UserError, match=part) as caught:
        load(Data(name="qmnist", root=str(tmp_path)), seed=0)
    assert str(file) in str(caught.value)


EmnistSplit = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]


@pytest.mark.parametrize(
    ("split", "first_label", "num_classes", "some"),
    [
        ("byclass", 0, 62, {0: "0", 10: "A", 35: "Z", 36: "a", 61: "z"}),
        ("bymerge", 0, 47, {9: "9", 10: "A", 35: "Z", 36: "a", 38: "d", 46: "t"}),
        ("balanced", 0, 47, {0: "0", 37: "b", 41: "g", 46: "t"}),
        ("letters", 1, 26, {0: "a", 25: "z"}),
        ("digits", 0, 10, {9: "9"}),
        ("mnist", 0, 10, {9: "9"}),
    ],
)
def test_emnist_stands_upright_and_names_its_classes(
    tmp_path: Path, split: EmnistSplit, first_label: int, num_classes: int, some: dict[int, str]
) -> None:
    files = emnist_files(split, first_label)
    folder = write_files(tmp_path, of="EMNIST", files=files)
    data = Data(name="emnist", emnist_split=split, root=str(tmp_path))
    splits = load(data, seed=0)
    upright = torch.arange(240).view(12, 4, 5).mT
    assert splits.train.values.tolist() == upright.tolist()
    assert splits.train.values.is_contiguous()
    assert splits.test.values.tolist() == upright[6:].tolist()
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert len(splits.train.classes) == num_classes
    assert {index: splits.train.classes[index] for index in some} == some
    torchvisions = datasets.EMNIST.classes_split_dict[split][first_label:]
    assert list(splits.train.classes) == list(torchvisions)

    low, high = first_label - 1, first_label + num_classes
    for wrong in [label for label in (low, high) if label >= 0]:
        name = f"emnist-{split}-test-labels-idx1-ubyte"
        (folder / name).write_bytes(idx(bytes([first_label] * 5 + [wrong]), 6))
        part = f"{name}: example 5: label {wrong} is not one of {first_label} to {high - 1}"
        with pytest.raises(UserError, match=part):
            load(data, seed=0)


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
    assert one.train.fingerprint() == same.train.fingerprint() != other.train.fingerprint()
    # Runs that differ in their seed only have the same data, whatever part of it they hold out.
    assert one.fingerprint() == other.fingerprint() == whole.fingerprint()
    assert one.test.fingerprint() == other.test.fingerprint() == whole.test.fingerprint()
    counts = whole.train.labels.bincount().tolist()
    assert one.validation.labels.bincount().tolist() == [round(0.2 * n) for n in counts]
    assert images(one.train.values, one.validation.values) == images(whole.train.values)
    assert whole.watched == ("test", whole.test)
    assert whole.measured == {"test": whole.test}
    assert one.watched == ("val", one.validation)
    assert list(one.measured.items()) == [one.watched, ("test", one.test)]


def test_a_validation_part_without_examples_is_refused() -> None:
    with pytest.raises(UserError, match="val_fraction"):
        load(Data(name="digits", val_fraction=0.001), seed=0)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder of archives as all that torchvision knows of."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in (FILES | QMNIST_FILES).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        archive.writestr("gzip/emnist-letters-mapping.txt", "1 65 97")
        for name, content in (emnist_files("letters", 1) | emnist_files("digits", 0)).items():
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content))
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        qmnist = [(f"{address}{name}.gz", None) for name in QMNIST_FILES]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(datasets.MNIST, "resources", [(f"{name}.gz", None) for name in FILES])
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.KMNIST, "resources", datasets.MNIST.resources)
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.QMNIST, "resources", {"train": qmnist[:2], "test": qmnist[2:]})
        monkeypatch.setattr(datasets.EMNIST, "url", f"{address}gzip.zip")
        monkeypatch.setattr(datasets.EMNIST, "md5", None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    ("data", "folder", "files"),
    [
        (Data(name="kmnist"), "KMNIST", FILES),
        (Data(name="qmnist"), "QMNIST", QMNIST_FILES),
        (
            Data(name="emnist", emnist_split="letters"),
            "EMNIST",
            emnist_files("letters", 1) | emnist_files("digits", 0),  # one archive holds them all
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Data) else "",
)
def test_other_sets_are_downloaded_into_torchvisions_layout(
    tmp_path: Path, data: Data, folder: str, files: dict[str, bytes]
) -> None:
    data = data.model_copy(update={"root": str(tmp_path / "data")})
    fetch(data, lambda _: None)
    assert {p.name: p.read_bytes() for p in (tmp_path / "data" / folder / "raw").iterdir()} == files
    assert [p.name for p in (tmp_path / "data").iterdir()] == [folder]
    assert load(data, seed=0).train.labels.tolist() == [0, 1, 2] * 4


def test_an_archive_without_the_set_leaves_nothing_behind(mirror: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = Data(name="emnist", emnist_split="balanced", root=str(root))
    with pytest.raises(UserError, match="EMNIST/raw lacks emnist-balanced-train-images-idx3-ubyte"):
        fetch(data, lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == [mirror.name]


@pytest.mark.usefixtures("mirror")
def test_files_are_downloaded_once(tmp_path: Path) -> None:
    root = tmp_path / "a" / "data"
    lines: list[str] = []
    for _ in range(2):
        fetch(Data(name="mnist", root=str(root)), lines.append)
    assert lines == [f"downloading mnist to {root}/MNIST/raw ..."]
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
            fetch(Data(name="mnist", root=str(root)), lambda _: None)
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
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits.train.labels.bincount().tolist() == train_counts
    assert splits.test.labels.bincount().tolist() == test_counts
    assert splits.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert round(float(splits.train.values.double().mean()) / 255, 4) == 0.1307


def test_a_file_without_permission_is_not_to_be_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError) as caught:
        read_idx(tmp_path / "x")
    assert str(caught.value) == (
        f"{tmp_path}/x: cannot read it: Permission denied; make the file readable for this user"
    )
