"""The real launchers, end to end: processes, threads, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, launch, read_metrics

TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "2", "launch/train.py")
DEBUG = ("--config", "configs/debug.yaml")


def weights_of(run_dir: Path) -> str:
    return str(json.loads((run_dir / "run.json").read_text())["weights_sha256"])


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
    assert len({weights_of(tmp_path / str(number)) for number in range(len(ways))}) == 1


def test_two_processes_train_evaluate_and_predict(tmp_path: Path) -> None:
    done = launch(*TORCHRUN, *DEBUG, "--run-dir", tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "world size  2 processes, DDP over gloo" in done.stdout
    assert "FutureWarning" not in done.stderr  # of what torch deprecates
    assert done.stdout.count("test acc ") == 2  # once each
    evaluated = launch("seqclf", "evaluate", tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    measured = dict(line.split() for line in evaluated.stdout.splitlines())
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "finished"
    assert float(measured["test/accuracy"]) == pytest.approx(
        status["metrics"]["test/accuracy"], abs=1e-6
    )
    assert float(measured["test/loss"]) == pytest.approx(status["metrics"]["test/loss"], abs=2e-6)
    predicted = launch("seqclf", "predict", tmp_path, "--count", "10")
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.split("\n\n")[0] in done.stdout  # the same ten as at the end


def test_a_mistake_is_printed_once_by_two_processes(tmp_path: Path) -> None:
    done = launch(*TORCHRUN, "--optim.lr", "-1", ACCELERATE_USE_CPU="true")
    assert done.returncode == 1
    assert done.stderr.count("error: --optim.lr: must be greater than 0 (found -1)") == 1


def test_one_process_started_for_two_is_said(tmp_path: Path) -> None:
    done = launch(
        *("accelerate", "launch", "--cpu", "--num_processes", "2", "launch/train.py"),
        *(*DEBUG, "--train.steps", "2", "--run-dir", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert "started ONE" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told on Linux only")
@pytest.mark.parametrize(
    ("launcher", "signum", "left"),
    [
        (("accelerate", "launch", "--cpu"), signal.SIGTERM, "preempted"),
        (("python",), signal.SIGTERM, "preempted"),
        (("python",), signal.SIGKILL, "running"),
    ],
)
def test_a_run_that_is_stopped_goes_on(
    launcher: tuple[str, ...], signum: int, left: str, tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    long = (*DEBUG, "--train.steps", "1500", "--run-dir")
    program = [str(Path(sys.executable).parent / launcher[0]), *launcher[1:], "launch/train.py"]
    with subprocess.Popen(
        [*program, *long, str(broken)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for(lambda: len(read_metrics(broken)) > 20)
        process.send_signal(signum)
    status = broken / "status.json"
    wait_for(lambda: json.loads(status.read_text())["state"] == left)
    assert 0 < json.loads(status.read_text())["step"] < 1500
    if launcher == ("python",):
        assert process.returncode == (143 if left == "preempted" else -signum)
    for run_dir in (broken, straight):
        assert launch("python", "launch/train.py", *long, run_dir).returncode == 0
    assert weights_of(broken) == weights_of(straight)
    assert read_metrics(broken) == read_metrics(straight)


def wait_for(condition: object, limit_s: float = 60) -> None:
    """Wait until a condition holds; what it looks at may not be there yet."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if condition():  # type: ignore[operator]
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError("waited in vain")
