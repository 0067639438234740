"""Small file systems in memory, where this user may mount one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


def mount(path: Path, options: str) -> None:
    """Mount a tmpfs; skip the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a tmpfs")


def unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", str(path)], check=True)
