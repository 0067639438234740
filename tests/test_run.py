"""The run directory: its files, keys, lock and failure states."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.files import (
    files_in,
    read_facts,
    read_metrics,
    read_status,
    same_end,
    starts_of,
)
from helpers.patches import before_step, die_at_write
from helpers.ranks import run_ranks
from helpers.training import CONSTANT_RATE, train_tiny

from seqclf import step_log
from seqclf.config.load import load_config
from seqclf.data.sources import load
from seqclf.errors import UserError
from seqclf.metrics import CLOCK_METRICS
from seqclf.run import listing
from seqclf.run.checkpoint import commit_checkpoint
from seqclf.run.directory import Run
from seqclf.run.files import delete
from seqclf.run.records import git_revision
from seqclf.settle import Setup, settle
from seqclf.training import train

SETTINGS = {
    "data.val_fraction": 0.2,
    "train.steps": 30,
    "log.every": 10,
    "eval.every": 15,
    "checkpoint.every": 10,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert train_tiny(path, SETTINGS) == 0
    return path


def test_the_files_of_a_run(finished: Path) -> None:
    per_step = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    assert set(files_in(finished)) == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "status.json",
        "sessions.jsonl",
        ".lock",
        "model/model.safetensors",
        "model/README.md",
        "model/card.json",
        "model/config.json",
        "evaluation/val.json",
        "evaluation/test.json",
        *(f"checkpoints/step-{step:08d}/{name}" for step in (20, 30) for name in per_step),
    }


def test_metrics_hold_every_key_at_its_step(finished: Path) -> None:
    lines = read_metrics(finished, timed=True)
    train_keys = {"train/loss", "train/lr", "train/grad_norm", "train/examples", *CLOCK_METRICS}
    train_keys.remove("train/peak_memory_mb")  # that of a GPU
    judged = {f"val/{name}" for name in ("loss", "accuracy", "macro_f1")}
    found = [(line["step"], set(line) - {"step"}) for line in lines]
    assert found == [
        (10, train_keys),
        (15, judged),
        (20, train_keys),
        (30, train_keys),
        (30, judged),
        (30, {key.replace("val", "test") for key in judged}),
    ]


def test_the_test_split_is_measured_once_at_the_end_where_there_is_a_validation(
    finished: Path,
) -> None:
    status = json.loads((finished / "status.json").read_text())
    *_, judged, measured = read_metrics(finished)
    metrics = judged | measured
    assert metrics.pop("step") == 30
    assert status == {
        "state": "finished",
        "step": 30,
        "epoch": 30 / 18,
        "metrics": metrics,
        "error": None,
    }


def test_a_run_whose_loss_is_not_finite_has_json_that_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(_: Setup, run: Run, *__: object, **___: object) -> dict[str, float]:
        metrics = {"test/loss": math.nan, "test/accuracy": 0.1, "test/macro_f1": math.inf}
        run.log(run.state.step, metrics)
        return metrics

    monkeypatch.setattr("seqclf.training.measure", diverged)
    monkeypatch.setattr("seqclf.training.closing", lambda *_: "")
    assert train_tiny(tmp_path, SETTINGS, data__val_fraction=0) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = [
        json.loads(line, parse_constant=refuse)
        for line in (
            (tmp_path / "metrics.jsonl").read_text().splitlines()[-1],
            (tmp_path / "status.json").read_text(),
        )
    ]
    nulls = {"test/loss": None, "test/accuracy": 0.1, "test/macro_f1": None}
    assert lines[0] == {"step": 30} | nulls
    assert lines[1]["metrics"] == nulls
    [listed] = listing.list_runs(tmp_path)
    assert (listed.state, listed.metrics["test/accuracy"]) == ("finished", 0.1)
    assert math.isnan(listed.metrics["test/loss"])


def test_running_config_yaml_again_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    config, _ = load_config(finished / "config.yaml", {"run_dir": str(tmp_path / "again")})
    assert train(config) == 0
    assert same_end(tmp_path / "again", finished)


def test_another_process_on_the_same_directory_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, fcntl; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(1)"
    with subprocess.Popen(
        [sys.executable, "-uc", f"{code}; input()", str(finished / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match=r"another process is training there.*run_dir$"):
            train_tiny(finished, SETTINGS)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        with pytest.raises(UserError, match=r"training there.* \(Slurm has 2 tasks: is it one"):
            train_tiny(finished, SETTINGS)
        holder.communicate(b"\n")


def fail() -> None:
    raise RuntimeError("a cosmic ray")


def test_a_failure_is_recorded_and_its_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, {13: fail})
        with pytest.raises(RuntimeError, match="a cosmic ray"):
            train_tiny(tmp_path, SETTINGS)
    status = read_status(tmp_path)
    assert (status.state, status.step) == ("failed", 13)
    assert "RuntimeError: a cosmic ray" in str(status.error)
    assert train_tiny(tmp_path, SETTINGS) == 0
    assert starts_of(tmp_path) == [0, 10]


def fail_on_one_rank(run_dir: Path) -> str:
    """Fail on rank 1 in mid-training; return how this rank learned of it."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            before_step(patch, {13: fail})
        try:
            train_tiny(run_dir, SETTINGS, distributed__timeout_s=3)
        except Exception as error:
            return str(error)
    return "no error"


