"""Whether and from where a run may go on: what its directory holds against what is asked for now.

A change is harmless if the steps already done would have been the same with it. All of this runs on
the main process only. Nothing here changes a file, but for `copy_origin`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

from seqclf.config.load import closest, load_config
from seqclf.config.settings import NEUTRAL, Config, Resume, Value, settings_by_name
from seqclf.config.yaml import dump, dump_value
from seqclf.console import Console
from seqclf.errors import UserError
from seqclf.optim import count_warmup_steps, lr_at
from seqclf.processes.device import PRECISIONS, EffectivePrecision, requested_precision
from seqclf.run.checkpoint import (
    Checkpoint,
    checkpoint_directories,
    checkpoint_name,
    commit_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    verifies,
)
from seqclf.run.files import read_file, replace_file, write_json
from seqclf.run.records import (
    CHECKPOINTS,
    CONFIG,
    FACTS,
    METRICS,
    MODEL,
    STATUS,
    Facts,
    State,
    Status,
    find_record,
    read_record,
    to_json,
)
from seqclf.settle import Setup

RATE_SETTINGS = {"train.epochs", "train.steps", "optim.lr", "optim.schedule", "optim.warmup"}
# These may change on resume. Learning rates and waits are compared step by step, precision is kept
# as it took effect first, and a change that only rounds otherwise is said.
HARMLESS = {
    *NEUTRAL,
    *RATE_SETTINGS,
    "device",
    "deterministic",
    "precision",
    "train.threads",
    "eval.batch_size",
    "train.max_skipped",
    "train.patience",
}
# Dropout draws its noise for each micro batch.
HARMLESS_WITHOUT_DROPOUT = {"train.micro_batch_size"}
HARMLESS_WITHOUT_CHOICE = {"eval.every"}
# The first start finds these facts, and all later starts keep them.
FIRST_FACTS = ("branched_from", "init_sha256", "run_id")


class Stored(NamedTuple):
    """What a run directory holds of its latest start. Read once, then compared."""

    path: Path
    config: Config
    facts: Facts
    status: Status | None


def read_stored(path: Path) -> Stored | None:
    """Read what a run directory holds; None if no run has begun there.

    Raises UserError if its config.yaml or run.json is damaged.
    """
    if not (path / CONFIG).exists():
        return None
    return require_stored(path)


def require_stored(path: Path) -> Stored:
    """Read what a run directory holds. Raises UserError if its config or facts are not there."""
    config, _ = load_config(path / CONFIG)
    facts = read_record(path / FACTS, Facts)
    return Stored(path, config, facts, find_record(path / STATUS, Status))


def without_config(path: Path, config: Config) -> Stored | None:
    """Return what is left of a run whose config.yaml somebody deleted, as if made by this config.

    None if no run has begun there. Raises UserError if its run.json is damaged.
    """
    if (path / CONFIG).exists() or not checkpoint_directories(path / CHECKPOINTS):
        return None
    facts = read_record(path / FACTS, Facts)
    return Stored(path, config, facts, find_record(path / STATUS, Status))


def kept_precision(path: Path, config: Config) -> EffectivePrecision | None:
    """Return the precision that a run at `path`, or the one that it branches off from, began in.

    The first start chose it, maybe by a clock, so later starts take it. None if there is no such
    run. Raises UserError if another precision is asked for now than then.
    """
    if not checkpoint_directories(path / CHECKPOINTS) and config.resume not in get_args(Resume):
        source = Path(os.path.realpath(config.resume))
        path = source if (source / CONFIG).is_file() else source.parent.parent
    try:
        stored = read_stored(path)
    except UserError:  # said where the run is opened
        return None
    began_in = next(
        (name for name in PRECISIONS if stored and name == stored.facts.precision), None
    )
    if stored is None or began_in is None:
        return None
    requested = requested_precision(config)
    if requested == "fp32":
        is_asked_for = config.precision == "auto" or began_in == "fp32"
    elif began_in == "fp32":  # what the first start asked for was too slow, or could not be
        is_asked_for = config.precision == stored.config.precision
    else:
        is_asked_for = requested == began_in
    if not is_asked_for:
        raise _differs(path, {"precision": began_in}, {"precision": requested}, {"precision"})
    return began_in


def keep_first_facts(stored: Stored, facts: Facts) -> None:
    """Keep what the first start of a run found."""
    for name in FIRST_FACTS:
        if (value := getattr(stored.facts, name)) is not None:
            setattr(facts, name, value)


# ---- may it go on?


def check_unchanged(stored: Stored, setup: Setup, facts: Facts) -> None:
    """Refuse a run directory whose run had other settings, data or precision."""
    if setup.config.resume == "never":
        raise UserError(
            f"{stored.path} holds a run already, and --resume never insists on a new directory; "
            "delete it or choose another --run_dir"
        )
    old = settings_by_name(stored.config)
    new = settings_by_name(setup.config)
    harmless = HARMLESS
    if not setup.config.model.dropout:
        harmless = harmless | HARMLESS_WITHOUT_DROPOUT
    if not (stored.config.chooses_best or setup.config.chooses_best):
        harmless = harmless | HARMLESS_WITHOUT_CHOICE
    if changed := {name for name in new if old[name] != new[name]} - harmless:
        raise _differs(stored.path, old, new, changed)
    old_facts = to_json(stored.facts)
    new_facts = to_json(facts)
    for name in ("data_fingerprint", "order", "precision"):
        if old_facts.get(name) != new_facts[name]:
            raise _differs(stored.path, old_facts, new_facts, {name})


def check_steps_done(stored: Stored, setup: Setup, step: int) -> None:
    """Refuse a change of length or schedule that would have changed the steps already done."""
    plan = setup.plan
    if step > plan.num_steps:
        raise UserError(
            f"{stored.path}: {step:,} steps are done there, more than the "
            f"{plan.num_steps:,} that train.steps or train.epochs asks for; ask for at "
            "least as many, or choose another --run_dir"
        )
    for past in range(min(step, _num_rates(stored, setup))):
        old = lr_at(past, stored.config.optim, stored.facts.num_steps)
        new = lr_at(past, setup.config.optim, plan.num_steps)
        if old != new:
            raise _differs(
                stored.path,
                settings_by_name(stored.config),
                settings_by_name(setup.config),
                RATE_SETTINGS,
                f" (the learning rate of step {past} was {old:.6g} and would be {new:.6g})",
            )


def _num_rates(stored: Stored, setup: Setup) -> int:
    """Return how many of the first learning rates tell whether all are the same.

    A run may have done millions of steps. Decays that are not the same differ soon.
    """
    sides = [(stored.config.optim, stored.facts.num_steps)]
    sides.append((setup.config.optim, setup.plan.num_steps))
    rates = {(o.lr, o.schedule, o.warmup, length) for o, length in sides}
    if len(rates) == 1:
        return 0
    if all(optim.schedule == "constant" for optim, _ in sides):
        return 1 + max(count_warmup_steps(optim, length) for optim, length in sides)
    return setup.plan.num_steps


def check_choices(stored: Stored, setup: Setup, state: State) -> None:
    """Refuse a change that would have made earlier evaluations pick another best checkpoint."""
    config = setup.config
    judged = state.judged
    is_same = config.train.patience == stored.config.train.patience
    is_as_long = setup.plan.num_steps == stored.facts.num_steps
    if state.decay_from and not (is_same and is_as_long):
        why = f"the rate falls since step {state.decay_from}, because the patience ran out there"
    elif not judged or not config.chooses_best:
        return
    elif not stored.config.chooses_best:
        why = f"the evaluations up to step {judged} chose nothing"
    elif not is_same and state.longest_wait >= setup.patience:
        why = f"up to step {judged} it waited for {state.longest_wait} evaluations in a row"
    elif not setup.evaluation_due(judged) and judged != setup.plan.num_steps:
        why = f"step {judged} was evaluated as the last, and would not be"
    else:
        return
    raise _differs(
        stored.path,
        settings_by_name(stored.config),
        settings_by_name(config),
        {"train.patience", "train.steps", "train.epochs"},
        f" ({why})",
    )


def other_rounding(stored: Stored, setup: Setup, facts: Facts) -> Iterator[str]:
    """Yield a line for each change that makes a resume exact up to rounding only."""
    before = settings_by_name(stored.config) | to_json(stored.facts)
    now = settings_by_name(setup.config) | to_json(facts)
    names = ["threads", "device", "train.micro_batch_size"]
    if not setup.config.train.shards:  # with shards the number of processes changes no bit
        names.append("world_size")
    if facts.device != "cpu":  # where every run is deterministic
        names.append("deterministic")
    for name in names:
        old = before.get(name)
        new = now[name]
        if old != new:
            yield (
                f"note        {name} was {dump_value(old)}, is {dump_value(new)}: the same "
                "examples in the same steps, but other rounding"
            )


def is_finished(stored: Stored | None, setup: Setup) -> bool:
    """Return whether the very run that is asked for, of this length, is done already."""
    if stored is None or stored.status is None or stored.status.state != "finished":
        return False
    if stored.facts.num_steps != setup.plan.num_steps:
        return False
    if stored.config.train.patience != setup.config.train.patience:
        return False
    check_steps_done(stored, setup, stored.facts.num_steps)
    return True


def _differs(
    path: Path,
    old: Mapping[str, Value],
    new: Mapping[str, Value],
    names: set[str],
    why: str = "",
) -> UserError:
    changed = [name for name in sorted(names) if old.get(name) != new.get(name)]
    lines = [f"  {name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in changed]
    # A fact of the data is no setting, and no flag can bring it back.
    words = [
        f"--{name} {shlex.quote(dump_value(old.get(name)))}"
        for name in changed
        if "." in name or name in Config.model_fields
    ]
    own = f" ({' '.join(words)})" if words else ""
    return UserError(
        f"{path} holds a run made with other settings{why}:\n"
        + "\n".join(lines)
        + f"\nGo on with its own settings{own}, or begin a new run: another --run_dir, and "
        f"--init_from {shlex.quote(str(path))} for its weights."
    )


# ---- branching off


class Origin(NamedTuple):
    """The checkpoint that a new run branches off from, and its run."""

    checkpoint: Checkpoint
    stored: Stored


def find_origin(path: Path, resume: str, console: Console) -> Origin | None:
    """Find the checkpoint that a run at `path` branches off from; None if it goes on by itself.

    Changes nothing. Raises UserError naming what was asked for if that is no checkpoint that
    verifies, or an older one of this very run.
    """
    if resume in get_args(Resume):
        return None
    source = Path(os.path.realpath(resume))
    is_own = Path(os.path.realpath(path)) in (source, source.parent.parent)
    # A branch that has begun is a run like any other: the command that made it goes on with it.
    if not is_own and (checkpoint_directories(path / CHECKPOINTS) or (path / MODEL).exists()):
        console.say(f"note        {path} has a run already, which goes on: not from {resume}")
        return None
    if not os.path.isdir(source):
        word = closest(resume, get_args(Resume))
        raise UserError(
            f"--resume {resume}: no such directory; "
            + (f"did you mean '{word}'?" if word else "name a checkpoint, a run, auto or never")
        )
    checkpoint, rejected = _checkpoint_at(source)
    if checkpoint is None:
        reasons = "".join(f"\n  {reason}" for reason in rejected)
        raise UserError(f"--resume {resume}: no checkpoint there that is whole{reasons}")
    if is_own:
        newest, _ = newest_checkpoint(path / CHECKPOINTS)
        if newest is None or not newest.path.samefile(checkpoint.path):
            raise UserError(
                f"--resume {resume}: {path} has newer checkpoints, which going on from there would "
                "delete; give another --run_dir to branch off"
            )
        return None
    for reason in rejected:
        console.say(f"warning: checkpoint passed over: {reason}")
    run_dir = checkpoint.path.parent.parent
    if not os.path.isfile(run_dir / CONFIG):
        raise UserError(
            f"--resume {resume}: without the config.yaml of its run, two directories above, "
            "settings cannot be compared; name it where its run left it"
        )
    return Origin(checkpoint, require_stored(run_dir))


def _checkpoint_at(source: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint of a run, or the one that `source` itself is."""
    checkpoint, rejected = newest_checkpoint(source / CHECKPOINTS)
    if checkpoint is None and not rejected:
        try:
            checkpoint = read_checkpoint(source)
        except UserError as error:
            rejected.append(str(error))
    return checkpoint, rejected


def copy_origin(origin: Origin, path: Path) -> None:
    """Make another run's checkpoint, and what it stands on, a new run's own."""
    checkpoint = origin.checkpoint
    metrics = origin.stored.path / METRICS
    content = b""
    if metrics.exists():
        content = read_file(metrics, checkpoint.state.metrics_bytes)
    facts = to_json(origin.stored.facts) | {"branched_from": str(checkpoint.path)}
    facts.pop("run_id", None)  # the branch is a run of its own for W&B
    replace_file(path / METRICS, content)
    write_json(path / FACTS, facts)
    replace_file(path / CONFIG, dump(origin.stored.config).encode())
    best = checkpoint.path.with_name(checkpoint_name(checkpoint.state.best_step))
    if best != checkpoint.path and verifies(best):
        _copy_checkpoint(read_checkpoint(best), path)
    # The checkpoint comes last: with it the branch is a run that goes on.
    _copy_checkpoint(checkpoint, path)


def _copy_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    manifest = checkpoint.manifest
    commit_checkpoint(
        path / CHECKPOINTS,
        manifest.step,
        checkpoint.files,
        world_size=manifest.world_size,
        made_with=manifest.versions,
    )
