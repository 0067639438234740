"""A signal at any moment, to any process: saved and 143, or nothing had begun and 143."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.files import read_metrics, read_status, same_end, step_dir
from helpers.hanging import stay_in_c
from helpers.launching import LIMIT_S, ROOT, as_words, clean_environment, wait_for
from helpers.patches import watch_calls, watch_steps
from helpers.ranks import exit_codes, start_ranks
from helpers.training import EVERYTHING_ON, tiny_flags, train_tiny

from seqclf.cli.main import main
from seqclf.processes.signals import SECOND_S, Signals

SETTINGS = {**EVERYTHING_ON, "train.steps": 30, "eval.batch_size": 50, "eval.every": 10}


def words_for(run_dir: Path) -> list[str]:
    return ["train", *as_words(tiny_flags(SETTINGS, run_dir=run_dir))]


def redirect_stderr(file: Path) -> None:
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def train_and_signal(folder: Path, name: str, only: int | None, call: int, signum: int) -> None:
    """Train as the command line does; signal this process at a call of a function."""
    rank = os.environ.get("RANK", "0")
    redirect_stderr(folder / f"stderr-{rank}")
    calls = 0

    def send(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signum)
            time.sleep(0.3)  # the watching thread hears of it

    if name and only in (None, int(rank)):
        watch_calls(pytest.MonkeyPatch(), name, send)
    raise SystemExit(main(words_for(folder / "run")))


def codes_of(
    world_size: int, folder: Path, name: str, only: int | None, call: int, signum: int
) -> list[int | None]:
    return exit_codes(start_ranks(world_size, train_and_signal, folder, name, only, call, signum))


def train_undisturbed(world_size: int, folder: Path) -> Path:
    assert codes_of(world_size, folder, "", None, 0, 0) == [0] * world_size
    return folder / "run"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs that nobody stopped, of one and of two processes."""
    return {
        world_size: train_undisturbed(world_size, tmp_path_factory.mktemp(str(world_size)))
        for world_size in (1, 2)
    }


def test_a_signal_at_any_moment_is_obeyed_and_the_run_goes_on(
    straight: dict[int, Path], tmp_path: Path
) -> None:
    moments = [  # function, its call in this start, signal, the step that is saved
        ("seqclf.training.train_step", 3, signal.SIGUSR1, 3),
        ("seqclf.step.augment", 1, signal.SIGTERM, 4),
        ("seqclf.run.checkpoint.write_file", 2, signal.SIGINT, 8),  # in the middle of the save at 7
        ("seqclf.evaluate.split_range", 1, signal.SIGTERM, 10),  # in an evaluation
        ("seqclf.training.restore", 1, signal.SIGUSR1, 10),  # before the first step
        ("seqclf.training.train_step", 2, signal.SIGHUP, 12),
        ("seqclf.training.train_step", 3, signal.SIGUSR2, 15),
    ]
    for name, call, signum, step in moments:
        assert codes_of(1, tmp_path, name, None, call, signum) == [143]
        status = read_status(tmp_path / "run")
        assert (status.state, status.step) == ("preempted", step), name
        assert (step_dir(tmp_path / "run", step) / "manifest.json").exists()
        losses = [line for line in read_metrics(tmp_path / "run") if "val/loss" in line]
        assert [line["step"] for line in losses] == ([10] if step > 10 else []), name
    assert same_end(train_undisturbed(1, tmp_path), straight[1])


@pytest.mark.parametrize(
    "only", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(None, marks=pytest.mark.slow)]
)
def test_two_processes_stop_at_one_step_whoever_was_told(
    only: int | None, straight: dict[int, Path], tmp_path: Path
) -> None:
    moments = [
        ("seqclf.training.train_step", 3, signal.SIGUSR1),
        ("seqclf.evaluate.split_range", 1, signal.SIGTERM),
    ]
    for name, call, signum in moments:
        assert codes_of(2, tmp_path, name, only, call, signum) == [143, 143]
        status = read_status(tmp_path / "run")
        assert status.state == "preempted"
        assert (step_dir(tmp_path / "run", status.step) / "manifest.json").exists()
    assert same_end(train_undisturbed(2, tmp_path), straight[2])


