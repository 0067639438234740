"""W&B over many sessions: each line once, in order, over kills, uploads and hosts; and sweeps."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from helpers.files import read_metrics, untimed
from helpers.launching import LIMIT_S, ROOT, launch
from helpers.mirrored import (
    FLAGS,
    KEY,
    lines_in,
    of_kind,
    offline_lines,
    read_logs,
    train_and_die,
    train_mirrored,
    train_words,
    with_children,
)
from helpers.ranks import run_mortal_ranks
from helpers.wandb_server import serving

from seqclf.cli.main import main
from seqclf.tracking.mirrors import MIRROR_MODULE

pytestmark = pytest.mark.usefixtures("no_wandb_account")


KILLS = [
    (step, mirror_too, online) for step in (12, 27) for mirror_too in (0, 1) for online in (0, 1)
]
FAST_KILLS = [(12, 1, 1)]


def sync(run_dir: Path, url: str) -> str:
    """Upload a run's logs with W&B's own command; return what it said."""
    logs = sorted(map(str, run_dir.glob("wandb/offline-run-*")))
    for _ in range(2):
        done = launch("wandb", "sync", *logs, WANDB_BASE_URL=url, **KEY)
        assert done.returncode == 0, done.stderr
        # wandb 0.31.0 once read no record of a complete log, on a busy machine; then it read all.
        if "error getting next record: EOF" not in done.stdout + done.stderr:
            break
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("step", "mirror_too", "online"),
    [kill if kill in FAST_KILLS else pytest.param(*kill, marks=pytest.mark.slow) for kill in KILLS],
)
def test_a_killed_run_loses_and_repeats_no_point(
    tmp_path: Path, step: int, mirror_too: bool, online: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint, and after it; W&B's processes killed with it, or not."""
    flags = FLAGS | {"tracking.wandb": "auto"}
    with serving() as server:
        if online:
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        killed = run_mortal_ranks(
            1, train_and_die, tmp_path / "run", flags, step, mirror_too, dict(os.environ)
        )
        assert killed == [-signal.SIGKILL]
        assert main(train_words(tmp_path / "run", flags)) == 0
        lines = read_metrics(tmp_path / "run")
        assert [line["step"] for line in lines] == [10, 20, 20, 30, 40, 40, 50, 60, 60]
        if online:
            [received] = server.runs.values()
            assert received.sent == list(range(len(received.sent)))
            assert untimed(lines_in(list(received.rows.values()))) == lines
            assert received.exit_code == 0
            return
    assert untimed(offline_lines(tmp_path / "run")) == lines
    found = read_logs(tmp_path / "run")
    assert len({record["run_id"] for record in of_kind(found, "run")}) == 1
    exits = [record["exit_code"] for record in of_kind(found, "exit")]
    assert exits == [0] if mirror_too else [1, 0]
    with serving() as server:  # and so does what wandb sync makes of the logs
        said = sync(tmp_path / "run", server.url)
        assert server.runs, said
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert untimed(lines_in(list(received.rows.values()))) == lines


