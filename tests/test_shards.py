"""Values in several files: the same data set as in one, wherever the files lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.commands import Capture, call
from helpers.files import change_json, weights_of
from helpers.training import train_tiny
from safetensors.numpy import load_file

from seqclf.cli import main
from seqclf.data.prepared import INFO, VALUES, DatasetInfo, FileInfo, open_dataset, verify
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
