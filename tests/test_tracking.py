from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seqclf import runtime
from seqclf.config import Config, Train
from seqclf.config import Tracking as Options
from seqclf.tracking import Tracking, wandb_mode

KEY = {"WANDB_API_KEY": "x" * 40}
OURS = {"WANDB_BASE_URL": "https://wandb.example.org/"}


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


def login(host: str) -> str:
    return f"machine {host} login user password key\n"


@pytest.mark.parametrize(
    ("asked", "environment", "netrc", "mode"),
    [
        ("auto", {}, None, "offline"),
        ("auto", {}, "", "offline"),
        ("auto", {}, login("api.wandb.ai"), "online"),
        ("auto", {}, login("example.org"), "offline"),
        ("auto", {}, "not a netrc file {\n", "offline"),
        ("auto", KEY, None, "online"),
        ("auto", {"WANDB_API_KEY": ""}, None, "offline"),
        ("auto", OURS, login("wandb.example.org"), "online"),
        ("auto", OURS, login("api.wandb.ai"), "offline"),
        ("auto", KEY | {"WANDB_MODE": "disabled"}, None, None),
        ("offline", KEY | {"WANDB_MODE": "online"}, None, "offline"),
        ("online", {"WANDB_MODE": "offline"}, None, "online"),
        ("disabled", KEY, None, "disabled"),
    ],
)
def test_wandb_is_online_if_asked_or_with_a_key(
    asked: str,
    environment: dict[str, str],
    netrc: str | None,
    mode: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    assert wandb_mode(asked) == mode


class Broken:
    """A mirror that cannot log."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, _: dict[str, float]) -> None:
        self.calls += 1
        raise ConnectionError("the disk is full")


def test_a_mirror_that_fails_is_reported_once_and_dropped() -> None:
    said: list[str] = []
    tracking, mirror = Tracking(said.append, enabled=True), Broken()
    tracking._wandb = mirror
    for step in (1, 2, 3):
        tracking.log(step, {"train/loss": step / 2})
    tracking.close()
    assert mirror.calls == 1
    assert said == ["warning: W&B failed and is left out from here on: the disk is full"]


def test_other_processes_and_disabled_ones_open_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(Tracking, "_open_wandb", lambda *words: opened.append(words))
    silent = Tracking(print, enabled=False)
    silent.open(Options(wandb="offline"), tmp_path, {})
    silent.log(1, {"train/loss": 0.5})
    silent.close()
    Tracking(print, enabled=True).open(Options(wandb="disabled"), tmp_path, {})
    assert opened == []
    Tracking(print, enabled=True).open(Options(wandb="offline"), tmp_path, {})
    assert len(opened) == 1


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    [offline_run] = (run_dir / "wandb").glob("offline-run-*")
    program = Path(sys.executable).parent / "wandb"
    command = [str(program), "leet", "inspect", "--json", str(offline_run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line[kind] for line in lines if line["type"] == kind]


def test_an_offline_run_holds_every_value(tmp_path: Path) -> None:
    runtime.start(Config(device="cpu", train=Train(threads=1)))
    run_dir = tmp_path / "mnist-optim.lr=0.005"
    run_dir.mkdir()
    config = {"seed": 3, "optim.betas": [0.9, 0.999], "train.steps": None, "data.name": "digits"}
    logged = [
        (50, {"train/loss": 0.5, "train/lr": 1e-3}),
        (100, {"train/loss": 0.125, "train/lr": 5e-4, "train/grad_norm": 2.5}),
        (100, {"test/loss": 0.75, "test/accuracy": 1 / 3}),
    ]
    said: list[str] = []
    tracking = Tracking(said.append, enabled=True)
    tracking.open(Options(wandb="offline", project="mine"), run_dir, config)
    for step, metrics in logged:
        tracking.log(step, metrics)
    tracking.close(exit_code=3)

    assert said == [f"wandb       offline; to upload: wandb sync {run_dir}/wandb/offline-run-*"]
    found = [
        {name: value for name, value in record["item"].items() if not name.startswith("_")}
        for record in records(run_dir, "history")
    ]
    assert found == [{"global_step": step, **metrics} for step, metrics in logged]
    assert config in [record.get("update") for record in records(run_dir, "config")]
    [run] = records(run_dir, "run")
    assert (run["project"], run["display_name"]) == ("mine", run_dir.name)
    assert {"glob_name": "*", "step_metric": "global_step"}.items() <= records(run_dir, "metric")[
        -1
    ].items()
    assert [record["exit_code"] for record in records(run_dir, "exit")] == [3]
