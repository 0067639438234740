"""A run directory: its lock, status, metrics, checkpoints and result.

    runs/mnist-optim.lr=0.005/
      config.yaml      the resolved config: running it again repeats the run
      run.json         what the run met, and at the end the weights' sha256
      metrics.jsonl    one JSON object a line, always with "step"
      status.json      {"state": "running|finished|preempted|failed", "step", "epoch", ...}
      sessions.jsonl   one line per start
      evaluation/      of the result's weights, or the latest: SPLIT.json, for pictures
      checkpoints/     see checkpoint.py
      model/           the result: model.safetensors, config.json

The main process writes; every rank calls, and learns of success or failure.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import socket
import subprocess
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from seqclf import checkpoint, resume
from seqclf.checkpoint import State
from seqclf.config import Config, UserError, Value, dump
from seqclf.console import Console
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Sequences
from seqclf.evaluate import Metrics
from seqclf.figures import capture
from seqclf.hardware import advice
from seqclf.model import Architecture
from seqclf.predict import take_weights
from seqclf.runtime import Runtime
from seqclf.tracking import Tracking

MAX_FAILED_SAVES = 3
SILENCE = 0.8  # of distributed.timeout_s, so that everyone has left by then
# Figures of metrics.jsonl that are other ones each time, as they are the clock's.
TIMED = {
    "train/examples_per_s",
    "train/seconds_per_step_p50",
    "train/seconds_per_step_p95",
    "train/data_wait_share",
    "train/peak_memory_mb",
}


@dataclass
class Run:
    """An open run directory. Made by `open_run`."""

    path: Path
    config: Config
    runtime: Runtime
    console: Console
    tracking: Tracking
    plan: BatchPlan
    facts: dict[str, Value]  # for run.json
    state: State = field(default_factory=State)
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    failed_saves: int = 0
    kept_best: tuple[dict[str, float], int] = field(default_factory=lambda: ({}, 0))
    begun: bool = False  # on the main process only, like
    metrics_file: IO[bytes] | None = None
    lines: bytearray = field(default_factory=bytearray)  # of metrics.jsonl, maybe not on the disk
    written: int = 0  # bytes of them that are in the file
    former: deque[bytes] = field(default_factory=deque)  # what follows them: of steps to be redone

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    # ---- the boundary's questions

    def finished(self) -> bool:
        """Say whether this very run, of this length, is already done. Collective."""

        def look() -> Value:
            try:
                status = checkpoint.read_json(self.path / "status.json")
            except UserError:
                return False
            if status.get("state") != "finished":
                return False
            before, num_steps = resume.stored(self.path)
            ends = (self.plan.num_steps, self.config.train.patience)
            if (num_steps, before.train.patience) != ends:
                return False
            resume.check_steps_done(self.path, self.config, self.plan, num_steps)
            return True

        return bool(self.runtime.from_main(look))

    def evaluation_due(self, step: int) -> bool:
        """Say whether the config asks for an evaluation before this step."""
        return step > 0 and step % (self.config.eval.every or self.plan.steps_per_epoch) == 0

    def log_due(self, step: int) -> bool:
        """Say whether the config asks for a training line after this many steps."""
        return step % self.config.log.every == 0 or step == self.plan.num_steps

    def save_due(self, step: int) -> bool:
        """Say whether a checkpoint is due before this step: the config asks, or it is the best."""
        every = self.config.checkpoint.every or self.plan.steps_per_epoch
        return step > 0 and (step % every == 0 or step == self.state.best_step)

    def minutes_passed(self) -> bool:
        """Say whether the last checkpoint is as old as the config allows, by this clock."""
        minutes = self.config.checkpoint.minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    # ---- writing

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics to metrics.jsonl, which the trackers read, and show them."""
        if self.metrics_file is None:
            return
        warned = self.written < len(self.lines)
        self.lines += self._as_before(json.dumps({"step": step} | _finite(metrics)).encode())
        try:
            self._write_lines()
        except OSError as error:
            if not warned:
                self.console.say(
                    f"warning: metrics.jsonl cannot be written: {error}; its lines are kept in "
                    "memory and tried again"
                )
        self.console.show(step, metrics)

    def write_evaluation(self, split: str, step: int, found: Metrics, sequences: Sequences) -> None:
        """Write evaluation/SPLIT.json, which pictures are made of; where that fails, warn."""
        if self.metrics_file is None:
            return
        classes = sequences.classes
        content = {
            "step": step,
            **_finite(found.named(split)),
            "classes": classes,
            "confusion": found.confusion.tolist(),
            "calibration": found.calibration.tolist(),
            "mistakes": [
                {
                    "example": mistake.example,
                    "truth": classes[mistake.truth],
                    "guess": classes[mistake.guess],
                    "probability": mistake.probability,
                    **capture(sequences, mistake.example),
                }
                for mistake in found.mistakes
            ],
        }
        folder = self.path / "evaluation"
        try:
            folder.mkdir(exist_ok=True)
            staging = folder / f".{split}.json"  # not synced: it can be made again
            staging.write_text(json.dumps(content), encoding="utf-8")
            staging.replace(folder / f"{split}.json")
        except OSError as error:
            self.console.say(f"warning: {folder}/{split}.json cannot be written: {error}")

    def _as_before(self, line: bytes) -> bytes:
        """Return the line that stands there if it says the same, else this one and drop the rest.

        So a step that is done again after a kill leaves the line, and the times, of its first time:
        a mirror that has them already is right.
        """
        if self.former:
            before = self.former.popleft()
            if _untimed(before) == _untimed(line):
                return before
            self.former.clear()
        return line + b"\n"

    def _write_lines(self, *, durably: bool = False) -> None:
        """Append the lines that metrics.jsonl lacks; if that fails, only whole lines are there."""
        assert self.metrics_file is not None
        self._cut()
        self.metrics_file.seek(min(self._length, self.metrics_file.seek(0, os.SEEK_END)))
        rest = self.lines[self.written :]
        try:
            while rest:
                rest = rest[self.metrics_file.write(rest) :]
            self.written = len(self.lines)
            if durably:
                self.written = 0  # where fsync fails, what was written may be gone: all again
                os.fsync(self.metrics_file.fileno())
                self.state.metrics_bytes = self.metrics_file.tell()
                self.lines.clear()
        except OSError:
            self._cut()
            raise

    @property
    def _length(self) -> int:
        """Bytes of metrics.jsonl up to the last line written by this process."""
        return self.state.metrics_bytes + self.written

    def _cut(self) -> None:
        """Cut metrics.jsonl off after the lines that count; never grow one cut by hand."""
        assert self.metrics_file is not None
        length = self._length + sum(map(len, self.former))
        if self.metrics_file.seek(0, os.SEEK_END) > length:
            self.metrics_file.truncate(length)

    def write_last_lines(self) -> None:
        """Try for the last time to write the lines kept in memory, on the main process."""
        try:
            if self.metrics_file is not None and self.begun:
                self._write_lines(durably=True)
        except OSError as error:
            count = self.lines.count(b"\n")
            self.console.say(f"warning: metrics.jsonl lacks the last {count} of its lines: {error}")

    def write_status(self, word: str, error: str | None = None) -> None:
        """Write status.json, on the main process; where that fails, warn."""
        try:
            self._write_status(word, error)
        except OSError as problem:
            self.console.say(f"warning: status.json cannot be written: {problem}")

    def _write_status(self, word: str, error: str | None = None) -> None:
        if self.begun:  # not of one refused
            status = {
                "state": word,
                "step": self.state.step,
                "epoch": self.state.step / self.plan.steps_per_epoch,
                "metrics": _finite(self.state.metrics),
                "error": error,
            }
            checkpoint.write_json(self.path / "status.json", status)

    def silent(self, text: str) -> None:
        """Write that all processes have been silent for too long, and where each of them is."""
        self.fail(self.runtime.gather_silence(text, min(2, self.config.distributed.timeout_s / 20)))

    def fail(self, reason: str | None) -> None:
        """Write "failed", on the process that was given the reason."""
        if reason is None:
            return
        if self.runtime.rank:  # in place of a main process that is gone, maybe after it wrote
            with suppress(UserError):
                state = checkpoint.read_json(self.path / "status.json").get("state")
                self.begun = state == "running"
        self.write_status("failed", reason)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make a checkpoint, unless this step has one. Collective.

        A save that fails (a full disk) is warned about; MAX_FAILED_SAVES in a row raise UserError.
        A best step that could not be saved is not the best: the one before stays that.
        """
        step = self.state.step
        if step == self.saved_step:
            return
        error = self.runtime.from_main(lambda: self._write_checkpoint(model, optimizer))
        self.saved_at = time.monotonic()
        if error is None:
            self.saved_step, self.failed_saves = step, 0
            self.kept_best = self.state.best, self.state.best_step
            return
        self.failed_saves += 1
        self.state.best, self.state.best_step = self.kept_best
        self.console.say(f"warning: checkpoint of step {step} not saved: {error}")
        if self.failed_saves == MAX_FAILED_SAVES:
            raise UserError(
                f"{MAX_FAILED_SAVES} checkpoints in a row could not be saved: {error}; make "
                f"room at {self.path}: the same command goes on"
            )

    def _write_checkpoint(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Value:
        state = self.state
        try:
            self._write_lines(durably=True)
            scaler = self.runtime.accelerator.scaler
            state.scaler = dict(scaler.state_dict()) if scaler else {}
            files = {
                "model.safetensors": checkpoint.encode(model.state_dict()),
                "optimizer.safetensors": checkpoint.encode(
                    checkpoint.moment_tensors(model, optimizer)
                ),
                "state.json": state.model_dump_json(indent=1).encode(),
            }
            checkpoint.commit(
                self.checkpoints,
                state.step,
                files,
                world_size=self.runtime.world_size,
                versions=versions(),
            )
        except OSError as error:
            return str(error)
        try:
            checkpoint.prune(
                self.checkpoints,
                keep_last=self.config.checkpoint.keep_last,
                keep=[state.best_step] if state.best_step else [],
            )
        except (OSError, UserError) as error:
            self.console.say(f"warning: old checkpoints cannot be deleted: {error}")
        self.write_status("running")
        return None

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Load the newest checkpoint that verifies into model and optimizer, and begin.

        Collective. Only the main process reads; the others are sent its tensors, so the run
        directory need exist on its host only. Raises UserError if there are checkpoints, but no
        good one, or if the settings that made it differ where it matters.
        """
        weights: dict[str, Tensor] = model.state_dict()
        moments = checkpoint.moment_tensors(model, optimizer)

        def find() -> Value:
            found, rejected = checkpoint.newest(self.checkpoints)
            for reason in rejected:
                self.console.say(f"warning: checkpoint passed over: {reason}")
            if found is None:
                if rejected:
                    raise UserError(f"no checkpoint in {self.checkpoints} is whole; see above")
                self._take_weights(weights)
                self._begin(State())
                return None
            _, files = checkpoint.read(found)
            checkpoint.put(files["model.safetensors"], weights, f"{found}/model.safetensors")
            checkpoint.put(
                files["optimizer.safetensors"], moments, f"{found}/optimizer.safetensors"
            )
            state = checkpoint.read_state(files, found)
            resume.check_steps_done(self.path, self.config, self.plan, state.step)
            due = self.evaluation_due(state.judged)
            resume.check_choices(self.path, self.config, self.plan, state, due=due)
            for line in resume.other_rounding(self.path, self.config, self.facts):
                self.console.say(line)
            self._begin(state)
            return state.model_dump()

        answer = self.runtime.from_main(find)
        if answer is None:
            if self.config.init_from is not None:
                self.runtime.broadcast(list(weights.values()))
            return self.state
        self.state = State.model_validate(answer)
        self.runtime.broadcast([*weights.values(), *moments.values()])
        if self.runtime.accelerator.scaler and self.state.scaler:
            self.runtime.accelerator.scaler.load_state_dict(self.state.scaler)
        self.saved_step = self.state.step
        self.kept_best = self.state.best, self.state.best_step
        self.console.say(f"resumed     step {self.state.step} from {self.checkpoints}")
        return self.state

    def restore_best(self, model: nn.Module) -> int:
        """Load the best evaluation's weights; return the step of the model's weights.

        Collective; only the main process reads. If there are none the last ones stay, with a
        warning that says why.
        """
        state, metric = self.state, self.config.checkpoint.metric
        weights: dict[str, Tensor] = model.state_dict()

        def find() -> bool:
            path = self.checkpoints / checkpoint.directory_name(state.best_step)
            try:
                if not state.best:
                    raise UserError(f"no evaluation with a {metric} that is a number was saved")
                _, files = checkpoint.read(path)
                checkpoint.put(files["model.safetensors"], weights, f"{path}/model.safetensors")
            except UserError as error:
                self.console.say(f"warning: the result is the last weights, not the best: {error}")
                return False
            form = "{:.2%}" if metric == "val/accuracy" else "{:.4f}"
            self.console.say(
                f"best        step {state.best_step}: {metric} {form.format(state.best[metric])}"
            )
            return True

        if not self.runtime.from_main(find):
            return state.step
        self.runtime.broadcast([*weights.values()])
        state.metrics = state.best
        return state.best_step

    def _take_weights(self, weights: dict[str, Tensor]) -> None:
        """Start from the weights of `init_from`, if there is one, and keep which they were."""
        if self.config.init_from is None:
            return
        card = Architecture.model_validate(self.facts["architecture"])
        sha256, said = take_weights(Path(self.config.init_from), weights, card)
        if self.facts.setdefault("init_sha256", sha256) != sha256:
            raise UserError(
                f"{self.path} began with other weights than init_from: {self.config.init_from} "
                "holds now; put the old ones back, or choose another --run_dir"
            )
        self.console.say(said)

    def _begin(self, state: State) -> None:
        """Write what is known now, and drop the metrics that the steps to come will write again."""
        assert self.metrics_file is not None
        checkpoint.sweep(self.checkpoints)  # what killed saves left may be what fills the disk
        self.state, self.begun = state, True
        self._write_status("running")  # first: what follows undoes the end of a finished run
        state.metrics_bytes = min(state.metrics_bytes, self.metrics_file.seek(0, os.SEEK_END))
        self.metrics_file.seek(state.metrics_bytes)
        *whole, _ = self.metrics_file.read().split(b"\n")
        self.former = deque(line + b"\n" for line in whole)
        self._cut()
        # config.yaml last: where it stands, the rest is looked for
        checkpoint.write_json(self.path / "run.json", self.facts)
        text = dump(
            self.config.model_copy(update={"run_dir": None, "resume": "auto", "quiet": False})
        )
        checkpoint.replace_file(self.path / "config.yaml", text.encode())
        keys = ("host", "device", "precision", "world_size", "threads", "versions", *resume.KEPT)
        session = {"step": state.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        session |= {key: self.facts[key] for key in keys if key in self.facts}
        with (self.path / "sessions.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")
        self.tracking.open(self.config.tracking, self.path)

    def finish(self, model: nn.Module, architecture: Architecture) -> str | None:
        """Write model/ and the final status; return the weights' sha256, on the main process."""
        if self.metrics_file is None:
            return None
        self.former.clear()
        self.write_last_lines()
        content = checkpoint.encode(model.state_dict())
        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        card = architecture.model_dump_json(indent=1) + "\n"
        checkpoint.replace_file(folder / "config.json", card.encode())
        sha256 = checkpoint.replace_file(folder / "model.safetensors", content).sha256
        checkpoint.write_json(self.path / "run.json", self.facts | {"weights_sha256": sha256})
        self._write_status("finished")
        return sha256


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    names = ("seqclf", "torch", "accelerate", "safetensors", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Put null where JSON has no number: for NaN and infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _untimed(line: bytes) -> object:
    """Return what a line of metrics.jsonl says but for the clock's figures; itself, if torn."""
    try:
        metrics = json.loads(line)
    except ValueError:
        return line
    return {name: value for name, value in metrics.items() if name not in TIMED}


def _lock(path: Path) -> IO[str]:
    """Hold a run directory until the returned file is closed (lockf: a child cannot keep it)."""
    file = (path / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(
            f"{path}: another process is training there; wait for it or choose another --run_dir"
        ) from None
    return file


@contextmanager
def open_run(
    path: Path,
    config: Config,
    runtime: Runtime,
    console: Console,
    tracking: Tracking,
    plan: BatchPlan,
    facts: Mapping[str, Value],
) -> Iterator[Run]:
    """Open a run directory for training; write "failed" with the reason if the body raises.

    Collective. Raises UserError if another process trains there, if it holds a run of other
    settings, or if it cannot be written.
    """
    everything: dict[str, Value] = {
        "versions": dict(versions()),
        "host": socket.gethostname(),
        "device": runtime.device.type,
        "precision": runtime.precision,
        "world_size": runtime.world_size,
        "threads": runtime.threads,
        "git": _git_revision(),
        "num_steps": plan.num_steps,
        **facts,
    }
    run = Run(path, config, runtime, console, tracking, plan, everything)
    with ExitStack() as files:

        def claim() -> Value:
            try:
                origin = resume.find_origin(path, config.resume, console)
                if origin is not None:  # compared before anything is made
                    source = origin.parent.parent
                    resume.check_unchanged(source, config, everything)
                    resume.check_steps_done(source, config, plan, checkpoint.read(origin)[0].step)
                checkpoint.make_directory(path)
                files.enter_context(_lock(path))
                if origin is not None:
                    resume.copy_origin(origin, path)
                    console.say(f"branch      of {origin}")
                resume.check_unchanged(path, config, everything)
                everything.update(resume.kept(path))
                if given := os.environ.get("WANDB_RUN_ID"):
                    everything["run_id"] = given
                everything.setdefault("run_id", uuid.uuid4().hex[:8])
                file = os.open(path / "metrics.jsonl", os.O_RDWR | os.O_CREAT, 0o666)
                metrics_file = os.fdopen(file, "r+b", buffering=0)
            except OSError as error:
                raise UserError(
                    f"{path}: cannot write the run directory: {error.strerror}"
                ) from None
            run.metrics_file = files.enter_context(metrics_file)
            return None

        files.enter_context(runtime.watch.deferring())
        runtime.from_main(claim)
        if runtime.world_size > 1:
            limit_s = SILENCE * config.distributed.timeout_s
            files.enter_context(runtime.watch.limiting(limit_s, run.silent))
        try:
            yield run
        except BaseException as error:
            mendable = error if isinstance(error, UserError) else advice(error, path)
            text = str(mendable or traceback.format_exc())
            first = runtime.first_failure(text)
            run.fail(first)
            if first not in (None, text):
                console.say(f"the first failure was that of {first}")
            if mendable is not None and mendable is not error:
                raise mendable from None
            raise
        finally:
            run.write_last_lines()
