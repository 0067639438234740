"""A run directory: its lock, config check, status, metrics, checkpoints and result.

    runs/mnist-optim.lr=0.005/
      config.yaml      the resolved config: running it again repeats the run
      run.json         what the run met, and at the end the weights' sha256
      metrics.jsonl    one JSON object a line, always with "step"
      status.json      {"state": "running|finished|preempted|failed", "step", "epoch", ...}
      sessions.jsonl   one line per start
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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, get_args

import torch
from torch import Tensor, nn

from seqclf import checkpoint
from seqclf.checkpoint import State
from seqclf.config import (
    NEUTRAL,
    Config,
    Resume,
    UserError,
    Value,
    closest,
    dump,
    dump_value,
    load_config,
    settings,
)
from seqclf.console import Console
from seqclf.data.batches import BatchPlan
from seqclf.hardware import advice
from seqclf.model import Architecture
from seqclf.optim import lr_at
from seqclf.predict import take_weights
from seqclf.runtime import Runtime
from seqclf.tracking import Tracking

MAX_FAILED_SAVES = 3
SILENCE = 0.8  # of distributed.timeout_s, so that everyone has left by then
RATE_SETTINGS = {"train.epochs", "train.steps", "optim.lr", "optim.schedule", "optim.warmup"}
# What may change on resume, because the steps already done would have been the same: rates and
# waits are compared as they were, precision as it took effect, and other rounding is said.
HARMLESS = {
    *(*NEUTRAL, *RATE_SETTINGS),
    *("device", "deterministic", "precision", "train.threads"),
    *("eval.batch_size", "train.max_skipped", "train.patience"),
}
HARMLESS_WITHOUT_DROPOUT = {"train.micro_batch_size"}  # noise is drawn per micro batch
HARMLESS_WITHOUT_CHOICE = {"eval.every"}
KEPT = ("branched_from", "init_sha256")  # what the first start found, for all later ones


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
            before, num_steps = self._before()
            ends = (self.plan.num_steps, self.config.train.patience)
            if (num_steps, before.train.patience) != ends:
                return False
            self._check_rates(num_steps)
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
        """Write metrics to metrics.jsonl, then mirror them to the console and the trackers."""
        if self.metrics_file is None:
            return
        warned = self.written < len(self.lines)
        self.lines += json.dumps({"step": step} | _finite(metrics)).encode() + b"\n"
        try:
            self._write_lines()
        except OSError as error:
            if not warned:
                self.console.say(
                    f"warning: metrics.jsonl cannot be written: {error}; its lines are kept in "
                    "memory and tried again"
                )
        self.console.show(step, metrics)
        self.tracking.log(step, metrics)

    def _write_lines(self, *, durably: bool = False) -> None:
        """Append the lines that metrics.jsonl lacks; if that fails, only whole lines are there."""
        assert self.metrics_file is not None
        self._cut()
        rest = self.lines[self.written :]
        try:
            while rest:
                rest = rest[self.metrics_file.write(rest) :]
            self.written = len(self.lines)
            if durably:
                self.written = 0  # where fsync fails, what was written may be gone: all again
                os.fsync(self.metrics_file.fileno())
                self.state.metrics_bytes = self.metrics_file.seek(0, os.SEEK_END)
                self.lines.clear()
        except OSError:
            self._cut()
            raise

    def _cut(self) -> None:
        """Cut metrics.jsonl off after the lines that count; never grow one cut by hand."""
        assert self.metrics_file is not None
        length = self.state.metrics_bytes + self.written
        if self.metrics_file.seek(0, os.SEEK_END) > length:
            self.metrics_file.truncate(length)

    def write_last_lines(self) -> None:
        """Try for the last time to write the lines kept in memory, on the main process."""
        try:
            if self.lines:
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
            _write_json(self.path / "status.json", status)

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
            self._check_rates(state.step)
            self._check_evaluations(state)
            self._say_other_rounding()
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

    def _say_other_rounding(self) -> None:
        """Say where a resume is exact up to rounding only."""
        before = settings(_stored_config(self.path)) | checkpoint.read_json(self.path / "run.json")
        now = settings(self.config) | self.facts
        names = ["threads", "device", "train.micro_batch_size"]
        if not self.config.train.shards:  # with them the number of processes changes no bit
            names.append("world_size")
        if self.facts["device"] != "cpu":  # where every run is
            names.append("deterministic")
        for name in names:
            if (old := before.get(name)) != (new := now[name]):
                self.console.say(
                    f"note        {name} was {dump_value(old)}, is {dump_value(new)}: the same "
                    "examples in the same steps, but other rounding"
                )

    def _begin(self, state: State) -> None:
        """Write what is known now, and drop the metrics that the steps to come will write again."""
        assert self.metrics_file is not None
        checkpoint.sweep(self.checkpoints)  # what killed saves left may be what fills the disk
        self.state, self.begun = state, True
        self._write_status("running")  # first: what follows undoes the end of a finished run
        self._cut()
        state.metrics_bytes = self.metrics_file.seek(0, os.SEEK_END)
        # config.yaml last: where it stands, the rest is looked for
        _write_json(self.path / "run.json", self.facts)
        text = dump(
            self.config.model_copy(update={"run_dir": None, "resume": "auto", "quiet": False})
        )
        checkpoint.replace_file(self.path / "config.yaml", text.encode())
        keys = ("host", "device", "precision", "world_size", "threads", "versions", *KEPT)
        session = {"step": state.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        session |= {key: self.facts[key] for key in keys if key in self.facts}
        with (self.path / "sessions.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(session) + "\n")

    def finish(self, model: nn.Module, architecture: Architecture) -> str | None:
        """Write model/ and the final status; return the weights' sha256, on the main process."""
        if self.metrics_file is None:
            return None
        self.write_last_lines()
        content = checkpoint.encode(model.state_dict())
        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        card = architecture.model_dump_json(indent=1) + "\n"
        checkpoint.replace_file(folder / "config.json", card.encode())
        sha256 = checkpoint.replace_file(folder / "model.safetensors", content).sha256
        _write_json(self.path / "run.json", self.facts | {"weights_sha256": sha256})
        self._write_status("finished")
        return sha256

    def _before(self) -> tuple[Config, int]:
        """Return the config that the run was started with last, and its number of steps."""
        num_steps = int(checkpoint.read_json(self.path / "run.json").get("num_steps", 0))
        return _stored_config(self.path), num_steps

    def _check_evaluations(self, state: State) -> None:
        """Refuse a change with which the evaluations already done would have chosen otherwise."""
        before, patience, judged = self._before()[0], self.config.train.patience, state.judged
        if not judged or not self.config.chooses_best:
            return
        if not before.chooses_best:
            why = f"the evaluations up to step {judged} chose nothing"
        elif patience not in (None, before.train.patience) and state.longest_wait >= patience:
            why = f"up to step {judged} it waited for {state.longest_wait} evaluations in a row"
        elif not self.evaluation_due(judged) and judged != self.plan.num_steps:
            why = f"step {judged} was evaluated as the last, and would not be"
        else:
            return
        names = {"train.patience", "train.steps", "train.epochs"}
        raise _differs(self.path, settings(before), settings(self.config), names, f" ({why})")

    def _check_rates(self, step: int) -> None:
        """Refuse a change of length or schedule that would have changed the steps already done."""
        if step > self.plan.num_steps:
            raise UserError(
                f"{self.path}: {step:,} steps are done there, more than the "
                f"{self.plan.num_steps:,} that train.steps or train.epochs asks for; ask for at "
                "least as many, or choose another --run_dir"
            )
        before, steps_before = self._before()
        for past in range(step):
            old = lr_at(past, before.optim, steps_before)
            new = lr_at(past, self.config.optim, self.plan.num_steps)
            if old != new:
                raise _differs(
                    self.path,
                    settings(before),
                    settings(self.config),
                    RATE_SETTINGS,
                    f" (the learning rate of step {past} was {old:.6g} and would be {new:.6g})",
                )


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


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    checkpoint.replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _stored_config(path: Path) -> Config:
    return load_config(path / "config.yaml")[0]


