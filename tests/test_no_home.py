"""A key for W&B that cannot be looked for is no key: no home, no user name, a broken .netrc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.launching import ROOT, as_words, clean_environment
from helpers.training import tiny_flags

from seqclf.cli.doctor import check_wandb
from seqclf.config.load import load_config
from seqclf.tracking.mirrors import choose_wandb

pytestmark = pytest.mark.usefixtures("no_wandb_account")

LOGIN = "machine api.wandb.ai login user password secret\n"
# A container's user that has neither HOME nor an entry in /etc/passwd.
NAMELESS = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = nobody
from seqclf.cli.main import main
run, *words = sys.argv[1:]
for command in ("doctor", "train", "evaluate", "report"):
    settings = [run] if command in ("evaluate", "report") else [*words, "--run-dir", run]
    print(f"# {command}", flush=True)
    assert main([command, *settings]) == 0, command
"""


def test_without_a_home_there_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # nobody with this user's number
    assert choose_wandb("auto") == (
        "offline",
        "no API key, and no home directory to look for one",
    )


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (LOGIN.encode(), "online", "there is an API key"),
        (b"machine example.org login me password gr\xfc\xdfe\n", "offline", "{0} is not UTF-8"),
        (b"macine api.wandb.ai\n", "offline", "{0}, line 1 is not as in a .netrc file"),
        (b"machine example.org login a password b\n", "offline", ""),
        (None, "offline", ""),
    ],
)
def test_a_netrc_that_cannot_be_read_is_no_key(
    content: bytes | None, mode: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "netrc"  # which the fixture names
    if content is not None:
        path.write_bytes(content)
    said = reason.format(path)
    expected = said if mode == "online" else "no API key" + f": {said}" * bool(said)
    assert choose_wandb("auto") == (mode, expected)
    [finding] = check_wandb(load_config(None, {})[0])
    assert (finding.text, finding.remedy) == (f"{mode} ({expected})", None)


def test_what_a_netrc_says_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"{LOGIN}hunter2 {LOGIN}")
    mode, reason = choose_wandb("auto")
    assert mode == "offline"
    assert "hunter2" not in reason


def test_a_pipe_or_a_folder_as_netrc_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "netrc")  # nobody writes to it
    assert choose_wandb("auto") == ("offline", "no API key")
    (tmp_path / "netrc").unlink()
    (tmp_path / "netrc").mkdir()
    assert choose_wandb("auto") == ("offline", "no API key")


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("OFFLINE", "offline", "WANDB_MODE"),
        ("Disabled", "disabled", "WANDB_MODE"),
        ("DryRun", "offline", "WANDB_MODE"),
        ("run", "online", "WANDB_MODE"),
        ("nonsense", "offline", "WANDB_MODE is 'nonsense', which W&B does not know"),
        ("", "offline", "no API key"),
    ],
)
def test_wandb_mode_is_read_in_any_case(
    text: str, mode: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", text)
    monkeypatch.setenv("WANDB_BASE_URL", "")
    assert choose_wandb("auto") == (mode, reason)
    assert choose_wandb("online") == ("online", "tracking.wandb: online")


@pytest.mark.slow
def test_a_user_without_name_and_home_trains_and_evaluates(tmp_path: Path) -> None:
    flags = tiny_flags({"tracking.wandb": "auto", "report": True}, train__steps=3)
    words = [sys.executable, "-c", NAMELESS, str(tmp_path / "run"), *as_words(flags)]
    environment = clean_environment("HOME", "NETRC", "XDG") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "wandb       offline (no API key, and no home directory to look for one)" in done.stdout
    for part in ("# doctor", "# train", "# evaluate", "# report", "test/accuracy", "report.html"):
        assert part in done.stdout
