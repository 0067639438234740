"""A run on several hosts, which are network namespaces: launchers, losses, cut cables, other sizes.

Each host's own name means 127.0.1.1 to itself, as on Debian.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from helpers.files import logged, read_facts, read_status, same_end, starts_of
from helpers.hosts import Host, connected_hosts
from helpers.launching import LIMIT_S, as_words, wait_for
from helpers.training import CONSTANT_RATE, Settings, tiny_flags, train_tiny

PORT = "29500"
START_S = 150  # for several hosts to start on a busy machine, at most
SETTINGS: Settings = {
    **CONSTANT_RATE,
    "data.augment.shift": 1,
    "data.val_fraction": 0.1,
    "optim.lr": 0.001,  # at which curves can be compared
    "train.steps": 24,
    "eval.every": 12,
    "checkpoint.every": 6,
    "log.every": 1,
    "distributed.timeout_s": 60,
}
# Long enough to be interrupted twice.
LONG: Settings = {
    **SETTINGS,
    "model.dropout": 0.2,
    "train.shards": 6,
    "train.steps": 600,
    "eval.every": 200,
    "checkpoint.every": 20,
    "log.every": 5,
}

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with connected_hosts(3) as hosts:
        yield hosts


def launcher(way: str, rank: int, count: int) -> list[str]:
    match way:
        case "torchrun":
            size = ["--nnodes", str(count), "--node-rank", str(rank), "--nproc-per-node", "1"]
            return ["torchrun", *size, "--master-addr", "host0", "--master-port", PORT]
        case "accelerate":
            size = ["--num_machines", str(count), "--num_processes", str(count)]
            place = ["--machine_rank", str(rank), "--main_process_ip", "host0"]
            config = ["--config_file", "configs/accelerate/multi_node.yaml"]
            return ["accelerate", "launch", *config, *size, *place, "--main_process_port", PORT]
    return [way]


def start(
    hosts: Sequence[Host], way: str, run_dirs: Sequence[Path], settings: Mapping[str, object]
) -> list[subprocess.Popen[str]]:
    """Start one process on each host; plain python finds its place as in Kubeflow's pods."""
    processes = []
    for rank, (host, run_dir) in enumerate(zip(hosts, run_dirs, strict=True)):
        pod = {
            "PET_NNODES": str(len(hosts)),
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "host0",
            "PET_MASTER_PORT": PORT,
        }
        words = [*launcher(way, rank, len(hosts)), "launch/train.py"]
        flags = as_words(tiny_flags(settings, run_dir=run_dir))
        variables = pod if way == "python" else {}
        log = log_of(host, run_dir)
        processes.append(host.start(*words, *flags, log=log, variables=variables))
    return processes


def log_of(host: Host, run_dir: Path) -> Path:
    return run_dir.parent / f"{host.name}.txt"


def last_step(run_dir: Path) -> int:
    return max(logged(run_dir, "train/loss"), default=0)


def exit_codes(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    return [process.wait(LIMIT_S) for process in processes]


def apart(folder: Path, hosts: Sequence[Host]) -> list[Path]:
    """Return a run directory for each host, on a disk that only this host has."""
    for host in hosts:
        (folder / host.name).mkdir()
    return [folder / host.name / "run" for host in hosts]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert train_tiny(path, SETTINGS) == 0
    return path


@pytest.mark.parametrize(("way", "shared"), [("torchrun", True), ("accelerate", False)])
def test_three_hosts_have_the_losses_of_one_process(
    way: str, shared: bool, hosts: list[Host], alone: Path, tmp_path: Path
) -> None:
    run_dirs = [tmp_path / "run"] * 3 if shared else apart(tmp_path, hosts)
    assert exit_codes(start(hosts, way, run_dirs, SETTINGS)) == [0, 0, 0]
    assert read_facts(run_dirs[0])["world_size"] == 3
    for metric in ("train/loss", "val/loss", "test/loss"):
        losses = logged(alone, metric)
        assert losses
        assert logged(run_dirs[0], metric) == pytest.approx(losses, rel=1e-5)
    assert [path.exists() for path in run_dirs] == [True, shared, shared]
    for host, run_dir in zip(hosts, run_dirs, strict=True):
        told = f"note: gloo uses eth0: this host's name, {host.name}, means 127.0.1.1 here"
        assert log_of(host, run_dir).read_text().count(told) == 1


def test_a_cut_cable_ends_the_run_and_the_host_is_named(hosts: list[Host], tmp_path: Path) -> None:
    run_dirs = apart(tmp_path, hosts)
    settings = {**LONG, "train.steps": 100_000, "distributed.timeout_s": 20}
    processes = start(hosts, "python", run_dirs, settings)
    wait_for(lambda: last_step(run_dirs[0]) > 20, START_S)
    hosts[1].unplug()
    assert exit_codes(processes) == [1, 1, 1]
    status = read_status(run_dirs[0])
    assert status.state == "failed"
    assert "rank 0 on host0, rank 2 on host2: nothing happened for 15 s" in str(status.error)
    assert "rank 1 on host1: no answer" in str(status.error)
    assert not run_dirs[1].exists()


def test_a_killed_host_is_named_and_two_and_three_hosts_go_on_with_the_same_bits(
    hosts: list[Host], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    processes = start(hosts, "python", [run_dir] * 3, LONG)
    wait_for(lambda: last_step(run_dir) > 40, START_S)
    hosts[2].kill()
    assert exit_codes(processes) == [1, 1, -signal.SIGKILL]
    status = read_status(run_dir)
    assert status.state == "failed"
    assert str(status.error).startswith("lost: rank 2 on host2: no answer")
    processes = start(hosts[:2], "python", [run_dir] * 2, LONG)
    wait_for(lambda: len(starts_of(run_dir)) == 2, START_S)
    again_at = starts_of(run_dir)[1]
    wait_for(lambda: last_step(run_dir) > again_at + 40)
    processes[1].send_signal(signal.SIGTERM)
    assert exit_codes(processes) == [143, 143]
    assert read_status(run_dir).state == "preempted"
    assert exit_codes(start(hosts, "python", [run_dir] * 3, LONG)) == [0, 0, 0]
    assert 0 < again_at < starts_of(run_dir)[2] < 600
    assert train_tiny(tmp_path / "straight", LONG) == 0
    assert same_end(run_dir, tmp_path / "straight")


def test_a_slow_network_that_loses_packets_changes_no_loss(
    hosts: list[Host], alone: Path, tmp_path: Path
) -> None:
    del hosts[2]  # two are slow enough
    for host in hosts:
        host.slow_down(delay_s=0.01, loss=0.005)  # each packet passes two wires: 20 ms, 1 %
    run_dirs = apart(tmp_path, hosts)
    fewer = {"train.steps": 8, "eval.every": 8, "checkpoint.every": 8}
    assert exit_codes(start(hosts, "python", run_dirs, {**SETTINGS, **fewer})) == [0, 0]
    expected = {step: loss for step, loss in logged(alone, "train/loss").items() if step <= 8}
    assert len(expected) == 8
    assert logged(run_dirs[0], "train/loss") == pytest.approx(expected, rel=1e-5)
