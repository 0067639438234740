"""What a command and all processes that it starts would send to other machines: its connections."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from .launching import LIMIT_S, ROOT

CALLS = "connect,sendto,sendmsg,sendmmsg"
INTERNET = re.compile(
    r"sin6?_port=htons\((?P<port>\d+)\).*?"
    r'(?:inet_addr\("(?P<four>[^"]+)"\)|inet_pton\(AF_INET6, "(?P<six>[^"]+)")'
)
RESOLVER = re.compile(r'sun_path="(?P<path>[^"]*resolve[^"]*)"')  # systemd's
DOMAIN = 53  # the port of name servers, which may be on this machine


def connections(
    words: Sequence[str | Path], trace: Path, environment: Mapping[str, str]
) -> list[str]:
    """Run a command; return where it and its processes went, this machine itself left out.

    A look-up of a name counts, whoever answers it. Skip the test where nothing can be traced.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    command = [strace, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(trace)]
    done = subprocess.run(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if "PTRACE" in done.stderr:
        pytest.skip("this user may not trace processes")
    assert done.returncode == 0, done.stdout + done.stderr
    return [place for line in trace.read_text().splitlines() if (place := where_to(line))]


def where_to(line: str) -> str | None:
    """Return where a traced call went: another machine, or whoever resolves names here."""
    if found := RESOLVER.search(line):
        return found["path"]
    if not (found := INTERNET.search(line)):
        return None
    address = ipaddress.ip_address(found["four"] or found["six"])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    is_here = address.is_loopback or address.is_unspecified
    return None if is_here and int(found["port"]) != DOMAIN else f"{address}:{found['port']}"
