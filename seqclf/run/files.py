"""Durable files: at any instant the old or the new content stands there whole.

Bytes are written, synced and hashed here, because safetensors' save_file does not sync and leaves
mode 0600.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from seqclf.errors import UserError

MAX_JSON_BYTES = 2**26  # a model's config.json holds the names of all tokens, or of all columns


class FileEntry(BaseModel):
    """A file's size in bytes and its sha256."""

    size: int
    sha256: str


# ---- writing


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the body this path if it has none, as that of a failed write has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems cannot sync a directory, whose entries are durable at once.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each durable; leave what is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> FileEntry:
    """Write and sync a new file. Raises OSError that names it."""
    with naming(path), open_new(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def open_new(path: Path) -> IO[bytes]:
    """Open a file that was not there before: never one that a link of that name points to."""
    delete(path)  # what a kill left, or somebody put there
    return path.open("xb")


def open_itself(path: Path) -> IO[bytes]:
    """Open a file to read and to write it, unbuffered; make it if needed, but follow no link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    return os.fdopen(descriptor, "r+b", buffering=0)


def append_line(path: Path, line: str) -> None:
    """Write a line at a file's end, whole or not at all; what a kill left of a line goes."""
    with naming(path), open_itself(path) as file:
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        file.seek(end)
        content = f"{line}\n".encode()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(end)
            raise


def replace_file(path: Path, content: bytes) -> FileEntry:
    """Write a file under another name, then rename it: nobody ever sees half of it."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        entry = write_file(temporary, content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
    return entry


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object to a file, whole or not at all."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def delete(path: Path) -> None:
    """Delete a directory, a file or a link, but never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except OSError as error:
            error.filename = str(path)  # else a name without its directory
            raise
    else:
        path.unlink(missing_ok=True)


# ---- reading


def check_regular(path: Path) -> None:
    """Refuse a link, a pipe or a directory where a file is to be written. Raises UserError."""
    try:
        regular_size(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        raise UserError(f"{path}: not a regular file; move it away") from None


def regular_size(path: Path) -> int:
    """Return a file's size; raises OSError for a link, a pipe or a directory."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    return status.st_size


def read_small(path: Path) -> bytes:
    """Read a JSON file; raises ValueError if it is larger than any that seqclf writes."""
    if (size := regular_size(path)) > MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes, of which at most {MAX_JSON_BYTES:,} are read")
    return path.read_bytes()


def read_file(path: Path, num_bytes: int | None = None) -> bytes:
    """Read a regular file, or its first bytes; raises UserError naming it."""
    try:
        size = regular_size(path)
        with path.open("rb") as file:
            return file.read(size if num_bytes is None else min(num_bytes, size))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({first_reason(error)})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises UserError naming it."""
    try:
        content = json.loads(read_small(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: missing or damaged ({first_reason(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged (not a JSON object)")
    return content


def first_reason(error: Exception) -> str:
    """Return an error's reason on one line, without the path, which its reader names."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])
    return (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
