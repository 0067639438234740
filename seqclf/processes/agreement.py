"""How the processes of a run agree on stopping and saving, and report one common failure."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

if TYPE_CHECKING:
    from seqclf.processes.runtime import Runtime

AGREE_EVERY_S = 0.5
MAX_STEPS_APART = 64  # between two all-reduces, however fast the steps are

# Keys in the process group's store.
FAILURE = "seqclf/failure"  # the text of the rank that failed first
SILENT = "seqclf/silent"  # SILENT/RANK: where that rank stood when all were silent too long
MAIN_SPEAKS = "seqclf/main speaks"  # set by rank 0: rank 1 need not write status.json


class Agreement:
    """Lets ranks agree to stop or save without waiting.

    Each rank starts an asynchronous all-reduce at one step and reads the result some steps later.
    It has its own gloo group, so it never waits for the GPU.
    """

    def __init__(self, timeout: timedelta) -> None:
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        # Reduced to the maximum: stop, save, and how many steps until the next all-reduce.
        self._votes = torch.zeros(3, dtype=torch.int32)
        self._work: dist.Work | None = None
        self._next_step = 0
        # When the all-reduce under way was started.
        self._start_step = 0
        self._start_s = 0.0

    def at(self, step: int, *, stop: bool, save: bool, is_main: bool) -> tuple[bool, bool]:
        """Return whether any rank wanted to stop, and to save, when the last all-reduce started.

        Every rank gets the same answer at the same step, because the main process alone decides how
        many steps lie between two all-reduces.
        """
        if self._work is not None and step < self._next_step:
            return False, False
        agreed = (False, False)
        if self._work is not None:
            self._work.wait()
            agreed = (bool(self._votes[0]), bool(self._votes[1]))
        self._next_step = step + max(1, int(self._votes[2]))
        steps_apart = self._estimate_steps_apart(step) if is_main else 0
        self._votes.copy_(torch.tensor([stop, save, steps_apart], dtype=torch.int32))
        self._work = dist.all_reduce(self._votes, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _estimate_steps_apart(self, step: int) -> int:
        now = time.perf_counter()
        step_s = (now - self._start_s) / max(1, step - self._start_step)
        self._start_step = step
        self._start_s = now
        return min(MAX_STEPS_APART, max(1, int(AGREE_EVERY_S / max(step_s, 1e-6))))

    def close(self) -> None:
        """Wait for the all-reduce that is still under way."""
        if self._work is not None:
            self._work.wait()


def first_failure(runtime: Runtime, text: str, wait_s: float = 1.0) -> str | None:
    """Tell the other ranks why this one fails; return the text of the rank that failed first.

    The text is returned to the main process, or to rank 1 if the main process does not answer
    within `wait_s`; the other ranks get None.
    """
    if runtime.world_size == 1:
        return text
    runtime.signals.give_way()
    first = f"rank {runtime.rank}: {text}"
    with suppress(RuntimeError):  # the process that keeps the store may be gone
        first = _store().compare_set(FAILURE, "", first).decode()
    if not _speaks(runtime, wait_s):
        return None
    return text if first.endswith(f": {text}") else first


def gather_silence(runtime: Runtime, text: str, wait_s: float) -> str | None:
    """Collect where each rank stands; every rank calls this when all were silent for too long.

    Return the collected texts, or the failure that caused the silence, on the rank to which
    `first_failure` would return its text; None on the others.
    """
    with suppress(RuntimeError):
        _store().set(f"{SILENT}/{runtime.rank}", text)
    if not _speaks(runtime, 2 * wait_s):
        return None
    ranks_at: dict[str, list[int]] = {}  # the ranks that stand at the same place
    end = time.monotonic() + wait_s
    for rank in range(runtime.world_size):
        left_s = max(0.01, end - time.monotonic())
        place = text if rank == runtime.rank else _wait_for(f"{SILENT}/{rank}", left_s)
        ranks_at.setdefault(place or "no answer; its stderr may say more\n", []).append(rank)
    lines = [f"rank {', '.join(map(str, ranks))}: {place}" for place, ranks in ranks_at.items()]
    return _wait_for(FAILURE, 0.01) or "\n".join(lines)


def _speaks(runtime: Runtime, wait_s: float) -> bool:
    """Say whether this rank speaks for all: the main one does, or rank 1 if rank 0 is gone."""
    if runtime.is_main:
        with suppress(RuntimeError):
            _store().set(MAIN_SPEAKS, "yes")
        return True
    return runtime.rank == 1 and _wait_for(MAIN_SPEAKS, wait_s) is None


def _store() -> Store:
    return dist.distributed_c10d._get_default_store()


def _wait_for(key: str, wait_s: float) -> str | None:
    """Return a value of the process group's store, or None if it does not come in time."""
    try:
        _store().wait([key], timedelta(seconds=wait_s))
        return str(_store().get(key).decode())
    except RuntimeError:  # the key did not come in time, or the store is gone
        return None
