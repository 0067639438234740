"""C4: a run stopped at any step and resumed ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.files import (
    change_json,
    files_in,
    logged,
    read_sessions,
    read_status,
    same_end,
    weights_of,
)
from helpers.ranks import run_ranks
from helpers.training import CONSTANT_RATE, EVERYTHING_ON, train_tiny

from seqclf.cli.main import main
from seqclf.config.settings import Config, Optim
from seqclf.errors import UserError
from seqclf.processes.device import cannot_run
from seqclf.run.records import Facts
from seqclf.run.resume import Stored, check_steps_done

SMALL = {**EVERYTHING_ON, "train.steps": 10, "model.hidden_size": 8, "model.num_layers": 1}


IN_BLOCKS = {**EVERYTHING_ON, "data.shuffle_buffer": 300}  # 6 steps; an epoch ends in a short one


@pytest.mark.parametrize(
    ("world_size", "settings"),
    [
        (1, EVERYTHING_ON),
        pytest.param(2, EVERYTHING_ON, marks=pytest.mark.slow),
        pytest.param(2, IN_BLOCKS, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    world_size: int, settings: Mapping[str, object], tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert set(run_ranks(world_size, train_tiny, straight, settings)) == {0}
    # first step, a checkpoint's step, an evaluation's step, the last of an epoch, mid-epoch
    for stop_at in (0, 7, 13, 26, 41):
        codes = run_ranks(world_size, train_tiny, broken, settings, stop_at=stop_at)
        assert set(codes) == {143}
        status = read_status(broken)
        assert (status.state, status.step) == ("preempted", stop_at)
    assert set(run_ranks(world_size, train_tiny, broken, settings)) == {0}
    assert same_end(broken, straight)
    assert len(read_sessions(broken)) == 6


@pytest.mark.parametrize(
    "settings",
    [pytest.param(EVERYTHING_ON, marks=pytest.mark.slow), IN_BLOCKS],
    ids=["all", "blocks"],
)
def test_another_world_size_goes_on_with_the_same_examples(
    settings: Mapping[str, object], tmp_path: Path
) -> None:
    tame = {**settings, "optim.lr": 0.001, "model.dropout": 0, "model.num_layers": 1}
    assert run_ranks(1, train_tiny, tmp_path / "straight", tame) == [0]
    for world_size, stop_at in ((2, 20), (1, 40), (3, None)):
        run_ranks(world_size, train_tiny, tmp_path / "moved", tame, stop_at=stop_at)
    straight, moved = (logged(tmp_path / name, "train/loss") for name in ("straight", "moved"))
    assert len(straight) == 12
    assert moved == pytest.approx(straight, rel=1e-5)


def test_with_shards_any_number_of_processes_ends_with_the_same_bits(tmp_path: Path) -> None:
    # In blocks, as test_distributed.py has shards without.
    sharded = {**IN_BLOCKS, "train.shards": 4, "train.micro_batch_size": None}
    for world_size in (1, 4):
        run_ranks(world_size, train_tiny, tmp_path / str(world_size), sharded)
    for world_size, stop_at in ((2, 20), (1, 41), (4, None)):
        run_ranks(world_size, train_tiny, tmp_path / "moved", sharded, stop_at=stop_at)
    for name in ("4", "moved"):
        assert same_end(tmp_path / name, tmp_path / "1")


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path, SMALL) == 0
    before = files_in(tmp_path)
    assert train_tiny(tmp_path, SMALL) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"model.dropout": 0.1}, "model.dropout: 0.3 there, 0.1 now"),
        ({"optim.lr": 0.02}, "optim.lr: 0.01 there, 0.02 now"),
        ({"train.steps": 20}, "train.steps: 10 there, 20 now"),  # the decay would differ
        ({"data.shuffle_buffer": 300}, "data.shuffle_buffer: None there, 300 now"),
        ({"resume": "never"}, "holds a run already"),
    ],
)
def test_a_change_of_the_steps_already_done_is_refused(
    changes: Mapping[str, object], named: str, small: Path
) -> None:
    before = files_in(small)
    with pytest.raises(UserError, match=named):
        train_tiny(small, {**SMALL, **changes})
    assert files_in(small) == before


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps, which no test changes."""
    path = tmp_path_factory.mktemp("runs") / "small"
    assert train_tiny(path, SMALL) == 0
    return path


