"""One process raises, hangs or dies: all leave in time and keep why, the next start resumes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from helpers.files import read_status, same_end, starts_of
from helpers.hanging import stay_in_c
from helpers.launching import as_words, launch
from helpers.patches import before_step
from helpers.ranks import exit_codes, start_ranks
from helpers.training import EVERYTHING_ON, tiny_flags

from seqclf.cli.main import main

TIMEOUT_S = 8
SETTINGS = {
    **EVERYTHING_ON,
    "train.steps": 20,
    "distributed.timeout_s": TIMEOUT_S,
    "data.workers": 2,  # threads that must not keep a process that fails
}
HOST = socket.gethostname()
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


def train_on_rank(folder: Path, kind: str = "", only: int = 0) -> None:
    """Train as the command line does; go wrong in one process before a step."""
    rank = int(os.environ.get("RANK", "0"))
    os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if kind and rank == only:
        before_step(pytest.MonkeyPatch(), {AT: lambda: misbehave(kind)})
    flags = tiny_flags(SETTINGS, run_dir=folder / "run")
    raise SystemExit(main(["train", *as_words(flags)]))


WORKER = """
import os, signal, sys
from pathlib import Path
import pytest
sys.path.insert(0, sys.argv[1])
from helpers.patches import before_step
from seqclf.cli.main import main

died = Path(sys.argv[2])

def die():
    if os.environ["RANK"] == "1" and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)

before_step(pytest.MonkeyPatch(), {9: die})
sys.exit(main(["train", *sys.argv[3:]]))
"""


@pytest.mark.slow
def test_torchrun_starts_the_workers_again_and_they_go_on(tmp_path: Path) -> None:
    assert exit_codes(start_ranks(2, train_on_rank, tmp_path)) == [0, 0]
    (tmp_path / "worker.py").write_text(WORKER)
    broken = tmp_path / "broken"
    flags = tiny_flags(SETTINGS, run_dir=broken, distributed__timeout_s=60)
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    program = [tmp_path / "worker.py", Path(__file__).parent, tmp_path / "died"]
    done = launch(*launcher, *program, *as_words(flags), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert starts_of(broken) == [0, 7]
    assert same_end(broken, tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "told", "only"),
    [
        pytest.param("raises", "what went wrong first", 0, marks=pytest.mark.slow),
        ("raises", "what went wrong first", 1),
        ("dies", "lost: rank 0, which keeps the store: no answer", 0),
        pytest.param("dies", f"lost: rank 1 on {HOST}: no answer", 1, marks=pytest.mark.slow),
        pytest.param("sleeps", "in misbehave", 0, marks=pytest.mark.slow),
        pytest.param("hangs in C with Python's lock", "no answer", 1, marks=pytest.mark.slow),
        pytest.param("sleeps", "in misbehave", 1, marks=pytest.mark.slow),
        pytest.param("hangs in C", "in stay_in_c", 0, marks=pytest.mark.slow),
        pytest.param("hangs in C", "in stay_in_c", 1, marks=pytest.mark.slow),
        pytest.param("hangs in C with Python's lock", "no answer", 0, marks=pytest.mark.slow),
    ],
)
def test_all_leave_and_say_why(kind: str, told: str, only: int, tmp_path: Path) -> None:
    codes = exit_codes(start_ranks(2, train_on_rank, tmp_path, kind, only))
    assert codes[only] == (-signal.SIGKILL if kind == "dies" else 1)
    assert codes[1 - only] == 1
    status = read_status(tmp_path / "run")
    assert (status.state, status.step) == ("failed", AT)
    assert told in str(status.error)
    assert ("lost: " in str(status.error)) is (kind == "dies")
    if "hangs" in kind:
        assert "in stay_in_c" in (tmp_path / f"stderr-{only}").read_text()
    if kind in ("raises", "dies"):
        assert exit_codes(start_ranks(2, train_on_rank, tmp_path)) == [0, 0]
        assert starts_of(tmp_path / "run") == [0, 7]
