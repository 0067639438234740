"""W&B: what it was sent is what metrics.jsonl says, whatever happened."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.data import toy_dataset
from helpers.files import read_metrics
from helpers.launching import LIMIT_S, launch
from helpers.mirrored import (
    FLAGS,
    KEY,
    mirrors,
    of_kind,
    offline_lines,
    read_logs,
    summary_of,
    train_mirrored,
    train_words,
    with_children,
)
from helpers.patches import before_step
from helpers.wandb_server import serving
from sklearn.metrics import precision_recall_fscore_support

from seqclf.errors import UserError
from seqclf.step_log import StepLog
from seqclf.tracking.mirrors import MIRROR_MODULE, choose_wandb
from seqclf.tracking.to_wandb import row_of
from seqclf.tracking.wandb_logs import mark_whole

OURS = {"WANDB_BASE_URL": "https://wandb.example.org/"}


pytestmark = pytest.mark.usefixtures("no_wandb_account")


def login(host: str) -> str:
    return f"machine {host} login user password key\n"


@pytest.mark.parametrize(
    ("asked", "environment", "netrc", "mode"),
    [
        ("auto", {}, None, "offline"),
        ("auto", {}, "", "offline"),
        ("auto", {}, login("api.wandb.ai"), "online"),
        ("auto", {}, login("api.forge.coreweave.com"), "online"),  # since W&B 0.31
        ("auto", {"WANDB_BASE_URL": ""}, login("api.wandb.ai"), "online"),
        ("auto", {}, login("example.org"), "offline"),
        ("auto", {}, "not a netrc file {\n", "offline"),
        ("auto", KEY, None, "online"),
        ("auto", {"WANDB_API_KEY": ""}, None, "offline"),
        ("auto", OURS, login("wandb.example.org"), "online"),
        ("auto", OURS, login("api.wandb.ai"), "offline"),
        ("auto", OURS, login("api.forge.coreweave.com"), "offline"),
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
    assert choose_wandb(asked)[0] == mode


@pytest.mark.slow
@pytest.mark.parametrize("text", ["OFFLINE", "DryRun", "nonsense"])
def test_variables_that_wandb_refuses_stop_no_mirror(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """W&B itself knows its modes in small letters only, and takes some empty variables for values.

    The path has what a shell would read otherwise.
    """
    run_dir = tmp_path / "it's mine"
    names = "PROJECT ENTITY NAME RUN_GROUP TAGS NOTES DIR DATA_DIR RUN_ID BASE_URL API_KEY DISABLED"
    with monkeypatch.context() as patch:
        for name in f"{names} SWEEP_ID SILENT CONSOLE".split():
            patch.setenv(f"WANDB_{name}", "")
        patch.setenv("WANDB_MODE", text)
        assert train_mirrored(run_dir, tracking__wandb="auto") == 0
    said = capfd.readouterr().out
    assert "warning" not in said
    why = "WANDB_MODE" + " is 'nonsense', which W&B does not know" * (text == "nonsense")
    assert f"wandb       offline ({why}); to upload: wandb sync " in said
    [command] = [line.partition("; to upload: ")[2] for line in said.splitlines() if "sync" in line]
    listed = subprocess.run(
        ["bash", "-c", command.replace("wandb sync", "ls -d")], capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1, listed.stderr
    assert offline_lines(run_dir) == read_metrics(run_dir, timed=True)


def test_a_mirror_by_hand_says_that_wandb_is_off(tmp_path: Path) -> None:
    assert train_mirrored(tmp_path / "run", tracking__wandb="disabled") == 0
    command = [sys.executable, "-m", MIRROR_MODULE, "wandb", str(tmp_path / "run")]
    environment = os.environ | {"WANDB_MODE": "Disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "W&B is turned off (WANDB_MODE)" in done.stdout


# ---- runs of all kinds, offline


def test_a_straight_run_is_mirrored_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "mine"
    about = {"tracking__tags": "[a, b]", "tracking__notes": "why", "tracking__group": "g"}
    assert train_mirrored(run_dir, tracking__artifact="true", tracking__project="p", **about) == 0
    said = capfd.readouterr().out
    command = f"wandb sync {run_dir}/wandb/offline-run-*"
    assert f"wandb       offline (tracking.wandb: offline); to upload: {command}" in said
    assert "warning" not in said

    lines = read_metrics(run_dir, timed=True)
    found = read_logs(run_dir)
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
        "README.md",
        "card.json",
        "config.json",
        "model.safetensors",
    }
    for record in artifacts.values():  # all that is to be uploaded lies in the run's directory
        for content in record["manifest"]["contents"]:
            assert Path(content["local_path"]).is_relative_to(run_dir)


@pytest.mark.slow
def test_tables_show_confusion_classes_and_mistakes(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    assert train_mirrored(run_dir) == 0
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
    names_of_columns = ["example", "name", "truth", "guess", "probability"]
    assert mistakes["columns"] == [*names_of_columns, "input"]
    assert [row[:5] for row in mistakes["data"]] == [
        [mistake.get(name) for name in names_of_columns] for mistake in evaluation["mistakes"]
    ]
    [artifact] = [r for r in of_kind(read_logs(run_dir), "artifact") if "testmistakes" in r["name"]]
    drawn = [c["local_path"] for c in artifact["manifest"]["contents"] if c["path"].endswith("png")]
    assert len({Path(path).read_bytes() for path in drawn}) == len(mistakes["data"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("when", ["best", "never"])
def test_tables_are_sent_when_asked(tmp_path: Path, when: str) -> None:
    flags = {"data.val_fraction": "0.2", "checkpoint.keep_best": "true", "tracking.tables": when}
    flags = {name.replace(".", "__"): value for name, value in flags.items()}
    assert train_mirrored(tmp_path / "mine", **flags) == 0
    lines = read_metrics(tmp_path / "mine", timed=True)
    assert offline_lines(tmp_path / "mine") == lines  # with the test of the best weights
    rows = [record["item"] for record in of_kind(read_logs(tmp_path / "mine"), "history")]
    steps = [row["global_step"] for row in rows if "val/classes._type" in row]
    assert bool(steps) == (when == "best")
    assert len(steps) == len(set(steps))  # once, also where the best evaluation is the last
    tested = [row for row in rows if "test/classes._type" in row]
    assert len(tested) == (when == "best")


@pytest.mark.slow
def test_a_preempted_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes get the signal, as a batch system sends it."""

    def stop() -> None:
        assert mirrors()
        for mirror in mirrors():
            assert mirror.nice() == 19
            assert os.getsid(mirror.pid) == os.getsid(0)  # see Mirrors
            for process in with_children(mirror):
                process.send_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)

    with monkeypatch.context() as patch:
        before_step(patch, {27: stop})
        assert train_mirrored(tmp_path / "run") == 143
    [log] = read_logs(tmp_path / "run")
    assert [record["exit_code"] for record in of_kind([log], "exit")] == [143]
    assert any(record["type"] == "preempting" for record in log)
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    assert train_mirrored(tmp_path / "run") == 0
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)


