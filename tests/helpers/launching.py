"""Real commands and launchers, each a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
LIMIT_S = 240  # below the limit of a test, and more than a busy machine needs


def clean_environment(*prefixes: str) -> dict[str, str]:
    """Return this process's environment without what a launcher or W&B reads in it."""
    ours = ("WANDB", "ACCELERATE", "OMP", *prefixes)
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def launch(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment in the repository's root."""
    return subprocess.run(
        [str(PROGRAMS / words[0]), *map(str, words[1:])],
        cwd=ROOT,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def as_words(flags: Mapping[str, str]) -> list[str]:
    """Return settings as the words of a command line."""
    return [f"--{name}={value}" for name, value in flags.items()]


def wait_for(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds; what it looks at may not be there yet."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a program and all that it started, where it still runs."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait(LIMIT_S)
