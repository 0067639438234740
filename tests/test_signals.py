"""A signal at any moment, to any process: saved and 143, or nothing had begun and 143."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from conftest import read_metrics, start_ranks
from test_resume import EVERYTHING_ON

from seqclf import train as training
from seqclf.cli import main
from seqclf.watch import SECOND_S, Watch

FLAGS = EVERYTHING_ON | {"train.steps": "30", "eval.batch_size": "50", "eval.every": "10"}


def words_for(run_dir: Path) -> list[str]:
    return ["train", "--run_dir", str(run_dir), *(f"--{k}={v}" for k, v in FLAGS.items())]


def run(folder: Path, name: str, only: int | None, call: int, signum: int) -> None:
    """Train as the command line does; signal this process at a call of a function."""
    rank = os.environ.get("RANK", "0")
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if name and only in (None, int(rank)):
        owner, _, attribute = name.rpartition(".")
        whole: Callable[..., Any] = getattr(resolve_name(owner), attribute)
        calls = 0

        def signalled(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signum)
                time.sleep(0.3)  # the watching thread hears of it
            return whole(*args, **kwargs)

        setattr(resolve_name(owner), attribute, signalled)
    raise SystemExit(main(words_for(folder / "run")))


def codes_of(world_size: int, *args: object) -> list[int | None]:
    ranks = start_ranks(world_size, run, *args)
    for rank in ranks:
        rank.join(60)
    return [rank.exitcode for rank in ranks]


def state_of(run_dir: Path) -> tuple[str, int]:
    status = json.loads((run_dir / "status.json").read_text())
    return status["state"], status["step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs that nobody stopped, of one and of two processes."""
    folders = {world_size: tmp_path_factory.mktemp(str(world_size)) for world_size in (1, 2)}
    for world_size, folder in folders.items():
        assert codes_of(world_size, folder, "", None, 0, 0) == [0] * world_size
    return folders


def same(broken: Path, straight: Path) -> bool:
    weights = [f / "run/model/model.safetensors" for f in (broken, straight)]
    metrics = [read_metrics(f / "run") for f in (broken, straight)]
    return weights[0].read_bytes() == weights[1].read_bytes() and metrics[0] == metrics[1]


def test_a_signal_at_any_moment_is_obeyed_and_the_run_goes_on(
    straight: dict[int, Path], tmp_path: Path
) -> None:
    moments = [  # function, its call in this start, signal, the step that is saved
        ("seqclf.train.train_step", 3, signal.SIGUSR1, 3),
        ("seqclf.train.augment", 1, signal.SIGTERM, 4),
        ("seqclf.run.checkpoint.write_file", 5, signal.SIGINT, 8),  # in the middle of the save at 7
        ("seqclf.evaluate.split_range", 1, signal.SIGTERM, 10),  # in an evaluation
        ("seqclf.run.Run.restore", 1, signal.SIGUSR1, 10),  # before the first step
    ]
    for name, call, signum, step in moments:
        assert codes_of(1, tmp_path, name, None, call, signum) == [143]
        assert state_of(tmp_path / "run") == ("preempted", step), name
        assert (tmp_path / "run" / "checkpoints" / f"step-{step:08}" / "manifest.json").exists()
        assert not any("val/loss" in line for line in read_metrics(tmp_path / "run")), name
    assert codes_of(1, tmp_path, "", None, 0, 0) == [0]
    assert same(tmp_path, straight[1])


@pytest.mark.parametrize("only", [0, 1, None])
def test_two_processes_stop_at_one_step_whoever_was_told(
    only: int | None, straight: dict[int, Path], tmp_path: Path
) -> None:
    moments = [
        ("seqclf.train.train_step", 3, signal.SIGUSR1),
        ("seqclf.evaluate.split_range", 1, signal.SIGTERM),
    ]
    for name, call, signum in moments:
        assert codes_of(2, tmp_path, name, only, call, signum) == [143, 143]
        state, step = state_of(tmp_path / "run")
        assert state == "preempted"
        assert (tmp_path / "run" / "checkpoints" / f"step-{step:08}" / "manifest.json").exists()
    assert codes_of(2, tmp_path, "", None, 0, 0) == [0, 0]
    assert same(tmp_path, straight[2])


def stay_in_c(library: ctypes.CDLL) -> None:
    """Wait for a lock that this thread holds: no signal ends that."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


def hang(folder: Path, where: str) -> None:
    """Train as the command line does, up to a function that stays in C code for ever."""
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    owner, _, attribute = where.rpartition(".")

    def stay(*_: object, **__: object) -> None:
        (folder / "there").touch()
        stay_in_c(ctypes.CDLL(None))

    setattr(resolve_name(owner), attribute, stay)
    raise SystemExit(main(words_for(folder / "run")))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("where", ["seqclf.train.runtimes.start", "seqclf.data.sources.fetch"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_before_a_run_begins_a_signal_ends_it_even_in_c_code(
    where: str, signum: int, tmp_path: Path
) -> None:
    [process] = start_ranks(1, hang, tmp_path, where)
    wait_until((tmp_path / "there").exists)
    os.kill(process.pid or 0, signum)
    process.join(60)
    assert process.exitcode == 143
    said = "stopped before training began; nothing was changed\n"
    assert (tmp_path / "stderr").read_text() == said
    assert not (tmp_path / "run").exists()


def test_a_second_signal_ends_what_cannot_be_saved(tmp_path: Path) -> None:
    [process] = start_ranks(1, hang, tmp_path, "seqclf.train.train_step")
    wait_until((tmp_path / "there").exists)
    assert process.pid is not None
    for _ in range(3):  # as a launcher and a terminal do, all at once
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
    process.join(0.5)
    assert process.is_alive()
    time.sleep(SECOND_S)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert "stopped at once by a second signal" in (tmp_path / "stderr").read_text()


def test_in_another_programs_process_a_second_signal_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, watch = signal.getsignal(signal.SIGUSR1), Watch()
    with watch.deferring():
        signal.raise_signal(signal.SIGUSR1)
        assert watch.requested == signal.SIGUSR1
        signal.raise_signal(signal.SIGUSR1)  # at once: the same wish again
        late = time.monotonic() + SECOND_S + 1
        monkeypatch.setattr(time, "monotonic", lambda: late)
        with pytest.raises(KeyboardInterrupt, match="second signal"):
            signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_clock_saves_between_the_checkpoints_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, step = time.monotonic(), training.train_step

    def slow(*args: Any) -> Any:
        nonlocal now
        now += 40
        return step(*args)

    monkeypatch.setattr(training, "train_step", slow)
    monkeypatch.setattr("seqclf.run.time.monotonic", lambda: now)
    flags = {"checkpoint.every": "10", "checkpoint.minutes": "3", "checkpoint.keep_last": "99"}
    words = words_for(tmp_path) + [f"--{k}={v}" for k, v in flags.items()]
    assert main(words) == 0
    saved = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == [5, 10, 15, 20, 25, 30]
