"""Data sets and models of the version before, which knew no ids and no reading, still work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from helpers.commands import Capture, call, predict, train, write_jsonl
from helpers.files import change_json, weights_of
from helpers.training import train_tiny
from safetensors.torch import load_file, save_file

from seqclf.data.prepared import INDEX, INFO, VALUES, FileInfo, open_dataset

KEPT = [
    "format",
    "kind",
    "classes",
    "features",
    "mean",
    "std",
    "tokens",
    "parts",
    "left_out",
    "files",
]


def make_old(dataset: Path) -> str:
    """Take away what the version before did not write; return the fingerprint that it computed."""
    index = load_file(dataset / INDEX)
    save_file({name: index[name] for name in ("offsets", "labels", "parts")}, dataset / INDEX)
    content = json.loads((dataset / INFO).read_text())
    content = {name: content[name] for name in KEPT}
    content["files"] = {name: FileInfo.of(dataset / name).model_dump() for name in (VALUES, INDEX)}
    (dataset / INFO).write_text(json.dumps(content, indent=1))
    seen = json.dumps({**content, "features": []}, separators=(",", ":"))
    return hashlib.sha256(seen.encode()).hexdigest()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with x.jsonl, an old data set of it, and a run that stopped at step 6."""
    source = write_jsonl(tmp_path / "x.jsonl")
    train(tmp_path / "new", source)
    (tmp_path / "new" / "data").rename(tmp_path / "data")
    fingerprint = make_old(tmp_path / "data")
    assert open_dataset(tmp_path / "data").info.fingerprint == fingerprint
    assert train_tiny(tmp_path / "run", settings(tmp_path), stop_at=6) != 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["data_fingerprint"] == fingerprint
    facts["architecture"] = {k: v for k, v in facts["architecture"].items() if k != "reading"}
    facts["architecture"].pop("lengths")
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    return tmp_path


def settings(folder: Path) -> dict[str, object]:
    return {"data.name": "files", "data.path": folder / "data", "train.steps": 20}


def test_an_old_run_goes_on(old: Path, capsys: Capture) -> None:
    assert train_tiny(old / "run", settings(old)) == 0
    assert train_tiny(old / "straight", settings(old)) == 0
    assert weights_of(old / "run") == weights_of(old / "straight")
    for words in (["describe", "data"], ["evaluate", "run"], ["report", "run"], ["predict", "run"]):
        assert call(capsys, words[0], old / words[1])[0] == 0


def test_an_old_model_predicts_a_file(old: Path, capsys: Capture) -> None:
    assert train_tiny(old / "run", settings(old)) == 0
    expected = predict(capsys, old / "run", old / "x.jsonl")
    architecture = json.loads((old / "run" / "model" / "config.json").read_text())
    for name in ("lengths", "reading", "rocket", "dilations"):
        del architecture[name]
    architecture["conv"] = 0  # of trained convolutions, which seqclf had then
    (old / "run" / "model" / "config.json").write_text(json.dumps(architecture))
    change_json(old / "run" / "run.json", architecture=architecture)
    assert predict(capsys, old / "run", old / "x.jsonl") == expected
    assert call(capsys, "evaluate", old / "run", old / "x.jsonl")[0] == 0
    change_json(old / "run" / "model" / "config.json", conv=64)
    code, _, err = call(capsys, "evaluate", old / "run", old / "x.jsonl")
    assert code == 2
    assert "conv: trained convolutions, which seqclf has no more; train it anew" in err


def test_examples_without_ids_are_counted_and_said_to_be(old: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "predict", old / "run", "--split", "test")
    assert (code, [line.split(",")[0] for line in out.splitlines()]) == (
        0,
        ["id", *map(str, range(6))],
    )
    assert "note: an older version prepared these data and kept no ids, so id counts" in err
    change_json(old / "data" / INFO, notes=["a newer version says more"])
    assert call(capsys, "predict", old / "run", "--split", "test")[1] == out
