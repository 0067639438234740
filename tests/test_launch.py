"""The real launchers, end to end: processes, threads, signals, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.files import read_facts, read_metrics, read_status, same_end
from helpers.launching import PROGRAMS, ROOT, launch, wait_for

from seqclf.cli.main import main

TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2", "launch/train.py")
DEBUG = ("--config", "configs/debug.yaml")
LONG = (*DEBUG, "--train.steps", "1500", "--train.threads", "1", "--run-dir")


@pytest.mark.slow
def test_every_way_to_start_one_process_gives_the_same_bits(tmp_path: Path) -> None:
    ways: list[tuple[str | Path, ...]] = [
        ("accelerate", "launch", "--cpu", "launch/train.py"),
        ("python", "launch/train.py"),
        ("python", "-m", "seqclf", "train"),
        ("seqclf", "train"),
    ]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for number, way in enumerate(ways):
        done = launch(*way, *DEBUG, "--run-dir", tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        assert f"threads     {cores} ({cores} core{'s' * (cores > 1)}, 1 process)" in done.stdout
    hashes = {read_facts(tmp_path / str(number))["weights_sha256"] for number in range(len(ways))}
    assert len(hashes) == 1


def test_two_processes_train_evaluate_and_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = launch(*TORCHRUN, *DEBUG, "--run-dir", tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "world size  2 processes, DDP over gloo" in done.stdout
    assert "FutureWarning" not in done.stderr  # of what torch deprecates
    assert done.stdout.count("test acc ") == 2  # once each
    status = read_status(tmp_path)
    assert status.state == "finished"
    assert main(["evaluate", str(tmp_path)]) == 0
    measured = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name, tolerance in (("test/accuracy", 1e-6), ("test/loss", 2e-6)):
        assert float(measured[name]) == pytest.approx(status.metrics[name], abs=tolerance)
    assert main(["predict", str(tmp_path), "--count", "10"]) == 0
    predicted = capsys.readouterr().out
    assert predicted.split("\n\n")[0] in done.stdout  # the same ten as at the end


def test_a_mistake_is_printed_once_by_two_processes() -> None:
    done = launch(*TORCHRUN, "--optim.lr", "-1", ACCELERATE_USE_CPU="true")
    assert done.returncode == 1
    assert done.stderr.count("error: --optim.lr: must be greater than 0 (found -1)") == 1


@pytest.mark.slow
def test_one_process_started_for_two_is_said(tmp_path: Path) -> None:
    launcher = ("accelerate", "launch", "--cpu", "--num_processes", "2", "launch/train.py")
    done = launch(*launcher, *DEBUG, "--train.steps", "2", "--run-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "started ONE" in done.stdout


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["train", *LONG, str(path)]) == 0
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told on Linux only")
@pytest.mark.parametrize(
    ("launcher", "signum", "left"),
    [
        pytest.param(
            ("accelerate", "launch", "--cpu"), signal.SIGTERM, "preempted", marks=pytest.mark.slow
        ),
        pytest.param(("python",), signal.SIGTERM, "preempted", marks=pytest.mark.slow),
        pytest.param(("python",), signal.SIGKILL, "running", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_goes_on(
    launcher: tuple[str, ...], signum: int, left: str, straight: Path, tmp_path: Path
) -> None:
    program = [str(PROGRAMS / launcher[0]), *launcher[1:], "launch/train.py", *LONG, str(tmp_path)]
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: len(read_metrics(tmp_path)) > 20)
        process.send_signal(signum)
    wait_for(lambda: read_status(tmp_path).state == left)
    assert 0 < read_status(tmp_path).step < 1500
    if launcher == ("python",):
        assert process.returncode == (143 if left == "preempted" else -signum)
    assert launch("python", "launch/train.py", *LONG, tmp_path).returncode == 0
    assert same_end(tmp_path, straight)
