"""Whose a run directory is: seqclf's at all, and one process's at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from seqclf.data.prepared import INFO
from seqclf.errors import UserError
from seqclf.run.fence import describe_holder
from seqclf.run.files import check_regular, naming, open_itself
from seqclf.run.records import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    EVALUATION,
    FACTS,
    LOCK,
    METRICS,
    MODEL,
    SESSIONS,
    STATUS,
)

# Files that may lie in a new run's directory: a launcher's logs, and the settings of the run.
HARMLESS_SUFFIXES = (".log", ".out", ".err", ".txt", ".yaml", ".yml")


def refuse_what_is_not_ours(path: Path) -> None:
    """Refuse a directory with others' files, and names of ours that are none of our kind.

    A link to a directory is followed, because a user may keep runs on another disk; a link to a
    file is not. Raises UserError, and changes nothing.
    """
    for name in (LOCK, CONFIG, FACTS, METRICS, STATUS, SESSIONS):
        check_regular(path / name)
    for name in (CHECKPOINTS, EVALUATION, MODEL):
        if os.path.lexists(path / name) and not os.path.isdir(path / name):
            raise UserError(f"{path / name}: not a directory; move it away")
    if not path.is_dir() or _is_ours(path):
        return
    outputs = []
    for stream in (1, 2):
        with suppress(OSError):  # a stream may be closed
            outputs.append(os.fstat(stream))
    others = sorted(file.name for file in path.iterdir() if not _is_harmless(file, outputs))
    if others:
        raise UserError(
            f"{path}: no run of seqclf, and not empty ({others[0]}); choose another --run-dir"
        )


def _is_ours(path: Path) -> bool:
    """Return whether a run has begun in a directory; a copy may lack the lock."""
    return (path / LOCK).exists() or ((path / CONFIG).exists() and (path / FACTS).exists())


def _is_harmless(file: Path, outputs: list[os.stat_result]) -> bool:
    """Return whether a file may lie there before a run begins."""
    if any(os.path.samestat(file.lstat(), output) for output in outputs):
        return True
    if file.name == DATA and (file / INFO).is_file():  # which is written before the run begins
        return True
    if file.is_dir() and not file.is_symlink():  # of logs, such as torchrun's
        names = (name for _, _, names in os.walk(file) for name in names)
        return all(Path(name).suffix in HARMLESS_SUFFIXES for name in names)
    if file.name == CONFIG:  # the run would write over it
        return False
    return file.name.startswith(".") or file.suffix in HARMLESS_SUFFIXES


class Lock:
    """The lock of a run directory, held."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file

    def is_in_place(self) -> bool:
        """Return whether nobody has put another lock in its place."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:  # a lock that was deleted locks nobody else
            return True


@contextmanager
def locked(path: Path) -> Iterator[Lock]:
    """Hold a run directory. Raises UserError if another process does, OSError if it cannot be."""
    file = open_itself(path / LOCK)
    try:
        _take(path, file)
        yield Lock(path / LOCK, file)
    finally:
        with suppress(OSError):  # the lock is gone all the same
            file.close()


def _take(path: Path, file: IO[bytes]) -> None:
    try:
        with naming(path / LOCK):
            # lockf, because a child process does not inherit its locks and so cannot keep them.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # such as a disk without locks
            raise
        tasks = os.environ.get("SLURM_NTASKS") or "1"
        hint = f" (Slurm has {tasks} tasks: is it one of them? docs/launching.md starts them as one"
        raise UserError(
            f"{path}: another process is training there{describe_holder(file)}; wait for it or "
            "choose another --run_dir" + f"{hint} run)" * (tasks != "1")
        ) from None
