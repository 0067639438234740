"""Train in a process that is somebody else's: afterwards it is as it was before.

A run seeds torch, sets its threads, its flags and environment variables, and replaces the state
that Accelerate keeps for the whole process. All of that is put back, however the run ends.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from seqclf.errors import UserError
from seqclf.processes.signals import Signals

Result = TypeVar("Result")

_ONE_AT_A_TIME = threading.Lock()  # torch's seed and Accelerate's state are the whole process's
# A process that is forked while another thread trains would wait for ever.
os.register_at_fork(after_in_child=_ONE_AT_A_TIME._at_fork_reinit)  # type: ignore[attr-defined]


def refuse_groups() -> None:
    """Raise UserError in a process that a launcher has started as one of several."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise UserError(
            "seqclf.train and fit train in one process, and this is one of a launcher's group; "
            "start `seqclf train` with the launcher, on prepared files (docs/launching.md)"
        )


def as_guest(run: Callable[[Signals], Result]) -> Result:
    """Call a function that trains, and leave the process as it was; several calls take turns.

    A Ctrl-C becomes a request to stop, as it does on the command line. When the function has
    returned, the signal is raised anew: so Python's own handler raises KeyboardInterrupt.
    """
    signals = Signals()
    with _ONE_AT_A_TIME, _unchanged():
        worker = _Worker(run, signals)
        with _interrupting(signals):
            worker.finish()
    if signals.requested is not None:
        signal.raise_signal(signals.requested)
    return worker.result()


class _Worker(Generic[Result]):
    """A thread that calls a function.

    A thread has threads of OpenMP, flags of the processor and modes of torch of its own. So those
    of the caller stay as they are, and the run computes the bits that the command line computes,
    whatever the caller has set. (Denormals are flushed by a flag of each thread; OpenMP's threads
    inherit it when they begin.)
    """

    def __init__(self, run: Callable[[Signals], Result], signals: Signals) -> None:
        self._run = run
        self._signals = signals
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._done = threading.Event()

    def _call(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            self._results.append(self._run(self._signals))
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def finish(self) -> None:
        """Run the function to its end; ask it to stop if the wait is interrupted."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=[self._call], name="seqclf")
        thread.start()
        try:
            # Not Thread.join, which takes the thread for ended if a handler raises meanwhile.
            self._done.wait()
        except BaseException:  # of a handler of the caller's, such as that of a timeout
            self._signals.requested = signal.SIGINT
            self._done.wait()
            raise
        finally:
            thread.join()

    def result(self) -> Result:
        """Return the function's result, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]


@contextmanager
def _interrupting(signals: Signals) -> Iterator[None]:
    """Turn Ctrl-C into a request to stop, in the main thread, which alone receives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, _frame: FrameType | None) -> None:
        signals.requested = signum

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _unchanged() -> Iterator[None]:
    """Put back what a run changes for the whole process."""
    environment = dict(os.environ)
    threads = torch.get_num_threads()
    dtype = torch.get_default_dtype()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # The model is built on the CPU, and dropout draws on the device.
    random_state = torch.get_rng_state()
    on_gpu = torch.cuda.is_initialized()
    gpu_random_state = torch.cuda.get_rng_state() if on_gpu else None
    states = [cls._shared_state for cls in (AcceleratorState, PartialState, GradientState)]
    contents = [dict(state) for state in states]
    try:
        torch.set_default_dtype(torch.float32)
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.set_num_threads(threads)
        torch.set_rng_state(random_state)
        if gpu_random_state is not None:
            torch.cuda.set_rng_state(gpu_random_state)
        for state, content in zip(states, contents, strict=True):
            state.clear()
            state.update(content)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
