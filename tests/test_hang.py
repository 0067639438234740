"""One process raises, hangs or dies: all leave in time and keep why, the next start resumes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import launch, read_metrics, start_ranks
from test_resume import EVERYTHING_ON
from test_signals import stay_in_c

from seqclf import train as training
from seqclf.cli import main

TIMEOUT_S = 6
FLAGS = EVERYTHING_ON | {"train.steps": "20", "distributed.timeout_s": str(TIMEOUT_S)}
AT = 9  # the last checkpoint is that of step 7


def misbehave(kind: str) -> None:
    match kind:
        case "raises":
            raise ArithmeticError("what went wrong first")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleeps":
            time.sleep(100)
        case "hangs in C":
            stay_in_c(ctypes.CDLL(None))
        case "hangs in C with Python's lock":
            stay_in_c(ctypes.PyDLL(None))


def run(folder: Path, kind: str, only: int) -> None:
    """Train as the command line does; go wrong in one process before a step."""
    rank = int(os.environ.get("RANK", "0"))
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    train_step = training.train_step

    def wrong(*args: Any) -> Any:
        if kind and rank == only and args[3].step == AT:
            misbehave(kind)
        return train_step(*args)

    training.train_step = wrong  # type: ignore[assignment]
    words = [f"--{k}={v}" for k, v in (FLAGS | {"run_dir": str(folder / "run")}).items()]
    raise SystemExit(main(["train", *words]))


WORKER = """
import os, signal, sys
from pathlib import Path
from seqclf import train as training
from seqclf.cli import main

train_step = training.train_step
died = Path(sys.argv[1])

def deadly(*args):
    if os.environ["RANK"] == "1" and args[3].step == 9 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(*args)

training.train_step = deadly
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_torchrun_starts_the_workers_again_and_they_go_on(tmp_path: Path) -> None:
    for rank in start_ranks(2, run, tmp_path, "", 0):
        rank.join(60)
        assert rank.exitcode == 0
    (tmp_path / "worker.py").write_text(WORKER)
    flags = FLAGS | {"run_dir": str(tmp_path / "broken"), "distributed.timeout_s": "60"}
    done = launch(
        *("torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"),
        *(tmp_path / "worker.py", tmp_path / "died"),
        *(f"--{name}={value}" for name, value in flags.items()),
        ACCELERATE_USE_CPU="true",
    )
    assert done.returncode == 0, done.stderr
    sessions = (tmp_path / "broken" / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in sessions] == [0, 7]
    weights = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "broken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "broken")


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("raises", "what went wrong first"),
        ("dies", "gloo"),
        ("sleeps", "in misbehave"),
        ("hangs in C", "in stay_in_c"),
        ("hangs in C with Python's lock", "no answer"),
    ],
)
def test_all_leave_and_say_why(kind: str, told: str, only: int, tmp_path: Path) -> None:
    ranks = start_ranks(2, run, tmp_path, kind, only)
    for rank in ranks:
        rank.join(60)
    codes = [rank.exitcode for rank in ranks]
    assert codes[only] == (-signal.SIGKILL if kind == "dies" else 1)
    assert codes[1 - only] == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", AT)
    assert told in status["error"]
    if "hangs" in kind:
        assert "in stay_in_c" in (tmp_path / f"stderr-{only}").read_text()
    if kind in ("raises", "dies"):
        ranks = start_ranks(2, run, tmp_path, "", 0)
        for rank in ranks:
            rank.join(60)
        assert [rank.exitcode for rank in ranks] == [0, 0]
        sessions = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in sessions] == [0, 7]
