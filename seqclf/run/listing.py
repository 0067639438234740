"""Lists: run directories, with the mean over seeds; and the checkpoints of one run."""

from __future__ import annotations

import fcntl
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap

from seqclf.config.load import load_config
from seqclf.config.settings import UNNAMED, Config, settings_by_name
from seqclf.errors import UserError, printable
from seqclf.metrics import best_of, percent
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

MOST_SETTINGS = 6  # columns of what differs
HEADS = {"val/accuracy": "val acc", "test/accuracy": "test acc"}
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
    settings: dict[str, str] = field(default_factory=dict)
    """Those that count for the result; none if another version wrote them."""
    data: str = ""
    data_fingerprint: str = ""


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
    settings: dict[str, str] = {}
    fold_name, fold, num_folds = "", 0, 0
    try:
        config, _ = load_config(path / CONFIG)
    except UserError:  # another version wrote it
        pass
    else:
        name, seed = family(config, facts or Facts()), config.seed
        settings = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in settings_by_name(config).items()
            if key not in UNNAMED
        }
        if config.data.folds is not None:
            fold_name = family(config, facts or Facts(), but_for="data.fold")
            fold, num_folds = config.data.fold or 0, config.data.folds
    if status is None or facts is None or "num_steps" not in facts.model_fields_set:
        return ListedRun(path, "damaged", 0, 0, metrics={}, age_s=age_s, family=name, seed=seed)
    is_crashed = status.state == "running" and not is_locked(path)
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
        settings=settings,
        data=facts.data,
        data_fingerprint=facts.data_fingerprint,
    )


def family(config: Config, facts: Facts, *, but_for: str = "seed") -> str:
    """Return a text that is the same for runs that differ in one setting only."""
    values = {k: v for k, v in settings_by_name(config).items() if k not in UNNAMED | {but_for}}
    return json.dumps([values, facts.data_fingerprint or None])


def is_locked(path: Path) -> bool:
    """Return whether a process is training there: it holds the lock for as long."""
    try:
        with (path / LOCK).open("r") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def runs_table(root: Path, sort: str | None = None, *, width: int | None = None) -> str:
    """Return the list of runs as text, names last, so that long ones push nothing aside.

    The latest come first; with `sort` the best by that metric, and runs without it at the end.
    With `width` the last settings are left out while a line is longer than that.
    Raises UserError for a metric that no run has.
    """
    runs = list_runs(root)
    if not runs:
        return f"no runs in {printable(str(root))}"
    finished = [run for run in runs if run.state == "finished"]
    known = sorted({name for run in runs for name in run.metrics if best_of(name)})
    if sort is not None:
        if sort not in known:
            names = ", ".join(known) or "no metrics yet"
            raise UserError(f"--sort {sort}: no run there has it; they have {names}")
        runs.sort(key=lambda run: _rank(run, sort))
    by = sort or ("val/accuracy" if _have("val/accuracy", finished) else "test/accuracy")
    best = _best(finished, by)
    settings, num_left_out = _differing(runs)
    columns = {"state": [run.state for run in runs]}
    columns["step"] = [f"{run.step}/{run.num_steps}" for run in runs]
    shown = ["val/accuracy", "test/accuracy", *([sort] if sort else [])]
    for name in dict.fromkeys(name for name in shown if _have(name, runs)):
        cells = [_cell(name, run.metrics.get(name)) for run in runs]
        if name == by and best:
            cells = [
                f"{cell} {'*' if run.path in best else ' '}"
                for cell, run in zip(cells, runs, strict=True)
            ]
        columns[HEADS.get(name, name)] = cells
    columns["age"] = [_age(run.age_s) for run in runs]
    paths = [printable(os.path.relpath(run.path, root)) for run in runs]
    last = (f"run in {printable(str(root))}", paths)
    lines = _aligned(columns | settings, last)
    while width is not None and settings and max(map(len, lines)) > width:
        settings.popitem()
        num_left_out += 1
        lines = _aligned(columns | settings, last)
    if best:
        several = len({run.data_fingerprint for run in finished}) > 1
        line = f"* the best {by} of the finished runs{' on the same data' * several}"
        if by.startswith("test/"):
            line += "; settings are chosen by a validation split, as --data.val-fraction 0.1 makes"
        lines += [line] if width is None else wrap(line, width)
    if num_left_out:
        differ = "settings differ" if num_left_out > 1 else "setting differs"
        lines.append(f"{num_left_out} more {differ}: seqclf report RUN RUN shows all")
    lines += _means(
        "finished runs that differ in their seed only: mean ± standard deviation",
        [(run.family, run.seed, run) for run in finished],
    )
    lines += _means(
        "folds of one config: mean ± standard deviation",
        [(run.fold_family, run.fold, run) for run in finished],
    )
    return "\n".join(lines)


