"""File systems in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SHARED_MEMORY = "/dev/shm"
ENOUGH_BYTES = 6 * 2**30


def find_memory() -> str | None:
    """Return a directory in memory that has room for runs, where programs may be executed."""
    if not os.path.isdir(SHARED_MEMORY) or not os.access(SHARED_MEMORY, os.W_OK):
        return None
    if os.statvfs(SHARED_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return SHARED_MEMORY if shutil.disk_usage(SHARED_MEMORY).free > ENOUGH_BYTES else None


def mount(path: Path, options: str) -> None:
    """Mount a tmpfs; skip the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a tmpfs")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", str(path)], check=True)
