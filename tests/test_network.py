"""Which interface gloo uses between hosts: that of the host's name, unless it means loopback."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from seqclf.errors import UserError
from seqclf.processes import network
from seqclf.processes.network import (
    INTERFACE,
    address_of_name,
    addresses,
    choose_interface,
    source_address,
)

HERE = {"eth0": ["10.0.0.2", "fe80::1"], "ib0": ["192.168.7.2"]}
# What an address of this host is on the way to each host; None: there is no way.
WAYS = {"host0": "10.0.0.2", "10.9.9.9": "192.168.7.2", "me": "127.0.0.1", "127.0.0.1": "127.0.0.1"}


@pytest.fixture(autouse=True)
def _second_of_two_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERFACE, raising=False)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "host0")):
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "addresses", lambda: HERE)
    monkeypatch.setattr(network, "source_address", WAYS.get)
    monkeypatch.setattr(network, "address_of_name", lambda: "127.0.1.1")


@pytest.mark.parametrize(
    ("master", "elsewhere", "chosen"),
    [
        ("host0", None, "eth0"),
        ("10.9.9.9", None, "ib0"),
        # The main host, whose name means itself: the way to all others.
        ("me", "192.168.7.2", "ib0"),
        # All processes are on this host.
        ("127.0.0.1", "192.168.7.2", None),
        ("::1", "192.168.7.2", None),
        ("localhost", "192.168.7.2", None),
    ],
)
def test_a_name_that_means_loopback_gives_way_to_the_interface_on_the_way(
    master: str,
    elsewhere: str | None,
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MASTER_ADDR", master)
    monkeypatch.setitem(WAYS, network.ELSEWHERE, elsewhere)
    choose_interface()
    assert os.environ.get(INTERFACE) == chosen
    said = capsys.readouterr().err
    line = f"note: gloo uses {chosen}: this host's name, {socket.gethostname()}, means 127.0.1.1"
    assert said.startswith(line) if chosen else not said
    monkeypatch.delenv(INTERFACE, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")  # another process of this host has said so
    choose_interface()
    assert os.environ.get(INTERFACE) == chosen
    assert not capsys.readouterr().err


@pytest.mark.parametrize("own", [None, "127.0.1.1"])
def test_where_no_interface_can_be_chosen_the_user_is_asked(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "me")
    monkeypatch.setattr(network, "address_of_name", lambda: own)
    with pytest.raises(UserError, match=rf"set {INTERFACE} to the .*; here are eth0, ib0"):
        choose_interface()
    monkeypatch.setattr(network, "addresses", lambda: {"eth0": HERE["eth0"]})
    choose_interface()
    assert os.environ[INTERFACE] == "eth0"


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "2"), ("own", "10.0.0.2")]
)
def test_nothing_is_set_on_one_host_or_where_the_name_will_do(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "own":
        monkeypatch.setattr(network, "address_of_name", lambda: value)
    else:
        monkeypatch.setenv(name, value)
    choose_interface()
    assert INTERFACE not in os.environ
    assert not capsys.readouterr().err


def test_the_users_interface_stands_if_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = next(name for name in psutil.net_if_addrs() if name.startswith("lo"))
    monkeypatch.setenv(INTERFACE, loopback)
    choose_interface()
    assert os.environ[INTERFACE] == loopback
    monkeypatch.setenv(INTERFACE, f"{loopback},eth77")
    with pytest.raises(UserError, match=f"{INTERFACE}: eth77: no interface of this host"):
        choose_interface()


def test_an_interface_has_addresses_that_other_hosts_may_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware = SimpleNamespace(family=psutil.AF_LINK, address="02:42:ac:11:00:02")
    four = SimpleNamespace(family=socket.AF_INET, address="10.0.0.2")
    six = SimpleNamespace(family=socket.AF_INET6, address="fe80::1%eth0")
    own = SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")
    found = {"lo": [own], "eth0": [hardware, four, six], "down0": [hardware]}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: found)
    assert addresses() == {"eth0": ["10.0.0.2", "fe80::1"]}


def test_addresses_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert address_of_name() in ("127.0.0.1", "::1")

    def not_found(*_: object, **__: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr("socket.getaddrinfo", not_found)  # a name server may take its time
    assert address_of_name() is None
    assert source_address("no-such-host") is None
