"""The network interface that gloo uses between hosts.

gloo binds to the address that a host's own name means there. Debian's /etc/hosts has 127.0.1.1 for
it, and no other host reaches that address: the processes would wait for each other in vain. So
where the run spans hosts, the interface on the way to MASTER_ADDR takes its place.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from contextlib import suppress

import psutil

from seqclf.errors import UserError

INTERFACE = "GLOO_SOCKET_IFNAME"
# An address that nobody has (RFC 5737). The way to it is the way to everybody else.
ELSEWHERE = "192.0.2.1"


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME where gloo would bind to an address that no other host reaches.

    The first process of each host says so on stderr. Raises UserError if the variable names no
    interface of this host, or if no interface can be chosen.
    """
    if os.environ.get(INTERFACE):
        _check_interface(os.environ[INTERFACE])
        return
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if int(os.environ.get("WORLD_SIZE") or 1) <= num_local:
        return
    own = address_of_name()
    if own is not None and not _is_loopback(own):
        return
    master = os.environ.get("MASTER_ADDR", "localhost")
    source = source_address(master)
    if source is None or _is_loopback(source):
        if _is_local_word(master):
            return  # all processes are on this host, whatever their launcher calls them
        source = source_address(ELSEWHERE)  # the main host, whose name may mean itself
    name = interface_of(source) or _only_interface()
    meaning = f"means {own}" if own else "means no address"
    reason = f"this host's name, {socket.gethostname()}, {meaning} here, and other hosts cannot use"
    if name is None:
        raise UserError(
            f"{reason} that: set {INTERFACE} to the interface that leads to the other hosts; here "
            f"are {', '.join(addresses()) or 'none but loopback'}"
        )
    os.environ[INTERFACE] = name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"note: gloo uses {name}: {reason} that; {INTERFACE} names another interface",
            file=sys.stderr,
            flush=True,
        )


def address_of_name() -> str | None:
    """Return the address that gloo would bind to, as torch chooses it; None: there is none."""
    with suppress(OSError, UnicodeError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            socket.gethostname(), 0, type=socket.SOCK_STREAM
        ):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return str(address[0])
    return None


def source_address(host: str) -> str | None:
    """Return this host's address on the way to another one; sends nothing. None: no way."""
    with suppress(OSError, UnicodeError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, 9, type=socket.SOCK_DGRAM
        ):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return None


def addresses() -> dict[str, list[str]]:
    """Return the addresses of each interface of this host that other hosts may reach."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
    }
    return {
        name: texts for name, texts in found.items() if texts and not any(map(_is_loopback, texts))
    }


def interface_of(address: str | None) -> str | None:
    """Return the interface that has an address."""
    return next((name for name, texts in addresses().items() if address in texts), None)


def _only_interface() -> str | None:
    names = list(addresses())
    return names[0] if len(names) == 1 else None


def _check_interface(text: str) -> None:
    here = psutil.net_if_addrs()
    if missing := [name for name in text.split(",") if name not in here]:
        raise UserError(
            f"{INTERFACE}: {missing[0]}: no interface of this host has that name; here are "
            f"{', '.join(here)}"
        )


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_local_word(host: str) -> bool:
    with suppress(ValueError):
        return _is_loopback(host)
    return host == "localhost"
