"""C4 under SIGKILL: a run killed anywhere and resumed ends as the one that never was, bit for bit.

Processes are really killed, by themselves, at an exact point of the code; no clock decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.files import read_metrics, starts_of
from helpers.patches import watch_calls, watch_steps
from helpers.ranks import run_mortal_ranks
from helpers.training import EVERYTHING_ON, tiny_config, train_tiny
from torch import Tensor

from seqclf.data import sources
from seqclf.data.sequences import IGNORED, Batch
from seqclf.settle import make_plan

STEPS = 33
SETTINGS = {  # three epochs of 11 steps, the last one of each short
    **EVERYTHING_ON,
    "model.rocket": 0,  # its first evaluation is the best, as the deaths below want it
    "train.steps": STEPS,
    "train.batch_size": 120,
    "train.micro_batch_size": 40,
    "checkpoint.every": 4,
    "eval.every": 6,
    "train.patience": 9,  # more than there are evaluations
}
# With shards the bits are the same in any number of processes, else the examples only.
SHARDED = {**SETTINGS, "train.shards": 2}


class Point(NamedTuple):
    """Where to die: at a call of a function, counted from 1, while a step is the next or this."""

    function: str
    step: int
    call: int = 1
    only: int | None = None
    """The rank that dies; None: it takes all others along."""


Death = tuple[Point, int]
DEATHS: list[Death] = [  # each with the step that the next start goes on from
    (Point("seqclf.step.update", 2), 0),  # before there is a checkpoint
    (Point("seqclf.step.update", 7), 6),  # mid-epoch; the first evaluation was the best
    (Point("seqclf.step.update", 10), 8),  # the last step of an epoch
    (Point("seqclf.step.update", 11), 8),  # the first step of an epoch
    (Point("seqclf.training.evaluate", 12), 8),  # its metrics are not yet written ...
    (Point("seqclf.training.save", 12), 8),  # ... they are
    (Point("os.fsync", 12, call=2), 8),  # during a save: the weights are written
    (Point("os.fsync", 12, call=5), 8),  # the manifest
    (Point("os.rename", 12), 8),  # all is, under another name
    # The checkpoint stands, but status.json is behind.
    (Point("seqclf.run.saves.prune_checkpoints", 12), 12),
    (Point("os.replace", 16), 16),
    (Point("seqclf.training.evaluate", 18), 16),
    (Point("seqclf.training.train_step", 22), 20),
    (Point("seqclf.training.evaluate", 33, call=2), 33),  # between validation and test
    (Point("seqclf.run.directory.Run.finish", 0), 33),  # in a start that makes no step
]
DEATHS_OF_TWO: list[Death] = [
    (Point("seqclf.step.update", 2, only=1), 0),
    (Point("seqclf.step.update", 7, only=0), 6),
    (Point("seqclf.step.update", 10), 8),
    (Point("seqclf.step.update", 11), 8),
    (Point("seqclf.training.evaluate", 12, only=1), 8),
    (Point("os.fsync", 12, call=3), 8),
    (Point("os.rename", 12, only=0), 8),
    (Point("seqclf.run.saves.prune_checkpoints", 12), 12),
    (Point("seqclf.training.evaluate", 18), 16),
    (Point("seqclf.run.directory.Run.finish", 33), 33),
]


def train_mortally(
    folder: Path, session: int, settings: Mapping[str, object], point: Point | None
) -> None:
    """Train, writing down every example that is trained on, and die at a point."""
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    ledger = os.open(folder / f"ledger-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    step = calls = 0
    patch = pytest.MonkeyPatch()

    def write_down(batch: Batch) -> None:
        nonlocal step
        step = batch.step
        rows = batch.values[batch.labels != IGNORED]
        line = [session, world_size, step, [name_of(row) for row in rows]]
        os.write(ledger, f"{json.dumps(line)}\n".encode())

    def go_on() -> None:
        nonlocal step
        step += 1

    def die(*_: object, **__: object) -> None:
        nonlocal calls
        assert point is not None
        calls += step == point.step
        if calls == point.call:
            others = {*range(world_size)} - {rank} if point.only is None else ()
            for other in others:
                os.kill(int((folder / f"pid-{other}").read_text()), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    watch_steps(patch, write_down, go_on)
    if point is not None and point.only in (None, rank):
        watch_calls(patch, point.function, die)
    raise SystemExit(train_tiny(folder / "run", settings))


def name_of(row: Tensor) -> str:
    return hashlib.blake2b(row.numpy().tobytes(), digest_size=6).hexdigest()


def live(
    folder: Path,
    world_sizes: list[int],
    deaths: list[Death],
    settings: Mapping[str, object] = SETTINGS,
) -> None:
    """Train, with a death in every session but the last; check where each left off."""
    folder.mkdir()
    points = [*(point for point, _ in deaths), None]
    for session, (world_size, point) in enumerate(zip(world_sizes, points, strict=True)):
        codes = run_mortal_ranks(world_size, train_mortally, folder, session, settings, point)
        if point is None:
            assert set(codes) == {0}
        elif point.only is None:
            assert set(codes) == {-signal.SIGKILL}, point
        else:  # the launcher kills the other, unless that has met the silence first
            assert codes[point.only] == -signal.SIGKILL, point
            assert 0 not in codes, point
    assert starts_of(folder / "run") == [0, *(step for _, step in deaths)]
    check_ledger(folder)


def check_ledger(folder: Path) -> None:
    """Assert that the examples of each step were those of the plan, whoever trained on them.

    Each time a process has trained on its share, and the last time all of them have.
    """
    config = tiny_config(SETTINGS)
    data = sources.load(config.data, seed=config.seed).train
    names = [name_of(row) for row in data.values]
    assert len(set(names)) == len(names) == 1295
    plan = make_plan(config, data)
    trained: dict[int, dict[int, dict[int, list[str]]]] = {step: {} for step in range(STEPS)}
    for file in folder.glob("ledger-*"):
        rank = int(file.name.removeprefix("ledger-"))
        for session, world_size, step, own in map(json.loads, file.read_text().splitlines()):
            assert own == [names[i] for i in plan.share(step, rank, world_size).ids], (step, rank)
            trained[step].setdefault(session, {})[rank] = own
    for step, sessions in trained.items():
        [*_, (_, shares)] = sorted(sessions.items())
        everyones = [name for _, own in sorted(shares.items()) for name in own]
        assert everyones == [names[i] for i in plan.batch(step)], step


def results(folder: Path) -> dict[str, bytes]:
    """Return weights and moments of the last checkpoints, and the result."""
    run = folder / "run"
    files = [*run.glob("checkpoints/*/*.safetensors"), run / "model" / "model.safetensors"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def check_same(broken: Path, straight: Path) -> None:
    assert len(results(straight)) == 5
    assert results(broken) == results(straight)
    metrics = read_metrics(broken / "run")
    assert metrics == read_metrics(straight / "run")
    keys = [(line["step"], key) for line in metrics for key in line if key != "step"]
    assert len(keys) == len({*keys}) == 49


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "deaths"),
    [(1, DEATHS), (2, DEATHS_OF_TWO)],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    world_size: int, deaths: list[Death], tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    live(straight, [world_size], [])
    live(broken, [world_size] * (len(deaths) + 1), deaths)
    check_same(broken, straight)


def test_killed_and_moved_to_other_world_sizes(tmp_path: Path) -> None:
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    live(straight, [1], [], SHARDED)
    deaths = [(Point("seqclf.step.update", 10), 8), (Point("os.fsync", 24, call=3), 20)]
    live(moved, [2, 1, 2], deaths, SHARDED)
    check_same(moved, straight)
