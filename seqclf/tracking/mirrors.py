"""Start and end the mirrors of a run in W&B and TensorBoard, each a process of its own (mirror.py).

A mirror reads metrics.jsonl, which is the truth, as it grows. So a mirror that raises, hangs or
waits for a network never stops the training, and it outlives a trainer that is killed.
"""

from __future__ import annotations

import netrc
import os
import shlex
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
from seqclf.errors import USAGE_ERROR, UserError, printable
from seqclf.tracking.delivery import find_missing

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
MIRROR_MODULE = "seqclf.tracking.mirror"
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # W&B's server, by its old and its new name
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

    def open(self, options: TrackingSettings, run_dir: Path, *, is_finished: bool = False) -> None:
        """Start the mirrors that the settings ask for. Raises UserError if one is not installed.

        Of a finished run start only those that lack lines, because they were killed or too slow.
        """
        if not self.enabled:
            return
        self._finish_s = options.finish_s
        self._run_dir = run_dir

        def is_due(kind: str) -> bool:
            return not is_finished or find_missing(run_dir, kind).num_lines > 0

        if options.tensorboard and is_due("tensorboard"):
            if find_spec("tensorboard") is None:
                raise UserError(
                    "tracking.tensorboard: the package is missing; pip install tensorboard"
                )
            self._say(f"tensorboard tensorboard --logdir {run_dir.parent}")
            self._start("tensorboard", run_dir)
        mode, why = choose_wandb(options.wandb)
        if mode == "disabled" or not is_due("wandb"):
            return
        if mode == "offline":
            folder = os.environ.get("WANDB_DIR") or run_dir
            self._say(f"wandb       offline ({why}); to upload: {sync_command(folder)}")
        self._start("wandb", run_dir)

    def _start(self, kind: str, run_dir: Path) -> None:
        # The mirror must find this very package, also where it is not installed.
        source = str(Path(__file__).parents[2])
        path = os.environ.get("PYTHONPATH")
        environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{path}" if path else source}
        if os.path.expanduser("~") == "~":  # a container's nameless user; W&B fails without a home
            environment["HOME"] = str(run_dir.absolute() / "wandb")
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

        Say how many lines may be missing in a mirror that did not end by itself. If nobody waits,
        the mirrors end by themselves after as long.
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
                code = mirror.wait(max(0, end - time.monotonic()))
                problem = _describe(code) if code else ""
            except subprocess.TimeoutExpired:
                os.killpg(mirror.pid, signal.SIGKILL)
                mirror.wait()
                problem = f"was not ready {self._finish_s} s after the end (tracking.finish_s)"
            if problem:
                self._say_missing(kind, problem)
        for listener in self._listeners:
            listener.join(1)

    def _say_missing(self, kind: str, problem: str) -> None:
        missing = find_missing(self._run_dir, kind)
        if missing.num_lines:
            self._say(
                f"warning: {TITLES[kind]} {problem}: {missing.num_lines} of {missing.num_all} "
                "lines of metrics.jsonl may be missing there; the same command again sends them, "
                f"and so does: {mirror_command(kind, self._run_dir)}"
            )


def _describe(exit_code: int) -> str:
    """Say how a mirror ended that did not end well; a negative code is a signal's number."""
    if exit_code > 0:
        return "failed" if exit_code == USAGE_ERROR else f"ended with exit code {exit_code}"
    try:
        return f"was killed ({signal.Signals(-exit_code).name})"
    except ValueError:  # a real-time signal has no name
        return f"was killed (signal {-exit_code})"


def mirror_command(kind: str, run_dir: Path) -> str:
    """Return the command that sends a mirror what it lacks, to be pasted into a shell."""
    return shlex.join(["python", "-m", MIRROR_MODULE, kind, str(run_dir)])


def sync_command(folder: Path | str) -> str:
    """Return the command that uploads W&B's offline logs, to be pasted into a shell."""
    return f"wandb sync {shlex.quote(f'{folder}/wandb')}/offline-run-*"


def choose_wandb(requested: str) -> tuple[str, str]:
    """Return W&B's mode and the reason. Nothing that is wrong here stops a run.

    auto: W&B's own environment decides, else whether there is an API key.
    """
    if requested != "auto":
        return requested, f"tracking.wandb: {requested}"
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled", "WANDB_DISABLED"
    if asked := os.environ.get("WANDB_MODE"):
        mode = {"dryrun": "offline", "run": "online"}.get(asked.lower(), asked.lower())
        if mode in ("online", "offline", "disabled", "shared"):
            return mode, "WANDB_MODE"
        return "offline", f"WANDB_MODE is '{printable(asked)}', which W&B does not know"
    problem = _why_no_wandb_key()
    return ("online", "there is an API key") if problem is None else ("offline", problem)


def _why_no_wandb_key() -> str | None:
    """Look for an API key where `wandb login` leaves it, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return None
    url = os.environ.get("WANDB_BASE_URL") or f"https://{HOSTS[0]}"
    host = url.split("//")[-1].split("/")[0]
    path = os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")
    if path.startswith("~"):
        return "no API key, and no home directory to look for one"
    if not os.path.isfile(path):
        return "no API key"
    try:
        hosts = netrc.netrc(path).hosts  # not its `default` entry
    except UnicodeError:
        return f"no API key: {path} is not UTF-8"
    except netrc.NetrcParseError as error:  # whose text may show a password
        return f"no API key: {path}, line {error.lineno} is not as in a .netrc file"
    except OSError as error:
        return f"no API key: {path} cannot be read ({error.strerror})"
    return None if hosts.keys() & (HOSTS if host in HOSTS else [host]) else "no API key"
