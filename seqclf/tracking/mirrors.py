"""Start and end the mirrors of a run in W&B and TensorBoard, each a process of its own (mirror.py).

A mirror reads metrics.jsonl, which is the truth, as it grows. So a mirror that raises, hangs or
waits for a network never stops the training, and it outlives a trainer that is killed.
"""

from __future__ import annotations

import netrc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from seqclf.config.settings import Tracking as TrackingSettings
from seqclf.errors import UserError

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
MIRROR_MODULE = "seqclf.tracking.mirror"
TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard"}


class Mirrors:
    """Starts the mirrors on the main process, and ends them. `say` prints."""

    def __init__(self, say: Callable[[str], None], *, enabled: bool) -> None:
        self._say = say
        self.enabled = enabled
        self._finish_s = 0
        self._run_dir = Path()
        self._mirrors: dict[str, subprocess.Popen[str]] = {}
        self._listeners: list[threading.Thread] = []

    def open(self, options: TrackingSettings, run_dir: Path) -> None:
        """Start the mirrors that the settings ask for. Raises UserError if one is not installed."""
        if not self.enabled:
            return
        self._finish_s = options.finish_s
        self._run_dir = run_dir
        if options.tensorboard:
            if find_spec("tensorboard") is None:
                raise UserError(
                    "tracking.tensorboard: the package is missing; pip install tensorboard"
                )
            self._say(f"tensorboard tensorboard --logdir {run_dir.parent}")
            self._start("tensorboard", run_dir)
        mode = wandb_mode(options.wandb)
        if mode == "offline":
            where = os.environ.get("WANDB_DIR") or run_dir
            self._say(f"wandb       offline; to upload: wandb sync {where}/wandb/offline-run-*")
        if mode != "disabled":
            self._start("wandb", run_dir)

    def _start(self, kind: str, run_dir: Path) -> None:
        # The mirror must find this very package, also where it is not installed.
        source = str(Path(__file__).parents[2])
        path = os.environ.get("PYTHONPATH")
        environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{path}" if path else source}
        # A mirror, and W&B's own process, inherit the blocked signals: a batch system that signals
        # all processes of a job does not end them before the training.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            mirror = subprocess.Popen(
                [sys.executable, "-P", "-m", MIRROR_MODULE, kind, str(run_dir), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
                # A group of its own, because the terminal's Ctrl-C is meant for the trainer. But no
                # session of its own: Linux may divide the cores by session (autogroup), and being
                # nice counts inside a session only.
                process_group=0,
            )
            os.setpriority(os.PRIO_PROCESS, mirror.pid, 19)
        except OSError as error:
            self._say(f"warning: {TITLES[kind]} is left out: {error}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert mirror.stdout is not None
        listener = threading.Thread(target=self._pass_on, args=[mirror.stdout], daemon=True)
        listener.start()
        self._mirrors[kind] = mirror
        self._listeners.append(listener)

    def _pass_on(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._say(line.rstrip("\n"))

    def close(self, exit_code: int = 0, *, waits: bool = True) -> None:
        """Tell the mirrors how the run ended; give all of them together `finish_s` seconds.

        If nobody waits, the mirrors end by themselves after as long.
        """
        end = time.monotonic() + self._finish_s
        mirrors = self._mirrors
        self._mirrors = {}
        for mirror in mirrors.values():
            assert mirror.stdin is not None
            try:
                mirror.stdin.write(f"{exit_code}\n")
                mirror.stdin.close()
            except OSError:  # the mirror is gone, and has said why
                pass
        if not waits:
            return
        for kind, mirror in mirrors.items():
            try:
                mirror.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(mirror.pid, signal.SIGKILL)
                mirror.wait()
                self._say(
                    f"warning: {TITLES[kind]} was not ready {self._finish_s} s after the end "
                    "(tracking.finish_s); metrics.jsonl has all, and sends the rest with: "
                    f"python -m {MIRROR_MODULE} {kind} {self._run_dir}"
                )
        for listener in self._listeners:
            listener.join(1)


def wandb_mode(requested: str) -> str:
    """Return W&B's mode. auto: W&B's own environment decides, else whether there is an API key."""
    if requested != "auto":
        return requested
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if mode := os.environ.get("WANDB_MODE"):
        return {"dryrun": "offline", "run": "online"}.get(mode, mode)
    return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    """Look for an API key where `wandb login` leaves it, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
        return host in netrc.netrc(path).hosts  # not its `default` entry
    except (OSError, netrc.NetrcParseError):
        return False
