"""Runs with mirrors, and what W&B was sent: by its own logs, or by a server of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from seqclf.cli.main import main
from seqclf.tracking.mirrors import MIRROR_MODULE

from .launching import LIMIT_S, as_words
from .patches import before_step

KEY = {"WANDB_API_KEY": "x" * 40}
FLAGS = {
    "device": "cpu",
    "train.threads": "1",
    "data.name": "digits",
    "model.hidden_size": "16",
    "train.steps": "60",
    "eval.every": "20",
    "checkpoint.every": "15",
    "log.every": "10",
    "tracking.wandb": "offline",
    "tracking.finish_s": "120",  # a machine with slow disks needs more than the usual 30
    "report": "false",
}


def train_words(run_dir: Path, flags: Mapping[str, str]) -> list[str]:
    return ["train", "--run-dir", str(run_dir), *as_words(flags)]


def train_mirrored(run_dir: Path, **flags: str) -> int:
    """Train as the command line does, with W&B offline; __ stands for a dot."""
    more = {name.replace("__", "."): value for name, value in flags.items()}
    return main(train_words(run_dir, FLAGS | more))


def mirrors() -> list[psutil.Process]:
    """Return the mirrors that this process has started and that still run."""
    children = psutil.Process().children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if MIRROR_MODULE in child.cmdline()]


def with_children(process: psutil.Process) -> list[psutil.Process]:
    return [*process.children(recursive=True), process]


def train_and_die(
    run_dir: Path,
    flags: dict[str, str],
    step: int,
    mirror_too: bool,
    environment: Mapping[str, str],
) -> None:
    """Train, and be killed before a step, between two lines of the log."""
    os.environ |= {k: v for k, v in environment.items() if k.startswith(("WANDB", "NETRC"))}

    def die() -> None:
        if os.environ.get("RANK", "0") != "0":
            return
        if mirror_too:
            time.sleep(3)  # the mirror has sent something by then
            for mirror in mirrors():
                for process in with_children(mirror):
                    process.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, {step: die})
        main(train_words(run_dir, flags))


# ---- W&B's logs, as W&B's own reader reads them

Record = dict[str, Any]


def read_logs(run_dir: Path) -> list[list[Record]]:
    """Return the records of each log, in the order that wandb sync takes."""
    logs = sorted(run_dir.glob("wandb/*run-2*/*.wandb"), key=lambda log: log.parent.name[-24:])
    records = []
    for log in logs:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        records.append([json.loads(line) for line in done.stdout.splitlines()])
    return records


def of_kind(logs: list[list[Record]], kind: str) -> list[Record]:
    return [record[kind] for log in logs for record in log if record["type"] == kind]


def lines_in(rows: list[Record]) -> list[Record]:
    """Return rows as the lines of metrics.jsonl that they were, without those of tables."""
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))
    lines = [
        {
            "step" if name == "global_step" else name: None if value == "NaN" else value
            for name, value in row.items()
            if not name.startswith("_") and name != "objective"
        }
        for row in rows
    ]
    return [
        line
        for line in lines
        if not any("._" in name or isinstance(value, dict) for name, value in line.items())
    ]


def offline_lines(run_dir: Path) -> list[Record]:
    return lines_in([record["item"] for record in of_kind(read_logs(run_dir), "history")])


def summary_of(logs: list[list[Record]]) -> Record:
    summary: Record = {}
    for record in of_kind(logs, "summary"):
        summary |= record.get("update", {})
    return summary
