"""A disk that gives out: training goes on, nothing is half written, and room mends it."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.files import read_metrics, read_status, weights_of
from helpers.mounts import mount, unmount
from helpers.patches import before_step
from helpers.training import train_tiny

from seqclf.errors import UserError
from seqclf.run.checkpoint import checkpoint_directories, newest_checkpoint
from seqclf.run.files import FileEntry, replace_file, sync_directory
from seqclf.run.metrics_log import MetricsLog

SETTINGS = {
    "model.dropout": 0.3,
    "train.steps": 60,
    "train.batch_size": 50,
    "checkpoint.every": 10,
    "eval.every": 20,
    "log.every": 1,
}


def run(run_dir: Path, stop_at: int | None = None) -> int:
    return train_tiny(run_dir, SETTINGS, stop_at=stop_at)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "straight"
    assert run(path) == 0
    return path


def assert_ends_alike(run_dir: Path, straight: Path) -> None:
    assert weights_of(run_dir) == weights_of(straight)
    assert read_metrics(run_dir) == read_metrics(straight)
    assert read_status(run_dir).state == "finished"


@dataclass
class Disk:
    """A disk with a run on it that can be filled up, and freed."""

    run_dir: Path
    fill: Callable[[], None]
    free: Callable[[], None]


def limited(path: Path) -> Iterator[Disk]:
    """No file may be longer than metrics.jsonl and half a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        longest = (path / "metrics.jsonl").stat().st_size + 50
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest, before[1]))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield Disk(path, fill, free)
    free()


def mounted(path: Path) -> Iterator[Disk]:
    """A tmpfs of 64 pages, of which none is left."""
    mount(path, "size=256k")
    ballast = path / "ballast"

    def fill() -> None:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    yield Disk(path / "run", fill, ballast.unlink)
    unmount(path)


@pytest.fixture(params=[limited, mounted])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    yield from request.param(tmp_path)


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line.partition(":")[2] for line in lines if line.startswith("warning")]


