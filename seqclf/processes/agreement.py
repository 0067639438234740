"""How the processes of a run agree on stopping and saving, and report one common failure."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

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
SPEAKER = "seqclf/speaker"  # the rank that writes status.json for all
HOST = "seqclf/host"  # HOST/RANK: the name of that rank's host
ROLL_CALL = "seqclf/roll-call"  # CALL: who is alive? END: nobody will ask
ALIVE = "seqclf/alive"  # ALIVE/RANK: that rank has answered the roll call
CALL, END = "call", "end"
FOR_EVER = timedelta(days=3650)

# What a rank's place is if it has not told it.
NO_ANSWER = "no answer: stopped, gone or stuck in C code; its stderr may say more\n"
GRACE_S = 0.05  # for an answer that comes at the last moment

Answer = TypeVar("Answer")


class Agreement:
    """Lets ranks agree to stop or save without waiting.

    Each rank starts an asynchronous all-reduce at one step and reads the result some steps later.
    It has its own gloo group, so it never waits for the GPU. A thread answers the roll call of a
    rank that fails, also while the main thread waits in a collective.
    """

    def __init__(self, timeout: timedelta, rank: int) -> None:
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
        store = _store()
        store.set(f"{HOST}/{rank}", socket.gethostname())
        # A connection of its own: a store that waits keeps everyone else on its connection waiting.
        self._answering = threading.Thread(
            target=_answer_roll_call, args=(store.clone(), rank), daemon=True, name="roll call"
        )
        self._answering.start()

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
        """Wait for the all-reduce that is still under way, and end the thread."""
        if self._work is not None:
            self._work.wait()
        with suppress(RuntimeError):
            _store().set(ROLL_CALL, END)
        self._answering.join(1)


def _answer_roll_call(store: Store, rank: int) -> None:
    """Wait until a rank that fails asks who is alive, and answer. For a thread."""
    with suppress(RuntimeError):  # the process that keeps the store is gone
        store.wait([ROLL_CALL], FOR_EVER)
        if store.get(ROLL_CALL).decode() == CALL:
            store.set(f"{ALIVE}/{rank}", "")


def first_failure(
    runtime: Runtime, text: str, wait_s: float = 1.0, *, mendable: bool = False
) -> str | None:
    """Tell the other ranks why this one fails; return the text of the rank that failed first.

    Ranks that do not answer a roll call within `wait_s` are named before that text. It is returned
    to the main process, or to another rank if the main process does not answer in time; the other
    ranks get None. `mendable` says that the text is for the user, and no failure of a connection.
    """
    if runtime.world_size == 1:
        return text
    runtime.signals.give_way()
    own = f"rank {runtime.rank}: {text}"

    def tell(store: Store) -> str:
        first: str = store.compare_set(FAILURE, "", own).decode()
        store.set(f"{ALIVE}/{runtime.rank}", "")
        store.set(ROLL_CALL, CALL)
        return first

    first = _ask(tell, wait_s)
    if not _speaks(runtime, wait_s, store_answers=first is not None):
        return None
    if first is None:
        return text if mendable else f"lost: {_store_keeper()}: {NO_ANSWER}{own}"
    lost = _call_roll(runtime.world_size, wait_s)
    text = text if first.endswith(f": {text}") else first
    return f"lost: {', '.join(lost)}: {NO_ANSWER}{text}" if lost else text


def _call_roll(world_size: int, wait_s: float) -> list[str]:
    """Return the ranks that do not answer in time, each with its host."""
    end = time.monotonic() + wait_s
    return [
        _name_rank(rank)
        for rank in range(world_size)
        if _wait_for(f"{ALIVE}/{rank}", max(0.01, end - time.monotonic())) is None
    ]


def _name_rank(rank: int) -> str:
    host = _wait_for(f"{HOST}/{rank}", 0.01)
    return f"rank {rank} on {host}" if host else f"rank {rank}"


def _store_keeper() -> str:
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return f"{'the launcher' if by_launcher else 'rank 0'}, which keeps the store"


def gather_silence(runtime: Runtime, text: str, wait_s: float) -> str | None:
    """Collect where each rank stands; every rank calls this when all were silent for too long.

    Return the collected texts, or the failure that caused the silence, on the rank to which
    `first_failure` would return its text; None on the others. Takes up to 4 times `wait_s`.
    """
    own_key = f"{SILENT}/{runtime.rank}"
    store_answers = _ask(lambda store: store.compare_set(own_key, "", text), wait_s) is not None
    if not _speaks(runtime, wait_s, store_answers=store_answers):
        return None
    if not store_answers:
        return f"{_store_keeper()}: {NO_ANSWER}rank {runtime.rank}: {text}"
    ranks_at: dict[str, list[int]] = {}  # the ranks that stand at the same place
    end = time.monotonic() + wait_s
    for rank in range(runtime.world_size):
        left_s = max(0.01, end - time.monotonic())
        place = text if rank == runtime.rank else _wait_for(f"{SILENT}/{rank}", left_s)
        ranks_at.setdefault(place or NO_ANSWER, []).append(rank)
    lines = [f"{', '.join(map(_name_rank, ranks))}: {place}" for place, ranks in ranks_at.items()]
    return _wait_for(FAILURE, 0.01) or "\n".join(lines)


def _speaks(runtime: Runtime, wait_s: float, *, store_answers: bool) -> bool:
    """Say whether this rank writes for all: the main one does, or the first after it that can.

    Without a store each rank does in its turn: it finds written what another one has told.
    """
    if not runtime.is_main:
        turn_s = wait_s * min(2, (1 + runtime.rank) / 2)
        end = time.monotonic() + turn_s
        if store_answers and _wait_for(SPEAKER, turn_s) is not None:
            return False
        time.sleep(max(0, end - time.monotonic()))  # a store that is gone answers at once
    if not store_answers:
        return True
    own = str(runtime.rank)
    speaker = _ask(lambda store: store.compare_set(SPEAKER, "", own).decode(), wait_s)
    # The main process speaks even late: the other one may not reach the run directory.
    return runtime.is_main or speaker in (None, own)


def _wait_for(key: str, wait_s: float) -> str | None:
    """Return a value of the process group's store, or None if it does not come in time."""

    def wait(store: Store) -> str:
        store.wait([key], timedelta(seconds=wait_s))
        return str(store.get(key).decode())

    return _ask(wait, wait_s)


def _ask(question: Callable[[Store], Answer], limit_s: float) -> Answer | None:
    """Ask the process group's store; return None if it does not answer in time, or is gone.

    Where the process that keeps the store is stopped, torch waits longer than it is told to.
    """
    store = _store()
    answers: list[Answer] = []

    def ask() -> None:
        with suppress(RuntimeError):
            answers.append(question(store))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(limit_s + GRACE_S)
    return answers[0] if answers else None


def _store() -> Store:
    return dist.distributed_c10d._get_default_store()
