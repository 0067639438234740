"""A training as its mirrors see it: metrics.jsonl as it grows, and how the training ended."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from seqclf.errors import PREEMPTED
from seqclf.run.records import STATUS, Status, find_record

POLL_S = 0.5


class Trainer:
    """The process that trains. It says on standard input with which code it ended.

    Silence at the end of standard input means that it was killed: `exit_code` is None then.
    """

    def __init__(self, pid: int | None, finish_s: float) -> None:
        self.pid = pid
        self.ended = threading.Event()
        self.exit_code: int | None = None
        self._finish_s = finish_s
        if pid is None:
            self.ended.set()
        else:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        word = sys.stdin.readline().strip()
        self.exit_code = int(word) if word.isdigit() else None
        self.ended.set()
        # A trainer that lives waits as long and ends this process; a killed one cannot.
        time.sleep(self._finish_s + 1)
        os.killpg(0, signal.SIGKILL)


class MetricsLine(NamedTuple):
    """A line of metrics.jsonl, and its number from 1."""

    number: int
    step: int
    metrics: dict[str, float]


def follow(path: Path, ended: threading.Event) -> Iterator[MetricsLine]:
    """Yield the lines of a growing file until the end; from the first again if it is rewritten."""
    last_line, offset, number = b"", 0, 0
    while True:
        is_last_look = ended.is_set()
        content = b""
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(offset)
            content = file.read()
        if not content.startswith(last_line):
            last_line, offset, number = b"", 0, 0
            continue
        *lines, _ = content[len(last_line) :].split(b"\n")
        for line in lines:
            offset += len(last_line)
            last_line = line + b"\n"
            number += 1
            yield _parse(number, line)
        if is_last_look:
            return
        ended.wait(POLL_S)


def _parse(number: int, line: bytes) -> MetricsLine:
    """Parse a line; JSON has no number for NaN and infinity, so it holds null."""
    content = json.loads(line)
    step = int(content.pop("step"))
    return MetricsLine(number, step, {k: math.nan if v is None else v for k, v in content.items()})


def how_it_ended(run_dir: Path, exit_code: int | None) -> tuple[int, str | None]:
    """Return a training's exit code and error; of a killed one, by what it had written."""
    status = find_record(run_dir / STATUS, Status)
    if exit_code is None and status is not None:
        exit_code = {"finished": 0, "preempted": PREEMPTED}.get(status.state)
    if exit_code in (0, PREEMPTED):
        return exit_code, None
    error = None if status is None else status.error
    return exit_code or 1, error or "the training was killed"


def say(text: str) -> None:
    """Have the trainer print a line, if it still lives."""
    with suppress(OSError):
        print(text, flush=True)
