"""C4: a run stopped at any step and resumed ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import read_metrics, run_ranks

from seqclf.config import UserError, load_config
from seqclf.runtime import Runtime
from seqclf.train import train

EVERYTHING_ON = {
    "data.name": "digits",
    "data.augment.shift": "1",
    "data.val_fraction": "0.1",
    "model.dropout": "0.3",
    "model.num_layers": "2",
    "model.hidden_size": "16",
    "train.steps": "60",
    "train.batch_size": "50",
    "train.micro_batch_size": "16",
    "train.threads": "1",
    "checkpoint.every": "7",
    "eval.every": "13",
    "log.every": "5",
    "tracking.wandb": "disabled",
}


def run_until(run_dir: str, stop_at: int | None, flags: dict[str, str]) -> int:
    """Train, asking to stop at a step as a signal would; return the exit code."""

    def agree(_: Runtime, step: int, *, save: bool) -> tuple[bool, bool]:
        return step == stop_at, save

    Runtime.agree = agree  # type: ignore[method-assign,assignment]
    return train(load_config(None, EVERYTHING_ON | {"run_dir": run_dir} | flags)[0])


def hashes(run_dir: Path) -> dict[str, str]:
    files = [*run_dir.glob("checkpoints/step-00000060/*.safetensors"), *run_dir.glob("model/*")]
    return {str(f.relative_to(run_dir)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize("world_size", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(world_size: int, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert set(run_ranks(world_size, run_until, str(straight), None, {})) == {0}
    # first step, a checkpoint's step, an evaluation's step, the last of an epoch, mid-epoch
    for stop_at in (0, 7, 13, 26, 41):
        assert set(run_ranks(world_size, run_until, str(broken), stop_at, {})) == {143}
        status = json.loads((broken / "status.json").read_text())
        assert (status["state"], status["step"]) == ("preempted", stop_at)
    assert set(run_ranks(world_size, run_until, str(broken), None, {})) == {0}
    assert len(hashes(straight)) == 4
    assert hashes(broken) == hashes(straight)
    assert read_metrics(broken) == read_metrics(straight)
    assert len((broken / "sessions.jsonl").read_text().splitlines()) == 6


def test_another_world_size_goes_on_with_the_same_examples(tmp_path: Path) -> None:
    flags = {"optim.lr": "0.001", "model.dropout": "0", "model.num_layers": "1"}
    assert run_ranks(1, run_until, str(tmp_path / "straight"), None, flags) == [0]
    for world_size, stop_at in ((2, 20), (1, 40), (3, None)):
        run_ranks(world_size, run_until, str(tmp_path / "moved"), stop_at, flags)
    straight, moved = (
        [line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line]
        for name in ("straight", "moved")
    )
    assert len(straight) == 12
    assert moved == pytest.approx(straight, rel=1e-5)


def test_with_shards_any_number_of_processes_ends_with_the_same_bits(tmp_path: Path) -> None:
    flags = {"train.shards": "4", "train.micro_batch_size": "null"}  # at the chaotic rate
    for world_size in (1, 4):
        run_ranks(world_size, run_until, str(tmp_path / str(world_size)), None, flags)
    for world_size, stop_at in ((2, 20), (1, 41), (4, None)):
        run_ranks(world_size, run_until, str(tmp_path / "moved"), stop_at, flags)
    assert len(hashes(tmp_path / "1")) == 4
    for name in ("4", "moved"):
        assert hashes(tmp_path / name) == hashes(tmp_path / "1")
        assert read_metrics(tmp_path / name) == read_metrics(tmp_path / "1")


def train_here(run_dir: Path, flags: dict[str, str]) -> int:
    small = {"train.steps": "10", "model.hidden_size": "8", "model.num_layers": "1"}
    return train(load_config(None, EVERYTHING_ON | {"run_dir": str(run_dir)} | small | flags)[0])


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(tmp_path, {}) == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert train_here(tmp_path, {}) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"seed": "1"}, "seed: 0 there, 1 now"),
        ({"model.dropout": "0.1"}, "model.dropout: 0.3 there, 0.1 now"),
        ({"optim.lr": "0.02"}, "optim.lr: 0.01 there, 0.02 now"),
        ({"train.steps": "20"}, "train.steps: 10 there, 20 now"),  # the decay would differ
        ({"resume": "never"}, "holds a run already"),
    ],
)
def test_a_change_of_the_steps_already_done_is_refused(
    flags: dict[str, str], named: str, tmp_path: Path
) -> None:
    train_here(tmp_path, {})
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(UserError, match=named):
        train_here(tmp_path, flags)
    assert {f: f.read_bytes() for f in before} == before


def test_a_constant_rate_may_go_on_for_longer(tmp_path: Path) -> None:
    constant = {"optim.schedule": "constant", "optim.warmup": "0"}
    train_here(tmp_path / "grown", constant)
    train_here(tmp_path / "grown", constant | {"train.steps": "20"})
    train_here(tmp_path / "straight", constant | {"train.steps": "20"})
    weights = [
        (tmp_path / name / "model/model.safetensors").read_bytes() for name in ("grown", "straight")
    ]
    assert weights[0] == weights[1]


def test_other_rounding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = {"optim.schedule": "constant", "optim.warmup": "0"}
    train_here(tmp_path, constant)
    before = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(before | {"world_size": 4}))
    train_here(tmp_path, constant | {"train.steps": "12"})
    assert "world_size was 4, is 1: the same examples" in capsys.readouterr().out


def test_with_shards_a_number_of_processes_is_no_other_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded = {"optim.schedule": "constant", "optim.warmup": "0", "train.shards": "4"}
    train_here(tmp_path, sharded)
    before = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(before | {"world_size": 4, "threads": 7}))
    train_here(tmp_path, sharded | {"train.steps": "12"})
    said = capsys.readouterr().out
    assert "world_size was" not in said
    assert "threads was 7, is 1: the same examples" in said
