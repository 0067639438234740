"""Mirrors: what W&B and TensorBoard were sent is what metrics.jsonl says, whatever happened."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, launch, read_metrics, run_mortal_ranks, toy_dataset
from sklearn.metrics import precision_recall_fscore_support
from test_full import mount
from wandb_server import serving

from seqclf import cli
from seqclf import train as training
from seqclf.config import Tracking as Options
from seqclf.mirror import Sent, class_table, follow, mend
from seqclf.tracking import Tracking, wandb_mode

KEY = {"WANDB_API_KEY": "x" * 40}
OURS = {"WANDB_BASE_URL": "https://wandb.example.org/"}


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
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
        ("auto", KEY | {"WANDB_MODE": "disabled"}, None, "disabled"),
        ("auto", KEY | {"WANDB_MODE": "dryrun"}, None, "offline"),
        ("auto", KEY | {"WANDB_DISABLED": "true"}, None, "disabled"),
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


FLAGS = {
    "device": "cpu",
    "train.threads": "1",
    "data.name": "digits",
    "model.hidden_size": "16",
    "train.steps": "60",
    "eval.every": "20",
    "checkpoint.every": "15",
    "log.every": "10",
    "tracking.wandb": "offline",
}


def words_for(run_dir: Path, flags: dict[str, str]) -> list[str]:
    return ["train", "--run-dir", str(run_dir), *(f"--{k}={v}" for k, v in flags.items())]


def run(run_dir: Path, **flags: str) -> int:
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return cli.main(words_for(run_dir, FLAGS | given))


def mirrors() -> list[psutil.Process]:
    """The mirrors that this process has started."""
    children = psutil.Process().children()
    return [child for child in children if "seqclf.mirror" in child.cmdline()]


def die(run_dir: Path, flags: dict[str, str], step: int, *, mirror_too: bool) -> None:
    """Train, and be killed in a step, between two lines of the log."""
    honest = training.train_step

    def train_step(*arguments: Any) -> Any:
        if arguments[3].step == step and os.environ.get("RANK", "0") == "0":
            if mirror_too:
                time.sleep(3)  # it has sent something
            for mirror in mirrors() if mirror_too else []:
                for process in [*mirror.children(recursive=True), mirror]:
                    process.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments)

    setattr(training, "train_step", train_step)  # noqa: B010
    cli.main(words_for(run_dir, flags))


def records(run_dir: Path) -> list[list[dict[str, Any]]]:
    """What W&B's own reader finds in each of its logs, in the order that wandb sync takes."""
    logs = sorted(run_dir.glob("wandb/*run-2*/*.wandb"), key=lambda log: log.parent.name[-24:])
    found = []
    for log in logs:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log.parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    return found


