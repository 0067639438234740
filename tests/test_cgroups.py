"""What control groups allow: own group and those above, both versions, in containers and not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.training import CONSTANT_RATE, train_tiny

from seqclf.cli import main
from seqclf.config.load import load_config
from seqclf.errors import UserError
from seqclf.processes.cgroups import GroupMemory, cpu_quota, group_memory
from seqclf.processes.device import set_threads
from seqclf.processes.memory import free_memory, memory_text, refuse_too_large

GIB = 2**30
VERSION_2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
VERSION_1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:10 master:1 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
# A container without a namespace of its own: the mount begins at the group, the path at the top.
DOCKER = """\
32 31 0:29 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
V1_GROUPS = "4:memory:/{0}\n2:cpu,cpuacct:/{0}\n1:name=systemd:/init\n0::/{0}\n"


def machine(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    """Make a folder look like the root of a machine with these files below /sys/fs/cgroup."""
    content = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    content |= {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "quota"),
    [
        (VERSION_2, "0::/job/step", {"job/step/cpu.max": "150000 100000\n"}, 1.5),
        (VERSION_2, "0::/job/step", {"job/step/cpu.max": "max 100000\n"}, None),
        (VERSION_2, "0::/job/step", {"job/cpu.max": "200000 100000\n"}, 2.0),
        (
            VERSION_2,
            "0::/job/step",
            {"job/cpu.max": "50000 100000", "job/step/cpu.max": "90000 100000"},
            0.5,
        ),
        # a container: its group is the top of what it sees
        (VERSION_2, "0::/", {"cpu.max": "100000 100000\n"}, 1.0),
        # another group's quota, and a path that leads out of the namespace
        (VERSION_2, "0::/job", {"other/cpu.max": "100000 100000\n"}, None),
        (VERSION_2, "0::/../job", {"cpu.max": "300000 100000", "job/cpu.max": "1 1"}, 3.0),
        (
            VERSION_1,
            V1_GROUPS.format("job"),
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            DOCKER,
            V1_GROUPS.format("docker/ab").replace("cpu,cpuacct", "cpuacct,cpu"),
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (VERSION_2, "0::/job", {"job/cpu.max": "soon\n"}, None),
        (VERSION_2, "0::/job", {"job/cpu.max": ""}, None),
        ("", "0::/job", {"job/cpu.max": "1 1"}, None),
    ],
)
def test_the_smallest_quota_counts(
    mounts: str, groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(machine(tmp_path, mounts, groups, files)) == quota


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert group_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "memory"),
    [
        (
            VERSION_2,
            "0::/job/step",
            {
                "job/memory.max": "1000\n",
                "job/memory.current": "700\n",
                "job/step/memory.max": "max\n",
                "job/step/memory.current": "500\n",
            },
            GroupMemory(300, 1000),
        ),
        (  # the group with the least left counts, not the smallest limit; cached files are free
            VERSION_2,
            "0::/job/step",
            {
                "job/memory.max": "1000",
                "job/memory.current": "900",
                "job/memory.stat": "anon 700\nfile 200\nactive_file 50\ninactive_file 150\n",
                "job/step/memory.max": "800",
                "job/step/memory.current": "400",
            },
            GroupMemory(300, 1000),
        ),
        (
            VERSION_1,
            V1_GROUPS.format("job/step"),
            {
                "memory/job/memory.limit_in_bytes": "1000",
                "memory/job/memory.usage_in_bytes": "900",
                "memory/job/memory.stat": "active_file 1\ntotal_active_file 30\n",
                "memory/job/step/memory.limit_in_bytes": "9223372036854771712",
                "memory/job/step/memory.usage_in_bytes": "5",
            },
            GroupMemory(130, 1000),
        ),
        (
            DOCKER,
            V1_GROUPS.format("docker/ab"),
            {"memory/memory.limit_in_bytes": "10", "memory/memory.usage_in_bytes": "20"},
            GroupMemory(0, 10),
        ),
        (VERSION_2, "0::/job", {"job/memory.max": "max"}, None),
        (VERSION_2, "0::/job", {"job/memory.max": "10"}, None),  # and nobody says how much is used
    ],
)
def test_the_group_with_the_least_memory_counts(
    mounts: str, groups: str, files: dict[str, str], memory: GroupMemory | None, tmp_path: Path
) -> None:
    assert group_memory(machine(tmp_path, mounts, groups, files)) == memory


