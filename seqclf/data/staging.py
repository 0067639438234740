"""A folder that appears when it is whole: the old one stays until then, and one writer wins.

data/.mine.partial/   what is being written; its writer holds a lock on it
data/.mine.old/       the folder that is replaced, for the moment between two renames
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqclf.errors import UserError


@contextmanager
def staged(out: Path, *, overwrite: bool, info: str) -> Iterator[Path]:
    """Yield a folder that becomes `out` at the end; if the body raises, nothing is left of it.

    A data set has a file called `info`; nothing else is ever overwritten. Raises UserError if `out`
    may not be written, or if another process is writing it.
    """
    staging = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(staging, out)
        is_ours = True  # After the last rename the name may be another process's.
        try:
            _restore(old, out)
            _check(out, overwrite=overwrite, info=info)
            _empty(staging)  # a preparation that was killed may have left files
            yield staging
            for path in staging.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            _check(out, overwrite=overwrite, info=info)
            _swap(staging, out, old)
            is_ours = False
        finally:
            if is_ours:
                shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None


def _check(out: Path, *, overwrite: bool, info: str) -> None:
    """Refuse what must not be replaced. Raises UserError."""
    if not out.exists() and not out.is_symlink():
        return
    is_empty = out.is_dir() and not any(out.iterdir())
    if not overwrite and not is_empty:
        raise UserError(f"--out {out}: exists already; name another folder, or add --overwrite")
    if not is_empty and not (out / info).exists():
        raise UserError(f"--out {out}: holds something else than a data set; name another folder")


def _lock(staging: Path, out: Path) -> int:
    """Make the staging folder and lock it; return the lock's descriptor.

    The lock is on the folder itself, so a killed process leaves none behind. Raises UserError if
    another process has it.
    """
    while True:
        staging.mkdir(exist_ok=True)
        try:
            descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # Another process has just renamed or deleted it.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"--out {out}: another process is writing it now; wait for it, or name another "
                "folder"
            ) from None
        try:
            if os.path.samestat(os.fstat(descriptor), os.lstat(staging)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # The lock is on a folder that has become `out` meanwhile.


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _restore(old: Path, out: Path) -> None:
    """Put back the folder of a process that was killed between its two renames."""
    if old.exists():
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)


def _swap(staging: Path, out: Path, old: Path) -> None:
    """Rename the staging folder to `out`; what was there is deleted after that, or put back."""
    # A rename cannot replace a folder that has files in it.
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)
