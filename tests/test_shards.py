"""Values in several files: the same data set as in one, wherever the files lie."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from mmap import PAGESIZE
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
import torch
from helpers.commands import Capture, call
from helpers.files import change_json, weights_of
from helpers.launching import wait_for
from helpers.training import train_tiny
from safetensors.numpy import load_file

from seqclf.cli import main
from seqclf.data.mapping import as_read_only_tensor, drop, map_pieces, will_need
from seqclf.data.prepared import INFO, VALUES, DatasetInfo, FileInfo, open_dataset, verify
from seqclf.data.values_file import ValuesFile
from seqclf.errors import UserError

COUNT, FEATURES = 3000, 3


@pytest.fixture(scope="module", params=["vectors", "far", "gaps", "tokens", "text"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Prepare the same sequences as one file, and as shards."""
    folder = tmp_path_factory.mktemp(request.param)
    source, options = write_source(folder, request.param)
    words = ["prepare", str(source), *options, "--split", "0.8,0.1,0.1"]
    assert main.main([*words, "--out", str(folder / "one")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqclf.data.values_file.SHARD_BYTES", 2**17)
        assert main.main([*words, "--out", str(folder / "shards")]) == 0
    return folder / "one", folder / "shards"


def write_source(folder: Path, kind: str) -> tuple[Path, list[str]]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 40, COUNT)
    labels = np.arange(COUNT) % 2
    if kind in ("tokens", "text"):
        key = "tokens" if kind == "tokens" else "text"
        rows = []
        for length, label in zip((lengths * 5).tolist(), labels.tolist(), strict=True):
            letters = generator.choice(list("abcdefgh"), length).tolist()
            content = letters if kind == "tokens" else "".join(letters)
            rows.append(json.dumps({key: content, "label": str(label)}))
        (folder / "x.jsonl").write_text("\n".join(rows))
        return folder / "x.jsonl", []
    values = generator.normal(size=(lengths.sum(), FEATURES))
    if kind == "far":
        values[:, 1] += 1e9
    if kind == "gaps":
        values[generator.random(values.shape) < 0.05] = np.nan
    np.savez(folder / "x.npz", x=values, lengths=lengths, y=labels)
    return folder / "x.npz", ["--fill-missing", "--measured"] if kind == "gaps" else []


def test_shards_are_the_same_data_set(both: tuple[Path, Path]) -> None:
    one, shards = (open_dataset(path) for path in both)
    names = shards.info.values_files
    assert len(names) > 2
    assert names[0] == f"values-00001-of-{len(names):05}.safetensors"
    assert sorted(path.name for path in both[1].iterdir()) == sorted([*shards.info.files, INFO])
    assert (one.info.format, shards.info.format) == (1, 2)
    unlike = {"format", "files"}
    assert shards.info.model_dump(exclude=unlike) == one.info.model_dump(exclude=unlike)
    for name, split in one.splits.items():
        assert torch.equal(split.values, shards.splits[name].values)
        ids = torch.randperm(len(split))[:200]
        (found, lengths), (expected, others) = shards.splits[name].rows(ids), split.rows(ids)
        assert torch.equal(found, expected)
        assert lengths is not None
        assert others is not None
        assert torch.equal(lengths, others)
    verify(both[1])
    # Any program that reads safetensors has all steps in these files.
    files = [load_file(both[1] / name)["values"] for name in names]
    assert np.array_equal(np.concatenate(files), one.splits["train"].values.numpy())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    source, _ = write_source(folder, "vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqclf.data.values_file.SHARD_BYTES", 2**17)
        assert main.main(["prepare", str(source), "--out", str(folder / "shards")]) == 0
    return folder / "shards"


def move(dataset: Path, number: int, to: Path, name: str) -> Path:
    """Move a shard, and write into dataset.json where it is."""
    content = json.loads((dataset / INFO).read_text())
    old = DatasetInfo.model_validate_json((dataset / INFO).read_text()).values_files[number]
    to.mkdir(exist_ok=True)
    moved = (dataset / old).rename(to / old)
    files = {name if path == old else path: file for path, file in content["files"].items()}
    change_json(dataset / INFO, files=files)
    return moved


def test_a_shard_may_lie_on_another_disk(made: Path, tmp_path: Path, capsys: Capture) -> None:
    before = open_dataset(made)
    settings = {"data.name": "files", "data.path": made, "train.steps": 20, "train.batch_size": 50}
    assert train_tiny(tmp_path / "run", settings, stop_at=9) != 0
    first, second = before.info.values_files[:2]
    absolute = tmp_path / "disk" / first
    move(made, 0, tmp_path / "disk", str(absolute))
    move(made, 1, made.parent / "beside", os.path.join("..", "beside", second))
    after = open_dataset(made)
    assert torch.equal(after.splits["train"].values, before.splits["train"].values)
    assert after.info.fingerprint == before.info.fingerprint  # so the run goes on
    assert train_tiny(tmp_path / "run", settings) == 0
    assert train_tiny(tmp_path / "straight", settings) == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "straight")
    assert call(capsys, "describe", made, "--verify")[0] == 0
    absolute.rename(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{absolute}: missing, .*write where it lies into files"):
        open_dataset(made)
    (tmp_path / "gone").rename(absolute)
    last = made / after.info.values_files[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-4])
    with pytest.raises(UserError, match=rf"{last}: [\d,]+ bytes, where"):
        open_dataset(made)
    last.write_bytes(content)
    files = {path: file.model_dump() for path, file in after.info.files.items()}
    kept = {path: file for path, file in files.items() if Path(path).name != second}
    change_json(made / INFO, files=kept)
    with pytest.raises(UserError, match=r"values-00001-of-\d+.safetensors: missing"):
        open_dataset(made)
    change_json(made / INFO, files=files)


