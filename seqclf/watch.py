"""What must not wait for the main thread: signals that ask to stop, and the end of a silence.

C code in the main thread (an import, a rendezvous, a collective) puts Python's signal handlers off
until it returns, maybe for ever. So the process that is a run's own has a thread which hears of
signals through a pipe, and which ends the process if nothing happens for too long.
"""

from __future__ import annotations

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

from seqclf.config import PREEMPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SECOND_S = 3.0  # launchers and Ctrl-C repeat a signal at once: a second one is meant after this
TICK_S = 0.1


class Watch:
    """A process's ear for signals.

    While `deferring`, a first signal is a request, to be read as `requested`, and a second one
    ends the process at once. Before and after there is nothing to lose, and the first one does.
    A process that is not a run's own, such as a notebook's, is not ended: KeyboardInterrupt is
    raised in it.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self.requested: int | None = None
        self._owns_process = owns_process
        self._listening = False
        self._deferring = False
        self._requested_at = 0.0
        self._outside = "stopped before training began; nothing was changed"
        self._limit_s: float | None = None
        self._ending = False
        self._heard_at = 0.0
        self._armed_at = 0.0
        self._silent: Callable[[str], None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of signals. In another thread than the main one Python cannot: nothing is done."""
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
        """Keep a signal that comes now as a request: the body saves, then leaves."""
        with self.listening():
            self._deferring = True
            try:
                yield
            finally:
                self._deferring = False
                self._outside = "stopped; the run had ended, nothing is lost"

    @contextmanager
    def limiting(self, limit_s: float, silent: Callable[[str], None]) -> Iterator[None]:
        """End the process if `progress` is not called for this long.

        `silent` is told first, with the stack of the main thread, by the watching thread. Where C
        code keeps that from running, too, the process ends 15 % later, and the stacks go to stderr.
        """
        if not self._owns_process:
            yield
            return
        self._silent, self._heard_at, self._limit_s = silent, time.monotonic(), limit_s
        try:
            yield
        finally:
            self._limit_s, self._armed_at = None, 0.0
            faulthandler.cancel_dump_traceback_later()

    def progress(self) -> None:
        """Say that something has happened."""
        self._heard_at = time.monotonic()

    def give_way(self) -> None:
        """Wait for the end if it has come: what fails while that is told is no news."""
        if self._ending:
            threading.Event().wait()

    def _handle(self, signum: int, _frame: types.FrameType | None) -> None:
        if not self._owns_process:  # else the thread has heard of it
            self._receive(signum)

    def _receive(self, signum: int) -> None:
        now = time.monotonic()
        if not self._deferring:
            self._leave(self._outside)
        elif self.requested is None:
            self.requested, self._requested_at = signum, now
        elif now - self._requested_at > SECOND_S:
            self._leave("stopped at once by a second signal; the last checkpoint stands")

    def _leave(self, text: str) -> None:
        if not self._owns_process:
            raise KeyboardInterrupt(text)
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                os.write(2, f"{text}\n".encode())  # sys.stderr may be locked by the main thread
        os._exit(PREEMPTED)

    @contextmanager
    def _thread(self) -> Iterator[None]:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._attend, args=(reader,), daemon=True, name="watch")
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)
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
            limit = self._limit_s
            if limit is None:
                continue
            now = time.monotonic()
            if now - self._heard_at > limit:
                self._end_silence(limit)
            if now - self._armed_at > limit / 10:  # C code may keep this thread from running, too
                self._armed_at = now
                faulthandler.dump_traceback_later(1.15 * limit, exit=True)

    def _end_silence(self, limit: float) -> None:
        self._ending = True
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        text = f"nothing happened for {limit:.0f} s; the main thread is here:\n{stack}"
        with suppress(Exception):
            os.write(2, text.encode())
            assert self._silent is not None
            self._silent(text)
        os._exit(1)
