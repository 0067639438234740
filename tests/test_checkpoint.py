"""Checkpoints: whole and verified, or not chosen; nothing is unpickled."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE

import pytest
import torch
from helpers.files import change_json, sha256

from seqclf.errors import UserError
from seqclf.run.checkpoint import (
    Checkpoint,
    Manifest,
    checkpoint_directories,
    commit_checkpoint,
    delete_leftovers,
    discard_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    verifies,
)
from seqclf.run.files import MAX_JSON_BYTES, FileEntry, read_json, replace_file
from seqclf.run.records import State

FILES = {"model.safetensors": b"weights", "optimizer.safetensors": b"moments", "state.json": b"{}"}
NAMES = (*FILES, "manifest.json")


def commit(root: Path, step: int, files: dict[str, bytes] = FILES) -> Path:
    return commit_checkpoint(root, step, files, world_size=2, made_with={"torch": "1"})


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """Return where the newest whole checkpoint is, and why newer ones were passed over."""
    checkpoint, reasons = newest_checkpoint(root)
    return checkpoint and checkpoint.path, reasons


def holding(state: bytes) -> Checkpoint:
    """Return a checkpoint with this state.json."""
    manifest = Manifest(format=1, step=1, world_size=1, versions={}, files={})
    return Checkpoint(Path("x"), manifest, {"state.json": state})


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_what_was_committed_is_read(tmp_path: Path) -> None:
    path = commit(tmp_path / "deep" / "root", 42)
    checkpoint = read_checkpoint(path)
    assert names(path.parent) == ["step-00000042"]
    assert names(path) == sorted(NAMES)
    assert checkpoint.path == path
    assert checkpoint.files == FILES
    assert checkpoint.manifest.model_dump() == {
        "format": 1,
        "step": 42,
        "world_size": 2,
        "versions": {"torch": "1"},
        "files": {name: {"size": len(c), "sha256": sha256(c)} for name, c in FILES.items()},
    }


def test_the_newest_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    for step in (9, 100, 20):
        commit(tmp_path, step)
    assert newest(tmp_path) == (tmp_path / "step-00000100", [])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_one_is_passed_over_for_the_next_older(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older, newer = commit(tmp_path, 1), commit(tmp_path, 2)
    damage(newer / name)
    found, [reason] = newest(tmp_path)
    assert found == older
    assert str(newer / name) in reason
    assert not verifies(newer)


def test_no_flipped_bit_lets_other_content_through(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    accepted: list[dict[str, bytes]] = []
    for name in NAMES:
        whole = (path / name).read_bytes()
        for i in range(len(whole)):
            flipped = bytes([whole[i] ^ 1 << i % 8])
            (path / name).write_bytes(whole[:i] + flipped + whole[i + 1 :])
            if verifies(path):
                accepted.append(read_checkpoint(path).files)
        (path / name).write_bytes(whole)
    assert all(files == FILES for files in accepted)
    assert len(accepted) < 40  # white space, step, world size and versions of the manifest


@pytest.mark.parametrize("name", ["../x", "..", "", "/etc/hosts", "a\0b", "x" * 300, "link"])
def test_a_manifest_reaches_no_other_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    path = commit(tmp_path / "root", 1)
    (path / "link").symlink_to(tmp_path / "x")
    change_json(path / "manifest.json", files={name: {"size": 6, "sha256": sha256(b"secret")}})
    found, [reason] = newest(tmp_path / "root")
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
    found, reasons = newest(root)
    assert found == root / "step-00000001"
    assert reasons == [
        f"{root}/step-00000003: a symbolic link; move the directory itself here",
        f"{root}/step-00000002/state.json: cannot read it (not a regular file)",
    ]
    commit(root, 3)
    commit(root, 9)
    (root / "step-00000000").symlink_to(outside)
    prune_checkpoints(root, keep_last=2)
    assert names(root) == ["step-00000003", "step-00000009"]
    assert verifies(outside)


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    os.truncate(path / "model.safetensors", 2**40)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged \(its size"):
        read_checkpoint(path)
    os.truncate(path / "manifest.json", 2**40)
    with pytest.raises(
        UserError, match=r"manifest\.json: .*\(1,099,511,627,776 bytes, of which at"
    ):
        read_checkpoint(path)


def test_a_pipe_under_our_names_is_not_waited_for(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: .*\(not a regular file\)"):
        read_checkpoint(path)
    commit(tmp_path, 1)
    assert verifies(path)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
LONG = b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (DEEP, "recursion"),
        pytest.param(LONG, f"{len(LONG):,} bytes", id="long"),
        (b"[1]", ""),
        (b"\xff{}", ""),
        (b"", ""),
    ],
)
def test_json_that_is_deep_long_or_no_object_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"run\.json: (missing or )?damaged \(.*{reason}"):
        read_json(tmp_path / "run.json")
    path = commit(tmp_path, 1, FILES | {"state.json": content})
    with pytest.raises(UserError, match=rf"state\.json: missing or damaged \(.*{reason}"):
        read_checkpoint(path).state  # noqa: B018
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"manifest\.json: missing or damaged \(.*{reason}"):
        read_checkpoint(path)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    commit(tmp_path, 1).rename(tmp_path / "step-00000007")
    with pytest.raises(UserError, match=r"step-00000007: .* it holds 1$"):
        read_checkpoint(tmp_path / "step-00000007")
    (tmp_path / "step-00000007").rename(tmp_path / "best")
    assert read_checkpoint(tmp_path / "best").manifest.step == 1


def test_steps_are_ordered_as_numbers_and_other_names_are_left_alone(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        commit(tmp_path, step)
    for name in ("step-00000005.mine", "step-5", "steps"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    assert [p.name for p in checkpoint_directories(tmp_path)] == [
        "step-100000000",
        "step-99999999",
        "step-00000003",
    ]
    prune_checkpoints(tmp_path, keep_last=1)
    assert names(tmp_path) == ["step-00000005.mine", "step-100000000", "step-5", "steps"]


def test_a_place_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") == (None, [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot list the checkpoints: Not a directory"):
        newest_checkpoint(tmp_path / "file")


def test_a_failed_commit_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = commit(tmp_path, 1)

    def full_disk(path: Path, content: bytes) -> FileEntry:
        path.write_bytes(content[:3])
        if path.name == "state.json":
            raise OSError(28, "No space left on device")
        return FileEntry(size=3, sha256="")

    monkeypatch.setattr("seqclf.run.checkpoint.write_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        commit(tmp_path, 2)
    assert names(tmp_path) == [older.name]
    assert verifies(older)


def test_a_damaged_one_is_replaced_and_leftovers_are_overwritten(tmp_path: Path) -> None:
    flip(commit(tmp_path, 1) / "state.json")
    (tmp_path / ".tmp-step-00000001").mkdir()
    (tmp_path / ".tmp-step-00000001" / "old").write_text("old")
    path = commit(tmp_path, 1, FILES | {"state.json": b"new"})
    assert read_checkpoint(path).files == FILES | {"state.json": b"new"}
    assert names(path) == sorted(NAMES)


def test_a_checkpoint_without_one_of_its_files_is_not_whole(tmp_path: Path) -> None:
    path = commit(tmp_path, 1, {"state.json": b"{}"})
    with pytest.raises(UserError, match=r"manifest\.json: lists 'state\.json', expected model"):
        read_checkpoint(path)


def test_prune_keeps_the_newest_that_verify(tmp_path: Path) -> None:
    for step in range(1, 7):
        commit(tmp_path, step)
    flip(tmp_path / "step-00000005" / "model.safetensors")
    (tmp_path / ".tmp-step-00000009").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    prune_checkpoints(tmp_path, keep_last=2)
    assert names(tmp_path) == ["notes.txt", *(f"step-0000000{step}" for step in (4, 5, 6))]


def test_prune_keeps_the_steps_that_it_is_told_to_keep(tmp_path: Path) -> None:
    for step in range(1, 7):
        commit(tmp_path, step)
    prune_checkpoints(tmp_path, keep_last=2, keep=(2, 6, 77))
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]


def test_sweeping_deletes_leftovers_of_any_kind_and_nothing_else(tmp_path: Path) -> None:
    delete_leftovers(tmp_path / "absent")
    path = commit(tmp_path, 1)
    commit(tmp_path, 2).rename(tmp_path / ".tmp-step-00000002")
    (tmp_path / ".tmp-file").write_text("")
    (tmp_path / ".tmp-dangling").symlink_to(tmp_path / "nowhere")
    delete_leftovers(tmp_path)
    assert names(tmp_path) == [path.name]
    assert verifies(path)


def test_a_replacement_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "status.json", b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "status.json", b"new")
    assert names(tmp_path) == ["status.json"]
    assert (tmp_path / "status.json").read_bytes() == b"old"


def test_what_a_killed_deletion_leaves_is_not_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = commit(tmp_path, 1), commit(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda _: None)
    discard_checkpoint(newer)
    assert (newer / "model.safetensors").exists()
    assert newest(tmp_path)[0] == older


@pytest.fixture
def _umask_022() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask_022")
def test_modes_follow_the_umask_and_replacing_leaves_one_file(tmp_path: Path) -> None:
    path, file = commit(tmp_path, 1), tmp_path / "status.json"
    replace_file(file, b"a longer first")
    entry = replace_file(file, b"then")
    assert (entry.size, entry.sha256, file.read_bytes()) == (4, sha256(b"then"), b"then")
    assert names(tmp_path) == ["status.json", "step-00000001"]
    assert {S_IMODE(p.stat().st_mode) for p in (*path.iterdir(), file)} == {0o644}
    assert S_IMODE(path.stat().st_mode) == 0o755


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
    checkpoint = read_checkpoint(path)
    with pytest.raises(UserError, match=r"root/step-00000001/model\.safetensors: not a safetens"):
        checkpoint.load_into("model.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"state\.json: missing or damaged"):
        checkpoint.state  # noqa: B018
    (path / "manifest.json").write_bytes(content)
    for read in (read_checkpoint, lambda path: read_json(path / "manifest.json")):
        with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
            read(path)
    assert names(tmp_path) == ["root"]


def test_a_state_reads_back_and_strange_ones_are_refused() -> None:
    state = State(step=7, judged=5, skipped=2, metrics={"test/loss": 0.1}, scaler={"scale": 2.0})
    assert holding(state.model_dump_json().encode()).state == state
    for content in (b'{"step": 1, "stpe": 2}', b'{"step": "x"}', b"", b"\x80\x04."):
        with pytest.raises(UserError, match=r"state\.json: missing or damaged"):
            holding(content).state  # noqa: B018


def test_the_metrics_of_a_model_that_diverged_are_read_back() -> None:
    state = State(step=7, metrics={"test/loss": float("nan"), "val/loss": float("inf")})
    assert repr(holding(state.model_dump_json().encode()).state) == repr(state)