def resident(values: torch.Tensor) -> np.ndarray:
    """Return for each page of mapped values whether the kernel keeps it in memory."""
    low = values.data_ptr() - values.data_ptr() % PAGESIZE
    size = values.data_ptr() + values.nbytes - low
    found = np.zeros(-(-size // PAGESIZE), np.uint8)
    address, places = ctypes.c_void_p(low), found.ctypes.data_as(ctypes.c_void_p)
    assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), places) == 0
    return (found & 1).astype(bool)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked to forget")
def test_rows_of_several_shards_are_dropped_and_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("seqclf.data.values_file.SHARD_BYTES", 2**17)
    wanted = np.arange(100_000 * 3, dtype="<f4").reshape(-1, 3)
    shard = 2**14 * wanted[0].nbytes  # where the second one begins
    with TemporaryDirectory(dir="/var/tmp") as folder:  # pytest's own may lie in /dev/shm
        file = ValuesFile(Path(folder))
        file.write(wanted)
        pieces = file.finish("F32", (3,), 4)
        assert pieces[0].size == shard
        for piece in pieces:
            with piece.path.open("rb") as written:
                os.fsync(written.fileno())  # the kernel forgets nothing else
        values = as_read_only_tensor(map_pieces(pieces, "<f4", wanted.shape))
        assert np.array_equal(values.numpy(), wanted)
        assert resident(values).all()
        drop(values, [(2**13, 5 * 2**13), (0, 1)])  # half of the first shard to half of the third
        if resident(values).all():
            pytest.skip("this file system keeps its files in memory")
        dropped = np.flatnonzero(~resident(values)) * PAGESIZE
        assert shard // 2 < dropped.min()
        assert dropped.max() < 5 * shard // 2
        # The kernel may keep large pages that are mapped in part.
        assert set(range(shard, 2 * shard, PAGESIZE)) <= set(dropped.tolist())
        will_need(values, 2**13, 5 * 2**13)
        wait_for(lambda: bool(resident(values).all()))
        assert np.array_equal(values.numpy(), wanted)


def test_values_that_are_no_file_are_kept() -> None:
    values = torch.ones(10_000, 3)
    drop(values, [(0, 10_000)])
    assert bool((values == 1).all())


def test_values_larger_than_memory_and_swap_are_mapped(tmp_path: Path) -> None:
    """Linux refuses this for a mapping that could be written to, as torch's is."""
    source, _ = write_source(tmp_path, "vectors")
    assert main.main(["prepare", str(source), "--out", str(tmp_path / "d")]) == 0
    path, offset = tmp_path / "d" / VALUES, 256
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    num_steps = 2 * memory // (4 * FEATURES)
    header = {"dtype": "F32", "shape": [num_steps, FEATURES]}
    header["data_offsets"] = [0, num_steps * FEATURES * 4]
    with path.open("r+b") as file:
        file.write((offset - 8).to_bytes(8, "little"))
        file.write(json.dumps({"values": header}).encode().ljust(offset - 8))
        try:
            file.truncate(offset + num_steps * FEATURES * 4)
        except OSError:
            pytest.skip("this file system has no files so large")
    content = json.loads((tmp_path / "d" / INFO).read_text())
    content["files"][VALUES] = FileInfo(bytes=path.stat().st_size, sha256="").model_dump()
    change_json(tmp_path / "d" / INFO, files=content["files"])
    with pytest.raises(UserError, match=f"offsets do not cut {num_steps:,} steps"):
        open_dataset(tmp_path / "d")
