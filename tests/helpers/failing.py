"""Runs on a disk that fails (failing.c): each call of a kind in turn, and what becomes of the run.

    LD_PRELOAD=failing.so python failing.py FOLDER KIND [lasting] [resumed] [all | NUMBER ...]

Prints a JSON object for each failure. Each run is a fork, so torch is imported once. Of a kind
with many calls MOST_CALLS fail, spread over the run: each checkpoint makes the same calls. `all`,
or SEQCLF_EVERY_CALL=1, has every call fail.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is a program of its own

from helpers.files import read_metrics, weights_of
from helpers.launching import LIMIT_S, as_words
from helpers.training import tiny_flags, train_tiny

# fmt: off
KINDS = (
    "open", "open to read", "read", "write", "tear", "fsync", "rename", "close", "lseek", "unlink",
    "mkdir", "truncate", "lock", "stat",
)
# fmt: on
MOST_CALLS = 12
SETTINGS = {
    "train.steps": 12,
    "train.batch_size": 50,
    "checkpoint.every": 4,
    "checkpoint.keep_best": True,
    "data.val_fraction": 0.1,
    "eval.every": 4,
    "log.every": 2,
    "device": "cpu",
    "optim.lr": 0.05,  # learns enough to be told no warning
}


class Attempt(NamedTuple):
    """What became of a run whose disk failed, and of the same command afterwards."""

    number: int
    path: str  # of the call that failed
    exit_code: int
    text: str  # all that was said
    loads: str  # what is wrong with the state that was left; empty if it loads
    exit_code_after: int
    text_after: str
    ends_alike: bool


def compile_shim(folder: Path) -> Path | None:
    """Build the library to preload; None where that cannot be done."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "failing.so"
    source = Path(__file__).with_name("failing.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


def attempts(library: Path, folder: Path, *words: str) -> list[Attempt]:
    """Run this program; return what became of each run."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *words],
        env=os.environ | {"LD_PRELOAD": str(library), "WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Attempt(**json.loads(line)) for line in done.stdout.splitlines()]


class Shim:
    """The preloaded library."""

    def __init__(self) -> None:
        self._calls: Any = ctypes.CDLL(None)
        self._calls.first_failure.restype = ctypes.c_char_p

    def plan(self, folder: Path, kind: str, number: int, *, lasting: bool) -> None:
        self._calls.plan_failure(
            str(folder).encode(), kind.encode(), number, errno.EIO, int(lasting)
        )

    def end(self) -> str:
        """Return how many calls there were, and where the first one failed, if one did."""
        self._calls.end_plan()
        return f"{self._calls.calls_seen()} {self._calls.first_failure().decode()}"


def train_in_fork(run: Path, said: Path, before: Callable[[], object], after: Path | None) -> int:
    """Run the command in a fork, its output in a file; return its exit code, or 999 if it hangs."""
    process = os.fork()
    if not process:
        code = 1
        try:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            before()
            from seqclf.cli.main import main

            code = main(["train", *as_words(tiny_flags(SETTINGS, run_dir=run))])
        except BaseException:
            traceback.print_exc()
        finally:
            if after is not None:
                after.write_text(SHIM.end())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        left, status = os.waitpid(process, os.WNOHANG)
        if left:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 999


def what_is_wrong(run: Path) -> str:
    """Return what of a run directory cannot be read; nothing may be half written."""
    from seqclf.run.checkpoint import newest_checkpoint

    if not run.exists():
        return ""
    _, rejected = newest_checkpoint(run / "checkpoints")
    for file in run.rglob("*.json"):
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            rejected.append(f"{file}: {error}")
    if (run / "metrics.jsonl").exists():
        try:
            read_metrics(run)
        except ValueError as error:
            rejected.append(f"metrics.jsonl: {error}")
    return "\n".join(rejected)


def ends_alike(run: Path, straight: Path, text: str) -> bool:
    """Return whether two runs have the same end, but for the lines that `text` says are missing."""
    lines, expected = read_metrics(run), read_metrics(straight)
    lack = re.search(r"metrics\.jsonl lacks the last (\d+) of its lines", text)
    num_lacking = int(lack[1]) if lack else 0  # at most: the disk may have kept some
    is_whole = len(expected) - num_lacking <= len(lines) and lines == expected[: len(lines)]
    return weights_of(run) == weights_of(straight) and is_whole


def spread(total: int, most: int) -> list[int]:
    """Return up to `most` of the numbers from 1 to total, evenly, with the first and the last."""
    count = min(total, most)
    return [1 + number * (total - 1) // max(1, count - 1) for number in range(count)]


def attempt_all(
    folder: Path, kind: str, *, lasting: bool, resumed: bool, numbers: list[int], most: int
) -> Iterator[Attempt]:
    said, where = folder / "said", folder / "where"
    straight, run = folder / "straight", folder / "run"
    code = train_in_fork(straight, said, lambda: None, None)
    assert code == 0, said.read_text()

    def train_failing(number: int) -> tuple[int, str, str]:
        """Train with a failure at this call; 0: at none. Return code, calls, and what failed."""
        shutil.rmtree(run, ignore_errors=True)
        if resumed:
            shutil.copytree(folder / "stopped", run)
        plan = lambda: SHIM.plan(run, kind, number, lasting=lasting)  # noqa: E731
        code = train_in_fork(run, said, plan, where)
        num_calls, _, failed = where.read_text().partition(" ")
        return code, num_calls, failed

    if not numbers:
        numbers = spread(int(train_failing(0)[1]), most)
    for number in numbers:
        code, _, failed = train_failing(number)
        assert failed, f"call {number} was not made"
        text = said.read_text()
        loads = what_is_wrong(run)
        code_after = train_in_fork(run, said, lambda: None, None)
        # A run that has finished stays as it is; one that has failed makes all its lines again.
        alike = code_after == 0 and ends_alike(run, straight, "" if code else text)
        failed = failed.removeprefix(str(run)).lstrip("/")
        yield Attempt(number, failed, code, text, loads, code_after, said.read_text(), alike)


if __name__ == "__main__":
    SHIM = Shim()
    from seqclf.run import directory
    from seqclf.run.records import git_revision

    revision = git_revision()
    directory.git_revision = lambda: revision  # type: ignore[attr-defined]  # a program each time
    where, kind, *rest = sys.argv[1:]
    folder = Path(where)
    with redirect_stdout(io.StringIO()):  # a run here imports what all forks need
        assert train_tiny(folder / "first", SETTINGS) == 0
        assert train_tiny(folder / "stopped", SETTINGS, stop_at=6) == 143
    chosen = [int(word) for word in rest if word.isdigit()]
    every = "all" in rest or "SEQCLF_EVERY_CALL" in os.environ
    options = {"lasting": "lasting" in rest, "resumed": "resumed" in rest}
    most = sys.maxsize if every else MOST_CALLS
    for attempt in attempt_all(folder, kind, numbers=chosen, most=most, **options):
        print(json.dumps(attempt._asdict()), flush=True)
