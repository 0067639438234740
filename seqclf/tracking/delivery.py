"""How much of metrics.jsonl a mirror has delivered, as far as it has confirmed that itself.

The number lies in the mirror's lock file, and a mirror writes it when it ends by itself. So a
mirror that is killed confirms nothing, and the run knows that lines may be missing.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from seqclf.errors import UserError
from seqclf.run.records import FACTS, METRICS, Facts, find_record

# A link would have the file that it points to written over, and a pipe would wait for a reader.
ITSELF = os.O_NOFOLLOW | os.O_NONBLOCK
LOCK_BYTES = 200


class Missing(NamedTuple):
    """How many lines of metrics.jsonl may be missing in a mirror, and how many there are."""

    num_lines: int
    num_all: int


class Delivery:
    """The lock of a mirror, held: one mirror of a kind at a time sends a run."""

    def __init__(self, run_dir: Path, descriptor: int) -> None:
        self._run_dir = run_dir
        self._descriptor = descriptor

    def confirm(self, num_lines: int) -> None:
        """Note that the first `num_lines` lines of metrics.jsonl are delivered."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{_run_id(self._run_dir)} {num_lines}\n".encode(), 0)


@contextmanager
def only_mirror(run_dir: Path, kind: str) -> Iterator[Delivery]:
    """Wait for the mirror of a session that was killed, and hold its lock.

    Raises UserError if the lock is not a regular file, OSError if it cannot be opened.
    """
    path = _lock_of(run_dir, kind)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | ITSELF, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a regular file; move it away")
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield Delivery(run_dir, descriptor)
    finally:
        os.close(descriptor)


def find_missing(run_dir: Path, kind: str) -> Missing:
    """Count the lines of metrics.jsonl that no mirror of a kind has confirmed."""
    num_all = 0
    with suppress(OSError), (run_dir / METRICS).open("rb") as file:
        num_all = sum(1 for _ in file)
    run_id, _, number = _read(_lock_of(run_dir, kind)).partition(" ")
    is_known = number.isdecimal() and run_id == _run_id(run_dir)  # another run was there before
    return Missing(max(0, num_all - int(number)) if is_known else num_all, num_all)


def _read(lock: Path) -> str:
    with suppress(OSError):
        descriptor = os.open(lock, os.O_RDONLY | ITSELF)
        try:
            return os.read(descriptor, LOCK_BYTES).decode(errors="replace").strip()
        finally:
            os.close(descriptor)
    return ""


def _lock_of(run_dir: Path, kind: str) -> Path:
    return run_dir / f".{kind}.lock"


def _run_id(run_dir: Path) -> str:
    facts = find_record(run_dir / FACTS, Facts)
    return "" if facts is None else str(facts.run_id)