def test_a_constant_rate_may_go_on_for_longer(tmp_path: Path) -> None:
    constant = {**SMALL, **CONSTANT_RATE}
    train_tiny(tmp_path / "grown", constant)
    train_tiny(tmp_path / "grown", constant, train__steps=20)
    train_tiny(tmp_path / "straight", constant, train__steps=20)
    assert weights_of(tmp_path / "grown") == weights_of(tmp_path / "straight")


def test_other_rounding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = {**SMALL, **CONSTANT_RATE}
    train_tiny(tmp_path, constant)
    change_json(tmp_path / "run.json", world_size=4)
    train_tiny(tmp_path, constant, train__steps=12)
    assert "world_size was 4, is 1: the same examples" in capsys.readouterr().out


def test_with_shards_a_number_of_processes_is_no_other_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded = {**SMALL, **CONSTANT_RATE, "train.shards": 4}
    train_tiny(tmp_path, sharded)
    change_json(tmp_path / "run.json", world_size=4, threads=7)
    train_tiny(tmp_path, sharded, train__steps=12)
    printed = capsys.readouterr().out
    assert "world_size was" not in printed
    assert "threads was 7, is 1: the same examples" in printed


# ---- a precision that a clock has chosen


def train_by_a_clock(
    run_dir: Path, slowdown: float, settings: Mapping[str, object], stop_at: int | None = None
) -> tuple[int, str]:
    """Train where bf16 is so many times slower than fp32; return the exit code and what is said."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        for module in ("device", "start"):
            patch.setattr(f"seqclf.processes.{module}.slowdown", lambda *_: slowdown)
        return train_tiny(run_dir, settings, stop_at=stop_at), said.getvalue()


def precision_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("precision ")]


IN_BF16 = {**SMALL, "precision": "bf16", "device": "cpu"}
KEPT = {
    "bf16": "precision   bf16 (as the run began, though this CPU runs it 9.0 times slower than "
    "fp32)",
    "fp32": "precision   fp32, NOT bf16 as asked (as the run began); another --run-dir begins a "
    "run that tries it again",
}
needs_bf16 = pytest.mark.skipif(
    cannot_run("bf16", Config(), torch.device("cpu")) is not None,
    reason="this CPU has no LSTM in bf16",
)


@needs_bf16
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("first", "then", "precision"), [(1.0, 9.0, "bf16"), (9.0, 1.0, "fp32")])
def test_the_first_starts_precision_is_kept(
    world_size: int, first: float, then: float, precision: str, tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_ranks(world_size, train_by_a_clock, straight, first, IN_BF16)
    (code, _), *_ = run_ranks(world_size, train_by_a_clock, broken, first, IN_BF16, stop_at=3)
    assert code == 143
    for exit_code in (0, 0):  # the second is of a finished run
        answers = run_ranks(world_size, train_by_a_clock, broken, then, IN_BF16)
        assert {code for code, _ in answers} == {exit_code}
        assert precision_lines(answers[0][1]) == [KEPT[precision]]
    assert same_end(broken, straight)
    assert {session.precision for session in read_sessions(broken)} == {precision}


@needs_bf16
def test_a_branch_keeps_its_origins_precision(tmp_path: Path) -> None:
    origin, branch = tmp_path / "origin", tmp_path / "branch"
    train_by_a_clock(origin, 1.0, IN_BF16, stop_at=7)
    code, said = train_by_a_clock(branch, 9.0, {**IN_BF16, "resume": origin})
    assert (code, precision_lines(said)) == (0, [KEPT["bf16"]])


@needs_bf16
@pytest.mark.parametrize("slowdown", [1.0, 9.0])
@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        ("bf16", "fp32", "precision: 'bf16' there, 'fp32' now\nGo on .* (--precision bf16), or"),
        ("fp32", "bf16", "precision: 'fp32' there, 'bf16' now\nGo on .* (--precision fp32), or"),
        ("auto", "bf16", "precision: 'fp32' there, 'bf16' now"),
        ("bf16", "auto", None),  # no longer asked for, and kept
    ],
)
def test_another_precision_is_refused_whatever_a_clock_says(
    first: str, then: str, named: str | None, slowdown: float, tmp_path: Path
) -> None:
    settings = {**SMALL, "device": "cpu"}
    train_by_a_clock(tmp_path, 1.0, {**settings, "precision": first}, stop_at=3)
    again = {**settings, "precision": then}
    if named is None:
        assert train_by_a_clock(tmp_path, slowdown, again)[0] == 0
        assert {session.precision for session in read_sessions(tmp_path)} == {"bf16"}
        return
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=named.replace("(", r"\(").replace(")", r"\)")):
        train_by_a_clock(tmp_path, slowdown, again)
    assert files_in(tmp_path) == before


@needs_bf16
def test_half_precision_that_cannot_run_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_by_a_clock(tmp_path, 1.0, IN_BF16, stop_at=3)
    for module in ("device", "start"):
        monkeypatch.setattr(f"seqclf.processes.{module}.cannot_run", lambda *_: "it has no units")
    with pytest.raises(UserError, match="fp32, NOT bf16 as the run began: it has no units; go on"):
        train_tiny(tmp_path, IN_BF16)


@needs_bf16
def test_evaluate_takes_the_runs_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_by_a_clock(tmp_path, 1.0, IN_BF16)
    monkeypatch.setattr("seqclf.processes.device.slowdown", lambda *_: 9.0)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    losses = []
    for problem in (None, "it has no units"):
        if problem:
            for module in ("device", "start"):
                name = f"seqclf.processes.{module}.cannot_run"
                monkeypatch.setattr(name, lambda *_: "it has no units")
        assert main(["evaluate", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert ("NOT bf16 as the run began: it has no units" in err) == bool(problem)
        losses.append(float(dict(line.split() for line in out.splitlines())["test/loss"]))
    told = read_status(tmp_path).metrics["test/loss"]
    assert losses[0] == pytest.approx(told, abs=2e-6)
    assert losses[1] != pytest.approx(told, abs=2e-6)


def test_a_refusal_names_the_flags_of_the_runs_own_settings(small: Path) -> None:
    changes = {"seed": 1, "optim.betas": "[0.8, 0.9]", "model.pooling": "mean"}
    with pytest.raises(UserError) as caught:
        train_tiny(small, {**SMALL, **changes})
    assert (
        "Go on with its own settings (--model.pooling last --optim.betas '[0.9, 0.999]' --seed 0), "
        in str(caught.value)
    )


@pytest.mark.parametrize("steps", [8, 12])
def test_a_config_that_somebody_deleted_is_written_again(
    steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**CONSTANT_RATE, "checkpoint.every": 4}
    assert train_tiny(tmp_path, settings, train__steps=8) == 0
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match="model"):  # what the checkpoint holds still counts
        train_tiny(tmp_path, settings, train__steps=12, model__hidden_size=9)
    assert train_tiny(tmp_path, settings, train__steps=steps) == 0
    assert "config.yaml is missing; it is written again" in capsys.readouterr().out
    written = (tmp_path / "config.yaml").read_text()
    assert written == config.replace("steps: 8", f"steps: {steps}")


def test_the_rates_of_millions_of_steps_are_compared_at_once() -> None:
    constant = Config(optim=Optim(schedule="constant", warmup=0))
    for config, length in ((Config(), 5_000_000), (constant, 6_000_000)):
        stored = Stored(Path("x"), config, Facts(num_steps=5_000_000), None)
        setup = SimpleNamespace(config=config, plan=SimpleNamespace(num_steps=length))
        started_at = time.process_time()
        check_steps_done(stored, setup, 5_000_000)  # type: ignore[arg-type]
        assert time.process_time() - started_at < 1  # a loop over all takes 10 s
