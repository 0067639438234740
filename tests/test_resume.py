"""C4: a run stopped at any step and resumed ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
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

from seqclf.errors import UserError

SMALL = {**EVERYTHING_ON, "train.steps": 10, "model.hidden_size": 8, "model.num_layers": 1}


@pytest.mark.parametrize("world_size", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(world_size: int, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert set(run_ranks(world_size, train_tiny, straight, EVERYTHING_ON)) == {0}
    # first step, a checkpoint's step, an evaluation's step, the last of an epoch, mid-epoch
    for stop_at in (0, 7, 13, 26, 41):
        codes = run_ranks(world_size, train_tiny, broken, EVERYTHING_ON, stop_at=stop_at)
        assert set(codes) == {143}
        status = read_status(broken)
        assert (status.state, status.step) == ("preempted", stop_at)
    assert set(run_ranks(world_size, train_tiny, broken, EVERYTHING_ON)) == {0}
    assert same_end(broken, straight)
    assert len(read_sessions(broken)) == 6


def test_another_world_size_goes_on_with_the_same_examples(tmp_path: Path) -> None:
    tame = {**EVERYTHING_ON, "optim.lr": 0.001, "model.dropout": 0, "model.num_layers": 1}
    assert run_ranks(1, train_tiny, tmp_path / "straight", tame) == [0]
    for world_size, stop_at in ((2, 20), (1, 40), (3, None)):
        run_ranks(world_size, train_tiny, tmp_path / "moved", tame, stop_at=stop_at)
    straight, moved = (logged(tmp_path / name, "train/loss") for name in ("straight", "moved"))
    assert len(straight) == 12
    assert moved == pytest.approx(straight, rel=1e-5)


def test_with_shards_any_number_of_processes_ends_with_the_same_bits(tmp_path: Path) -> None:
    sharded = {**EVERYTHING_ON, "train.shards": 4, "train.micro_batch_size": None}
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
