"""metrics.jsonl: a JSON object a line. A full disk loses no line, and none is there twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from seqclf.run.files import naming, open_itself
from seqclf.run.records import finite_or_null


class MetricsLog:
    """Appends lines on the main process; keeps each in memory until an fsync has succeeded.

    `durable_bytes` is the length of the file that a checkpoint may rely on. Each method raises
    OSError that names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            self._file = open_itself(path)
            # Until `start_at` all of it counts: a start that fails before that cuts nothing off.
            self.durable_bytes = self._file.seek(0, os.SEEK_END)
        # Lines after durable_bytes: a full disk may have swallowed what was written of them.
        self._pending = bytearray()
        self._num_written = 0  # bytes of _pending that are in the file

    @property
    def is_behind(self) -> bool:
        """Whether the file lacks lines, because a write has failed."""
        return self._num_written < len(self._pending)

    @property
    def num_pending_lines(self) -> int:
        """Lines that are not known to be on the disk."""
        return self._pending.count(b"\n")

    @property
    def num_bytes(self) -> int:
        """Length of the file once all its lines are in it."""
        return self.durable_bytes + len(self._pending)

    def is_in_place(self) -> bool:
        """Return whether the file still has its name: nobody moved, deleted or replaced it.

        Where the disk does not say, it has.
        """
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError as error:
            return not isinstance(error, FileNotFoundError | NotADirectoryError)

    def start_at(self, num_bytes: int) -> None:
        """Drop the lines after a checkpoint; a file that was cut by hand stays cut."""
        with naming(self.path):
            self.durable_bytes = min(num_bytes, self._file.seek(0, os.SEEK_END))
            self._cut()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line. Where it cannot be written, a later call tries again."""
        self._pending += json.dumps({"step": step} | finite_or_null(metrics)).encode() + b"\n"
        with naming(self.path):
            self._write_pending()

    def flush(self) -> None:
        """Make all lines durable. If that fails, they stay in memory."""
        with naming(self.path):
            self._write_pending()
            # If fsync fails, the disk may lack what was written: the next call writes all again.
            self._num_written = 0
            try:
                os.fsync(self._file.fileno())
            except OSError:
                self._cut()
                raise
            self.durable_bytes = self._file.tell()
            self._pending.clear()

    def close(self) -> None:
        """Close the file, whose lines were made durable before."""
        with naming(self.path):
            self._file.close()

    def _write_pending(self) -> None:
        """Append the lines that the file lacks; after a failure only whole lines stand there."""
        self._cut()
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(min(self.durable_bytes + self._num_written, end))
        rest = self._pending[self._num_written :]
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._cut()
            raise
        self._num_written = len(self._pending)

    def _cut(self) -> None:
        """Cut the file off after the lines that count."""
        length = self.durable_bytes + self._num_written
        if self._file.seek(0, os.SEEK_END) > length:
            self._file.truncate(length)
