from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE

import pytest
import torch
from torch import Tensor

from seqclf import checkpoint
from seqclf.checkpoint import State
from seqclf.config import UserError
from seqclf.model import LSTMClassifier

FILES = {"model.safetensors": b"weights", "optimizer.safetensors": b"moments", "state.json": b"{}"}
NAMES = (*FILES, "manifest.json")


def commit(root: Path, step: int, files: dict[str, bytes] = FILES) -> Path:
    return checkpoint.commit(root, step, files, world_size=2, versions={"torch": "1"})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_was_committed_is_read(tmp_path: Path) -> None:
    path = commit(tmp_path / "deep" / "root", 42)
    manifest, files = checkpoint.read(path)
    assert names(path.parent) == ["step-00000042"]
    assert names(path) == sorted(NAMES)
    assert files == FILES
    assert manifest.model_dump() == {
        "format": 1,
        "step": 42,
        "world_size": 2,
        "versions": {"torch": "1"},
        "files": {name: {"size": len(c), "sha256": sha256(c)} for name, c in FILES.items()},
    }


def test_the_newest_is_found(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    for step in (9, 100, 20):
        commit(tmp_path, step)
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-00000100", [])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_one_is_passed_over_for_the_next_older(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older, newer = commit(tmp_path, 1), commit(tmp_path, 2)
    damage(newer / name)
    found, [reason] = checkpoint.newest(tmp_path)
    assert found == older
    assert str(newer / name) in reason
    assert not checkpoint.verifies(newer)


def test_no_flipped_bit_lets_other_content_through(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    accepted: list[dict[str, bytes]] = []
    for name in NAMES:
        whole = (path / name).read_bytes()
        for i in range(len(whole)):
            flipped = bytes([whole[i] ^ 1 << i % 8])
            (path / name).write_bytes(whole[:i] + flipped + whole[i + 1 :])
            if checkpoint.verifies(path):
                accepted.append(checkpoint.read(path)[1])
        (path / name).write_bytes(whole)
    assert all(files == FILES for files in accepted)
    assert len(accepted) < 40  # white space, step, world size and versions of the manifest


@pytest.mark.parametrize("name", ["../x", "..", "", "/etc/hosts", "a\0b", "x" * 300, "link"])
def test_a_manifest_reaches_no_other_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    path = commit(tmp_path / "root", 1)
    (path / "link").symlink_to(tmp_path / "x")
    change_manifest(path, files={name: {"size": 6, "sha256": sha256(b"secret")}})
    found, [reason] = checkpoint.newest(tmp_path / "root")
    assert found is None
    assert str(path) in reason


def test_what_a_link_points_to_is_neither_read_nor_deleted(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", commit(tmp_path / "outside", 3)
    commit(root, 1)
    commit(root, 2)
    for name in ("step-00000003", ".tmp-step-00000009"):
        (root / name).symlink_to(outside)
    (root / "step-00000002" / "state.json").unlink()
    (root / "step-00000002" / "state.json").symlink_to(outside / "state.json")
    found, reasons = checkpoint.newest(root)
    assert found == root / "step-00000001"
    assert reasons == [
        f"{root}/step-00000003: a symbolic link; move the directory itself here",
        f"{root}/step-00000002/state.json: cannot read it (not a regular file)",
    ]
    commit(root, 3)
    commit(root, 9)
    (root / "step-00000000").symlink_to(outside)
    checkpoint.prune(root, keep_last=2)
    assert names(root) == ["step-00000003", "step-00000009"]
    assert checkpoint.verifies(outside)


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    os.truncate(path / "model.safetensors", 2**40)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged \(its size"):
        checkpoint.read(path)
    os.truncate(path / "manifest.json", 2**40)
    with pytest.raises(
        UserError, match=r"manifest\.json: .*\(1,099,511,627,776 bytes, of which at"
    ):
        checkpoint.read(path)


def test_a_pipe_under_our_names_is_not_waited_for(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: .*\(not a regular file\)"):
        checkpoint.read(path)
    commit(tmp_path, 1)
    assert checkpoint.verifies(path)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
LONG = b'{"a": "' + b"x" * 2**20 + b'"}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [(DEEP, "recursion"), (LONG, "1,048,585 bytes"), (b"[1]", ""), (b"\xff{}", ""), (b"", "")],
)
def test_json_that_is_deep_long_or_no_object_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"run\.json: (missing or )?damaged \(.*{reason}"):
        checkpoint.read_json(tmp_path / "run.json")
    path = commit(tmp_path, 1, FILES | {"state.json": content})
    with pytest.raises(UserError, match=rf"state\.json: missing or damaged \(.*{reason}"):
        checkpoint.read_state(checkpoint.read(path)[1], path)
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"manifest\.json: missing or damaged \(.*{reason}"):
        checkpoint.read(path)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    commit(tmp_path, 1).rename(tmp_path / "step-00000007")
    with pytest.raises(UserError, match=r"step-00000007: .* it holds 1$"):
        checkpoint.read(tmp_path / "step-00000007")
    (tmp_path / "step-00000007").rename(tmp_path / "best")
    assert checkpoint.read(tmp_path / "best")[0].step == 1


def test_steps_are_ordered_as_numbers_and_other_names_are_left_alone(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        commit(tmp_path, step)
    for name in ("step-00000005.mine", "step-5", "steps"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    assert [p.name for p in checkpoint.directories(tmp_path)] == [
        *("step-100000000", "step-99999999", "step-00000003")
    ]
    checkpoint.prune(tmp_path, keep_last=1)
    assert names(tmp_path) == ["step-00000005.mine", "step-100000000", "step-5", "steps"]


def test_a_place_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") == (None, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot list the checkpoints: Not a directory"):
        checkpoint.newest(tmp_path / "file")


def test_a_failed_commit_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = commit(tmp_path, 1)

    def full_disk(path: Path, content: bytes) -> checkpoint.FileEntry:
        path.write_bytes(content[:3])
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        return checkpoint.FileEntry(size=3, sha256="")

    monkeypatch.setattr(checkpoint, "write_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        commit(tmp_path, 2)
    assert names(tmp_path) == [older.name]
    assert checkpoint.verifies(older)


def test_a_damaged_one_is_replaced_and_leftovers_are_overwritten(tmp_path: Path) -> None:
    flip(commit(tmp_path, 1) / "state.json")
    (tmp_path / ".tmp-step-00000001").mkdir()
    (tmp_path / ".tmp-step-00000001" / "old").write_text("old")
    path = commit(tmp_path, 1, FILES | {"state.json": b"new"})
    assert checkpoint.read(path)[1] == FILES | {"state.json": b"new"}
    assert names(path) == sorted(NAMES)


def test_a_checkpoint_without_one_of_its_files_is_not_whole(tmp_path: Path) -> None:
    path = commit(tmp_path, 1, {"state.json": b"{}"})
    with pytest.raises(UserError, match=r"manifest\.json: lists 'state\.json', expected model"):
        checkpoint.read(path)


def test_prune_keeps_the_newest_that_verify(tmp_path: Path) -> None:
    for step in range(1, 7):
        commit(tmp_path, step)
    flip(tmp_path / "step-00000005" / "model.safetensors")
    (tmp_path / ".tmp-step-00000009").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.prune(tmp_path, keep_last=2)
    assert names(tmp_path) == ["notes.txt", *(f"step-0000000{step}" for step in (4, 5, 6))]


def test_prune_keeps_the_steps_that_it_is_told_to_keep(tmp_path: Path) -> None:
    for step in range(1, 7):
        commit(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, keep=(2, 6, 77))
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_sweeping_deletes_leftovers_of_any_kind_and_nothing_else(tmp_path: Path) -> None:
    checkpoint.sweep(tmp_path / "absent")
    path = commit(tmp_path, 1)
    commit(tmp_path, 2).rename(tmp_path / ".tmp-step-00000002")
    (tmp_path / ".tmp-file").write_text("")
    (tmp_path / ".tmp-dangling").symlink_to(tmp_path / "nowhere")
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == [path.name]
    assert checkpoint.verifies(path)


def test_a_replacement_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.replace_file(tmp_path / "status.json", b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.replace_file(tmp_path / "status.json", b"new")
    assert names(tmp_path) == ["status.json"]
    assert (tmp_path / "status.json").read_bytes() == b"old"


def test_what_a_killed_deletion_leaves_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = commit(tmp_path, 1), commit(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda _: None)
    checkpoint.discard(newer)
    assert (newer / "model.safetensors").exists()
    assert checkpoint.newest(tmp_path)[0] == older


@pytest.fixture
def _umask_022() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask_022")
def test_modes_follow_the_umask_and_replacing_leaves_one_file(tmp_path: Path) -> None:
    path, file = commit(tmp_path, 1), tmp_path / "status.json"
    checkpoint.replace_file(file, b"a longer first")
    entry = checkpoint.replace_file(file, b"then")
    assert (entry.size, entry.sha256, file.read_bytes()) == (4, sha256(b"then"), b"then")
    assert names(tmp_path) == ["status.json", "step-00000001"]
    assert {S_IMODE(p.stat().st_mode) for p in (*path.iterdir(), file)} == {0o644}
    assert S_IMODE(path.stat().st_mode) == 0o755


# ---- tensors


def weights() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "c": torch.tensor(5.0)}


def test_tensors_survive_exactly() -> None:
    source = {"x": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]), **weights()}
    target = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    checkpoint.put(checkpoint.encode(source), target, "f")
    for name, tensor in source.items():
        assert target[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_same_tensors_are_the_same_bytes() -> None:
    first = checkpoint.encode(weights())
    strided = weights() | {"a": weights()["a"].T.contiguous().T}
    assert first == checkpoint.encode(strided)
    assert first == checkpoint.encode(dict(reversed(weights().items())))
    assert first != checkpoint.encode(weights() | {"c": torch.tensor(6.0)})


class Attack:
    """Leaves a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("torchs", [False, True])
def test_pickles_under_our_names_are_refused(tmp_path: Path, torchs: bool) -> None:
    attack = Attack(tmp_path / "attacked")
    content = pickle.dumps(attack)
    if torchs:
        torch.save({"a": attack}, tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
        (tmp_path / "w").unlink()
    path = commit(tmp_path / "root", 1, dict.fromkeys(FILES, content))
    _, files = checkpoint.read(path)
    with pytest.raises(UserError, match="place: not a safetensors file"):
        checkpoint.put(files["model.safetensors"], weights(), "place")
    with pytest.raises(UserError, match=r"state\.json: missing or damaged"):
        checkpoint.read_state(files, path)
    (path / "manifest.json").write_bytes(content)
    for read in (checkpoint.read, lambda path: checkpoint.read_json(path / "manifest.json")):
        with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
            read(path)
    assert names(tmp_path) == ["root"]


def header(size: int = 24, **changes: object) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, size]} | changes})
    return struct.pack("<Q", len(text)) + text.encode() + bytes(size)


ONES = {name: torch.ones_like(tensor) for name, tensor in weights().items()}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (ONES | {"d": torch.ones(1)}, r"missing \[\], unknown \['d'\]"),
        ({"a": ONES["a"], "b": ONES["b"]}, r"missing \['c'\], unknown \[\]"),
        (ONES | {"c": torch.ones(1)}, r"c is \(1,\) torch.float32, this model's is \(\)"),
        (ONES | {"b": torch.ones(2)}, r"b is \(2,\) torch.float32, this model's is .* torch.int64"),
        *((junk, "not a safetensors file") for junk in (b"", b"\xff" * 8, b"{}", bytes(100))),
        (checkpoint.encode(ONES)[:-1], "not a safetensors file"),
        *(
            (junk, "not a safetensors file")
            for junk in (
                struct.pack("<Q", 2**63) + b"{}",  # headers longer than the file, or than 100 MB
                struct.pack("<Q", 10**8 + 1) + b" " * 10**6,
                struct.pack("<Q", len(DEEP)) + DEEP,
                header(shape=[2**62, 4]),
                header(0, shape=[2**63, 0]),
                header(dtype="F4"),
                header(dtype="F6_E2M3", shape=[32]),
                header(data_offsets=[8, 32]),
                header(data_offsets=[24, 0]),
            )
        ),
        (header(), r"missing \['b', 'c'\], unknown \[\]"),
    ],
)
def test_other_tensors_are_refused_and_change_nothing(
    content: bytes | dict[str, Tensor], part: str
) -> None:
    target = weights()
    with pytest.raises(UserError, match=f"^place: .*{part}"):
        checkpoint.put(
            content if isinstance(content, bytes) else checkpoint.encode(content), target, "place"
        )
    assert checkpoint.encode(target) == checkpoint.encode(weights())


def test_weights_that_are_views_of_one_buffer_survive() -> None:
    torch.manual_seed(0)
    model, fresh = (LSTMClassifier(5, 3, hidden_size=4, num_layers=2) for _ in range(2))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in (model.rnn, *model.upper):
        flat = torch.cat([weight.data.flatten() for weight in layer.parameters()])
        sizes = [weight.numel() for weight in layer.parameters()]
        for weight, part in zip(layer.parameters(), flat.split(sizes), strict=True):
            weight.data = part.view(weight.shape)
    assert len({w.untyped_storage().data_ptr() for w in model.rnn.parameters()}) == 1
    content = checkpoint.encode(model.state_dict())
    assert content == checkpoint.encode(expected)
    for weight in model.parameters():
        weight.data.zero_()
    for each in (model, fresh):
        checkpoint.put(content, each.state_dict(), "f")
        assert all(torch.equal(w, expected[name]) for name, w in each.state_dict().items())


def test_a_state_reads_back_and_strange_ones_are_refused(tmp_path: Path) -> None:
    state = State(step=7, judged=5, skipped=2, metrics={"test/loss": 0.1}, scaler={"scale": 2.0})
    files = {"state.json": state.model_dump_json().encode()}
    assert checkpoint.read_state(files, tmp_path) == state
    for content in (b'{"step": 1, "stpe": 2}', b'{"step": "x"}', b"", b"\x80\x04."):
        with pytest.raises(UserError, match=r"state\.json: missing or damaged"):
            checkpoint.read_state({"state.json": content}, tmp_path)


def test_the_metrics_of_a_model_that_diverged_are_read_back() -> None:
    state = State(step=7, metrics={"test/loss": float("nan"), "val/loss": float("inf")})
    read = checkpoint.read_state({"state.json": state.model_dump_json().encode()}, Path("x"))
    assert repr(read) == repr(state)
