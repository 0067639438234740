"""Several runs of one config: the product of the values that flags give, and one table of them.

    runs/sweep-mnist_fast-optim.lr=0.01,0.02-seed=0-4/
      sweep.json              Asked
      base.yaml               the first run's settings; each run gets what differs as flags
      optim.lr=0.01-seed=0/   a run directory, as `seqclf train` makes it, with train.log
      ...

There is no other state: whether a run has finished is what its status.json says. jobs.py starts
the runs.
"""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from seqclf.config.load import load_config
from seqclf.config.naming import name_of, run_name
from seqclf.config.settings import NEUTRAL, Config, Value, fields, settings_by_name
from seqclf.config.yaml import dump, dump_value
from seqclf.errors import UserError, printable
from seqclf.metrics import best_of
from seqclf.run.files import make_directory, replace_file, write_json
from seqclf.run.listing import spread_of
from seqclf.run.records import STATUS, Status, find_record, read_record

SWEEP = "sweep.json"
BASE = "base.yaml"
MOST_RUNS = 1000
# Runs that differ in these only are repetitions, over which the table takes the mean.
REPEATED = ("seed", "data.fold")
# Settings that change no result are handed on as they are, whatever commas stand in them.
HANDED_ON = NEUTRAL - {"data.path"}
# A result on one of these is no better than one on another.
DATA_SETS = ("data.name", "data.path", "data.emnist_split")
SHOWN = ("test/accuracy", "test/loss")  # beside the metric that chooses


class Planned(NamedTuple):
    """One run of a sweep: its name, its flags as text, its config."""

    name: str
    flags: dict[str, str]
    config: Config


class Asked(BaseModel):
    """sweep.json: what was asked for."""

    command: str
    values: dict[str, list[Any]]
    """The values of each setting that differs, in the order in which they were given."""
    settings: dict[str, Any]
    """All other settings that change a result and are not the default."""
    threads: int
    """CPU threads of a run, dealt at the first start: other threads round otherwise."""


# ---- what is asked for


def split_values(name: str, text: str) -> list[str]:
    """Return the values that a flag lists. Raises UserError for a range that is none.

    >>> split_values("seed", "0-2,7")
    ['0', '1', '2', '7']
    >>> split_values("optim.betas", "[0.8,0.9],[0.9,0.999]")
    ['[0.8,0.9]', '[0.9,0.999]']
    """
    if name in HANDED_ON:
        return [text]
    annotation = next((annotation for full, annotation, _ in fields() if full == name), None)
    values: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):  # not at a comma within brackets
        ends = re.fullmatch(r"\s*(\d{1,18})-(\d{1,18})\s*", part)
        if not part.strip():
            raise UserError(f"--{name}: nothing stands between two commas of {text}; leave one out")
        if not ends or not _takes_whole_numbers(annotation):
            values.append(part.strip())
            continue
        first, last = map(int, ends.groups())
        if first > last:
            raise UserError(f"--{name}: {part} counts down; write {last}-{first}")
        if last - first >= MOST_RUNS:
            raise UserError(f"--{name}: {part} are more than {MOST_RUNS:,} values; take fewer")
        values += map(str, range(first, last + 1))
    return values


def _takes_whole_numbers(annotation: object) -> bool:
    return annotation is int or any(map(_takes_whole_numbers, get_args(annotation)))