def hang(folder: Path, where: str) -> None:
    """Train as the command line does, up to a function that stays in C code for ever."""
    redirect_stderr(folder / "stderr")

    def stay(*_: object, **__: object) -> None:
        (folder / "there").touch()
        stay_in_c(ctypes.CDLL(None))

    pytest.MonkeyPatch().setattr(where, stay)
    raise SystemExit(main(words_for(folder / "run")))


@pytest.mark.parametrize("where", ["seqclf.training.start_runtime", "seqclf.data.idx.fetch"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_before_a_run_begins_a_signal_ends_it_even_in_c_code(
    where: str, signum: int, tmp_path: Path
) -> None:
    [process] = start_ranks(1, hang, tmp_path, where)
    wait_for((tmp_path / "there").exists)
    os.kill(process.pid or 0, signum)
    assert exit_codes([process]) == [143]
    last_words = "stopped before training began; nothing was changed\n"
    assert (tmp_path / "stderr").read_text() == last_words
    assert not (tmp_path / "run").exists()


def test_a_second_signal_ends_what_cannot_be_saved(tmp_path: Path) -> None:
    [process] = start_ranks(1, hang, tmp_path, "seqclf.training.train_step")
    wait_for((tmp_path / "there").exists)
    assert process.pid is not None
    for _ in range(3):  # as a launcher and a terminal do, all at once
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
    process.join(0.5)
    assert process.is_alive()
    time.sleep(SECOND_S)
    os.kill(process.pid, signal.SIGTERM)
    assert exit_codes([process]) == [143]
    assert "stopped at once by a second signal" in (tmp_path / "stderr").read_text()


def train_without_terminal(folder: Path) -> None:
    """Train as under nohup, and lose the terminal before a step."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    train_and_signal(folder, "seqclf.training.train_step", None, 3, signal.SIGHUP)


def test_a_run_under_nohup_outlives_its_terminal(straight: dict[int, Path], tmp_path: Path) -> None:
    assert exit_codes(start_ranks(1, train_without_terminal, tmp_path)) == [0]
    assert same_end(tmp_path / "run", straight[1])


def listen_beside_a_fork() -> None:
    with Signals(owns_process=True).listening():
        if not (child := os.fork()):
            time.sleep(100)
    os.kill(child, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_does_not_keep_the_listener(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(1, listen_beside_a_fork)) == [0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no namespaces")
def test_the_first_process_of_a_container_saves(tmp_path: Path) -> None:
    """The kernel keeps signals from process 1 of a container, unless it handles them."""
    isolate = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*isolate, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make a namespace")
    run = tmp_path / "run"
    words = as_words(tiny_flags(SETTINGS, run_dir=run, train__steps=100_000))
    trainer = [sys.executable, str(ROOT / "launch" / "train.py"), *words]
    with (tmp_path / "said").open("w") as said:
        outside = subprocess.Popen(
            [*isolate, *trainer], env=clean_environment(), stdout=said, stderr=said
        )
    try:
        wait_for(lambda: len(read_metrics(run)) > 2)
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert outside.wait(LIMIT_S) == 143
    finally:
        outside.kill()
        outside.wait()
    status = read_status(run)
    assert status.state == "preempted"
    assert (step_dir(run, status.step) / "manifest.json").exists()


def test_in_another_programs_process_a_second_signal_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, signals = signal.getsignal(signal.SIGUSR1), Signals()
    with signals.deferring():
        signal.raise_signal(signal.SIGUSR1)
        assert signals.requested == signal.SIGUSR1
        signal.raise_signal(signal.SIGUSR1)  # at once: the same wish again
        late = time.monotonic() + SECOND_S + 1
        monkeypatch.setattr(time, "monotonic", lambda: late)
        with pytest.raises(KeyboardInterrupt, match="second signal"):
            signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_clock_saves_between_the_checkpoints_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()

    def take_40_s(_: object) -> None:
        nonlocal now
        now += 40

    watch_steps(monkeypatch, take_40_s)
    monkeypatch.setattr("seqclf.run.directory.time.monotonic", lambda: now)
    often = {"checkpoint.every": 10, "checkpoint.minutes": 3, "checkpoint.keep_last": 99}
    assert train_tiny(tmp_path, {**SETTINGS, **often}) == 0
    saved = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir())
    assert saved == [5, 10, 15, 20, 25, 30]