def _have(name: str, runs: list[ListedRun]) -> bool:
    return any(name in run.metrics for run in runs)


def _rank(run: ListedRun, metric: str) -> float:
    """Return a number that is the lower the better a run is by a metric."""
    value = run.metrics.get(metric, math.nan)
    if math.isnan(value):
        return math.inf
    return -value if best_of(metric) == "max" else value


def _best(runs: list[ListedRun], metric: str) -> set[Path]:
    """Return the best runs by a metric, of each data set with two runs or more that have it."""
    by_data: dict[str, list[ListedRun]] = {}
    for run in runs:
        if _rank(run, metric) < math.inf:
            by_data.setdefault(run.data_fingerprint, []).append(run)
    return {
        run.path
        for group in by_data.values()
        if len(group) > 1
        for run in group
        if _rank(run, metric) == min(_rank(one, metric) for one in group)
    }


def _differing(runs: list[ListedRun]) -> tuple[dict[str, list[str]], int]:
    """Return the columns of what differs, and how many settings have no room there.

    Of several data sets these are the settings that differ between runs on the same one.
    """
    by_data: dict[str, list[ListedRun]] = {}
    for run in runs:
        if run.settings:
            by_data.setdefault(run.data_fingerprint, []).append(run)
    readable = [run for group in by_data.values() for run in group]
    names = [
        name
        for name in (readable[0].settings if readable else ())
        if any(len({run.settings[name] for run in group}) > 1 for group in by_data.values())
    ]
    columns: dict[str, list[str]] = {}
    if len(by_data) > 1:
        is_named = len({run.data for run in readable}) == len(by_data)
        columns["data"] = [
            run.data if is_named else f"{run.data} {run.data_fingerprint[:8]}" for run in runs
        ]
    for name, head in zip(names, short_names(names), strict=True):
        columns[head] = [run.settings.get(name, "") for run in runs]
    shown = list(columns)[:MOST_SETTINGS]
    return {head: columns[head] for head in shown}, len(columns) - len(shown)


def short_names(settings: list[str]) -> list[str]:
    """Return the last word of each setting's name; where two have the same, the whole name.

    >>> short_names(["seed", "model.hidden_size", "data.name", "optim.name"])
    ['seed', 'hidden_size', 'data.name', 'optim.name']
    """
    leaves = [name.rpartition(".")[2] for name in settings]
    return [
        leaf if leaves.count(leaf) == 1 else name
        for leaf, name in zip(leaves, settings, strict=True)
    ]


def _aligned(columns: dict[str, list[str]], last: tuple[str, list[str]]) -> list[str]:
    """Return a table's lines: the first column and the last are flush left, the others right."""
    cells = [[head, *map(printable, column)] for head, column in columns.items()]
    padded = []
    for number, column in enumerate(cells):
        width = max(map(len, column))
        padded.append([cell.ljust(width) if number == 0 else cell.rjust(width) for cell in column])
    head, paths = last
    rows = zip(*padded, [head, *paths], strict=True)
    return ["  ".join(row).rstrip() for row in rows]


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
        lines.append(f"  {printable(name):<14} {spread_of([run.metrics[name] for run in group])}")
    return lines


def spread_of(values: Sequence[float]) -> str:
    """Return mean and standard deviation as text; of one value that value alone."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    is_finite = all(map(math.isfinite, values))
    spread = statistics.stdev(values) if is_finite else math.nan  # stdev fails on infinity
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


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


def _cell(name: str, value: float | None) -> str:
    """Return a metric's value as a list shows it."""
    if value is None or name.endswith("/accuracy"):
        return _percent(value)
    return f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{percent(value, 2)}%"


def _age(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in UNITS if seconds >= s), UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