def test_a_failure_of_one_rank_ends_the_others_in_time(tmp_path: Path) -> None:
    first, second = run_ranks(2, fail_on_one_rank, tmp_path)
    assert second == "a cosmic ray"
    assert first != "no error"  # the collective that rank 1 never joined timed out
    assert read_status(tmp_path).state == "failed"
    assert run_ranks(2, train_tiny, tmp_path, SETTINGS) == [0, 0]
    assert starts_of(tmp_path) == [0, 10]


def test_a_directory_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run directory"):
        train_tiny(tmp_path / "file" / "run", SETTINGS)


def test_other_data_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqclf.data.sources.DIGITS_TEST_FRACTION", 0.3)
    with pytest.raises(UserError, match="data_fingerprint"):
        train_tiny(finished, SETTINGS)


def test_decisions_and_result_fit_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a short path
    assert train_tiny(Path("x"), SETTINGS) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in printed if not line.startswith("step")) <= 80
    assert f"sha256      {read_facts(Path('x'))['weights_sha256']}" in printed


@pytest.mark.parametrize("failures", [2, 3])
def test_saves_that_fail_are_warned_about_until_three_in_a_row(
    failures: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest: Callable[..., Path] = commit_checkpoint
    calls = []

    def full_disk(*arguments: object, **options: object) -> Path:
        calls.append(1)
        if len(calls) <= failures:
            raise OSError(28, "No space left on device")
        return honest(*arguments, **options)

    monkeypatch.setattr("seqclf.run.saves.commit_checkpoint", full_disk)
    if failures == 3:
        with pytest.raises(UserError, match=r"3 checkpoints in a row .*; make room at"):
            train_tiny(tmp_path, SETTINGS)
    else:
        assert train_tiny(tmp_path, SETTINGS) == 0
    warnings = capsys.readouterr().out.count("No space left on device")
    assert warnings == failures


def refuse(run_dir: Path) -> tuple[str, str]:
    try:
        train_tiny(run_dir, SETTINGS, seed=9)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def test_a_refusal_reaches_every_rank(finished: Path) -> None:
    answers = run_ranks(2, refuse, finished)
    assert {kind for kind, _ in answers} == {"UserError"}
    assert all("seed: 0 there, 9 now" in text for _, text in answers)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 7])  # 3 to 6 are of the first checkpoint
def test_a_kill_between_the_first_writes_leaves_a_directory_that_starts(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_at_write(patch, writes)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path, SETTINGS)
    assert train_tiny(tmp_path, SETTINGS) == 0


def test_a_metrics_file_that_was_deleted_is_begun_anew(tmp_path: Path) -> None:
    constant = {**SETTINGS, **CONSTANT_RATE}
    train_tiny(tmp_path, constant)
    (tmp_path / "metrics.jsonl").unlink()
    train_tiny(tmp_path, constant, train__steps=40)
    assert [line["step"] for line in read_metrics(tmp_path)] == [40, 40, 40]


