"""`seqclf sweep`: from its arguments to its exit code, and what it says meanwhile."""

from __future__ import annotations

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from seqclf.cli.options import given_settings
from seqclf.config.yaml import dump_value
from seqclf.console import BAR
from seqclf.errors import FAILED, PREEMPTED, UserError, printable_lines
from seqclf.jobs import (
    LOG,
    Job,
    Outcome,
    Slot,
    deal,
    find_gpus,
    how_far,
    is_finished,
    is_running,
    notes_of,
    run_all,
)
from seqclf.metrics import METRICS
from seqclf.processes.signals import Signals
from seqclf.run.files import make_directory
from seqclf.run.records import STATUS, Status, find_record
from seqclf.sweep import (
    SWEEP,
    Asked,
    Planned,
    choose_directory,
    describe,
    keep_what_was_asked,
    plan,
    table,
    varying,
    write_base,
)

REDRAW_S = 0.5
WIDEST_NAME = 40  # beside a progress bar


def sweep_command(arguments: Namespace) -> int:
    """Train the product of all values; print a table of them."""
    _refuse_launchers()
    flags = given_settings(arguments)
    if arguments.config is not None and Path(arguments.config).is_fifo():
        raise UserError(f"--config {arguments.config}: a pipe, which each run reads; save a file")
    runs = plan(arguments.config, flags)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    if runs[0].config.resume == "never":
        raise UserError("--resume never: a sweep goes on where it stopped; leave it out")
    signals = Signals(owns_process=True)
    with signals.listening():
        directory = choose_directory(arguments.config, flags, runs)
        _refuse_what_is_no_sweep(directory)
        from seqclf.run.lock import locked  # which takes torch

        make_directory(directory)
        with locked(directory):
            return _train_all(arguments, directory, runs, signals)


def _command(arguments: Namespace) -> str:
    """Return the words that ask for the same sweep again."""
    named = {"config": arguments.config, **given_settings(arguments)}
    flags = [f"--{name}={text}" for name, text in named.items() if text is not None]
    return shlex.join(["seqclf", "sweep", *flags])