@pytest.mark.slow
def test_where_the_logs_are_lost_the_server_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on on another host."""
    flags = FLAGS | {"tracking.wandb": "online"}
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        environment = dict(os.environ)
        assert run_mortal_ranks(
            1, train_and_die, tmp_path / "run", flags, 27, False, environment
        ) == [-9]
        while not any(received.exit_code for received in server.runs.values()):
            time.sleep(0.1)  # for its mirror to begin
        with (tmp_path / "run" / ".wandb.lock").open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # and to leave
        shutil.rmtree(tmp_path / "run" / "wandb")
        [received] = server.runs.values()
        assert lines_in(list(received.rows.values()))[-1]["step"] == 20
        assert main(train_words(tmp_path / "run", flags)) == 0
        assert received.sent == list(range(len(received.sent)))
        assert untimed(lines_in(list(received.rows.values()))) == read_metrics(tmp_path / "run")


def mirror_session(run_dir: Path, mode: str, environment: dict[str, str]) -> str:
    """Mirror what metrics.jsonl holds by hand; return what was said."""
    command = [sys.executable, "-m", MIRROR_MODULE, "wandb", str(run_dir)]
    environment = environment | {"WANDB_MODE": mode}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    return done.stdout


def kill_online(run_dir: Path, environment: dict[str, str], received: Callable[[], int]) -> None:
    """Mirror beside a trainer, and kill all processes of it once the server has a new row."""
    before = received()
    command = [
        sys.executable,
        "-m",
        "seqclf.tracking.mirror",
        "wandb",
        str(run_dir),
        str(os.getpid()),
    ]
    environment = environment | {"WANDB_MODE": "online"}
    with psutil.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0) as mirror:
        end = time.monotonic() + 30
        while received() == before and time.monotonic() < end:
            time.sleep(0.05)
        for process in with_children(mirror):
            process.kill()
    assert received() > before


def tear_last_log(run_dir: Path) -> None:
    """Leave what a kill of the mirror leaves: a log that ends anywhere."""
    *_, log = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    for mark in log.parent.glob("rows-below-*"):
        mark.unlink()
    os.truncate(log, log.stat().st_size - 3)


SESSIONS = [
    "offline sync offline sync",
    "offline sync offline offline online sync",
    "offline online sync offline sync",
    "offline torn offline sync",
    "offline sync offline torn offline sync",
    "offline torn sync offline-refused online",
    "killed offline-refused online offline sync",
    "killed killed online",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", SESSIONS)
def test_each_line_is_there_once_after_any_sessions(tmp_path: Path, words: str) -> None:
    """Sessions online and offline, whole, torn or killed, and uploads at any time between them."""
    run_dir = tmp_path / "run"
    assert train_mirrored(run_dir, tracking__wandb="disabled") == 0
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace("wandb: disabled", "wandb: auto"))
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    status = (run_dir / "status.json").read_bytes()
    (run_dir / "status.json").write_bytes(status.replace(b"finished", b"running"))
    with serving() as server:
        environment = os.environ | KEY | {"WANDB_BASE_URL": server.url}
        todo, shown = words.split(), 1
        while todo:
            word = todo.pop(0)
            if word == "torn":
                tear_last_log(run_dir)
                continue
            if word == "sync":
                sync(run_dir, server.url)
                continue
            shown = min(shown + 2, len(lines))
            if not {"online", "offline", "killed"} & set(todo):  # the last session: all is there
                shown = len(lines)
                (run_dir / "status.json").write_bytes(status)
            (run_dir / "metrics.jsonl").write_bytes(b"".join(lines[:shown]))
            if word == "killed":
                kill_online(
                    run_dir, environment, lambda: sum(len(r.rows) for r in server.runs.values())
                )
                continue
            said = mirror_session(run_dir, word.removesuffix("-refused"), environment)
            assert ("nobody knows" in said) == word.endswith("-refused"), said
            time.sleep(1)  # W&B names its logs by the second
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == read_metrics(run_dir, timed=True)
        tables = [row for row in received.rows.values() if "test/classes" in row]
        assert len(tables) == 1


# ---- sweeps


@pytest.mark.parametrize(
    ("processes", "num_trials"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_runs_as_wandb_agent_runs_it(
    tmp_path: Path, processes: int, num_trials: int
) -> None:
    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "mnist.yaml").read_text())
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    quick = ["--data.name=digits", "--train.steps=20", "--run-dir", str(tmp_path / "runs")]
    words = sweep["command"]
    program, arguments = words.index("${program}"), words.index("${args}")
    if processes == 2:
        words[:program] = launcher
        arguments += len(launcher) - program
    words[arguments:arguments] = quick
    trials = [
        {"optim.lr": 0.02, "model.hidden_size": 64, "train.batch_size": 128},
        {"optim.lr": 0.002, "model.hidden_size": 96, "train.batch_size": 64},
    ][:num_trials]
    assert set(trials[0]) == set(sweep["parameters"])
    with serving() as server:
        server.sweep, server.trials = sweep, list(trials)
        home = {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "CACHE", "DATA")}
        environment = KEY | home | {"WANDB_BASE_URL": server.url, "WANDB_DIR": str(tmp_path)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = launch("wandb", "agent", "me/p/abc", ACCELERATE_USE_CPU="true", **environment)
        assert done.returncode == 0, done.stderr
        names = [f"trial{number}" for number in reversed(range(num_trials))]
        assert set(server.runs) == set(names)
        for name, settings in zip(names, trials, strict=True):
            run_dir, received = tmp_path / "runs" / name, server.runs[name]
            lines = read_metrics(run_dir, timed=True)
            rows = list(received.rows.values())
            assert lines_in(rows) == lines
            config = yaml.safe_load((run_dir / "config.yaml").read_text())
            for setting, value in settings.items():
                section, _, key = setting.partition(".")
                assert config[section][key] == value
                assert json.loads(received.config)[setting]["value"] == value
            best = max(line.get("val/accuracy", 0) for line in lines)
            assert received.summary["objective"] == best
            assert json.loads((run_dir / "run.json").read_text())["world_size"] == processes
