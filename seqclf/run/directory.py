"""A run directory: its lock, status, metrics and result.

    runs/mnist-optim.lr=0.005/
      config.yaml      the resolved config: running it again repeats the run
      run.json         what the run met, and at the end the weights' sha256
      metrics.jsonl    one JSON object a line, always with "step"
      status.json      {"state": "running|finished|preempted|failed", "step", "epoch", ...}
      sessions.jsonl   one line a start
      evaluation/      SPLIT.json: the evaluation of the result's weights, or else the latest
      checkpoints/     see checkpoint.py
      model/           the result: model.safetensors, config.json

The main process writes. Every rank calls, and learns of success or failure.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import nn

from seqclf.config.settings import Value
from seqclf.config.yaml import dump
from seqclf.console import Console
from seqclf.data.pictures import take_picture
from seqclf.data.sequences import Sequences
from seqclf.errors import DISK_FULL, UserError
from seqclf.evaluate import Metrics
from seqclf.processes.agreement import first_failure, gather_silence
from seqclf.processes.memory import MEMORY_REMEDY
from seqclf.processes.runtime import Runtime
from seqclf.run import resume
from seqclf.run.checkpoint import MODEL_FILE, delete_leftovers, encode_tensors
from seqclf.run.files import make_directory, replace_file, write_json
from seqclf.run.metrics_log import MetricsLog
from seqclf.run.records import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    FACTS,
    LOCK,
    METRICS,
    MODEL,
    SESSIONS,
    STATUS,
    Evaluation,
    Facts,
    MistakeRecord,
    Session,
    State,
    Status,
    find_record,
    finite_or_null,
    git_revision,
    to_json,
    versions,
)
from seqclf.run.weights import ARCHITECTURE_FILE
from seqclf.settle import Setup

# Silence is reported after this share of distributed.timeout_s, so that all have left by then.
SILENCE_SHARE = 0.8
DISK_ERRORS = DISK_FULL | {errno.EROFS, errno.EACCES, errno.EIO}


@dataclass
class Run:
    """An open run directory. Made by `open_run`."""

    path: Path
    setup: Setup
    runtime: Runtime
    console: Console
    facts: Facts
    stored: resume.Stored | None = None
    """What an earlier session left, on the main process."""
    state: State = field(default_factory=State)
    """The loop's own: this class only reads it."""
    saved: State | None = None
    """The state in the newest checkpoint; None if there is none."""
    saved_at: float = field(default_factory=time.monotonic)
    num_failed_saves: int = 0
    """How many of the latest saves failed, in a row."""
    metrics_log: MetricsLog | None = None
    """On the main process only."""
    has_begun: bool = False
    """On the main process: whether this session may write. A session that is refused never does."""

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint, -1 if there is none."""
        return -1 if self.saved is None else self.saved.step

    def finished(self) -> bool:
        """Return whether this very run, of this length, is done already. Collective."""
        done = self.runtime.from_main(lambda: resume.is_finished(self.stored, self.setup))
        return bool(done)

    def minutes_passed(self) -> bool:
        """Return whether the last checkpoint is as old as the config allows, by this clock."""
        minutes = self.setup.config.checkpoint.minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    # ---- while it trains

    def begin(self, state: State) -> None:
        """Write what is known now, and drop the metrics that the steps to come will write again."""
        assert self.metrics_log is not None
        delete_leftovers(self.checkpoints)  # what killed saves left may be what fills the disk
        self.state = state
        self.has_begun = True
        # First of all, because what follows undoes the end of a finished run.
        self._write_status("running")
        self.metrics_log.start_at(state.metrics_bytes)
        write_json(self.path / FACTS, to_json(self.facts))
        # The config comes last: a directory that has one is taken for a run.
        config = self.setup.config.model_copy(
            update={"run_dir": None, "resume": "auto", "quiet": False}
        )
        replace_file(self.path / CONFIG, dump(config).encode())
        facts = to_json(self.facts)
        common = {name: facts[name] for name in Session.model_fields if name in facts}
        started_at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        session = Session.model_validate({"step": state.step, "time": started_at, **common})
        with (self.path / SESSIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(session)) + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to metrics.jsonl, which the mirrors read, and show them."""
        if self.metrics_log is None:
            return
        was_behind = self.metrics_log.is_behind
        try:
            self.metrics_log.append(step, metrics)
        except OSError as error:
            if not was_behind:
                self.console.say(
                    f"warning: metrics.jsonl cannot be written: {error}; its lines are kept in "
                    "memory and tried again"
                )
        self.console.show(step, metrics)

    def write_evaluation(
        self, split: str, step: int, metrics: Metrics, sequences: Sequences
    ) -> None:
        """Write evaluation/SPLIT.json, which pictures are made of; where that fails, warn."""
        if self.metrics_log is None:
            return
        classes = sequences.classes
        mistakes = [
            MistakeRecord(
                example=mistake.example,
                name=sequences.name(mistake.example) if sequences.origins else "",
                truth=classes[mistake.truth],
                guess=classes[mistake.guess],
                probability=mistake.probability,
                picture=take_picture(sequences, mistake.example),
            )
            for mistake in metrics.mistakes
        ]
        evaluation = Evaluation(
            step=step,
            metrics=finite_or_null(metrics.named(split)),
            classes=classes,
            confusion=metrics.confusion.tolist(),
            calibration=metrics.calibration.tolist(),
            mistakes=mistakes,
        )
        folder = self.path / EVALUATION
        try:
            folder.mkdir(exist_ok=True)
            staging = folder / f".{split}.json"  # not synced, because it can be made again
            staging.write_text(evaluation.to_json(), encoding="utf-8")
            staging.replace(folder / f"{split}.json")
        except OSError as error:
            self.console.say(f"warning: {folder}/{split}.json cannot be written: {error}")

    # ---- how it ends

    def write_status(self, word: str, error: str | None = None) -> None:
        """Write status.json, on the main process; where that fails, warn."""
        try:
            self._write_status(word, error)
        except OSError as problem:
            self.console.say(f"warning: status.json cannot be written: {problem}")

    def _write_status(self, word: str, error: str | None = None) -> None:
        if not self.has_begun:
            return
        status = Status.model_validate(
            {
                "state": word,
                "step": self.state.step,
                "epoch": self.state.step / self.setup.plan.steps_per_epoch,
                "metrics": finite_or_null(self.state.metrics),
                "error": error,
            }
        )
        write_json(self.path / STATUS, to_json(status))

    def write_last_lines(self) -> None:
        """Try for the last time to write the lines kept in memory, on the main process."""
        if self.metrics_log is None or not self.has_begun:
            return
        try:
            self.metrics_log.flush()
        except OSError as error:
            count = self.metrics_log.num_pending_lines
            self.console.say(f"warning: metrics.jsonl lacks the last {count} of its lines: {error}")

    def fail(self, reason: str | None) -> None:
        """Write "failed", on the process that was given the reason."""
        if reason is None:
            return
        if self.runtime.rank:
            # The main process is gone, maybe after it wrote how the run ended.
            status = find_record(self.path / STATUS, Status)
            self.has_begun = status is not None and status.state == "running"
        self.write_status("failed", reason)

    def report_silence(self, text: str) -> None:
        """Write that all processes have been silent for too long, and where each of them is."""
        wait_s = min(2, self.setup.config.distributed.timeout_s / 20)
        self.fail(gather_silence(self.runtime, text, wait_s))

    def finish(self, model: nn.Module) -> str | None:
        """Write model/ and the final status; return the weights' sha256, on the main process."""
        if self.metrics_log is None:
            return None
        self.write_last_lines()
        content = encode_tensors(model.state_dict())
        folder = self.path / MODEL
        folder.mkdir(exist_ok=True)
        architecture = self.setup.architecture.model_dump_json(indent=1) + "\n"
        replace_file(folder / ARCHITECTURE_FILE, architecture.encode())
        self.facts.weights_sha256 = replace_file(folder / MODEL_FILE, content).sha256
        write_json(self.path / FACTS, to_json(self.facts))
        self._write_status("finished")
        return self.facts.weights_sha256


