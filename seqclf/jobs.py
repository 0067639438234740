"""The runs of a sweep as processes: which cores or GPU each gets, how each ends, how all stop.

A run is `python -m seqclf train` with a directory of its own. If this process is killed, the runs
go on; the next start finds them by their locks and waits for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from seqclf.errors import PREEMPTED
from seqclf.processes.signals import Signals
from seqclf.run.files import make_directory
from seqclf.run.listing import is_locked
from seqclf.run.records import FACTS, LOCK, METRICS, STATUS, Facts, Status, find_record
from seqclf.sweep import Planned

# -P: not a folder named seqclf where the command is given.
TRAIN = (sys.executable, "-P", "-m", "seqclf", "train")
LOG = "train.log"
TICK_S = 0.2
MOST_READ = 2**14  # bytes of a file's end


class Slot(NamedTuple):
    """What one run at a time may use: cores, and maybe a GPU."""

    cores: tuple[int, ...]
    gpu: str | None = None


class Outcome(NamedTuple):
    """How a run ended, and why if it did not finish."""

    state: Literal["finished", "failed", "stopped"]
    cause: str = ""


@dataclass
class Job:
    """A run that is under way."""

    run: Planned
    path: Path
    slot: Slot
    process: subprocess.Popen[bytes] | None
    """None: an earlier start of the sweep, or somebody else, has started it."""
    log_start: int = 0
    """Where this start's lines begin in the log."""
    started_at: float = field(default_factory=time.monotonic)

    def has_ended(self) -> bool:
        """Return whether its process is gone."""
        return (
            not is_running(self.path) if self.process is None else self.process.poll() is not None
        )


def deal(num_jobs: int, threads: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Return a slot for each of so many runs at once; slots share where there are too few.

    A run that has more threads than cores of its own may use all cores: two threads on one core
    would only wait for each other.

    >>> deal(2, 2, [0, 1, 2, 3], [])
    [Slot(cores=(0, 1), gpu=None), Slot(cores=(2, 3), gpu=None)]
    """
    slots = []
    for number in range(num_jobs):
        first, last = (len(cores) * end // num_jobs for end in (number, number + 1))
        own = cores[first:last] if last - first >= threads else cores
        slots.append(Slot(tuple(own), gpus[number % len(gpus)] if gpus else None))
    return slots


def find_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]


def is_running(path: Path) -> bool:
    """Return whether a process is training in a run directory."""
    return (path / LOCK).exists() and is_locked(path)


def is_finished(path: Path) -> bool:
    """Return whether the run in a directory has ended well."""
    status = find_record(path / STATUS, Status)
    return status is not None and status.state == "finished"


def run_all(
    root: Path,
    runs: Sequence[Planned],
    slots: Sequence[Slot],
    extra: Sequence[str],
    signals: Signals,
    watch: Callable[[Sequence[Job]], None],
    tell: Callable[[Planned, Outcome], None],
) -> dict[str, Outcome]:
    """Train all runs that have not finished; return how each ended.

    A signal stops them: each saves. `extra` are words that each run gets; `watch` is called again
    and again with the jobs under way, and `tell` at each end.
    """
    outcomes = {run.name: Outcome("finished") for run in runs if is_finished(root / run.name)}
    waiting = [run for run in runs if run.name not in outcomes]
    jobs: list[Job] = []
    free = list(slots)
    is_stopping = False
    with signals.deferring(), _stopping(jobs):
        while waiting or jobs:
            if signals.requested is not None and not is_stopping:
                is_stopping = True
                _stop(jobs)
            if is_stopping:
                waiting = []
                jobs[:] = [job for job in jobs if job.process is not None]
            while waiting and free:
                # One that runs already is waited for first, because it has cores already.
                run = next((one for one in waiting if is_running(root / one.name)), waiting[0])
                waiting.remove(run)
                path = root / run.name
                if is_running(path):
                    jobs.append(Job(run, path, free.pop(0), None))
                elif is_finished(path):  # an earlier start's, which nobody has waited for
                    outcomes[run.name] = Outcome("finished")
                else:
                    jobs.append(_start(path, run, free.pop(0), extra))
            watch(jobs)  # first, so that it knows each job whose end is told
            for job in filter(Job.has_ended, list(jobs)):
                jobs.remove(job)
                free.append(job.slot)
                outcome = _outcome(job, is_stopping=is_stopping)
                if outcome is None:
                    waiting.insert(0, job.run)
                    continue
                outcomes[job.run.name] = outcome
                tell(job.run, outcome)
            if jobs:
                time.sleep(TICK_S)
    return outcomes


def _start(path: Path, run: Planned, slot: Slot, extra: Sequence[str]) -> Job:
    make_directory(path)
    # The log keeps all lines, also where the sweep itself is quiet.
    flags = [f"--{name}={text}" for name, text in run.flags.items() if name != "quiet"]
    words = [*extra, *flags, f"--run_dir={path}"]
    variables = dict(os.environ)
    if slot.gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = slot.gpu
    with (path / LOG).open("ab") as log, _on_cores(slot.cores):
        start = log.tell()
        process = subprocess.Popen(
            [*TRAIN, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
        )
    return Job(run, path, slot, process, start)


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Have a process that is started meanwhile use these cores only; Linux can."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _stopping(jobs: Sequence[Job]) -> Iterator[None]:
    """Stop the jobs if the body fails, such as for want of disk."""
    try:
        yield
    except BaseException:
        _stop(jobs)
        raise


def _stop(jobs: Sequence[Job]) -> None:
    """Ask the processes that this one has started to save and leave."""
    for job in jobs:
        if job.process is not None:
            with suppress(ProcessLookupError):
                job.process.send_signal(signal.SIGTERM)


def _outcome(job: Job, *, is_stopping: bool) -> Outcome | None:
    """Return how a run ended; None if it is still to be waited for, or to be started."""
    if is_finished(job.path):
        return Outcome("finished")
    # An earlier start's process may also have taken the lock before this one's did.
    if job.process is None or is_running(job.path):
        return None
    code = job.process.returncode
    if is_stopping or code == PREEMPTED:
        return Outcome("stopped")
    return Outcome("failed", _cause(job, code))


def _cause(job: Job, code: int) -> str:
    """Return why a run failed in a line: its own last word, or the signal that killed it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + ", often for want of memory" * (-code == signal.SIGKILL)
    lines = [line for line in _end_of(job.path / LOG, job.log_start) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if not lines:
        return f"exit code {code}"
    return errors[-1].removeprefix("error: ") if errors else lines[-1].strip()


def how_far(path: Path) -> tuple[int, int, dict[str, float]]:
    """Return step, number of steps and latest metrics of a run; zeros before it has begun."""
    facts = find_record(path / FACTS, Facts)
    metrics: dict[str, float] = {}
    with suppress(OSError, ValueError):
        for line in _end_of(path / METRICS):
            metrics |= json.loads(line)  # the last one may be half written
    return int(metrics.pop("step", 0)), facts.num_steps if facts else 0, metrics


def notes_of(path: Path) -> list[str]:
    """Return the notes and warnings in the log of a run."""
    return [line for line in _end_of(path / LOG) if line.startswith(("note: ", "warning: "))]


def _end_of(path: Path, start: int = 0) -> list[str]:
    """Return the last whole lines of a file, none of them from before `start`."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - MOST_READ))
        lines = file.read().decode(errors="replace").splitlines()
        return lines[1:] if size - MOST_READ > start else lines  # the first one may be cut
    return []