def _differs(
    path: Path, old: dict[str, Value], new: dict[str, Value], names: set[str], why: str = ""
) -> UserError:
    lines = [
        f"  {name}: {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted(names)
        if old.get(name) != new.get(name)
    ]
    return UserError(
        f"{path} holds a run made with other settings{why}:\n"
        + "\n".join(lines)
        + "\nGo on with its own settings, or begin a new run: another --run_dir, and --init_from "
        f"{path} for its weights."
    )


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


def _check_unchanged(path: Path, config: Config, facts: dict[str, Value]) -> None:
    """Refuse a run directory whose run had other settings, data or precision."""
    if not (path / "config.yaml").exists():
        return
    if config.resume == "never":
        raise UserError(
            f"{path} holds a run already, and --resume never insists on a new directory; "
            "delete it or choose another --run_dir"
        )
    before = _stored_config(path)
    old, new = settings(before), settings(config)
    harmless = HARMLESS
    if not config.model.dropout:
        harmless = harmless | HARMLESS_WITHOUT_DROPOUT
    if not (before.chooses_best or config.chooses_best):
        harmless = harmless | HARMLESS_WITHOUT_CHOICE
    if changed := {name for name in new if old[name] != new[name]} - harmless:
        raise _differs(path, old, new, changed)
    old_facts = checkpoint.read_json(path / "run.json")
    for name in ("data_fingerprint", "precision"):
        if old_facts.get(name) != facts[name]:
            raise _differs(path, old_facts, facts, {name})


