"""Whether and from where a run may go on: what its directory holds against what is asked for now.

A change is harmless if the steps already done would have been the same with it. Everything here
reads on the main process only, and changes nothing but for `copy_origin`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

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
from seqclf.optim import lr_at

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
# What the first start found, for all later ones; what branches off has an id of its own.
KEPT = ("branched_from", "init_sha256", "run_id")


def check_unchanged(path: Path, config: Config, facts: dict[str, Value]) -> None:
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


def check_steps_done(path: Path, config: Config, plan: BatchPlan, step: int) -> None:
    """Refuse a change of length or schedule that would have changed the steps already done."""
    if step > plan.num_steps:
        raise UserError(
            f"{path}: {step:,} steps are done there, more than the "
            f"{plan.num_steps:,} that train.steps or train.epochs asks for; ask for at "
            "least as many, or choose another --run_dir"
        )
    before, steps_before = stored(path)
    for past in range(step):
        old = lr_at(past, before.optim, steps_before)
        new = lr_at(past, config.optim, plan.num_steps)
        if old != new:
            raise _differs(
                path,
                settings(before),
                settings(config),
                RATE_SETTINGS,
                f" (the learning rate of step {past} was {old:.6g} and would be {new:.6g})",
            )


def check_choices(path: Path, config: Config, plan: BatchPlan, state: State, *, due: bool) -> None:
    """Refuse a change with which the evaluations already done would have chosen otherwise.

    `due` says whether the config asks for the last one of them.
    """
    before, patience, judged = stored(path)[0], config.train.patience, state.judged
    if not judged or not config.chooses_best:
        return
    if not before.chooses_best:
        why = f"the evaluations up to step {judged} chose nothing"
    elif patience not in (None, before.train.patience) and state.longest_wait >= patience:
        why = f"up to step {judged} it waited for {state.longest_wait} evaluations in a row"
    elif not due and judged != plan.num_steps:
        why = f"step {judged} was evaluated as the last, and would not be"
    else:
        return
    names = {"train.patience", "train.steps", "train.epochs"}
    raise _differs(path, settings(before), settings(config), names, f" ({why})")


def other_rounding(path: Path, config: Config, facts: dict[str, Value]) -> Iterator[str]:
    """Say where a resume is exact up to rounding only."""
    before = settings(_stored_config(path)) | checkpoint.read_json(path / "run.json")
    now = settings(config) | facts
    names = ["threads", "device", "train.micro_batch_size"]
    if not config.train.shards:  # with them the number of processes changes no bit
        names.append("world_size")
    if facts["device"] != "cpu":  # where every run is
        names.append("deterministic")
    for name in names:
        if (old := before.get(name)) != (new := now[name]):
            yield (
                f"note        {name} was {dump_value(old)}, is {dump_value(new)}: the same "
                "examples in the same steps, but other rounding"
            )


def kept(path: Path) -> dict[str, Value]:
    """Return what the first start of a run found, for the later ones."""
    if not (path / "config.yaml").exists():
        return {}
    facts = checkpoint.read_json(path / "run.json")
    return {name: facts[name] for name in KEPT if name in facts}


def stored(path: Path) -> tuple[Config, int]:
    """Return the config that the run was started with last, and its number of steps."""
    num_steps = int(checkpoint.read_json(path / "run.json").get("num_steps", 0))
    return _stored_config(path), num_steps


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


# ---- branching off


def find_origin(path: Path, resume: str, console: Console) -> Path | None:
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


def copy_origin(origin: Path, path: Path) -> None:
    """Make another run's checkpoint, and what it stands on, a new run's own."""
    source = origin.parent.parent
    state = checkpoint.read_state(checkpoint.read(origin)[1], origin)
    metrics = source / "metrics.jsonl"
    content = checkpoint.read_file(metrics, state.metrics_bytes) if metrics.exists() else b""
    facts = checkpoint.read_json(source / "run.json") | {"branched_from": str(origin)}
    facts.pop("run_id", None)
    checkpoint.replace_file(path / "metrics.jsonl", content)
    checkpoint.write_json(path / "run.json", facts)
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
