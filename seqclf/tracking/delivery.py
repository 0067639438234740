"""How much of metrics.jsonl a mirror has delivered, as far as it has confirmed that itself.

The number lies in the mirror's lock file, and a mirror writes it when it ends by itself. So a
mirror that is killed confirms nothing, and its run knows that lines may be missing.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqclf.errors import UserError
from seqclf.run.records import FACTS, METRICS, Facts, find_record


class Delivery:
    """The lock of a mirror, held: only one mirror of a kind sends a run."""

    def __init__(self, run_dir: Path, descriptor: int) -> None:
        self._run_dir = run_dir
        self._descriptor = descriptor

    def confirm(self, num_lines: int) -> None:
        """Note that the first lines of metrics.jsonl are delivered, so many of them."""
        content = f"{_run_id(self._run_dir)} {num_lines}\n".encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


@contextmanager
def only_mirror(run_dir: Path, kind: str) -> Iterator[Delivery]:
    """Wait for the mirror of a session that was killed, and hold its lock.

    Raises UserError if the lock is no file, OSError if it is a link or cannot be opened.
    """
    path = _lock_of(run_dir, kind)
    # A link would have the file that it points to written over, and a pipe would wait for a reader.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path}: not a regular file; move it away")
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield Delivery(run_dir, descriptor)
    finally:
        os.close(descriptor)


def count_missing(run_dir: Path, kind: str) -> tuple[int, int]:
    """Return how many lines of metrics.jsonl no mirror of a kind has confirmed, and all lines."""
    try:
        with (run_dir / METRICS).open("rb") as file:
            num_lines = sum(1 for _ in file)
        run_id, _, number = _lock_of(run_dir, kind).read_text().strip().partition(" ")
    except (OSError, UnicodeError):
        run_id, number, num_lines = "", "", _count(run_dir)
    is_known = number.isdecimal() and run_id == _run_id(run_dir)
    return max(0, num_lines - int(number)) if is_known else num_lines, num_lines
