"""The run directory: its files, keys, lock and failure states."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_metrics, run_ranks

from seqclf import checkpoint, runs
from seqclf import train as train_module
from seqclf.config import UserError, load_config
from seqclf.run import TIMED, Run
from seqclf.runtime import Runtime
from seqclf.train import train

FLAGS = {
    "data.name": "digits",
    "data.val_fraction": "0.2",
    "model.hidden_size": "8",
    "train.steps": "30",
    "log.every": "10",
    "eval.every": "15",
    "checkpoint.every": "10",
    "tracking.wandb": "disabled",
}


def run(run_dir: Path, **flags: str) -> int:
    return train(load_config(None, FLAGS | {"run_dir": str(run_dir)} | flags)[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert run(path) == 0
    return path


def test_the_files_of_a_run(finished: Path) -> None:
    files = {str(f.relative_to(finished)) for f in finished.rglob("*") if f.is_file()}
    files = {name for name in files if not name.startswith("report-figures/")}
    per_step = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
    assert files == {
        *("config.yaml", "run.json", "metrics.jsonl", "status.json", "sessions.jsonl", ".lock"),
        "report.html",
        *("model/model.safetensors", "model/config.json"),
        *("evaluation/val.json", "evaluation/test.json"),
        *(f"checkpoints/step-{step:08d}/{name}" for step in (20, 30) for name in per_step),
    }


def test_metrics_hold_every_key_at_its_step(finished: Path) -> None:
    lines = read_metrics(finished, timed=True)
    train_keys = {"train/loss", "train/lr", "train/grad_norm", "train/examples", *TIMED}
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
    def diverged(run: Run, *_: object, **options: object) -> dict[str, float]:
        metrics = {"test/loss": math.nan, "test/accuracy": 0.1, "test/macro_f1": math.inf}
        run.log(run.state.step, metrics)
        return metrics

    monkeypatch.setattr(train_module, "measure", diverged)
    monkeypatch.setattr(train_module, "closing", lambda *_: "")
    assert run(tmp_path, **{"data.val_fraction": "0"}) == 0

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
    [listed] = runs.find(tmp_path)
    assert (listed.state, listed.metrics["test/accuracy"]) == ("finished", 0.1)
    assert math.isnan(listed.metrics["test/loss"])


def test_running_config_yaml_again_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    config, _ = load_config(finished / "config.yaml", {"run_dir": str(tmp_path / "again")})
    assert train(config) == 0
    hashes = [
        json.loads((path / "run.json").read_text())["weights_sha256"]
        for path in (finished, tmp_path / "again")
    ]
    assert hashes[0] == hashes[1]
    assert read_metrics(tmp_path / "again") == read_metrics(finished)


def test_another_process_on_the_same_directory_is_refused(finished: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib, seqclf.run as r; f = r._lock(pathlib.Path(sys.argv[1])); print(1)"
    with subprocess.Popen(
        [sys.executable, "-uc", f"{code}; input()", str(finished)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match="another process is training there"):
            run(finished)
        holder.communicate(b"\n")


def test_a_failure_is_recorded_and_its_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., object] = train_module.train_step
    calls = []

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 14:
            raise RuntimeError("a cosmic ray")
        return honest(*arguments)

    monkeypatch.setattr(train_module, "train_step", failing)
    with pytest.raises(RuntimeError, match="a cosmic ray"):
        run(tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 13)
    assert "RuntimeError: a cosmic ray" in status["error"]
    assert run(tmp_path) == 0
    assert json.loads((tmp_path / "sessions.jsonl").read_text().splitlines()[-1])["step"] == 10


def fail_on_one_rank(run_dir: str) -> str:
    """Fail on rank 1 in mid-training; return how this rank learned of it."""
    honest: Callable[..., object] = train_module.train_step

    def failing(runtime: Runtime, *arguments: object) -> object:
        step = arguments[2].step  # type: ignore[attr-defined]
        if (runtime.rank, step) == (1, 13):
            raise RuntimeError("a cosmic ray")
        return honest(runtime, *arguments)

    train_module.train_step = failing  # type: ignore[assignment]
    try:
        run(Path(run_dir), **{"distributed.timeout_s": "3"})
    except Exception as error:
        return str(error)
    return "no error"


def test_a_failure_of_one_rank_ends_the_others_in_time(tmp_path: Path) -> None:
    first, second = run_ranks(2, fail_on_one_rank, str(tmp_path))
    assert second == "a cosmic ray"
    assert first != "no error"  # the collective that rank 1 never joined timed out
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert set(run_ranks(2, resume_on_ranks, str(tmp_path))) == {0}
    assert json.loads((tmp_path / "sessions.jsonl").read_text().splitlines()[-1])["step"] == 10


def resume_on_ranks(run_dir: str) -> int:
    return run(Path(run_dir))


def test_a_directory_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run directory"):
        run(tmp_path / "file" / "run")


def test_other_data_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqclf.data.sources.DIGITS_TEST_FRACTION", 0.3)
    with pytest.raises(UserError, match="data_fingerprint"):
        run(finished)


def test_decisions_and_result_fit_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a short path
    assert run(Path("x")) == 0
    said = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in said if not line.startswith("step")) <= 80
    sha256 = json.loads(Path("x/run.json").read_text())["weights_sha256"]
    assert f"sha256      {sha256}" in said


@pytest.mark.parametrize("failures", [2, 3])
def test_saves_that_fail_are_warned_about_until_three_in_a_row(
    failures: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest: Callable[..., Path] = checkpoint.commit
    calls = []

    def full_disk(*arguments: object, **options: object) -> Path:
        calls.append(1)
        if len(calls) <= failures:
            raise OSError(28, "No space left on device")
        return honest(*arguments, **options)

    monkeypatch.setattr(checkpoint, "commit", full_disk)
    if failures == 3:
        with pytest.raises(UserError, match=r"3 checkpoints in a row .*; make room at"):
            run(tmp_path)
    else:
        assert run(tmp_path) == 0
    warnings = capsys.readouterr().out.count("No space left on device")
    assert warnings == failures


def refuse(run_dir: str) -> tuple[str, str]:
    try:
        run(Path(run_dir), seed="9")
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def test_a_refusal_reaches_every_rank(finished: Path) -> None:
    answers = run_ranks(2, refuse, str(finished))
    assert {kind for kind, _ in answers} == {"UserError"}
    assert all("seed: 0 there, 9 now" in text for _, text in answers)


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_kill_between_the_first_writes_leaves_a_directory_that_starts(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = checkpoint.replace_file
    calls: list[Path] = []

    def killed(path: Path, content: bytes) -> checkpoint.FileEntry:
        if len(calls) == writes:
            raise KeyboardInterrupt
        calls.append(path)
        return honest(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "replace_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert run(tmp_path) == 0


def test_a_metrics_file_that_was_deleted_is_begun_anew(tmp_path: Path) -> None:
    constant = {"optim.schedule": "constant", "optim.warmup": "0"}
    run(tmp_path, **constant)
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path, **(constant | {"train.steps": "40"}))
    assert [line["step"] for line in read_metrics(tmp_path)] == [40, 40, 40]


def test_a_stopwatch_leaves_out_what_is_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = train_module.Stopwatch(1000, torch.device("cpu"))

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