def _find_origin(path: Path, resume: str, console: Console) -> Path | None:
    """Find the checkpoint that a run at `path` branches off from; None if it goes on by itself.

    Changes nothing. Raises UserError naming what was asked for if that is no checkpoint that
    verifies, or an older one of this very run.
    """
    if resume in get_args(Resume):
        return None
    source = Path(os.path.realpath(resume))
    own = Path(os.path.realpath(path)) in (source, source.parent.parent)
    if not own and (checkpoint.directories(path / "checkpoints") or (path / "model").exists()):
        console.say(f"note        {path} has a run already, which goes on: not from {resume}")
        return None
    if not os.path.isdir(source):
        word = closest(resume, get_args(Resume))
        raise UserError(
            f"--resume {resume}: no such directory; "
            + (f"did you mean '{word}'?" if word else "name a checkpoint, a run, auto or never")
        )
    found, rejected = checkpoint.newest(source / "checkpoints")
    if found is None and not rejected:
        try:
            checkpoint.read(source)
            found = source
        except UserError as error:
            rejected.append(str(error))
    if found is None:
        reasons = "".join(f"\n  {reason}" for reason in rejected)
        raise UserError(f"--resume {resume}: no checkpoint there that is whole{reasons}")
    if own:
        newest, _ = checkpoint.newest(path / "checkpoints")
        if newest is None or not newest.samefile(found):
            raise UserError(
                f"--resume {resume}: {path} has newer checkpoints, which going on from there would "
                "delete; give another --run_dir to branch off"
            )
        return None
    for reason in rejected:
        console.say(f"warning: checkpoint passed over: {reason}")
    if not os.path.isfile(found.parent.parent / "config.yaml"):
        raise UserError(
            f"--resume {resume}: without the config.yaml of its run, two directories above, "
            "settings cannot be compared; name it where its run left it"
        )
    return found


def _kept(path: Path) -> dict[str, Value]:
    """Return what the first start of a run found, for the later ones."""
    if not (path / "config.yaml").exists():
        return {}
    facts = checkpoint.read_json(path / "run.json")
    return {name: facts[name] for name in KEPT if name in facts}


def _copy_origin(origin: Path, path: Path) -> None:
    """Make another run's checkpoint, and what it stands on, a new run's own."""
    source = origin.parent.parent
    state = checkpoint.read_state(checkpoint.read(origin)[1], origin)
    metrics = source / "metrics.jsonl"
    content = checkpoint.read_file(metrics, state.metrics_bytes) if metrics.exists() else b""
    facts = checkpoint.read_json(source / "run.json") | {"branched_from": str(origin)}
    checkpoint.replace_file(path / "metrics.jsonl", content)
    _write_json(path / "run.json", facts)
    checkpoint.replace_file(path / "config.yaml", dump(_stored_config(source)).encode())
    best = origin.with_name(checkpoint.directory_name(state.best_step))
    for found in [best, origin] if best != origin and checkpoint.verifies(best) else [origin]:
        manifest, files = checkpoint.read(found)
        checkpoint.commit(
            path / "checkpoints",
            manifest.step,
            files,
            world_size=manifest.world_size,
            versions=manifest.versions,
        )


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
                origin = _find_origin(path, config.resume, console)
                if origin is not None:  # compared before anything is made
                    source = replace(run, path=origin.parent.parent)
                    _check_unchanged(source.path, config, everything)
                    source._check_rates(checkpoint.read(origin)[0].step)
                checkpoint.make_directory(path)
                files.enter_context(_lock(path))
                if origin is not None:
                    _copy_origin(origin, path)
                    console.say(f"branch      of {origin}")
                _check_unchanged(path, config, everything)
                everything.update(_kept(path))
                metrics_file = (path / "metrics.jsonl").open("ab", buffering=0)
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
            if first not in (None, f"rank 0: {text}", text):
                console.say(f"the first failure was that of {first}")
            if mendable is not None and mendable is not error:
                raise mendable from None
            raise
        finally:
            run.write_last_lines()