def test_training_goes_on_and_room_mends_it(
    disk: Disk,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[bytes] = []

    def look_and_free() -> None:
        assert not list(disk.run_dir.rglob(".tmp-*"))
        seen.append((disk.run_dir / "metrics.jsonl").read_bytes())
        disk.free()

    before_step(monkeypatch, {21: disk.fill, 45: look_and_free})
    assert run(disk.run_dir) == 0
    first, *others = warnings(capsys)
    assert "metrics.jsonl cannot be written" in first
    others = [said for said in others if "/evaluation/" not in said]
    assert [said[:27] for said in others] == [
        f" checkpoint of step {step} not " for step in (30, 40)
    ]
    steps = [json.loads(line)["step"] for line in seen[0].splitlines()]
    assert seen[0].endswith(b"}\n")
    assert 21 <= steps[-1] < 30
    assert_ends_alike(disk.run_dir, straight)
    assert newest_checkpoint(disk.run_dir / "checkpoints")[1] == []


def test_three_failed_saves_stop_it_with_a_good_checkpoint(
    disk: Disk,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, {21: disk.fill})
        with pytest.raises(UserError, match=r"^3 checkpoints in a row could not be saved"):
            run(disk.run_dir)
    assert not list(disk.run_dir.rglob(".tmp-*"))
    assert any("metrics.jsonl lacks the last " in said for said in warnings(capsys))
    checkpoint, rejected = newest_checkpoint(disk.run_dir / "checkpoints")
    assert (checkpoint and checkpoint.path.name, rejected) == ("step-00000020", [])
    disk.free()
    assert run(disk.run_dir) == 0
    assert_ends_alike(disk.run_dir, straight)


@pytest.mark.parametrize("disk", [limited], indirect=True)
@pytest.mark.parametrize(
    ("full_at", "stopped_at", "start"), [(5, 7, "the beginning"), (25, 27, "step 20")]
)
def test_a_stop_without_room_says_where_the_same_command_goes_on(
    full_at: int,
    stopped_at: int,
    start: str,
    disk: Disk,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, {full_at: disk.fill})
        assert run(disk.run_dir, stop_at=stopped_at) == 143
    where = f"NOT saved, see above; the same command goes on from {start}\n"
    assert where in capsys.readouterr().out
    disk.free()
    assert run(disk.run_dir) == 0
    assert ("resumed" in capsys.readouterr().out) == (start != "the beginning")
    assert_ends_alike(disk.run_dir, straight)


@pytest.mark.parametrize("disk", [limited], indirect=True)
def test_a_torn_line_that_cannot_be_cut_away_is_later(
    disk: Disk, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = MetricsLog._cut
    torn: list[int] = []

    def failing(log: MetricsLog) -> None:
        if not torn and not (disk.run_dir / "metrics.jsonl").read_bytes().endswith(b"\n"):
            torn.append(1)
            raise OSError(errno.EIO, "Input/output error")
        honest(log)

    def start_failing() -> None:
        disk.fill()
        monkeypatch.setattr(MetricsLog, "_cut", failing)

    before_step(monkeypatch, {21: start_failing, 22: disk.free})
    assert run(disk.run_dir) == 0
    assert torn
    assert_ends_alike(disk.run_dir, straight)


@pytest.mark.parametrize("disk", [limited], indirect=True)
def test_a_torn_line_is_cut_away_from_a_file_that_was_cut_by_hand(
    disk: Disk, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(disk.run_dir, stop_at=21) == 143
    (disk.run_dir / "metrics.jsonl").unlink()
    before_step(monkeypatch, {25: disk.fill, 28: disk.free})
    assert run(disk.run_dir) == 0
    expected = [line for line in read_metrics(straight) if line["step"] > 21]
    assert read_metrics(disk.run_dir) == expected


def test_lines_that_a_failed_sync_lost_are_written_again(
    tmp_path: Path,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest, calls = os.fsync, []

    def over_quota(descriptor: int) -> None:
        """Do as a network file system: accept what is written, and lose it."""
        metrics = tmp_path / "metrics.jsonl"
        if metrics.exists() and os.path.samestat(os.fstat(descriptor), metrics.stat()):
            calls.append(1)
            if len(calls) in (2, 3):
                kept = checkpoint_directories(tmp_path / "checkpoints")[0] / "state.json"
                length = json.loads(kept.read_text())["metrics_bytes"]
                lost = bytes(metrics.stat().st_size - length)
                with metrics.open("r+b") as file:
                    file.seek(length)
                    file.write(lost)
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", over_quota)
    assert run(tmp_path) == 0
    assert len(warnings(capsys)) == 2
    assert_ends_alike(tmp_path, straight)


def test_what_fails_after_a_commit_is_a_warning_of_its_own(
    tmp_path: Path,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cannot_delete(*_: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    honest = replace_file

    def no_status(path: Path, content: bytes) -> FileEntry:
        if path.name == "status.json" and b"running" in content and b'"step": 0' not in content:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(path, content)

    monkeypatch.setattr("seqclf.run.saves.prune_checkpoints", cannot_delete)
    monkeypatch.setattr("seqclf.run.files.replace_file", no_status)
    assert run(tmp_path) == 0
    said = warnings(capsys)
    assert len(said) == 12
    assert said[0] == " old checkpoints cannot be deleted: [Errno 5] Input/output error"
    assert said[1] == " status.json cannot be written: [Errno 28] No space left on device"
    assert_ends_alike(tmp_path, straight)


def test_a_read_only_directory_is_refused_at_the_start(tmp_path: Path) -> None:
    mount(tmp_path, "size=256k,ro")
    try:
        with pytest.raises(UserError, match="cannot write the run directory: Read-only"):
            run(tmp_path / "run")
    finally:
        unmount(tmp_path)


@pytest.mark.parametrize("disk", [mounted], indirect=True)
@pytest.mark.parametrize("stopped_at", [None, 21])
def test_a_disk_without_room_at_the_start_is_the_users_to_mend(
    stopped_at: int | None, disk: Disk, straight: Path
) -> None:
    if stopped_at:
        assert run(disk.run_dir, stop_at=stopped_at) == 143
    disk.fill()
    with pytest.raises(UserError, match="No space left on device; make room there"):
        run(disk.run_dir)
    disk.free()
    assert run(disk.run_dir) == 0
    assert_ends_alike(disk.run_dir, straight)


def test_what_a_killed_save_left_is_gone_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = tmp_path / "checkpoints" / ".tmp-step-00000010"
    leftover.mkdir(parents=True)
    monkeypatch.setattr("seqclf.training.train_step", None)  # nothing is saved
    with pytest.raises(TypeError):
        run(tmp_path)
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("number", "ignored"),
    [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False), (errno.ENOSPC, False)],
)
def test_a_directory_that_cannot_be_synced_fails_no_save(
    number: int, ignored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    if ignored:
        sync_directory(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_directory(tmp_path)
