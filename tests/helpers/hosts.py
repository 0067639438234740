"""Hosts on one machine: network namespaces on a bridge, each with a name and an /etc/hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.launching import PROGRAMS, ROOT, clean_environment

WIRE = Path(__file__).with_name("slow_wire.py")
# As `hostname` does it, but without that program.
AS_HOST = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'


class Host(NamedTuple):
    """A network namespace; eth0 is its only interface besides loopback."""

    name: str
    namespace: str
    switch: str
    """The namespace that has the other end of the host's cable."""
    address: str
    started: list[subprocess.Popen[str]]
    wires: list[subprocess.Popen[bytes]]

    def start(
        self, *words: str | Path, log: Path, variables: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        """Start a program of the virtual environment on this host."""
        entered = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c"]
        program = [str(PROGRAMS / words[0]), *map(str, words[1:])]
        launchers = ("GLOO", "NCCL", "PET", "MASTER", "WORLD", "RANK", "LOCAL")
        environment = clean_environment(*launchers)
        environment |= {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        environment |= variables
        with log.open("a") as file:
            process = subprocess.Popen(
                [*entered, AS_HOST, self.name, *program],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=file,
                text=True,
            )
        self.started.append(process)
        return process

    def unplug(self) -> None:
        """Take the cable out: packets get lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.name, "down")

    def kill(self) -> None:
        """Kill all processes of the host."""
        for process in _ip("netns", "pids", self.namespace).split():
            os.kill(int(process), signal.SIGKILL)
        for started in self.started:
            started.wait()

    def leave(self) -> None:
        """End all that runs for the host."""
        for wire in self.wires:
            wire.kill()
            wire.wait()
        self.kill()

    def slow_down(self, delay_s: float, loss: float) -> None:
        """Have each packet from and to this host arrive later, or with a probability never."""
        wire, far = f"{self.name}-wire", f"{self.name}-far"
        _ip("netns", "exec", self.namespace, sys.executable, str(WIRE), "eth0")
        _ip("-n", self.switch, "link", "add", wire, "up", "type", "veth", "peer", "name", far)
        _ip("-n", self.switch, "link", "set", self.name, "nomaster")
        _ip("-n", self.switch, "link", "set", far, "up", "master", "bridge")
        words = [sys.executable, str(WIRE), self.name, wire, str(delay_s), str(loss)]
        self.wires.append(subprocess.Popen(["ip", "netns", "exec", self.switch, *words]))


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def connected_hosts(count: int) -> Iterator[list[Host]]:
    """Yield hosts that reach each other by name and address, in a network of their own.

    As on Debian each host's own name means 127.0.1.1 to itself. Skips the test where namespaces
    are not allowed.
    """
    if sys.platform != "linux" or os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need Linux, root and iproute2")
    # The bridge is in a namespace, too: nothing is left in that of the machine.
    prefix = f"seqclf-{os.getpid()}"
    switch = f"{prefix}-switch"
    hosts = [
        Host(f"host{n}", f"{prefix}-{n}", switch, f"10.77.0.{n + 1}", [], []) for n in range(count)
    ]
    with ExitStack() as undo:
        for namespace in (switch, *(host.namespace for host in hosts)):
            _add_namespace(namespace, undo)
        _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for host in hosts:
            _connect(host, hosts, undo)
        yield hosts


def _add_namespace(name: str, undo: ExitStack) -> None:
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed: {error.stderr.strip()}")
    undo.callback(_ip, "netns", "del", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _connect(host: Host, hosts: Sequence[Host], undo: ExitStack) -> None:
    _ip("-n", host.switch, "link", "add", host.name, "type", "veth",
        "peer", "name", "eth0", "netns", host.namespace)  # fmt: skip
    _ip("-n", host.switch, "link", "set", host.name, "up", "master", "bridge")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.namespace, "link", "set", "eth0", "up")
    # `ip netns exec` puts this file over /etc/hosts.
    folder = Path("/etc/netns") / host.namespace
    folder.mkdir(parents=True)
    undo.callback(shutil.rmtree, folder)
    others = [f"{other.address} {other.name}" for other in hosts if other != host]
    lines = ["127.0.0.1 localhost", f"127.0.1.1 {host.name}", *others]
    (folder / "hosts").write_text("".join(f"{line}\n" for line in lines))
    undo.callback(host.leave)
