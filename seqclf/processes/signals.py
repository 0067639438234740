"""What must not wait for the main thread: signals that ask to stop, and the end of a silence.

C code in the main thread (an import, a rendezvous, a collective) delays Python's signal handlers
until it returns, which may be never. So a process that belongs to a run has a second thread. It
reads signals from a pipe, and it ends the process if nothing happens for too long.

This module does not import torch: signals are listened for before that import.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from seqclf.errors import PREEMPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECOND_S = 3.0  # launchers and Ctrl-C repeat a signal at once: a later one is meant as a second
TICK_S = 0.1
PR_SET_PDEATHSIG = 1  # prctl's number for "send me a signal when my parent is gone"


class Signals:
    """Turns signals into a request to stop, and ends a process that is silent for too long.

    While `deferring`, the first signal only sets `requested`, and a second one ends the process at
    once. Before and after that there is nothing to lose, so the first signal ends the process. A
    process that does not belong to a run, such as a notebook's, is never ended: KeyboardInterrupt
    is raised in it.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self.requested: int | None = None
        self._owns_process = owns_process

        # Signals: what becomes of one that comes now, and what is printed if it ends the process.
        self._listening = False
        self._deferring = False
        self._requested_at = 0.0
        self._last_words = "stopped before training began; nothing was changed"

        # Silence: its limit, when it began, and when faulthandler's own limit was set.
        self._limit_s: float | None = None
        self._alive_at = 0.0
        self._armed_at = 0.0
        self._on_silence: Callable[[str], None] | None = None
        self._ending = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for signals. Does nothing outside the main thread, where Python cannot."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        with ExitStack() as undo:
            self._listening = True
            undo.callback(setattr, self, "_listening", False)
            if self._owns_process:
                undo.enter_context(self._thread())
            for number in STOP_SIGNALS:
                undo.callback(signal.signal, number, signal.signal(number, self._handle))
            yield

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Keep a signal as a request: the body looks at it, saves and leaves."""
        with self.listening():
            self._deferring = True
            try:
                yield
            finally:
                self._deferring = False
                self._last_words = "stopped; the run had ended, nothing is lost"

    @contextmanager
    def limiting(self, limit_s: float, on_silence: Callable[[str], None]) -> Iterator[None]:
        """End the process if `alive` is not called for `limit_s` seconds.

        The second thread first calls `on_silence` with the stack of the main thread. If C code
        keeps that thread from running, too, the process ends 15 % later, with all stacks on stderr.
        """
        if not self._owns_process:
            yield
            return
        self._on_silence = on_silence
        self._alive_at = time.monotonic()
        self._limit_s = limit_s  # set last: from here on the second thread looks at the others
        try:
            yield
        finally:
            self._limit_s = None
            self._armed_at = 0.0
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Note that something has happened: the silence starts anew."""
        self._alive_at = time.monotonic()

    def give_way(self) -> None:
        """Wait for ever if the process is being ended: a failure that this causes is no news."""
        if self._ending:
            threading.Event().wait()

    def _handle(self, signum: int, _frame: types.FrameType | None) -> None:
        if not self._owns_process:  # else the second thread receives it
            self._receive(signum)

    def _receive(self, signum: int) -> None:
        now = time.monotonic()
        if not self._deferring:
            self._leave(self._last_words)
        elif self.requested is None:
            self.requested = signum
            self._requested_at = now
        elif now - self._requested_at > SECOND_S:
            self._leave("stopped at once by a second signal; the last checkpoint stands")

    def _leave(self, text: str) -> None:
        if not self._owns_process:
            raise KeyboardInterrupt(text)
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())  # the main thread may hold sys.stderr's lock
        os._exit(PREEMPTED)

    @contextmanager
    def _thread(self) -> Iterator[None]:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._attend, args=(reader,), daemon=True, name="signals")
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            os.close(writer)  # the thread reads the end of the pipe, and returns
            thread.join()
            os.close(reader)

    def _attend(self, reader: int) -> None:
        while True:
            if select.select([reader], [], [], TICK_S)[0]:
                if not (signums := os.read(reader, 64)):
                    return
                for signum in signums:
                    if signum in STOP_SIGNALS:
                        self._receive(signum)
            limit_s = self._limit_s  # read once: the main thread may set it to None meanwhile
            if limit_s is None:
                continue
            now = time.monotonic()
            if now - self._alive_at > limit_s:
                self._end_silence(limit_s)
            if now - self._armed_at > limit_s / 10:  # faulthandler ends even a stuck interpreter
                self._armed_at = now
                faulthandler.dump_traceback_later(1.15 * limit_s, exit=True)

    def _end_silence(self, limit_s: float) -> None:
        self._ending = True
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        text = f"nothing happened for {limit_s:.0f} s; the main thread is here:\n{stack}"
        with suppress(Exception):
            os.write(2, text.encode())
            assert self._on_silence is not None
            self._on_silence(text)
        os._exit(1)


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process when its launcher is gone.

    `accelerate launch` with one process dies of a signal without passing it on, and would leave
    this process training. A plain shell is no launcher: its logout must not stop a nohup.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
