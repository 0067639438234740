"""Nothing leaves the machine unasked: no connection and no look-up of a name, unless W&B is online.

W&B's client posts telemetry to its maker also where a run is offline by `wandb.init` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.launching import LIMIT_S, PROGRAMS, as_words, clean_environment
from helpers.mirrored import KEY, train_mirrored
from helpers.training import train_tiny
from helpers.wandb_server import serving
from helpers.watching import connections, where_to

SHORT = {"train.steps": "20", "device": "cpu", "train.threads": "1"}
OFFLINE_BY_HAND = """
import wandb
run = wandb.init(mode="offline")
run.log({"table": wandb.Table(["column"], [[1]])})
run.finish()
"""
LOOKS_UP_AND_CONNECTS = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))  # sends nothing
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
try:
    socket.getaddrinfo("name.invalid", 443)
except OSError:
    pass
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of a user without any account."""
    homes = {name: str(tmp_path) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    return clean_environment("HF_", "NETRC", "MPL", "XDG", "PYTEST") | homes


def test_the_watch_sees_connections_and_look_ups(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    words = [sys.executable, "-c", LOOKS_UP_AND_CONNECTS]
    there, *look_ups = connections(words, tmp_path / "trace", environment)
    assert there == "192.0.2.1:9"
    assert look_ups
    assert all(place.endswith(":53") or "resolve" in place for place in look_ups)


FOUR = 'connect(3, {sa_family=AF_INET, sin_port=htons(PORT), sin_addr=inet_addr("ADDRESS")}, 16)'
SIX = (
    "connect(3, {sa_family=AF_INET6, sin6_port=htons(PORT), sin6_flowinfo=htonl(0), "
    'inet_pton(AF_INET6, "ADDRESS", &sin6_addr), sin6_scope_id=0}, 28 <unfinished ...>'
)
SENT = (
    'sendto(3, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(PORT), sin_addr=inet_addr("ADDRESS")'
)
LOCAL = 'connect(3, {sa_family=AF_UNIX, sun_path="ADDRESS"}, 42) = 0'


@pytest.mark.parametrize(
    ("call", "address", "port", "is_away"),
    [
        (FOUR, "10.0.0.1", 443, True),
        (FOUR, "127.0.0.1", 443, False),
        (FOUR, "127.0.0.53", 53, True),  # it passes the question on
        (SIX, "2001:db8::1", 443, True),
        (SIX, "::1", 443, False),
        (SIX, "::ffff:127.0.0.1", 443, False),
        (SIX, "::ffff:10.0.0.1", 443, True),
        (SENT, "10.0.0.1", 443, True),
        (LOCAL, "/run/systemd/resolve/io.systemd.Resolve", 0, True),
        (LOCAL, "/tmp/wandb-1-2-3/socket", 0, False),
    ],
)
def test_a_traced_call_leaves_the_machine_or_not(
    call: str, address: str, port: int, is_away: bool
) -> None:
    place = where_to(f"17 {call.replace('ADDRESS', address).replace('PORT', str(port))}")
    assert (place is not None) == is_away
    assert place is None or address.removeprefix("::ffff:") in place


# ---- nothing leaves


@pytest.mark.slow
def test_the_default_run_connects_to_nobody(tmp_path: Path, environment: dict[str, str]) -> None:
    """As `make train` runs it: W&B, without a key, is offline."""
    words = ["launch", "launch/train.py", "--config", "configs/digits.yaml", *as_words(SHORT)]
    words += ["--run-dir", str(tmp_path / "run"), f"--tracking.finish_s={LIMIT_S}"]
    trace = tmp_path / "trace"
    assert connections([PROGRAMS / "accelerate", *words], trace, environment) == []
    assert list(tmp_path.glob("run/wandb/offline-run-*"))
    assert (tmp_path / "run" / "report.html").exists()
    assert "/wandb-" in trace.read_text()  # W&B's own process was watched, too


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["wandb=offline", "wandb=disabled", "tensorboard=true"])
def test_a_run_with_trackers_connects_to_nobody(
    tmp_path: Path, flag: str, environment: dict[str, str]
) -> None:
    words = [sys.executable, "launch/train.py", "--data.name=digits", *as_words(SHORT)]
    words += [f"--tracking.{flag}", "--run-dir", str(tmp_path / "run")]
    assert connections(words, tmp_path / "trace", environment) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "doctor",
        "advise --data.name digits --gpus 2",
        "predict RUN --count 5",
        "evaluate RUN",
        "report RUN",
        "runs RUN",
        "checkpoints RUN",
    ],
)
def test_a_command_connects_to_nobody(
    tmp_path: Path, words: str, environment: dict[str, str]
) -> None:
    assert train_tiny(tmp_path / "run", {"train.steps": 3}) == 0
    command = [sys.executable, "-m", "seqclf", *words.replace("RUN", f"{tmp_path}/run").split()]
    assert connections(command, tmp_path / "trace", environment) == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_reports_of_an_offline_run_unless_it_is_told_not_to(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A canary: once it fails, the two tests of W&B here could not fail any more."""
    words = [sys.executable, "-c", OFFLINE_BY_HAND]
    environment |= {"WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    assert connections(words, tmp_path / "trace", environment)


@pytest.mark.usefixtures("no_wandb_account")
@pytest.mark.parametrize(
    "tracking",
    [
        pytest.param("auto", marks=pytest.mark.slow),
        pytest.param("offline", marks=pytest.mark.slow),
        pytest.param("by WANDB_MODE", marks=pytest.mark.slow),
        "online",
    ],
)
def test_wandb_posts_to_its_server_only_online(
    tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without strace, too: here the server is one of ours."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        asked = tracking
        if tracking == "online":
            monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        if tracking == "by WANDB_MODE":
            monkeypatch.setenv("WANDB_MODE", "Offline")
            asked = "auto"
        assert train_mirrored(tmp_path / "run", tracking__wandb=asked) == 0
        assert bool(server.requests) == (tracking == "online")
    assert list(tmp_path.glob("run/wandb/*run-2*/*.wandb"))
