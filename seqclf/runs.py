"""Lists: run directories, with the mean over seeds; and the checkpoints of one run."""

from __future__ import annotations

import fcntl
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqclf.config import NEUTRAL, Config, UserError, load_config, settings

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Listed:
    """What a list shows of a run. `family` is the same for runs that differ in their seed only."""

    path: Path
    state: str
    step: int
    num_steps: int
    metrics: dict[str, float]
    age_s: float
    family: str
    seed: int


def find(root: Path) -> list[Listed]:
    """Return the runs in a directory and below, the latest first.

    Raises UserError if there is no such directory; what is damaged is listed as such.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; runs are under runs/, or where --run-dir says")
    found = [_look(file.parent) for file in root.glob("**/status.json")]
    return sorted(found, key=lambda run: run.age_s)


def _look(path: Path) -> Listed:
    status, facts = _read(path / "status.json"), _read(path / "run.json")
    state, kind, seed = str(status.get("state", "damaged")), "", -1
    try:
        config = load_config(path / "config.yaml")[0]
    except UserError:  # of another version
        pass
    else:
        kind, seed = family(config, facts), config.seed
    if state == "running" and not _held(path):
        state = "crashed"
    try:
        step, num_steps = int(status["step"]), int(facts["num_steps"])
        metrics = {
            name: math.nan if value is None else float(value)
            for name, value in status["metrics"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        state, step, num_steps, metrics = "damaged", 0, 0, {}
    age_s = time.time() - (path / "status.json").stat().st_mtime
    return Listed(path, state, step, num_steps, metrics, age_s, kind, seed)


def family(config: Config, facts: dict[str, Any]) -> str:
    """Return what is the same for runs that differ in their seed only."""
    values = {k: v for k, v in settings(config).items() if k not in NEUTRAL | {"seed"}}
    return json.dumps([values, facts.get("data_fingerprint")])


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(2**20))  # ours are shorter
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _held(path: Path) -> bool:
    """Say whether a process is training there: run.py holds the lock for as long."""
    try:
        with (path / ".lock").open("r") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def table(root: Path) -> str:
    """Return the list as text, names last, so that long ones push nothing aside."""
    runs = find(root)
    if not runs:
        return f"no runs in {root}"
    lines = [f"{'state':<10}{'step':>14}{'val acc':>9}{'test acc':>10}{'age':>8}  run"]
    for run in runs:
        accuracies = [_percent(run.metrics.get(f"{split}/accuracy")) for split in ("val", "test")]
        lines.append(
            f"{run.state:<10}{f'{run.step}/{run.num_steps}':>14}{accuracies[0]:>9}"
            f"{accuracies[1]:>10}{_age(run.age_s):>8}  {run.path}"
        )
    families: dict[str, list[Listed]] = {}
    for run in runs:
        if run.state == "finished" and run.family:
            families.setdefault(run.family, []).append(run)
    groups = [group for group in families.values() if len({run.seed for run in group}) > 1]
    if groups:
        lines += ["", "finished runs that differ in their seed only: mean ± standard deviation"]
    for group in groups:
        lines += _summary(group)
    return "\n".join(lines)


def _summary(group: list[Listed]) -> list[str]:
    by_seed = {run.seed: run for run in group}  # the same seed twice is one result
    first = min(group, key=lambda run: len(str(run.path)))
    lines = [f"{first.path} and {len(by_seed) - 1} more, n = {len(by_seed)}"]
    for name in sorted(set.intersection(*(set(run.metrics) for run in by_seed.values()))):
        values = [run.metrics[name] for run in by_seed.values()]
        finite = all(map(math.isfinite, values))  # stdev fails where one is not
        mean, spread = statistics.mean(values), statistics.stdev(values) if finite else math.nan
        lines.append(f"  {name:<14} {mean:.4f} ± {spread:.4f}")
    return lines


def checkpoints(run_dir: Path) -> str:
    """Return a run's checkpoints as text, newest first, each verified, or with why it is not."""
    from seqclf import checkpoint  # takes torch, which a list of runs does without

    root = run_dir / "checkpoints"
    lines = [f"{'step':>8}{'age':>8}{'size':>11}{'val acc':>9}{'test acc':>10}  verified"]
    for path in checkpoint.directories(root):
        try:
            age_s = time.time() - path.lstat().st_mtime
            size = sum(file.lstat().st_size for file in path.glob("*"))
        except FileNotFoundError:  # the run goes on, and has just deleted it
            continue
        metrics: dict[str, float] = {}
        try:
            _, files = checkpoint.read(path)
            metrics = checkpoint.read_state(files, path).metrics
            verdict = "ok"
        except UserError as error:
            verdict = str(error)
        accuracies = [_percent(metrics.get(f"{split}/accuracy")) for split in ("val", "test")]
        lines.append(
            f"{checkpoint.step_of(path):>8}{_age(age_s):>8}{f'{size / 1e6:,.2f} MB':>11}"
            f"{accuracies[0]:>9}{accuracies[1]:>10}  {verdict}"
        )
    return "\n".join(lines) if len(lines) > 1 else f"no checkpoints in {root}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _age(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
