"""The logs that W&B writes of a run, one per session, and marks of ours beside them."""

from __future__ import annotations

import os
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

from seqclf.errors import UserError
from seqclf.tracking.mirrors import mirror_command

MARK = "rows-below-"
# The format of W&B's logs is LevelDB's.
FILE_HEADER_BYTES = 7
BLOCK_BYTES = 2**15
PART_HEADER = struct.Struct("<IHB")


def find_next_row(folder: str, run_id: str, run_dir: Path) -> int:
    """Return the number of the first row that the logs of a run lack; put a torn log aside.

    A log of a session that was killed with its mirror ends anywhere. Its lines are in
    metrics.jsonl, and go into the next log. Raises UserError if some of them may be on the server,
    because only the server knows which.
    """
    for log in logs_of(folder, run_id):
        if marks := list(log.parent.glob(f"{MARK}*")):
            return max(int(mark.name.removeprefix(MARK)) for mark in marks)
        is_synced = any(Path(f"{log}{ending}").exists() for ending in (".synced", ".syncstate"))
        if is_synced or not log.parent.name.startswith("offline-"):
            raise UserError(
                "it is offline, and a session that was killed has sent it nobody knows how much; "
                "with a connection, this sends the rest: "
                f"{mirror_command('wandb', run_dir)}"
            )
        put_aside(log)
    return 0


def logs_of(folder: str, run_id: str) -> list[Path]:
    """Return W&B's logs of a run, the latest first."""
    logs = Path(folder, "wandb").glob(f"*run-*/run-{run_id}.wandb")
    return sorted(logs, key=lambda log: log.parent.name.partition("run-")[2], reverse=True)


def put_aside(log: Path) -> None:
    """Hide a log from wandb sync, which stops at a torn log and cannot tell sent lines."""
    log.rename(f"{log}.aside")


def mark_whole(log: Path, next_row: int) -> None:
    """Note beside a closed log which row is the first that it lacks, in a file's name.

    Raises UserError if the log of an offline run is cut short.
    """
    if log.parent.name.startswith("offline-"):
        if not _is_whole(log):
            raise UserError(f"{log} is cut short, as by a full disk")
    elif not log.exists():  # W&B's own settings may leave it out; the server has the lines
        return
    with log.open("rb") as file:
        os.fsync(file.fileno())  # the mark must not outlive the log in a power cut
    (log.parent / f"{MARK}{next_row}").touch()


def _is_whole(log: Path) -> bool:
    """Return whether a log ends with the record of the run's end. W&B does not say if it does not.

    A log has blocks, and these hold parts of records. A part has a header: a checksum, the part's
    size, and its place in the record, which is 1 (the only part), 2 (the first), 3 or 4 (the last).
    """
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    protobuf: Any = import_module("google.protobuf.message")
    record = b""
    place = FILE_HEADER_BYTES
    with log.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            while place + PART_HEADER.size <= len(block):
                _, size, kind = PART_HEADER.unpack_from(block, place)
                place += PART_HEADER.size
                part = block[place : place + size]
                if len(part) < size:
                    return False
                record = part if kind in (1, 2) else record + part
                place += size
            place = 0
    try:
        kind_of_record = messages.Record.FromString(record).WhichOneof("record_type")
    except protobuf.DecodeError:
        return False
    return kind_of_record in ("exit", "footer")