def of_kind(found: list[list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for log in found for record in log if record["type"] == kind]


def lines_in(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the lines of metrics.jsonl that they were; those of tables left out."""
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    lines = [
        {
            "step" if name == "global_step" else name: None if value == "NaN" else value
            for name, value in row.items()
            if not name.startswith("_") and name != "objective"
        }
        for row in rows
    ]
    return [
        line
        for line in lines
        if not any("._" in name or isinstance(value, dict) for name, value in line.items())
    ]


def offline_lines(run_dir: Path) -> list[dict[str, Any]]:
    return lines_in([record["item"] for record in of_kind(records(run_dir), "history")])


def summary_of(found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for record in of_kind(found, "summary"):
        summary |= record.get("update", {})
    return summary


# ---- runs of all kinds, offline


def test_a_straight_run_is_mirrored_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "mine"
    about = {"tracking__tags": "[a, b]", "tracking__notes": "why", "tracking__group": "g"}
    assert run(run_dir, tracking__artifact="true", tracking__project="p", **about) == 0
    said = capfd.readouterr().out
    assert f"wandb       offline; to upload: wandb sync {run_dir}/wandb/offline-run-*" in said
    assert "warning" not in said

    lines = read_metrics(run_dir, timed=True)
    found = records(run_dir)
    assert len(found) == 1
    assert offline_lines(run_dir) == lines
    keys = {"train/seconds_per_step_p50", "train/seconds_per_step_p95", "train/data_wait_share"}
    assert all(keys <= set(line) for line in lines if "train/loss" in line)

    config = {name: value for r in of_kind(found, "config") for name, value in r["update"].items()}
    facts = json.loads((run_dir / "run.json").read_text())
    facts.pop("weights_sha256")
    stored = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["optim.lr"] == stored["optim"]["lr"]
    assert config["train.steps"] == 60
    assert facts["run_id"] == of_kind(found, "run")[0]["run_id"]
    assert {name: config[name] for name in facts} == facts  # precision, world size, data ...
    assert facts["num_parameters"] == 4 * 16 * (8 + 16 + 2) + 17 * 10

    summary = summary_of(found)
    evaluated = [line for line in lines if "test/loss" in line]
    for name, best in (("accuracy", max), ("macro_f1", max), ("loss", min)):
        values = [line[f"test/{name}"] for line in evaluated]
        assert summary[f"test/{name}"] == {best.__name__: best(values), "last": values[-1]}
    [about_run] = of_kind(found, "run")
    assert (about_run["project"], about_run["display_name"]) == ("p", "mine")
    assert (about_run["tags"], about_run["notes"]) == (["a", "b"], "why")
    assert about_run["run_group"] == "g"
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [0]
    axes = [r for r in of_kind(found, "metric") if r.get("step_metric")]
    assert {r["step_metric"] for r in axes} == {"global_step"}

    artifacts = {r["name"]: r for r in of_kind(found, "artifact")}
    model = artifacts.pop(f"model-{facts['run_id']}")
    assert model["aliases"] == ["latest"]
    assert {c["path"] for c in model["manifest"]["contents"]} == {
        "config.json",
        "model.safetensors",
    }
    for record in artifacts.values():  # all that is to be uploaded lies in the run's directory
        for content in record["manifest"]["contents"]:
            assert Path(content["local_path"]).is_relative_to(run_dir)


def test_tables_show_confusion_classes_and_mistakes(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    assert run(run_dir) == 0
    [media] = run_dir.glob("wandb/offline-run-*/files/media/table/test")
    tables = {file.name.split("_")[0]: json.loads(file.read_text()) for file in media.iterdir()}
    evaluation = json.loads((run_dir / "evaluation" / "test.json").read_text())
    confusion = np.array(evaluation["confusion"])
    names = evaluation["classes"]
    cells = {(truth, guess): count for truth, guess, count in tables["confusion"]["data"]}
    assert [[cells[t, g] for g in names] for t in names] == confusion.tolist()

    pairs = [(t, g) for (t, g), count in cells.items() for _ in range(count)]
    truths, guesses = zip(*pairs, strict=True)
    expected = precision_recall_fscore_support(truths, guesses, labels=names, zero_division=0)
    assert tables["classes"]["columns"] == ["class", "precision", "recall", "f1", "support"]
    columns = list(zip(*tables["classes"]["data"], strict=True))
    assert columns[0] == tuple(names)
    np.testing.assert_allclose(np.array(columns[1:], dtype=float), expected)

    mistakes = tables["mistakes"]
    assert mistakes["columns"] == ["example", "truth", "guess", "probability", "input"]
    assert [row[:4] for row in mistakes["data"]] == [
        [m["example"], m["truth"], m["guess"], m["probability"]] for m in evaluation["mistakes"]
    ]
    [artifact] = [r for r in of_kind(records(run_dir), "artifact") if "testmistakes" in r["name"]]
    drawn = [c["local_path"] for c in artifact["manifest"]["contents"] if c["path"].endswith("png")]
    assert len({Path(path).read_bytes() for path in drawn}) == len(mistakes["data"]) == 16


@pytest.mark.parametrize("when", ["best", "never"])
def test_tables_are_sent_when_asked(tmp_path: Path, when: str) -> None:
    flags = {"data.val_fraction": "0.2", "checkpoint.keep_best": "true", "tracking.tables": when}
    flags = {name.replace(".", "__"): value for name, value in flags.items()}
    assert run(tmp_path / "mine", **flags) == 0
    lines = read_metrics(tmp_path / "mine", timed=True)
    assert offline_lines(tmp_path / "mine") == lines  # with the test of the best weights
    rows = [record["item"] for record in of_kind(records(tmp_path / "mine"), "history")]
    steps = [row["global_step"] for row in rows if "val/classes._type" in row]
    assert bool(steps) == (when == "best")
    tested = [row for row in rows if "test/classes._type" in row]
    assert len(tested) == (when == "best")


@pytest.mark.parametrize(("step", "mirror_too"), [(12, False), (12, True), (27, False), (27, True)])
@pytest.mark.parametrize("online", [False, True])
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
            1, dying, tmp_path / "run", flags, step, mirror_too, dict(os.environ)
        )
        assert killed == [-signal.SIGKILL]
        assert cli.main(words_for(tmp_path / "run", flags)) == 0
        lines = read_metrics(tmp_path / "run", timed=True)
        assert [line["step"] for line in lines] == [10, 20, 20, 30, 40, 40, 50, 60, 60]
        if online:
            [received] = server.runs.values()
            assert received.sent == list(range(len(received.sent)))
            assert lines_in(list(received.rows.values())) == lines
            assert received.exit_code == 0
            return
    assert offline_lines(tmp_path / "run") == lines
    found = records(tmp_path / "run")
    assert len({record["run_id"] for record in of_kind(found, "run")}) == 1
    exits = [record["exit_code"] for record in of_kind(found, "exit")]
    assert exits == [0] if mirror_too else [1, 0]
    with serving() as server:  # and so does what wandb sync makes of the logs
        logs = sorted(map(str, (tmp_path / "run").glob("wandb/offline-run-*")))
        synced = launch("wandb", "sync", *logs, WANDB_BASE_URL=server.url, **KEY)
        assert synced.returncode == 0, synced.stderr
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == lines


def dying(
    run_dir: Path, flags: dict[str, str], step: int, mirror_too: bool, environment: dict[str, str]
) -> None:
    os.environ |= {k: v for k, v in environment.items() if k.startswith(("WANDB", "NETRC"))}
    die(run_dir, flags, step, mirror_too=mirror_too)


def test_where_the_logs_are_lost_the_server_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on on another host."""
    flags = FLAGS | {"tracking.wandb": "online"}
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        environment = dict(os.environ)
        assert run_mortal_ranks(1, dying, tmp_path / "run", flags, 27, False, environment) == [-9]
        while not any(received.exit_code for received in server.runs.values()):
            time.sleep(0.1)  # for its mirror to begin
        with (tmp_path / "run" / ".wandb.lock").open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)  # and to leave
        shutil.rmtree(tmp_path / "run" / "wandb")
        [received] = server.runs.values()
        assert lines_in(list(received.rows.values()))[-1]["step"] == 20
        assert cli.main(words_for(tmp_path / "run", flags)) == 0
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == read_metrics(tmp_path / "run", timed=True)


def test_a_preempted_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes get the signal, as a batch system sends it."""
    honest = training.train_step

    def train_step(*arguments: Any) -> Any:
        if arguments[3].step == 27:
            assert mirrors()
            for mirror in mirrors():
                assert mirror.nice() == 19
                assert os.getsid(mirror.pid) == os.getsid(0)  # see tracking.py
                for process in [*mirror.children(recursive=True), mirror]:
                    process.send_signal(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        return honest(*arguments)

    monkeypatch.setattr(training, "train_step", train_step)
    assert run(tmp_path / "run") == 143
    [log] = records(tmp_path / "run")
    assert [record["exit_code"] for record in of_kind([log], "exit")] == [143]
    assert any(record["type"] == "preempting" for record in log)
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    monkeypatch.setattr(training, "train_step", honest)
    assert run(tmp_path / "run") == 0
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    assert run(tmp_path / "run", optim__lr="1e38", train__max_skipped="5", optim__clip="null") == 2
    found = records(tmp_path / "run")
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [2]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert summary_of(found)["error"] == status["error"]
    assert "steps were skipped" in status["error"]


def test_a_crash_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run")
    found = records(tmp_path / "run")
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [1]
    assert "ZeroDivisionError" in summary_of(found)["error"]


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    words = words_for(tmp_path / "run", FLAGS)[1:]
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "launch/train.py", *words]
    done = launch(*command, ACCELERATE_USE_CPU="true", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "run")
    assert len(found) == 1
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    assert of_kind(found, "config")[0]["update"]["world_size"] == 2


def test_what_the_mirror_lacks_is_sent_later(tmp_path: Path) -> None:
    """A run that was trained without W&B, too."""
    run_dir = tmp_path / "run"
    assert run(run_dir, tracking__wandb="disabled") == 0
    assert not (run_dir / "wandb").exists()
    command = [sys.executable, "-m", "seqclf.mirror", "wandb", str(run_dir)]
    environment = os.environ | {"WANDB_MODE": "offline"}
    for _ in range(2):  # the second time there is nothing to send
        subprocess.run(command, check=True, env=environment, timeout=60)
        assert offline_lines(run_dir) == read_metrics(run_dir, timed=True)
    found = records(run_dir)
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [0, 0]


# ---- mirrors that fail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def init(**_): raise RuntimeError('no luck')", "failed and is left out"),
        ("import sys; sys.exit(3)", None),
        ("import time; time.sleep(3600)", "was not ready 1 s after the end"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGSTOP)", "was not ready 1 s after"),
    ],
    ids=["raises", "leaves", "blocks", "stops"],
)
def test_a_mirror_that_fails_leaves_the_training_alone(
    tmp_path: Path,
    code: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path / "straight", tracking__wandb="disabled") == 0
    capfd.readouterr()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(
        f"class Settings:\n    def __init__(self, **_): 0\n{code}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    seconds = "1" if said and "not ready" in said else "30"  # to be waited for, or plenty
    assert run(tmp_path / "run", tracking__finish_s=seconds) == 0
    warnings = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
    assert mirrors() == []
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
    hashes = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "straight")
    ]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]


def test_nobody_waits_for_a_mirror_where_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "run", tracking__wandb="disabled") == 0
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text("import time; time.sleep(3600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    tracking = Tracking(print, enabled=True)
    tracking.open(Options(wandb="offline", finish_s=3600), tmp_path / "run")
    mirror = tracking._mirrors["wandb"]
    tracking.close(1, waits=False)
    assert mirror.poll() is None
    mirror.kill()
    mirror.wait()


def test_a_mirror_by_hand_says_what_is_wrong(tmp_path: Path) -> None:
    for words in (["wandb", str(tmp_path / "none")], ["wandb"], ["else", str(tmp_path)]):
        command = [sys.executable, "-m", "seqclf.mirror", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout + done.stderr


def test_a_refused_connection_leaves_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
    assert run(tmp_path / "run", tracking__wandb="auto", tracking__finish_s="20") == 0
    said = capfd.readouterr().out
    assert "warning: W&B cannot be reached (" in said
    assert f"to upload: wandb sync {tmp_path}/run/wandb/offline-run-*" in said
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)


def test_a_network_that_is_lost_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server goes silent in the middle; the run ends, and what is lacking is sent later."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        honest = training.train_step

        def train_step(*arguments: Any) -> Any:
            if arguments[3].step == 27:
                while not server.runs:
                    time.sleep(0.05)
                server.silent.set()
            return honest(*arguments)

        monkeypatch.setattr(training, "train_step", train_step)
        assert run(tmp_path / "run", tracking__wandb="online", tracking__finish_s="4") == 0
        assert "W&B was not ready 4 s after the end" in capfd.readouterr().out
        lines = read_metrics(tmp_path / "run", timed=True)
        assert len(lines) == 9
        server.silent.clear()
        command = [sys.executable, "-m", "seqclf.mirror", "wandb", str(tmp_path / "run")]
        subprocess.run(command, check=True, timeout=60)
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == lines


def test_a_full_disk_under_wandb_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "size=16k")
    try:
        monkeypatch.setenv("WANDB_DIR", str(disk))
        assert run(tmp_path / "run", tracking__finish_s="10") == 0
        assert mirrors() == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert len(read_metrics(tmp_path / "run")) == 9
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


# ---- TensorBoard


def test_tensorboard_holds_every_value(tmp_path: Path) -> None:
    flags = FLAGS | {"tracking.wandb": "disabled", "tracking.tensorboard": "true"}
    assert run_mortal_ranks(1, dying, tmp_path / "run", flags, 27, False, {}) == [-9]
    assert cli.main(words_for(tmp_path / "run", flags)) == 0
    code = (
        "import json, sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1]); events.Reload()\n"
        "print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)]"
        " for tag in events.Tags()['scalars']}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / "tensorboard")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    wanted: dict[str, list[list[float]]] = {}
    for line in read_metrics(tmp_path / "run", timed=True):
        for name, value in line.items():
            if name != "step":
                wanted.setdefault(name, []).append([line["step"], float(np.float32(value))])
    assert json.loads(done.stdout) == wanted


# ---- sweeps


@pytest.mark.parametrize("processes", [1, 2])
def test_a_sweep_runs_as_wandb_agent_runs_it(tmp_path: Path, processes: int) -> None:
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
    ]
    assert set(trials[0]) == set(sweep["parameters"])
    with serving() as server:
        server.sweep, server.trials = sweep, list(trials)
        home = {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "CACHE", "DATA")}
        environment = KEY | home | {"WANDB_BASE_URL": server.url, "WANDB_DIR": str(tmp_path)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = launch("wandb", "agent", "me/p/abc", ACCELERATE_USE_CPU="true", **environment)
        assert done.returncode == 0, done.stderr
        assert set(server.runs) == {"trial0", "trial1"}
        for name, settings in zip(("trial1", "trial0"), trials, strict=True):
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


# ---- parts


def test_no_key_is_written_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", secret)
        assert run(tmp_path / "run", tracking__wandb="online", tracking__tensorboard="true") == 0
        assert server.runs
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_a_series_is_drawn_too(tmp_path: Path) -> None:
    toy_dataset(tmp_path / "data")
    path = str(tmp_path / "data")
    assert run(tmp_path / "run", data__name="files", data__path=path, train__steps="20") == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())
    assert {mistake["kind"] for mistake in evaluation["mistakes"]} == {"series"}
    assert list((tmp_path / "run").rglob("test/mistakes_*.table.json"))


def test_follow_yields_each_line_once_until_the_end(tmp_path: Path) -> None:
    file, ended = tmp_path / "lines", threading.Event()
    seen: list[int] = []
    reader = follow(file, ended)
    thread = threading.Thread(target=lambda: seen.extend(line["n"] for line in reader))
    thread.start()
    with file.open("a", buffering=1) as growing:
        for n in range(4):
            growing.write(f'{{"n": {n}')
            time.sleep(0.2)
            growing.write("}\n")
    ended.set()
    thread.join(10)
    assert seen == [0, 1, 2, 3]


def test_follow_reads_again_what_was_rewritten(tmp_path: Path) -> None:
    file, ended = tmp_path / "lines", threading.Event()
    file.write_text('{"n": 0}\n{"n": 1}\n')
    reader = follow(file, ended)
    assert [next(reader)["n"] for _ in range(2)] == [0, 1]
    file.write_text('{"n": 0}\n{"n": 7}\n{"n": 8}\n')
    ended.set()
    assert [line["n"] for line in reader] == [0, 7, 8]


def test_what_was_sent_is_known_by_step_and_names() -> None:
    sent = Sent().then(0, 10, ["a"]).then(1, 20, ["a"])
    assert sent.has(10, ["a"])
    assert sent.has(10, ["b"])  # of a step before: it would come too late
    assert sent.has(20, ["a"])
    assert not sent.has(20, ["b"])
    assert not sent.has(30, ["a"])
    assert sent.then(2, 15, ["test"]).has(20, ["test"])  # that of the best weights
    assert sent.then(2, 15, ["test"]).next_row == 3


def test_a_torn_log_is_cut_after_its_last_whole_record(tmp_path: Path) -> None:
    assert run(tmp_path / "run", train__steps="800", log__every="5", eval__every="400") == 0
    [log] = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert len(content) > 2 * 32 * 1024
    mend(log)
    assert log.read_bytes() == content
    lengths = []
    for size in (len(content) - 3, 2 * 32 * 1024, 32 * 1024, 32 * 1024 - 3, 3000, 12, 7):
        log.write_bytes(content[:size])
        mend(log)
        lengths.append(log.stat().st_size if log.exists() else 0)
        if log.exists():
            assert size - 4000 < lengths[-1] <= size
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log.parent)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            assert (done.stderr, json.loads(done.stdout.splitlines()[-1])["num"] > 1) == ("", True)
    assert lengths[-2:] == [0, 0]


def test_a_class_that_nothing_decides_scores_zero() -> None:
    assert class_table(["a", "b"], [[0, 3], [0, 0]]) == [["a", 0, 0, 0, 3], ["b", 0, 0, 0, 0]]
    assert math.isclose(class_table(["a", "b"], [[1, 1], [0, 2]])[1][1], 2 / 3)
