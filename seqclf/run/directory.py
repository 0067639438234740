"""A run directory: its lock, status, metrics and result.

    runs/mnist-optim.lr=0.005/
      config.yaml      the resolved config: running it again repeats the run
      run.json         what the run met, and at the end the weights' sha256
      metrics.jsonl    one JSON object a line, always with "step"
      status.json      {"state": "running|finished|preempted|failed", "step", "epoch", ...}
      sessions.jsonl   one line a start
      evaluation/      SPLIT.json: the evaluation of the result's weights, or else the latest
      checkpoints/     see checkpoint.py
      model/           the result: model.safetensors, config.json; card.json, README.md

The main process writes. Every rank calls, and learns of success or failure.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from seqclf.config.settings import Value
from seqclf.config.yaml import dump
from seqclf.console import Console
from seqclf.data.sequences import Sequences
from seqclf.errors import DISK_ERRORS, UserError
from seqclf.evaluate import Metrics
from seqclf.model import LSTMClassifier
from seqclf.processes.agreement import first_failure, gather_silence
from seqclf.processes.memory import MEMORY_REMEDY
from seqclf.processes.runtime import Runtime
from seqclf.run import resume
from seqclf.run.checkpoint import (
    MODEL_FILE,
    checkpoint_directories,
    delete_leftovers,
    encode_tensors,
)
from seqclf.run.evaluations import to_evaluation
from seqclf.run.fence import begin_session, has_ended, read_status, session_number, tell_for_main
from seqclf.run.files import make_directory, naming, open_new, replace_file, write_json
from seqclf.run.lock import Lock, locked, refuse_what_is_not_ours
from seqclf.run.metrics_log import MetricsLog
from seqclf.run.records import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    FACTS,
    METRICS,
    MODEL,
    STATUS,
    Facts,
    State,
    Status,
    finite_or_null,
    git_revision,
    to_json,
    versions,
)
from seqclf.run.weights import ARCHITECTURE_FILE, damage_of
from seqclf.settle import Setup

# Makes the files beside the weights that tell people of a result, by their names.
MakeCard = Callable[[], dict[str, bytes]]


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
    unsaved_best: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """On the main process: the files of the best step's checkpoint, if that save has failed."""
    lock: Lock | None = None
    metrics_log: MetricsLog | None = None
    """Both on the main process only."""
    has_begun: bool = False
    """Whether this session may write. A session that is refused never does."""
    session: int = 0
    """The number of this session (fence.py); until it begins, of the one before."""
    found: Status | None = None
    """What status.json said before this session, on the main process."""

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
        return bool(self.runtime.from_main(lambda: _is_done(self)))

    def check_in_place(self) -> None:
        """Refuse to go on if the directory is not the one that the run has opened.

        Else a run whose directory was moved or deleted would end well, with half of its files. For
        the main process. Raises UserError.
        """
        if self._is_in_place():
            return
        raise UserError(
            f"{self.path}: was moved, deleted or replaced while the run was writing to it, or "
            "another start of the run has gone on there; put it back, then the same command goes "
            "on from the last checkpoint in it"
        )

    def _is_in_place(self) -> bool:
        with suppress(OSError):  # where the disk does not say, it is
            if session_number(self.path) not in (0, self.session):
                return False
        return all(file is None or file.is_in_place() for file in (self.lock, self.metrics_log))

    def minutes_passed(self) -> bool:
        """Return whether the last checkpoint is as old as the config allows, by this clock."""
        minutes = self.setup.config.checkpoint.minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    # ---- while it trains

    def begin(self, state: State) -> None:
        """Write what is known now, and drop the metrics that the steps to come will write again."""
        assert self.metrics_log is not None
        self.check_in_place()
        delete_leftovers(self.checkpoints)  # what killed saves left may be what fills the disk
        self.state = state
        self.has_begun = True
        # First of all, because it fences off whoever wrote here before.
        self.session = begin_session(self.path, state.step, self.facts, self.found)
        # Before what undoes the end of a finished run.
        self._write_status("running")
        self.metrics_log.start_at(state.metrics_bytes)
        write_json(self.path / FACTS, to_json(self.facts))
        _write_config(self)  # last: a directory that has one is taken for a run

    def share_session(self) -> None:
        """Have every rank know the session that has begun. Collective."""
        self.session = int(str(self.runtime.from_main(lambda: self.session)))
        self.has_begun = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to metrics.jsonl, which the mirrors read, and show them."""
        if self.metrics_log is None:
            return
        was_behind = self.metrics_log.is_behind
        try:
            if self._is_in_place():  # else the next save ends the run
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
        evaluation = to_evaluation(split, step, metrics, sequences)
        folder = self.path / EVALUATION
        staging = folder / f".{split}.json"  # not synced, because it can be made again
        try:
            if not self._is_in_place():
                return
            folder.mkdir(exist_ok=True)
            with naming(staging), open_new(staging) as file:
                file.write(evaluation.to_json().encode())
            staging.replace(folder / f"{split}.json")
        except OSError as error:
            self.console.say(f"warning: {folder}/{split}.json cannot be written: {error}")
            with suppress(OSError):
                staging.unlink()

    # ---- how it ends

    def write_status(self, word: str, error: str | None = None) -> None:
        """Write status.json, on the main process; where that fails, warn."""
        try:
            told = word in ("running", "failed") and has_ended(self.path)  # by another rank
            if self._is_in_place() and not told:  # else the directory may be another run's
                self._write_status(word, error)
        except OSError as problem:
            self.console.say(f"warning: status.json cannot be written: {problem}")

    def _write_status(self, word: str, error: str | None = None) -> None:
        if not self.has_begun or self.runtime.rank:
            return
        write_json(self.path / STATUS, to_json(self._status(word, error)))

    def _status(self, word: str, error: str | None) -> Status:
        return Status.model_validate(
            {
                "state": word,
                "step": self.state.step,
                "epoch": self.state.step / self.setup.plan.steps_per_epoch,
                "metrics": finite_or_null(self.state.metrics),
                "error": error,
            }
        )

    def write_last_lines(self) -> None:
        """Try for the last time to write the lines kept in memory, on the main process."""
        if self.metrics_log is None or not self.has_begun:
            return
        try:
            if self.metrics_log.num_pending_lines and self._is_in_place():
                self.metrics_log.flush()
        except OSError as error:
            count = self.metrics_log.num_pending_lines
            self.console.say(f"warning: metrics.jsonl lacks the last {count} of its lines: {error}")

    def fail(self, reason: str | None) -> None:
        """Write "failed", on the process that was given the reason."""
        if reason is None:
            return
        if not self.runtime.rank:
            self.write_status("failed", reason)
        elif self._is_in_place():
            tell_for_main(self.path, self._status("failed", reason), began=self.has_begun)

    def report_silence(self, text: str) -> None:
        """Write that all processes have been silent for too long, and where each of them is."""
        wait_s = min(2, self.setup.config.distributed.timeout_s / 20)
        self.fail(gather_silence(self.runtime, text, wait_s))

    def finish(self, model: LSTMClassifier, make_card: MakeCard = dict) -> str | None:
        """Write model/ and the final status; return the weights' sha256, on the main process."""
        if self.metrics_log is None:
            return None
        self.check_in_place()
        self.write_last_lines()
        content = encode_tensors(model.state_dict())
        folder = self.path / MODEL
        folder.mkdir(exist_ok=True)
        fitted = {"temperature": model.temperature}
        architecture = self.setup.architecture.model_copy(update=fitted)
        for name, card in make_card().items():
            replace_file(folder / name, card)
        description = architecture.model_dump_json(indent=1) + "\n"
        replace_file(folder / ARCHITECTURE_FILE, description.encode())
        self.facts.architecture = architecture.model_dump(mode="json")
        self.facts.weights_sha256 = replace_file(folder / MODEL_FILE, content).sha256
        write_json(self.path / FACTS, to_json(self.facts))
        self._write_status("finished")
        return self.facts.weights_sha256