@contextmanager
def open_run(path: Path, setup: Setup, runtime: Runtime, console: Console) -> Iterator[Run]:
    """Open a run directory for training; write "failed" with the reason if the body raises.

    Collective. Raises UserError if another process trains there, if it holds a run of other
    settings, or if it cannot be written.
    """
    run = Run(path, setup, runtime, console, gather_facts(setup, runtime))
    with ExitStack() as files:

        def claim() -> Value:
            try:
                _claim(run, files)
            except OSError as error:
                raise UserError(
                    f"{path}: cannot write the run directory: {error.strerror}"
                ) from None
            return None

        # From here on a signal is a request: the loop saves, then leaves.
        files.enter_context(runtime.signals.deferring())
        # Only the main process needs the directory, but all of them must learn of a refusal.
        runtime.from_main(claim)
        if runtime.world_size > 1:
            limit_s = SILENCE_SHARE * setup.config.distributed.timeout_s
            files.enter_context(runtime.signals.limiting(limit_s, run.report_silence))
        try:
            yield run
        except BaseException as error:
            mendable = error if isinstance(error, UserError) else remedy_for(error, path)
            text = str(mendable or traceback.format_exc())
            # One failure often makes the other ranks fail, too: status.json gets the first one.
            first = first_failure(runtime, text)
            run.fail(first)
            if first not in (None, text):
                console.say(f"the first failure was that of {first}")
            if mendable is not None and mendable is not error:
                raise mendable from None
            raise
        finally:
            run.write_last_lines()


