"""Threads that read ahead: in order, in little memory, and gone when the training is."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers.files import read_status, same_end
from helpers.launching import LIMIT_S, PROGRAMS, as_words, clean_environment, wait_for
from helpers.patches import full_disk
from helpers.training import tiny_flags, train_tiny

from seqclf.data.batches import BatchPlan
from seqclf.data.blocks import Blocks
from seqclf.data.read_ahead import AHEAD, ask_ahead, read_ahead
from seqclf.data.sequences import Batch, Sequences, Share
from seqclf.errors import UserError

SETTINGS = {"data.workers": 2, "train.steps": 12, "checkpoint.every": 4, "log.every": 4}


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture(autouse=True)
def _no_reader_is_left() -> Iterator[None]:
    yield
    assert readers() == []


def shares(count: int) -> list[Share]:
    return [Share(step, torch.tensor([step]), 0, 1, step) for step in range(count)]


def read(share: Share) -> Batch:
    return Batch(share.ids.float(), share.ids, share.step, share.first, share.total)


def test_batches_come_in_order_whoever_is_slow() -> None:
    def read_slowly(share: Share) -> Batch:
        time.sleep(0.01 * (share.step % 3))
        return read(share)

    batches = read_ahead(read_slowly, shares(20), num_threads=3, limit_s=LIMIT_S)
    assert [batch.step for batch in batches] == list(range(20))


def test_only_a_few_batches_are_in_memory() -> None:
    steps: list[int] = []

    def note(share: Share) -> Batch:
        steps.append(share.step)
        return read(share)

    batches = read_ahead(note, shares(100), num_threads=2, limit_s=LIMIT_S)
    next(batches)
    wait_for(lambda: len(steps) == 2 * AHEAD + 1)
    time.sleep(0.1)
    assert sorted(steps) == list(range(2 * AHEAD + 1))
    batches.close()


def test_threads_of_torch_are_as_many_as_before() -> None:
    inside: list[int] = []

    def look(share: Share) -> Batch:
        inside.append(torch.get_num_threads())
        return read(share)

    torch.set_num_threads(2)
    assert len(list(read_ahead(look, shares(4), num_threads=2, limit_s=LIMIT_S))) == 4
    assert inside == [1] * 4
    assert torch.get_num_threads() == 2


def test_an_error_of_a_reader_is_raised_at_its_batch() -> None:
    def fail(share: Share) -> Batch:
        if share.step == 3:
            raise ArithmeticError("example 3")
        return read(share)

    batches = read_ahead(fail, shares(9), num_threads=2, limit_s=LIMIT_S)
    assert [next(batches).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ArithmeticError, match="example 3"):
        next(batches)


def test_a_disk_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def wait(share: Share) -> Batch:
        answer.wait()
        return read(share)

    monkeypatch.setattr("seqclf.data.read_ahead.JOIN_S", 0)
    with pytest.raises(UserError, match=r"no batch came within 1 s .*does not answer"):
        next(read_ahead(wait, shares(9), num_threads=2, limit_s=1))
    assert len(readers()) == 2
    answer.set()
    wait_for(lambda: not readers())


# ---- blocks of examples


class Asked(Sequences):
    """Notes what it is asked to have read, and forgotten."""

    ranges: list[tuple[int, int]]
    dropped: list[list[tuple[int, int]]]

    def will_need(self, first: int, end: int) -> None:
        self.ranges.append((first, end))

    def drop(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.dropped.append(list(ranges))


def test_the_blocks_of_the_next_buffer_are_asked_for_before_it_begins() -> None:
    blocks = Blocks(1000, 10, seed=0, buffer=200)
    plan = BatchPlan(1000, 10, 0, num_steps=180, blocks=blocks)
    sequences = Asked(torch.zeros(1, 1, 1), torch.zeros(1), ("a",))
    object.__setattr__(sequences, "ranges", [])
    object.__setattr__(sequences, "dropped", [])
    asked = ask_ahead(sequences, plan, plan.shares(25, 0, 1), drops=True)
    assert next(asked).step == 25  # in buffer 1, of 20 steps each
    wanted = [*blocks.ranges(1), *blocks.ranges(2)]
    wait_for(lambda: sequences.ranges == wanted)
    assert [share.step for share in itertools.islice(asked, 14)] == list(range(26, 40))
    assert sequences.ranges == wanted
    assert next(asked).step == 40
    wanted += blocks.ranges(3)
    wait_for(lambda: sequences.ranges == wanted)
    assert sequences.dropped == [blocks.ranges(0), blocks.ranges(1)]
    assert len(list(asked)) == 139
    assert len(readers()) == 0


def test_an_error_while_blocks_are_asked_for_is_raised() -> None:
    class Failing(Sequences):
        def will_need(self, first: int, end: int) -> None:
            raise ArithmeticError(f"{first} to {end}")

    plan = BatchPlan(1000, 10, 0, num_steps=9, blocks=Blocks(1000, 10, seed=0, buffer=200))
    sequences = Failing(torch.zeros(1, 1, 1), torch.zeros(1), ("a",))
    with pytest.raises(ArithmeticError, match=r"\d+ to \d+"):
        list(ask_ahead(sequences, plan, plan.shares(0, 0, 1), drops=False))


# ---- a run that fails with them


def test_a_failure_in_a_reader_is_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Sequences.__getitems__

    def fail(sequences: Sequences, share: Share) -> Batch:
        if share.step == 9:
            raise ArithmeticError("what went wrong")
        return honest(sequences, share)

    with monkeypatch.context() as patch:
        patch.setattr(Sequences, "__getitems__", fail)
        with pytest.raises(ArithmeticError):
            train_tiny(tmp_path / "run", SETTINGS)
    status = read_status(tmp_path / "run")
    assert (status.state, status.step) == ("failed", 9)
    assert "what went wrong" in str(status.error)
    assert train_tiny(tmp_path / "run", SETTINGS) == 0
    assert train_tiny(tmp_path / "straight", SETTINGS | {"data.workers": 0}) == 0
    assert same_end(tmp_path / "run", tmp_path / "straight")


def test_a_full_disk_ends_a_run_that_reads_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqclf.run.saves.commit_checkpoint", full_disk)
    with pytest.raises(UserError, match="3 checkpoints in a row could not be saved"):
        train_tiny(tmp_path / "run", SETTINGS)
    assert read_status(tmp_path / "run").state == "failed"


@pytest.mark.slow
def test_a_users_mistake_after_the_start_ends_a_command(tmp_path: Path) -> None:
    settings = {"data.workers": 2, "train.steps": 1000, "optim.lr": 1e38, "optim.clip": None}
    flags = tiny_flags(settings, run_dir=tmp_path / "run", train__max_skipped=3, log__every=5)
    done = subprocess.run(
        [PROGRAMS / "seqclf", "train", *as_words(flags)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "were skipped, because loss or gradient was not finite" in done.stderr
    assert read_status(tmp_path / "run").state == "failed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no namespaces")
def test_a_container_whose_shared_memory_is_full_trains() -> None:
    with TemporaryDirectory(dir="/var/tmp") as folder:  # pytest's own may lie in /dev/shm
        train_without_shared_memory(Path(folder) / "run")


def train_without_shared_memory(run_dir: Path) -> None:
    flags = tiny_flags(SETTINGS, run_dir=run_dir)
    # unshare's own namespace: nothing of it is left.
    fill = "mount -t tmpfs -o size=64k tmpfs /dev/shm && ! cat /dev/zero 2>/dev/null >/dev/shm/full"
    isolate = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*isolate, fill], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    done = subprocess.run(
        [*isolate, f'{fill}; exec "$@"', "sh", PROGRAMS / "seqclf", "train", *as_words(flags)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_status(run_dir).state == "finished"
