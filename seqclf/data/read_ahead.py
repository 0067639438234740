"""Read batches ahead in threads: reading may wait for a disk, and training need not wait with it.

Threads are enough, because torch reads outside of Python's lock. Worker processes would send their
batches through /dev/shm, which is small in a container. They also can be killed or stopped alone,
and as forks they keep each pipe open that this process has.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeAlias, TypeVar

import torch

from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Batch, Sequences, Share
from seqclf.errors import UserError

AHEAD = 2  # batches that each thread reads ahead
JOIN_S = 5.0  # how long the end waits for threads whose disk may never answer

Read = Callable[[Share], Batch]
Job = TypeVar("Job")
Result = TypeVar("Result")
Jobs: TypeAlias = "SimpleQueue[tuple[Job, Future[Result]] | None]"


def read_ahead(
    read: Read,
    shares: Iterable[Share],
    *,
    num_threads: int,
    limit_s: float,
) -> Generator[Batch, None, None]:
    """Yield the batch of each share, in their order; `num_threads` threads call `read`.

    Without threads each batch is read when it is asked for. The threads end when the iterator is
    exhausted or closed. An error of `read` is raised here. Raises UserError if a thread reads no
    batch within `limit_s` seconds.
    """
    if not num_threads:
        yield from map(read, shares)
        return
    jobs: Jobs[Share, Batch] = SimpleQueue()
    waiting: deque[Future[Batch]] = deque()
    threads: list[Thread] = []
    try:
        _start(threads, num_threads, lambda: _work(jobs, read))
        for share in shares:
            future: Future[Batch] = Future()
            jobs.put((share, future))
            waiting.append(future)
            if len(waiting) > AHEAD * num_threads:
                yield _wait(waiting.popleft(), limit_s)
        while waiting:
            yield _wait(waiting.popleft(), limit_s)
    finally:
        for future in waiting:
            future.cancel()
        for _ in threads:
            jobs.put(None)
        end = time.monotonic() + JOIN_S
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))


def ask_ahead(
    sequences: Sequences, plan: BatchPlan, shares: Iterable[Share], *, drops: bool
) -> Generator[Share, None, None]:
    """Yield shares, and have the kernel read the examples of the buffer after the one in use.

    The first buffer is waited for. `drops` has the kernel forget the buffer before, where memory
    cannot keep all. An error of `sequences` is raised here.
    """
    blocks = plan.blocks
    assert blocks is not None
    jobs: Jobs[int, None] = SimpleQueue()
    asked: dict[int, Future[None]] = {}  # the buffer in use, and the next one
    has_ended = Event()

    def ask(number: int) -> None:
        if drops and number >= 2:
            sequences.drop(blocks.ranges(number - 2))
        for first, end in blocks.ranges(number):
            if has_ended.is_set():
                return
            sequences.will_need(first, end)

    threads: list[Thread] = []
    try:
        _start(threads, 1, lambda: _work(jobs, ask))
        for share in shares:
            number = blocks.buffer_of(*divmod(share.step, plan.steps_per_epoch))
            asked.pop(number - 1, None)
            for later in (number, number + 1):
                if later not in asked:
                    asked[later] = Future()
                    jobs.put((later, asked[later]))
            # Else each example of a block not yet asked for would have the kernel read around it.
            asked[number].result()
            yield share
    finally:
        has_ended.set()
        jobs.put(None)
        for thread in threads:
            thread.join(JOIN_S)


def _start(threads: list[Thread], count: int, work: Callable[[], None]) -> None:
    """Start threads, and wait until each has begun."""
    num_threads = torch.get_num_threads()
    begun = Semaphore(0)

    def run() -> None:
        # Else each reader would start OpenMP threads of its own, beside those that train. A thread
        # takes the number of the process when it first asks, so it asks before it has its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        begun.release()
        work()

    for number in range(count):
        # Daemons: Python's end must not wait for a disk that does not answer.
        thread = Thread(target=run, daemon=True, name=f"reader {number}")
        thread.start()
        threads.append(thread)
    for _ in range(count):
        begun.acquire()
    torch.set_num_threads(num_threads)  # what threads that torch starts later begin with


def _work(jobs: Jobs[Job, Result], do: Callable[[Job], Result]) -> None:
    while (task := jobs.get()) is not None:
        job, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(do(job))
        except BaseException as error:
            future.set_exception(error)


def _wait(future: Future[Batch], limit_s: float) -> Batch:
    if not future.done():
        try:
            future.exception(limit_s)
        except TimeoutError:
            raise UserError(
                f"no batch came within {limit_s:.0f} s (distributed.timeout_s): the disk that "
                "holds the data does not answer; mend it, then the same command goes on"
            ) from None
    return future.result()