def gather_facts(setup: Setup, runtime: Runtime) -> Facts:
    """Return what this session meets, for run.json."""
    return Facts(
        versions=versions(),
        host=socket.gethostname(),
        device=runtime.device.type,
        precision=runtime.precision,
        world_size=runtime.world_size,
        threads=runtime.threads,
        git=git_revision(),
        num_steps=setup.plan.num_steps,
        data=setup.splits.name,
        data_fingerprint=setup.splits.fingerprint(),
        architecture=setup.architecture.model_dump(mode="json"),
        num_parameters=setup.architecture.num_parameters,
    )


def _claim(run: Run, files: ExitStack) -> None:
    """Lock the directory, compare what it holds, and open its metrics, on the main process.

    Raises UserError or OSError; what is locked and opened is closed with `files`.
    """
    config = run.setup.config
    origin = resume.find_origin(run.path, config.resume, run.console)
    if origin is not None:
        # Compared before anything is made: a refusal leaves no directory behind.
        resume.check_unchanged(origin.stored, run.setup, run.facts)
        resume.check_steps_done(origin.stored, run.setup, origin.checkpoint.manifest.step)
    make_directory(run.path)
    files.enter_context(_lock(run.path))
    if origin is not None:
        resume.copy_origin(origin, run.path)
        run.console.say(f"branch      of {origin.checkpoint.path}")
    run.stored = resume.read_stored(run.path)
    if run.stored is not None:
        resume.check_unchanged(run.stored, run.setup, run.facts)
        resume.keep_first_facts(run.stored, run.facts)
    # W&B's own variable wins: a sweep's agent has made the run already.
    if run_id := os.environ.get("WANDB_RUN_ID"):
        run.facts.run_id = run_id
    elif run.facts.run_id is None:
        run.facts.run_id = uuid.uuid4().hex[:8]
    descriptor = os.open(run.path / METRICS, os.O_RDWR | os.O_CREAT, 0o666)
    run.metrics_log = MetricsLog(files.enter_context(os.fdopen(descriptor, "r+b", buffering=0)))


def _lock(path: Path) -> IO[str]:
    """Hold a run directory until the returned file is closed."""
    file = (path / LOCK).open("a+")
    try:
        # lockf, because a child process does not inherit its locks and so cannot keep them.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(
            f"{path}: another process is training there; wait for it or choose another --run_dir"
        ) from None
    return file


def remedy_for(error: BaseException, path: Path) -> UserError | None:
    """Return what the user can do where memory or the run directory's disk gave out."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return UserError(f"out of memory ({text.partition(chr(10))[0]}): {MEMORY_REMEDY}")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return UserError(
            f"{path}: {error.strerror}; make room there or mend it: the same command goes on"
        )
    return None
