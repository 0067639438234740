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

# SIGHUP comes when a terminal closes. SIGUSR1 and SIGUSR2 are what batch systems send before a time
# limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SECOND_S = 3.0  # launchers and Ctrl-C repeat a signal at once: a later one is meant as a second
TICK_S = 0.1
# Of the time within which a process has left: after which silence it begins to tell of it, and how
# long it may tell. The rest is for the clocks of the ranks, which do not begin at the same moment.
SILENCE_SHARE, TELLING_SHARE = 0.75, 0.2
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
        self._arming = threading.Lock()
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
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # as nohup has it: the run outlives its terminal
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
        """Have the process gone `limit_s` seconds after the last call of `alive`, at the latest.

        After most of that time the second thread calls `on_silence` with the stack of the main
        thread, and ends the process, also if `on_silence` does not return. If C code keeps that
        thread from running, the process ends as late, with all stacks on stderr. If the body
        raises, the process has as long to leave. A limit inside another one replaces it meanwhile.
        """
        if not self._owns_process:
            yield
            return
        outer = self._limit_s, self._on_silence
        self._on_silence = on_silence
        self.alive()
        self._limit_s = limit_s  # set last: from here on the second thread looks at the others
        try:
            yield
        except BaseException:
            with self._arming:
                self._limit_s = None
                # The end of an interpreter may wait for other processes, too: the last guard.
                faulthandler.dump_traceback_later(limit_s, exit=True)
            raise
        self.alive()
        with self._arming:
            self._limit_s, self._on_silence = outer
            self._armed_at = 0.0
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Note that something has happened: the silence starts anew, unless it is too late."""
        self.give_way()
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
        left = threading.Event()
        thread = threading.Thread(
            target=self._attend, args=(reader, left), daemon=True, name="signals"
        )
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            left.set()  # not the end of the pipe: a fork may hold its writer open
            thread.join()
            os.close(writer)
            os.close(reader)

    def _attend(self, reader: int, left: threading.Event) -> None:
        while not left.is_set():
            if select.select([reader], [], [], TICK_S)[0]:
                for signum in os.read(reader, 64):
                    if signum in STOP_SIGNALS:
                        self._receive(signum)
            with self._arming:
                limit_s = self._limit_s
                if limit_s is None:
                    continue
                now = time.monotonic()
                self._ending = now - self._alive_at > SILENCE_SHARE * limit_s
                if now - self._armed_at > limit_s / 10:
                    self._armed_at = now
                    # faulthandler ends even an interpreter that is stuck.
                    end_s = (SILENCE_SHARE + TELLING_SHARE) * limit_s
                    faulthandler.dump_traceback_later(end_s, exit=True)
            if self._ending:
                self._end_silence(limit_s)

    def _end_silence(self, limit_s: float) -> None:
        telling_s = TELLING_SHARE * limit_s
        faulthandler.dump_traceback_later(telling_s + TICK_S, exit=True)
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        silence_s = SILENCE_SHARE * limit_s
        text = f"nothing happened for {silence_s:.0f} s; the main thread is here:\n{stack}"
        # The store, the disk and the reader of stderr may be what has stopped: telling may not end.
        teller = threading.Thread(target=self._tell, args=(text,), daemon=True)
        teller.start()
        teller.join(telling_s)
        os._exit(1)

    def _tell(self, text: str) -> None:
        with suppress(Exception):
            assert self._on_silence is not None
            self._on_silence(text)
        with suppress(OSError):
            os.write(2, text.encode())


def end_with_launcher() -> None:
    """Have the kernel send SIGTERM to this process when its launcher is gone.

    `accelerate launch` with one process dies of a signal without passing it on, and would leave
    this process training. A plain shell is no launcher: its logout must not stop a nohup.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