def test_a_stopwatch_leaves_out_what_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = step_log.Stopwatch(1000, torch.device("cpu"))

    def batches() -> Iterator[Any]:
        nonlocal now
        while True:
            now += 0.25
            yield None

    source = batches()
    for index in range(20):
        with clock.step():
            clock.fetch(source)
            now += 0.75 if index < 18 else 2.75
    with clock.paused():
        now += 1000
    figures = {
        "train/examples": 1600,
        "train/examples_per_s": 600 / 24,
        "train/seconds_per_step_p50": 1.0,
        "train/seconds_per_step_p95": 3.0,
        "train/data_wait_share": 5 / 24,
    }
    assert clock.read(1600) == pytest.approx(figures)
    with clock.step():
        now += 2
    assert clock.read(1700)["train/examples_per_s"] == 50


# ---- a directory that goes away in the middle


def move(path: Path) -> None:
    path.rename(path.with_name("moved"))


def replace_by_another(path: Path) -> None:
    move(path)
    assert train_tiny(path, SETTINGS, seed=5, train__steps=5) == 0


def delete_what_is_in_it(path: Path) -> None:
    for name in os.listdir(path):
        if not name.startswith("."):
            delete(path / name)


def take_the_lock(path: Path) -> None:
    (path / ".lock").unlink()
    (path / ".lock").touch()


GOES_AWAY = [move, shutil.rmtree, replace_by_another, delete_what_is_in_it, take_the_lock]


@pytest.mark.parametrize("happens", GOES_AWAY)
@pytest.mark.parametrize("step", [3, 13, 29])
def test_a_directory_that_goes_away_ends_the_run_with_a_failure(
    happens: Callable[[Path], None], step: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    left: dict[str, bytes] = {}

    def happen() -> None:
        patch.undo()
        happens(run)
        left.update(files_in(run))

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, {step: happen})
        with pytest.raises(UserError, match="run: was moved, deleted or replaced while the run"):
            train_tiny(run, SETTINGS)
    if happens in (move, shutil.rmtree):
        assert not run.exists()
    else:
        assert files_in(run) == left  # nothing is written into what stands there now
    if happens is move:
        assert train_tiny(tmp_path / "moved", SETTINGS) == 0  # put back, or under its new name


def test_a_lock_that_somebody_deleted_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(monkeypatch, {3: (tmp_path / ".lock").unlink})
    assert train_tiny(tmp_path, SETTINGS) == 0
    assert read_status(tmp_path).state == "finished"


def move_on_main(run_dir: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "0":
            before_step(patch, {13: lambda: move(run_dir)})
        try:
            train_tiny(run_dir, SETTINGS)
        except UserError as error:
            return str(error)
    return "no error"


def test_all_processes_learn_that_the_directory_went_away(tmp_path: Path) -> None:
    answers = run_ranks(2, move_on_main, tmp_path / "run")
    assert all("was moved, deleted or replaced" in answer for answer in answers)


def test_only_a_repository_of_its_own_names_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "x")
    installed = tmp_path / "venv" / "site-packages"
    for folder, is_own in ((installed, False), (tmp_path, True)):
        file = folder / "seqclf" / "run" / "records.py"
        file.parent.mkdir(parents=True)
        monkeypatch.setattr("seqclf.run.records.__file__", str(file))
        assert (git_revision() is not None) == is_own


@pytest.mark.parametrize(
    ("batch_size", "steps", "every"),
    [
        (50, 60, 29),  # an epoch
        (50, 580, 29),  # 20 epochs
        (50, 581, 58),
        (50, 6000, 319),  # 11 epochs
        (1438, 3, 1),
        (1438, 1000, 50),
        (14, 100_000, 103),  # an epoch that is not short
    ],
)
def test_how_often_a_run_is_evaluated_by_default(batch_size: int, steps: int, every: int) -> None:
    flags = {"data.name": "digits", "train.batch_size": str(batch_size), "train.steps": str(steps)}
    config, _ = load_config(None, flags)
    setup = settle(config, load(config.data, seed=0))
    due = [step for step in range(1, 2 * every + 1) if setup.evaluation_due(step)]
    assert due == [every, 2 * every]
    assert [step for step in range(1, 2 * every + 1) if setup.save_due(step, best_step=0)] == due
