"""Lists: run directories, with the mean over seeds; and the checkpoints of one run."""

from __future__ import annotations

import fcntl
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from seqclf.config.load import load_config
from seqclf.config.settings import NEUTRAL, Config, settings_by_name
from seqclf.errors import UserError, printable
from seqclf.run.records import (
    CHECKPOINTS,
    CONFIG,
    FACTS,
    LOCK,
    STATUS,
    Facts,
    Status,
    find_record,
)

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class ListedRun:
    """What a list shows of a run.

    `family` is the same for runs that differ in their seed only, and `fold_family` for those that
    differ in their fold only; it is empty for a run without folds.
    """

    path: Path
    state: str
    step: int
    num_steps: int
    metrics: dict[str, float]
    age_s: float
    family: str
    seed: int
    fold_family: str = ""
    fold: int = 0
    num_folds: int = 0


def list_runs(root: Path) -> list[ListedRun]:
    """Return the runs in a directory and below, the latest first; a damaged one is listed as such.

    Raises UserError if there is no such directory.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; runs are under runs/, or where --run-dir says")
    runs = [_read_run(path) for path in _run_directories(root)]
    return sorted(runs, key=lambda run: run.age_s)


def _run_directories(root: Path) -> Iterator[Path]:
    """Yield the directories with a status.json, also behind links to directories, each once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        with suppress(OSError):  # it was deleted meanwhile
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link back to where it was found
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        if STATUS in files:
            yield Path(folder)


def _read_run(path: Path) -> ListedRun:
    status = find_record(path / STATUS, Status)
    facts = find_record(path / FACTS, Facts)
    age_s = 0.0
    with suppress(OSError):  # the run is deleted at this moment
        age_s = time.time() - (path / STATUS).lstat().st_mtime
    name, seed = "", -1
    fold_name, fold, num_folds = "", 0, 0
    try:
        config, _ = load_config(path / CONFIG)
    except UserError:  # another version wrote it
        pass
    else:
        name, seed = family(config, facts or Facts()), config.seed
        if config.data.folds is not None:
            fold_name = family(config, facts or Facts(), but_for="data.fold")
            fold, num_folds = config.data.fold or 0, config.data.folds
    if status is None or facts is None or "num_steps" not in facts.model_fields_set:
        return ListedRun(path, "damaged", 0, 0, metrics={}, age_s=age_s, family=name, seed=seed)
    is_crashed = status.state == "running" and not _is_locked(path)
    return ListedRun(
        path,
        "crashed" if is_crashed else status.state,
        status.step,
        facts.num_steps,
        metrics={k: math.nan if v is None else v for k, v in status.metrics.items()},
        age_s=age_s,
        family=name,
        seed=seed,
        fold_family=fold_name,
        fold=fold,
        num_folds=num_folds,
    )


def family(config: Config, facts: Facts, *, but_for: str = "seed") -> str:
    """Return a text that is the same for runs that differ in one setting only."""
    values = {k: v for k, v in settings_by_name(config).items() if k not in NEUTRAL | {but_for}}
    return json.dumps([values, facts.data_fingerprint or None])


def _is_locked(path: Path) -> bool:
    """Return whether a process is training there: it holds the lock for as long."""
    try:
        with (path / LOCK).open("r") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def runs_table(root: Path) -> str:
    """Return the list of runs as text, names last, so that long ones push nothing aside."""
    runs = list_runs(root)
    if not runs:
        return f"no runs in {printable(str(root))}"
    lines = [f"{'state':<10}{'step':>14}{'val acc':>9}{'test acc':>10}{'age':>8}  run"]
    for run in runs:
        lines.append(
            f"{run.state:<10}{f'{run.step}/{run.num_steps}':>14}{_accuracies(run.metrics)}"
            f"{_age(run.age_s):>8}  {printable(str(run.path))}"
        )
    finished = [run for run in runs if run.state == "finished"]
    lines += _means(
        "finished runs that differ in their seed only: mean ± standard deviation",
        [(run.family, run.seed, run) for run in finished],
    )
    lines += _means(
        "folds of one config: mean ± standard deviation",
        [(run.fold_family, run.fold, run) for run in finished],
    )
    return "\n".join(lines)


def _means(title: str, runs: list[tuple[str, int, ListedRun]]) -> list[str]:
    """Return means over the members of each family; of members with one number, one counts."""
    families: dict[str, dict[int, ListedRun]] = {}
    for name, number, run in runs:
        if name:
            families.setdefault(name, {})[number] = run
    groups = [list(group.values()) for group in families.values() if len(group) > 1]
    if not groups:
        return []
    return ["", title, *(line for group in groups for line in _mean_lines(group))]


def _mean_lines(group: list[ListedRun]) -> list[str]:
    first = min(group, key=lambda run: len(str(run.path)))
    lines = [f"{printable(str(first.path))} and {len(group) - 1} more, n = {len(group)}"]
    folds = {run.fold for run in group}
    if 1 < len(folds) < first.num_folds:
        missing = sorted(set(range(1, first.num_folds + 1)) - folds)
        lines[0] += f", without fold {', '.join(map(str, missing))} of {first.num_folds}"
    for name in sorted(set.intersection(*(set(run.metrics) for run in group))):
        values = [run.metrics[name] for run in group]
        is_finite = all(map(math.isfinite, values))
        spread = statistics.stdev(values) if is_finite else math.nan  # stdev fails on infinity
        lines.append(f"  {printable(name):<14} {statistics.mean(values):.4f} ± {spread:.4f}")
    return lines


def checkpoints_table(run_dir: Path) -> str:
    """Return a run's checkpoints as text, newest first, each verified, or with why it is not."""
    # Imported here, because it takes torch, which a list of runs does without.
    from seqclf.run.checkpoint import checkpoint_directories, read_checkpoint, step_of

    root = run_dir / CHECKPOINTS
    lines = [f"{'step':>8}{'age':>8}{'size':>11}{'val acc':>9}{'test acc':>10}  verified"]
    for path in checkpoint_directories(root):
        try:
            age_s = time.time() - path.lstat().st_mtime
            num_bytes = sum(file.lstat().st_size for file in path.glob("*"))
        except FileNotFoundError:  # the run goes on, and has just deleted it
            continue
        metrics: dict[str, float] = {}
        verdict = "ok"
        try:
            metrics = read_checkpoint(path).state.metrics
        except UserError as error:
            verdict = str(error)
        lines.append(
            f"{step_of(path):>8}{_age(age_s):>8}{f'{num_bytes / 1e6:,.2f} MB':>11}"
            f"{_accuracies(metrics)}  {printable(verdict)}"
        )
    return "\n".join(lines) if len(lines) > 1 else f"no checkpoints in {root}"


def _accuracies(metrics: Mapping[str, float]) -> str:
    """Return the columns of validation and test accuracy."""
    val, test = (metrics.get(f"{split}/accuracy") for split in ("val", "test"))
    return f"{_percent(val):>9}{_percent(test):>10}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _age(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
