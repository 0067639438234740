"""What the control groups of this process allow: processor time and memory. Linux has them.

Containers, Slurm and systemd set such limits. A group's limit holds for all groups below it, so the
smallest one counts, from the own group up to the top. There are two versions of the files, and a
machine may have both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")
NO_LIMIT = 2**60  # bytes; version 1 writes a number near 2**63 where there is no limit


class GroupMemory(NamedTuple):
    """The memory of the group that has the least left, in bytes."""

    free: int
    limit: int


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return how many processors' time this process may use; None without a limit.

    `root` is the folder in which /proc and /sys are looked for.
    """
    quotas = []
    for folder in _folders("cpu", root):
        try:
            if (folder / "cpu.max").is_file():  # version 2: "150000 100000", or "max 100000"
                quota_us, period_us = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota_us = int((folder / "cpu.cfs_quota_us").read_text())  # -1: no limit
                period_us = int((folder / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):  # no such file, or no number: no limit here
            continue
        if quota_us > 0 and period_us > 0:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def group_memory(root: Path = ROOT) -> GroupMemory | None:
    """Return the memory that is left of the limits, and the limit that leaves it; None without one.

    Cached files count as free, because the kernel gives them up before it refuses memory.
    """
    left = []
    for folder in _folders("memory", root):
        names = ("memory.max", "memory.current", "")
        if not (folder / names[0]).is_file():
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        try:
            limit = int((folder / names[0]).read_text())
            used = int((folder / names[1]).read_text())
        except (OSError, ValueError):
            continue
        if limit < NO_LIMIT:
            free = limit - used + _cached_files(folder, names[2])
            left.append(GroupMemory(min(max(0, free), limit), limit))
    return min(left, default=None)


def _cached_files(folder: Path, prefix: str) -> int:
    """Return the bytes of files that a group and those below keep in memory."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(number) for name, number in map(str.split, lines)}
    except (OSError, ValueError):
        return 0
    return sum(stat.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the own group and of those above it that may hold a controller."""
    try:
        groups = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return
    own = {}
    for line in groups:  # "4:cpu,cpuacct:/job"; version 2 names no controller: "0::/job"
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), PurePosixPath(path)))
    for line in mounts:  # "36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
        before, _, after = line.partition(" - cgroup")
        if not after:
            continue
        *_, top, point, _ = before.split()[:6]
        kind, _, options = after.split(" ", 2)
        if kind != "2" and controller not in options.split(","):
            continue
        group = own.get("" if kind == "2" else controller)
        if group is None:
            continue
        # In a container the mount may begin at the own group, or the path may lead out of it.
        below = PurePosixPath()
        if group.is_relative_to(top) and ".." not in group.parts:
            below = group.relative_to(top)
        folder = root / point.lstrip("/")
        yield folder / below
        yield from (folder / parent for parent in below.parents)