def _refuse_launchers() -> None:
    """Refuse what is meant for one run, and would reach all."""
    for name in ("WORLD_SIZE", "PET_NNODES", "WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        if os.environ.get(name, "1") != "1":
            raise UserError(
                f"the variable {name} is set, which is for one run: a sweep starts its own "
                "processes; start it without a launcher and without wandb agent, or unset it"
            )


def _refuse_what_is_no_sweep(directory: Path) -> None:
    if (directory / SWEEP).exists() or not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: not a directory; choose another --run-dir")
    if others := sorted(f.name for f in directory.iterdir() if not f.name.startswith(".")):
        raise UserError(
            f"{directory}: no sweep, and not empty ({others[0]}); choose another --run-dir"
        )


def _train_all(
    arguments: Namespace, directory: Path, runs: Sequence[Planned], signals: Signals
) -> int:
    config = runs[0].config
    before = find_record(directory / SWEEP, Asked)
    slots, num_threads, device = _deal(runs, arguments.jobs, before)
    asked = describe(runs, _command(arguments), num_threads)
    kept = keep_what_was_asked(directory, asked)
    extra = [f"--config={write_base(directory, config)}"]
    # These come first, so that a run's own flags count.
    extra += [f"--train.threads={kept.threads}"] * (config.train.threads is None)
    extra.append("--report=false")
    if config.tracking.group is None and "WANDB_RUN_GROUP" not in os.environ:
        extra.append(f"--tracking.group={directory.name}")
    if not config.quiet:
        done = sum(is_finished(directory / run.name) for run in runs)
        differing = varying(runs).items()
        lists = (f"{name} {', '.join(map(dump_value, values))}" for name, values in differing)
        _say(f"sweep       {len(runs)} runs: {'; '.join(lists)}")
        _say(f"directory   {directory}" + f" ({done} of the runs are finished)" * (done > 0))
        threads = f"{kept.threads} thread{'s' * (kept.threads > 1)}"
        _say(f"jobs        {len(slots)} at once, {threads} each ({device})")
    _fetch_data(runs)
    progress = Progress(directory, quiet=config.quiet)
    try:
        outcomes = run_all(directory, runs, slots, extra, signals, progress.watch, progress.tell)
    finally:
        progress.close()
    _say_notes(directory, runs)
    finished = sum(outcome.state == "finished" for outcome in outcomes.values())
    if signals.requested is not None:
        if others := [run.name for run in runs if is_running(directory / run.name)]:
            _say(f"note: an earlier start's runs go on: {', '.join(others)}")
        _say_ends(directory, outcomes, {"failed"})
        _say(
            f"stopped by a signal; {finished} of {len(runs)} runs are finished; the same command "
            "goes on with the others"
        )
        return PREEMPTED
    _say(table(directory, runs))
    _say_ends(directory, outcomes, {"failed", "stopped"})
    if not config.quiet:
        place = shlex.quote(str(directory))
        # A run that failed early has nothing that a report could show.
        report = f"; seqclf report {place}/*/" * (finished == len(runs))
        _say(f"runs        seqclf runs {place}{report}")
    states = {outcome.state for outcome in outcomes.values()}
    if "failed" in states:
        return FAILED
    return PREEMPTED if "stopped" in states else 0


def _deal(
    runs: Sequence[Planned], num_jobs: int | None, before: Asked | None
) -> tuple[list[Slot], int, str]:
    """Return what each run at a time gets: its slot, its threads, and these in words.

    `before` is what an earlier start of the sweep has kept, whose threads stay.
    Raises UserError for a device that is not there.
    """
    from seqclf.processes.device import choose_device, usable_cores

    config = runs[0].config
    device, _ = choose_device(config)
    gpus = find_gpus() if device == "cuda" else []
    num_cores, here = usable_cores()
    threads = config.train.threads or (before.threads if before else None)
    num_jobs = num_jobs or len(gpus) or max(1, num_cores // (threads or 1))
    num_jobs = min(num_jobs, len(runs))
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(num_cores))
    if not gpus and num_jobs > num_cores:
        _say(f"note: {num_jobs} runs at once share {here}; --jobs {num_cores} is as fast")
    words = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}, {here}" if gpus else here
    threads = threads or max(1, num_cores // num_jobs // (config.train.shards or 1))
    return deal(num_jobs, threads, cores, gpus), threads, words


def _fetch_data(runs: Sequence[Planned]) -> None:
    """Download what several runs would otherwise download at the same time."""
    from seqclf.data import idx

    for data in {run.config.data.model_dump_json(): run.config.data for run in runs}.values():
        if data.path is None and data.name == "auto":
            with suppress(UserError):  # the runs take the embedded digits, and say so
                idx.fetch(data.model_copy(update={"name": "mnist"}), _say)
        elif data.path is None:
            idx.fetch(data, _say)


def _say_notes(directory: Path, runs: Sequence[Planned]) -> None:
    """Print each note and warning of the runs once, with the runs' number or the one run's name."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for line in dict.fromkeys(notes_of(directory / run.name)):
            names.setdefault(line, []).append(run.name)
    for line, (first, *others) in names.items():
        _say(f"{line} ({f'{len(others) + 1} of {len(runs)} runs' if others else first})")


def _say_ends(directory: Path, outcomes: dict[str, Outcome], states: set[str]) -> None:
    """Print the runs that ended in one of these states, and why."""
    for name, (state, cause) in outcomes.items():
        if state in states:
            why = f": {cause}" if cause else ""
            _say(f"{state:<12}{name}{why} (log: {directory / name / LOG})")


class Progress:
    """A line for each run under way: a bar on a terminal, else a line at its start and its end."""

    def __init__(self, directory: Path, *, quiet: bool) -> None:
        self._directory = directory
        self._quiet = quiet
        self._has_bars = not quiet and sys.stdout.isatty()
        self._bars: dict[str, tqdm[NoReturn]] = {}
        self._started_at: dict[str, float] = {}
        self._drawn_at = -REDRAW_S

    def watch(self, jobs: Sequence[Job]) -> None:
        """Show how far the jobs are."""
        for job in jobs:
            if job.run.name not in self._started_at:
                self._begin(job)
        if self._has_bars and time.monotonic() - self._drawn_at >= REDRAW_S:
            self._drawn_at = time.monotonic()
            for job in jobs:
                self._draw(job)

    def _begin(self, job: Job) -> None:
        name = job.run.name
        self._started_at[name] = job.started_at
        if self._has_bars:
            short = name if len(name) <= WIDEST_NAME else f"...{name[3 - WIDEST_NAME :]}"
            self._bars[name] = tqdm(
                total=1,
                desc=short,
                bar_format="{desc} " + BAR,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )
        elif not self._quiet:
            _say(f"started     {name}" + " (it runs already)" * (job.process is None))

    def _draw(self, job: Job) -> None:
        bar = self._bars[job.run.name]
        step, num_steps, metrics = how_far(job.path)
        if num_steps:
            bar.total, bar.n = num_steps, step
            bar.set_postfix_str(_as_words(metrics), refresh=False)
        bar.refresh()

    def tell(self, run: Planned, outcome: Outcome) -> None:
        """Say how a run has ended."""
        if bar := self._bars.pop(run.name, None):
            _remove(bar)
        if self._quiet:
            return
        status = find_record(self._directory / run.name / STATUS, Status)
        metrics = status.metrics if status and outcome.state == "finished" else {}
        seconds = time.monotonic() - self._started_at[run.name]
        words = _as_words({name: value for name, value in metrics.items() if value is not None})
        _say(f"{outcome.state:<12}{run.name}  {words or outcome.cause}  {seconds:.0f} s")

    def close(self) -> None:
        """Remove the bars."""
        for bar in self._bars.values():
            _remove(bar)


def _remove(bar: tqdm[NoReturn]) -> None:
    with suppress(OSError, ValueError):
        bar.close()
        print(end="\r")  # tqdm leaves the cursor at the end of a lower bar


def _as_words(metrics: Mapping[str, float]) -> str:
    """Return what stands of metrics beside a bar."""
    shown = [(METRICS[name].bar, value) for name, value in metrics.items() if name in METRICS]
    return "  ".join(text.format(value) for text, value in shown if text is not None)


def _say(text: str) -> None:
    """Print lines, above the bars; a console that is gone stops nothing."""
    with suppress(OSError, ValueError):
        tqdm.write(printable_lines(text), file=sys.stdout)
        sys.stdout.flush()