def _write_config(run: Run) -> None:
    config = run.setup.config.model_copy(update={"run_dir": None, "resume": "auto", "quiet": False})
    replace_file(run.path / CONFIG, dump(config).encode())


def _is_done(run: Run) -> bool:
    """Return whether the run that is asked for has finished, and its result is as it was then."""
    if not resume.is_finished(run.stored, run.setup):
        return False
    damage = damage_of(run.path / MODEL)
    if damage is None:
        if not (run.path / CONFIG).exists():
            _write_config(run)
        return True
    if not checkpoint_directories(run.checkpoints):
        raise UserError(
            f"{damage}; no checkpoint is left to make it from: restore the file, or delete "
            f"{run.path} to train again"
        )
    run.console.say(f"warning: {damage}; it is made anew from the last checkpoint")
    return False


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
                file = error.filename
                where = "" if file in (None, str(path)) else f" ({file})"
                raise UserError(
                    f"{path}: cannot write the run directory: {error.strerror}{where}"
                ) from None
            return run.session

        # From here on a signal is a request: the loop saves, then leaves.
        files.enter_context(runtime.signals.deferring())
        # Only the main process needs the directory, but all of them must learn of a refusal.
        run.session = int(str(runtime.from_main(claim)))
        if runtime.world_size > 1:
            limit_s = setup.config.distributed.timeout_s
            files.enter_context(runtime.signals.limiting(limit_s, run.report_silence))
        try:
            yield run
        except BaseException as error:
            mendable = error if isinstance(error, UserError) else remedy_for(error, path)
            text = str(mendable or traceback.format_exc())
            # One failure often makes the other ranks fail, too: status.json gets the first one.
            first = first_failure(runtime, text, mendable=mendable is not None)
            run.fail(first)
            if first not in (None, text):
                console.say(f"the first failure: {str(first).removesuffix(text)}")
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
        order=setup.plan.order,
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
    refuse_what_is_not_ours(run.path)
    resume.read_stored(run.path)  # a directory that is refused is left as it is
    make_directory(run.path)
    run.lock = files.enter_context(locked(run.path))
    if origin is not None:
        resume.copy_origin(origin, run.path)
        run.console.say(f"branch      of {origin.checkpoint.path}")
    run.session = session_number(run.path)
    run.found = read_status(run.path)
    run.stored = resume.read_stored(run.path) or resume.without_config(run.path, config)
    if run.stored is not None:
        resume.check_unchanged(run.stored, run.setup, run.facts)
        resume.keep_first_facts(run.stored, run.facts)
        if not (run.path / CONFIG).exists():
            run.console.say(
                f"warning: {run.path / CONFIG} is missing; it is written again, with the settings "
                "given now, which cannot be compared"
            )
    # W&B's own variable wins: a sweep's agent has made the run already.
    if run_id := os.environ.get("WANDB_RUN_ID"):
        run.facts.run_id = run_id
    elif run.facts.run_id is None:
        run.facts.run_id = uuid.uuid4().hex[:8]
    run.metrics_log = MetricsLog(run.path / METRICS)
    files.callback(_close, run)


def _close(run: Run) -> None:
    """Close metrics.jsonl. If that fails, warn: the run has ended, and its lines were synced."""
    assert run.metrics_log is not None
    try:
        run.metrics_log.close()
    except OSError as error:
        run.console.say(f"warning: metrics.jsonl cannot be closed: {error}")


def remedy_for(error: BaseException, path: Path) -> UserError | None:
    """Return what the user can do where memory or the run directory's disk gave out."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return UserError(f"out of memory ({text.partition(chr(10))[0]}): {MEMORY_REMEDY}")
    if not isinstance(error, OSError):
        return None
    file = "" if error.filename is None else str(error.filename)
    if Path(file).is_relative_to(path) and file:
        return UserError(
            f"{file}: {error.strerror}; make room there or mend it: the same command goes on"
        )
    if error.errno in DISK_ERRORS and not file:
        return UserError(
            f"{error.strerror}, and the system does not say where: look at {path}, at the "
            "temporary folder and at /dev/shm; make room there: the same command goes on"
        )
    return None
