"""C5 under a power failure: whatever the disk forgets, a whole checkpoint is found, and none older
than the last one that was confirmed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.disk import Mark, Recording, Tree, place, recording
from helpers.mounts import find_memory
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from seqclf.errors import UserError
from seqclf.run.checkpoint import (
    FILES,
    checkpoint_name,
    commit_checkpoint,
    delete_leftovers,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    step_of,
)
from seqclf.run.files import make_directory, read_json, replace_file

MADE_WITH = {"torch": "1"}
RUN = Path("runs") / "mine"
BEST = 10


def content(step: int) -> dict[str, bytes]:
    names = zip(FILES, ("weights", "moments", "state"), strict=True)
    return {name: f"{kind} of step {step}, and so on".encode() for name, kind in names}


def save(record: Recording, step: int, *, keep_last: int) -> None:
    """Do what a run does at a checkpoint, noting when it is told of success."""
    run = record.root / RUN
    root = run / "checkpoints"
    commit_checkpoint(root, step, content(step), world_size=1, made_with=MADE_WITH)
    record.mark("checkpoint", step)
    if step == BEST:
        record.mark("best", step)
    prune_checkpoints(root, keep_last=keep_last, keep={BEST})
    replace_file(run / "status.json", json.dumps({"step": step}).encode())
    record.mark("status", step)


def live(record: Recording) -> None:
    """Lead a run through what may happen to one: kills, a full disk, a damaged checkpoint."""
    make_directory(record.root / RUN)
    root = record.root / RUN / "checkpoints"
    for step in (10, 20, 30):
        save(record, step, keep_last=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full_disk(after=2, fsync=os.fsync))
        with pytest.raises(OSError, match="No space left"):
            save(record, 40, keep_last=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save(record, 50, keep_last=2)
    delete_leftovers(root)
    for step in (50, 60):
        save(record, step, keep_last=2)
    record.mark("checkpoint", 50)  # all that is promised once the newest is damaged
    (root / checkpoint_name(60) / "state.json").write_bytes(b"damaged")
    save(record, 60, keep_last=2)


def record_life(root: Path, forgets: str = "") -> Recording:
    root.mkdir()
    with recording(root, forgets) as made:
        live(made)
    return made


def full_disk(after: int, fsync: Callable[[int], None]) -> Callable[[int], None]:
    calls: list[int] = []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    return failing


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_disks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record_life(tmp_path_factory.mktemp("recorded") / "disk")


def draw_crash(record: Recording, data: st.DataObject) -> tuple[Tree, dict[str, int]]:
    """Draw a crash; return what it leaves, and what code had been told of until then."""
    length = data.draw(st.integers(0, len(record.log)))

    def torn(versions: list[bytes]) -> bytes:
        version = data.draw(st.sampled_from(versions))
        cut = data.draw(st.integers(0, len(version)))
        return version[:cut] + data.draw(st.sampled_from([b"", bytes(len(version) - cut)]))

    tree = record.crash(length, lambda: data.draw(st.booleans()), torn)
    return tree, dict(mark for mark in record.log[:length] if isinstance(mark, Mark))


def check(tree: Tree, confirmed: dict[str, int]) -> None:
    """Assert what a run is promised of a disk after a crash."""
    with tempfile.TemporaryDirectory(dir=find_memory()) as folder:
        run = Path(folder) / "disk" / RUN
        place(tree, Path(folder) / "disk")
        root = run / "checkpoints"
        found, _ = newest_checkpoint(root)
        if found is None:
            assert "checkpoint" not in confirmed
        else:
            step = step_of(found.path)
            assert step >= confirmed.get("checkpoint", 0)
            assert (found.manifest.step, found.files) == (step, content(step))
        if "best" in confirmed:
            assert read_checkpoint(root / checkpoint_name(BEST)).files == content(BEST)
        if "status" in confirmed or (run / "status.json").exists():
            status = read_json(run / "status.json")
            assert status["step"] >= confirmed.get("status", 0)
        delete_leftovers(root)
        commit_checkpoint(root, 70, content(70), world_size=1, made_with=MADE_WITH)
        prune_checkpoints(root, keep_last=1)
        assert os.listdir(root) == ["step-00000070"]
        assert read_checkpoint(root / "step-00000070").files == content(70)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_crash_loses_nothing_that_was_confirmed(record: Recording, data: st.DataObject) -> None:
    check(*draw_crash(record, data))


def test_the_model_knows_all_that_happened(record: Recording) -> None:
    def everything(path: Path) -> Tree:
        return {p.name: everything(p) if p.is_dir() else p.read_bytes() for p in path.iterdir()}

    tree = record.crash(len(record.log), lambda: False, lambda versions: versions[-1])
    assert tree == everything(record.root)


@pytest.mark.parametrize(
    "forgets",
    [
        "/disk",
        "/runs",
        "/mine",
        "/checkpoints",
        "/.tmp-step-00000020",
        "/.tmp-status.json",
        *(f"/.tmp-step-00000030/{name}" for name in (*FILES, "manifest.json")),
    ],
)
def test_every_sync_is_needed(forgets: str, tmp_path: Path) -> None:
    made = record_life(tmp_path / "disk", forgets)

    @settings(deadline=None, max_examples=500, phases=[Phase.generate], database=None)
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        check(*draw_crash(made, data))

    with pytest.raises((AssertionError, UserError)):
        search()