@pytest.mark.slow
def test_a_failed_run_says_why(tmp_path: Path) -> None:
    assert (
        train_mirrored(
            tmp_path / "run", optim__lr="1e38", train__max_skipped="5", optim__clip="null"
        )
        == 2
    )
    found = read_logs(tmp_path / "run")
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [2]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert summary_of(found)["error"] == status["error"]
    assert "steps were skipped" in status["error"]


@pytest.mark.slow
def test_a_crash_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepLog, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_mirrored(tmp_path / "run")
    found = read_logs(tmp_path / "run")
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [1]
    assert "ZeroDivisionError" in summary_of(found)["error"]


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", FLAGS)[1:]
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "launch/train.py", *words]
    done = launch(*command, ACCELERATE_USE_CPU="true", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    found = read_logs(tmp_path / "run")
    assert len(found) == 1
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)
    assert of_kind(found, "config")[0]["update"]["world_size"] == 2


@pytest.mark.slow
def test_what_the_mirror_lacks_is_sent_later(tmp_path: Path) -> None:
    """A run that was trained without W&B, too."""
    run_dir = tmp_path / "run"
    assert train_mirrored(run_dir, tracking__wandb="disabled") == 0
    assert not (run_dir / "wandb").exists()
    command = [sys.executable, "-m", MIRROR_MODULE, "wandb", str(run_dir)]
    environment = os.environ | {"WANDB_MODE": "offline"}
    for _ in range(2):  # the second time there is nothing to send
        subprocess.run(command, check=True, env=environment, timeout=LIMIT_S)
        assert offline_lines(run_dir) == read_metrics(run_dir, timed=True)
    found = read_logs(run_dir)
    assert [record["exit_code"] for record in of_kind(found, "exit")] == [0, 0]


def test_no_key_is_written_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", secret)
        assert (
            train_mirrored(tmp_path / "run", tracking__wandb="online", tracking__tensorboard="true")
            == 0
        )
        assert server.runs
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


@pytest.mark.slow
def test_a_series_is_drawn_too(tmp_path: Path) -> None:
    toy_dataset(tmp_path / "data")
    path = str(tmp_path / "data")
    assert (
        train_mirrored(tmp_path / "run", data__name="files", data__path=path, train__steps="2") == 0
    )
    evaluation = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())
    assert {mistake["kind"] for mistake in evaluation["mistakes"]} == {"series"}
    assert list((tmp_path / "run").rglob("test/mistakes_*.table.json"))


@pytest.mark.slow
def test_a_log_that_is_cut_anywhere_gets_no_mark(tmp_path: Path) -> None:
    assert train_mirrored(tmp_path / "run", log__every="1") == 0
    [log] = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    [mark] = log.parent.glob("rows-below-*")
    content = log.read_bytes()
    assert len(content) > 2**15  # its records lie in several blocks
    for length in (0, 7, 1000, 2**15, 2**15 + 3, len(content) - 40, len(content) - 1):
        mark.unlink(missing_ok=True)
        log.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut short"):
            mark_whole(log, 9)
        assert list(log.parent.glob("rows-below-*")) == []
    log.write_bytes(content)
    mark_whole(log, 9)
    assert (log.parent / "rows-below-9").exists()


def test_a_line_has_its_row_whatever_other_lines_there_are() -> None:
    lines = [(0, "train"), (10, "train"), (10, "val"), (20, "val"), (20, "test"), (21, "train")]
    rows = [row_of(step, {f"{split}/loss": 0.0}) for step, split in lines]
    assert rows == sorted(rows)
    assert min(after - row for row, after in itertools.pairwise(rows)) > 1  # for tables
    assert row_of(20, {"test/loss": 0.0}) == rows[4]
