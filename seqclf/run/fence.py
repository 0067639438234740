"""Whether a run directory is still this session's, and who else may have it.

A process that is stopped (SIGSTOP, a frozen container or host) wakes up late: its run may have been
started again meanwhile. On one host its lock keeps others away as long as it lives. But a network
disk drops the lock of a silent host, somebody may delete it, and ranks other than 0 hold none.

So a session first of all appends its line to sessions.jsonl. Whoever writes later looks whether
that is still the last line: the length of the file is the number of the session.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from seqclf.errors import UserError
from seqclf.run.files import append_line, write_json
from seqclf.run.records import SESSIONS, STATUS, Facts, Session, Status, find_record, to_json

FLOCK = "hhqqi"  # Linux's struct flock on 64 bits: type, whence, start, length, process


def session_number(path: Path) -> int:
    """Return the number of the latest session in a run directory; 0 if none has begun."""
    try:
        return (path / SESSIONS).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def read_status(path: Path) -> Status | None:
    """Return what a run directory's status.json says; None if there is none."""
    return find_record(path / STATUS, Status)


def begin_session(path: Path, step: int, facts: Facts, found: Status | None) -> int:
    """Append the line of a session that begins at a step; return its number.

    `found` is the status that the session has found there. Raises UserError if there is another one
    now, OSError if the line cannot be written.
    """
    if read_status(path) != found:
        raise UserError(f"{path}: another rank has given up this start (status.json says why)")
    known = to_json(facts)
    common = {name: known[name] for name in Session.model_fields if name in known}
    started_at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    session = Session.model_validate({"step": step, "time": started_at, **common})
    append_line(path / SESSIONS, json.dumps(to_json(session)))
    return session_number(path)


def has_ended(path: Path) -> bool:
    """Return whether a session's end is told already: by itself, or by another rank for it."""
    status = read_status(path)
    return status is not None and status.state in ("failed", "finished")


def tell_for_main(path: Path, failed: Status, *, began: bool) -> None:
    """Write "failed" in place of the main process, which is silent; nothing if that cannot be done.

    `failed` is what this rank knows; `began` says whether the main process had begun its session.
    """
    status = read_status(path)
    if status is not None and not began and status.state != "finished":
        # The steps that an earlier session has done are still there.
        failed = status.model_copy(update={"state": "failed", "error": failed.error})
    elif status is not None and status.state != "running":
        return  # how the session ended is told already
    if path.is_dir():  # it may be on the host of rank 0 alone
        with suppress(OSError):
            write_json(path / STATUS, to_json(failed))


def describe_holder(file: IO[bytes]) -> str:
    """Return the words that name the process which keeps a file locked; empty if not known."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return ""
    asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with suppress(OSError, IndexError):
        *_, process = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if process <= 0:  # of another host, or of another namespace
            return ""
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            return (
                f" (process {process}, which is stopped: kill -CONT {process} lets it go on, "
                f"kill -KILL {process} ends it)"
            )
        return f" (process {process})"
    return ""