@pytest.mark.parametrize(
    ("quota", "flags", "local_processes", "threads"),
    [
        (1.0, {}, "1", "1 (8 cores, a CPU quota of 1.0, 1 process)"),
        (2.5, {}, "1", "3 (8 cores, a CPU quota of 2.5, 1 process)"),
        (0.2, {}, "1", "1 (8 cores, a CPU quota of 0.2, 1 process)"),
        (4.0, {}, "2", "2 (8 cores, a CPU quota of 4.0, 2 processes here)"),
        (1.0, {}, "2", "1 (8 cores, a CPU quota of 1.0, 2 processes here)"),
        (8.0, {}, "1", "8 (8 cores, 1 process)"),
        (64.0, {}, "1", "8 (8 cores, 1 process)"),
        (4.0, {"train.shards": "2"}, "2", "2 (8 cores, a CPU quota of 4.0, 2 shards)"),
        (None, {"train.threads": "8"}, "1", "8 (train.threads)"),
        (
            2.0,
            {"train.threads": "3"},
            "1",
            "3 (train.threads; the limit here: 8 cores, a CPU quota of 2.0)",
        ),
        (None, {"train.threads": "8"}, "2", "8 (train.threads; the limit here: 8 cores)"),
    ],
)
def test_threads_are_those_that_the_quota_lets_run(
    quota: float | None,
    flags: dict[str, str],
    local_processes: str,
    threads: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("seqclf.processes.device.cpu_quota", lambda: quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    number, decision = set_threads(load_config(None, flags)[0])
    assert decision.line() == f"threads     {threads}"
    assert torch.get_num_threads() == number


def test_prediction_and_pages_keep_to_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch itself counts cores alone."""
    assert train_tiny(tmp_path, CONSTANT_RATE, train__steps=1) == 0
    monkeypatch.setattr("seqclf.processes.device.cpu_quota", lambda: 1.0)
    for command in ("predict", "report"):
        torch.set_num_threads(2)
        assert main.main([command, str(tmp_path)]) == 0
        assert torch.get_num_threads() == 1
    monkeypatch.setattr("seqclf.processes.device.cpu_quota", lambda: None)
    assert main.main(["predict", str(tmp_path)]) == 0
    assert torch.get_num_threads() == 1  # fewer than may be taken stay


def test_the_memory_of_the_group_is_what_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "seqclf.processes.memory.group_memory", lambda: GroupMemory(1000, 3 * GIB // 2)
    )
    cpu = torch.device("cpu")
    assert free_memory(cpu) == 1000
    assert memory_text(cpu) == "0.0 GiB (of the limit of 1.5 GiB of this job or container)"
    with pytest.raises(UserError, match=r"and 0\.0 GiB \(of the limit of 1\.5 GiB of this job"):
        refuse_too_large(1001, cpu)
    monkeypatch.setattr("seqclf.processes.memory.group_memory", lambda: GroupMemory(2**60, 2**60))
    assert free_memory(cpu) < 2**60
    assert "limit" not in memory_text(cpu)


# ---- a real one


@contextlib.contextmanager
def real_group(quota_us: int) -> Iterator[Path]:
    """Make a group with a quota and one below without; skip where that is not allowed."""
    for top in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
        group = top / f"seqclf-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / "inner").mkdir()
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota_us} 100000")
            else:
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        except OSError:
            _remove(group)
            continue
        try:
            yield group
        finally:
            _remove(group)
        return
    pytest.skip("this user may not make a control group with a quota")


def _remove(group: Path) -> None:
    for folder in (group / "inner", group):
        with contextlib.suppress(OSError):
            folder.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_the_kernels_own_files_are_understood() -> None:
    code = "from seqclf.processes.cgroups import cpu_quota; print(cpu_quota())"
    with real_group(50_000) as group:
        for folder in (group / "inner", group):
            enter = f'echo $$ > {folder}/cgroup.procs && exec "$0" -c "$1"'
            words = ["sh", "-c", enter, sys.executable, code]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            assert done.stdout == "0.5\n"
