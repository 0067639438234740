"""Several runs on a page: curves over each other, settings that differ, results."""

from __future__ import annotations

import json
import statistics
from itertools import pairwise
from typing import NamedTuple

from seqclf.config.settings import NEUTRAL, settings_by_name
from seqclf.metrics import METRICS
from seqclf.report.figures import draw_curves
from seqclf.report.run_record import RunRecord
from seqclf.run.listing import family


class ComparedRun(NamedTuple):
    """A row of the table of runs."""

    name: str
    state: str
    settings: list[str]
    metrics: dict[str, float | None]


class SeedGroup(NamedTuple):
    """Finished runs that differ in their seed only: mean and standard deviation of each metric."""

    names: list[str]
    metrics: dict[str, tuple[float, float]]


class Comparison(NamedTuple):
    """What a page shows of several runs beside their curves."""

    settings: list[str]
    """The names of those that differ."""
    metrics: list[str]
    rows: list[ComparedRun]
    groups: list[SeedGroup]


def compare(runs: list[RunRecord]) -> Comparison:
    """Compare runs: settings, results, and means over seeds."""
    settings, columns = differing_settings(runs)
    return Comparison(
        settings=settings,
        metrics=sorted({name for run in runs for name in run.metrics}),
        rows=[
            ComparedRun(run_title(run, runs), run.state, settings=values, metrics=run.metrics)
            for run, values in zip(runs, columns, strict=True)
        ],
        groups=seed_groups(runs),
    )


def differing_settings(runs: list[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the settings that differ between runs, and each run's values of them, as JSON."""
    settings = [settings_by_name(run.config) for run in runs]
    texts = [{name: json.dumps(value) for name, value in each.items()} for each in settings]
    names = [
        name for name in texts[0] if name not in NEUTRAL and len({each[name] for each in texts}) > 1
    ]
    columns = [[each[name] for name in names] for each in texts]
    # The same name may stand for other data, for instance files that were prepared again.
    if len({run.facts.data_fingerprint for run in runs}) > 1:
        names.insert(0, "data")
        for run, values in zip(runs, columns, strict=True):
            values.insert(0, f"{run.facts.data} {run.facts.data_fingerprint[:8]}")
    return names, columns


def seed_groups(runs: list[RunRecord]) -> list[SeedGroup]:
    """Return the groups of finished runs that differ in their seed only; one run for each seed."""
    families: dict[str, dict[int, RunRecord]] = {}
    for run in runs:
        if run.state == "finished":
            by_seed = families.setdefault(family(run.config, run.facts), {})
            by_seed[run.config.seed] = run
    groups = []
    for by_seed in families.values():
        if len(by_seed) > 1:
            group = list(by_seed.values())
            metrics = {}
            for name in sorted(group[0].metrics):
                values = [value for run in group if (value := run.metrics.get(name)) is not None]
                if len(values) == len(group):
                    metrics[name] = (statistics.mean(values), statistics.stdev(values))
            groups.append(SeedGroup([run_title(run, runs) for run in group], metrics))
    return groups


def run_title(run: RunRecord, runs: list[RunRecord]) -> str:
    """Return a run's name, with a number where there are several: figures cut long names."""
    names = [other.path.name for other in runs]
    name = run.path.name if names.count(run.path.name) == 1 else str(run.path)
    return name if len(runs) == 1 else f"{runs.index(run) + 1}: {name}"


def learning_curves(runs: list[RunRecord]) -> dict[str, str]:
    """Draw the curves of runs over each other; those of one run with its starts and its skips."""
    resumed_at: list[int] = []
    skipped: list[int] = []
    if len(runs) == 1:
        resumed_at = sorted({session.step for session in runs[0].sessions if session.step > 0})
        counts = [(0, 0.0), *runs[0].points("train/skipped")]
        skipped = [step for (_, before), (step, count) in pairwise(counts) if count > before]
    figures = {}
    for name in sorted(METRICS, key=lambda name: not name.endswith("/loss")):  # losses come first
        metric = METRICS[name]
        all_points = {run_title(run, runs): run.points(name) for run in runs}
        points = {title: of_run for title, of_run in all_points.items() if of_run}
        if metric.curve and points:
            figures[name.replace("/", "-")] = draw_curves(
                points,
                metric.title,
                resumed_at=resumed_at,
                skipped=skipped,
                log_axis=metric.log_axis,
            )
    return figures