def plan(config: str | None, flags: Mapping[str, str]) -> list[Planned]:
    """Return the runs that flags with several values ask for, each with a name of its own.

    Raises UserError with one line per mistake.
    """
    lists, mistakes = _split_all(flags)
    count = math.prod(map(len, lists.values()))
    names = [name for name, values in lists.items() if len(values) > 1]
    if count > MOST_RUNS:
        sizes = " x ".join(str(len(lists[name])) for name in names)
        mistakes.append(f"{sizes} = {count:,} runs; a sweep has at most {MOST_RUNS:,}")
        # Each value is looked at all the same.
        products = [
            {**{key: values[0] for key, values in lists.items()}, name: value}
            for name in names
            for value in lists[name][:MOST_RUNS]
        ]
    else:
        chosen = itertools.product(*lists.values())
        products = [dict(zip(lists, values, strict=True)) for values in chosen]
    configs: list[Config] = []
    for product in products:
        try:
            configs.append(load_config(config, product)[0])
        except UserError as error:
            mistakes += [line for line in str(error).split("\n") if line not in mistakes]
    if not mistakes:
        mistakes = _repeated_values(configs, lists)
    if not mistakes and not names:
        mistakes = [
            "nothing differs between runs; give a setting several values, such as --seed 0-4, or "
            "train one run: seqclf train"
        ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    run_names = _name_runs([_picked(config, names) for config in configs])
    return [Planned(*run) for run in zip(run_names, products, configs, strict=True)]


def _split_all(flags: Mapping[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of each flag, and the mistakes of the others."""
    lists, mistakes = {}, []
    for name, text in flags.items():
        try:
            lists[name] = split_values(name, text)
        except UserError as error:
            mistakes.append(str(error))
    return lists, mistakes


def _repeated_values(configs: Sequence[Config], lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line per setting of which two values are the same, such as 0.01 and 1e-2."""
    values = [settings_by_name(config) for config in configs]
    return [
        f"--{name}: of {len(texts)} values two are the same ({', '.join(texts)}); leave one out"
        for name, texts in lists.items()
        if len({dump_value(one[name]) for one in values}) < len(texts)
    ]


def _picked(config: Config, names: Sequence[str]) -> dict[str, Value]:
    values = settings_by_name(config)
    return {name: values[name] for name in names}


def _name_runs(settings: Sequence[dict[str, Value]]) -> list[str]:
    """Name each run after its settings; a data set after its folder, where the folders differ."""
    short = [
        {**one, "data.path": Path(str(one["data.path"])).name} if "data.path" in one else one
        for one in settings
    ]
    names = [name_of(one) for one in short]
    return names if len(set(names)) == len(names) else [name_of(one) for one in settings]


def varying(runs: Sequence[Planned]) -> dict[str, list[Value]]:
    """Return the settings that differ between runs, each with its values."""
    all_values = [settings_by_name(run.config) for run in runs]
    found: dict[str, list[Value]] = {}
    for name in all_values[0]:
        values = list({dump_value(one[name]): one[name] for one in all_values}.values())
        if len(values) > 1:
            found[name] = values
    return found


def choose_directory(config: str | None, flags: Mapping[str, str], runs: Sequence[Planned]) -> Path:
    """Return the directory of a sweep: `run_dir`, or one whose name says what was asked for."""
    first = runs[0].config
    if first.run_dir is not None:
        return Path(first.run_dir)
    lists = varying(runs)
    base = run_name(first, config, [name for name in flags if name not in lists])
    asked: dict[str, Value] = {name: re.sub(r"[\[\] ]", "", flags[name]) for name in lists}
    return Path("runs") / f"sweep-{base}-{name_of(asked)}"


# ---- sweep.json


def describe(runs: Sequence[Planned], command: str, threads: int) -> Asked:
    """Return what is asked for."""
    lists = varying(runs)
    defaults = settings_by_name(Config())
    settings = {
        name: value
        for name, value in settings_by_name(runs[0].config).items()
        if name not in HANDED_ON and name not in lists and value != defaults[name]
    }
    return Asked(command=command, values=lists, settings=settings, threads=threads)


def keep_what_was_asked(path: Path, asked: Asked) -> Asked:
    """Write sweep.json, or return what it says; raises UserError if that is another sweep."""
    file = path / SWEEP
    if not file.exists():
        make_directory(path)
        write_json(file, asked.model_dump(mode="json"))
        return asked
    found = read_record(file, Asked)
    before, now = _as_text(found), _as_text(asked)
    default = {name: dump_value(value) for name, value in settings_by_name(Config()).items()}
    differences, command = [], found.command
    for name in sorted(before.keys() | now.keys()):
        then, today = before.get(name, default.get(name)), now.get(name, default.get(name))
        if then == today:
            continue
        differences.append(f"{name} was {then}, is {today}")
        # Neither command says it: the recipe is another one since.
        if f"--{name}=" not in found.command + asked.command:
            command += f" {shlex.quote(f'--{name}={then}')}"
    if differences:
        raise UserError(
            f"{path}: holds another sweep: {'; '.join(differences)}; the command of that one goes "
            f"on ({command}), or choose another --run-dir"
        )
    return found


def write_base(path: Path, config: Config) -> Path:
    """Write the settings that the runs read, and return the file.

    Else a file of `--config` that is edited meanwhile would change the runs that begin later.
    """
    base = config.model_copy(update={"run_dir": None, "quiet": False})
    replace_file(path / BASE, dump(base).encode())
    return path / BASE


def _as_text(asked: Asked) -> dict[str, str]:
    lists = {name: ", ".join(map(dump_value, values)) for name, values in asked.values.items()}
    return {name: dump_value(value) for name, value in asked.settings.items()} | lists


# ---- the table


class Group(NamedTuple):
    """Runs that differ in their repetition only, and the metrics of those that have finished."""

    settings: dict[str, Value]
    metrics: list[dict[str, float]]
    num_runs: int

    def mean(self, metric: str) -> float:
        """Return the mean of a metric; NaN unless each run has finished and has it."""
        values = [one.get(metric, math.nan) for one in self.metrics]
        # Means of equal counts may differ in the last bits of their sums: rounded, they are equal.
        return round(sum(values) / len(values), 7) if len(values) == self.num_runs else math.nan


def group_runs(path: Path, runs: Sequence[Planned]) -> list[Group]:
    """Return the groups of a sweep, in the order of its values."""
    columns = [name for name in varying(runs) if name not in REPEATED]
    groups: dict[str, Group] = {}
    for run in runs:
        settings = _picked(run.config, columns)
        group = groups.setdefault(str(settings), Group(settings, [], 0))
        status = find_record(path / run.name / STATUS, Status)
        if status is not None and status.state == "finished":
            metrics = {k: math.nan if v is None else v for k, v in status.metrics.items()}
            group.metrics.append(metrics)
        groups[str(settings)] = group._replace(num_runs=group.num_runs + 1)
    return list(groups.values())


def table(path: Path, runs: Sequence[Planned]) -> str:
    """Return the results of a sweep as text: a line per group, the best one marked.

    The best one is that of the validation metric; no test split chooses.
    """
    groups = group_runs(path, runs)
    metric = choosing_metric(runs)
    columns = list(groups[0].settings)
    best = choose_best(groups, metric)
    present = {name for group in groups for one in group.metrics for name in one}
    metrics = [name for name in (metric, *SHOWN) if name in present]
    rows = [[" ", *columns, "n", *metrics]]
    for group in groups:
        n = len(group.metrics)
        rows.append(
            [
                "*" if group in best else " ",
                *map(dump_value, group.settings.values()),
                str(n) if n == group.num_runs else f"{n} of {group.num_runs}",
                *(_cell(group, name) for name in metrics),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    repeated = " and ".join(name for name in REPEATED if name in varying(runs))
    title = f"mean ± standard deviation over {repeated}" if repeated else "one run a line"
    return "\n".join([*map(printable, [title, *lines]), *_verdict(groups, metric, best)])


def _cell(group: Group, metric: str) -> str:
    values = [one[metric] for one in group.metrics if metric in one]
    return spread_of(values) if values else ""


def choosing_metric(runs: Sequence[Planned]) -> str:
    """Return the validation metric that all runs choose by."""
    names = {run.config.checkpoint.metric for run in runs}
    return names.pop() if len(names) == 1 else "val/accuracy"


def choose_best(groups: Sequence[Group], metric: str) -> list[Group]:
    """Return of each data set the group with the best mean of a validation metric.

    Of equals it is the one with the lower mean loss, as in training, or else the first. A group
    alone on its data set is not compared.

    A group with a run that has not finished is never chosen: the runs that diverge are often those
    that fail.
    """
    sign = 1 if best_of(metric) == "min" else -1

    def rank(group: Group) -> tuple[float, float]:
        loss = group.mean("val/loss")
        return sign * group.mean(metric), math.inf if math.isnan(loss) else loss

    able = [group for group in groups if math.isfinite(group.mean(metric))]
    rivals: dict[str, list[Group]] = {}
    for group in able:
        data_set = str([group.settings.get(name) for name in DATA_SETS])
        rivals.setdefault(data_set, []).append(group)
    return [min(some, key=rank) for some in rivals.values() if len(some) > 1]


def _verdict(groups: Sequence[Group], metric: str, best: Sequence[Group]) -> list[str]:
    """Return the line that says what chose the best groups, or why none is chosen."""
    if len(groups) == 1:
        return []
    several = any(
        len({str(group.settings.get(name)) for group in groups}) > 1 for name in DATA_SETS
    )
    if best:
        word = "lowest" if best_of(metric) == "min" else "highest"
        text = f"* the best{' on each data set' * several}: {word} mean {metric}"
        missing = sum(not math.isfinite(group.mean(metric)) for group in groups)
        return [text + f"; {missing} not compared, with a run that has no result" * (missing > 0)]
    if any(metric in one for group in groups for one in group.metrics):
        where = " on one data set" * several
        return [
            f"none is marked as the best: fewer than two{where} have {metric} of all their runs"
        ]
    return [
        "none is marked as the best: there is no validation split, and the test split chooses "
        "nothing; hold out a part: --data.val-fraction 0.1"
    ]
