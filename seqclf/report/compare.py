"""Several runs on a page: curves over each other, settings that differ, results."""

from __future__ import annotations

import json
import statistics
from typing import NamedTuple

from seqclf.config.settings import UNNAMED, settings_by_name
from seqclf.metrics import METRICS
from seqclf.report.chance import Pair, Setting, answer, pair_up
from seqclf.report.compare_figures import draw_settings
from seqclf.report.figures import Point
from seqclf.report.run_record import RunRecord
from seqclf.run.listing import family, short_names

SPLITS = {"val": "Validation", "test": "Test"}


class ComparedRun(NamedTuple):
    """A row of the table of runs."""

    name: str
    state: str
    settings: list[str]
    metrics: dict[str, float | None]


class SeedGroup(NamedTuple):
    """Finished runs that differ in their seed only: mean and standard deviation of each metric."""

    title: str
    """What they set and other runs set otherwise."""
    names: list[str]
    metrics: dict[str, tuple[float, float]]


class Comparison(NamedTuple):
    """What a page shows of several runs beside their curves."""

    settings: list[str]
    """The names of those that differ."""
    metrics: list[str]
    rows: list[ComparedRun]
    groups: list[SeedGroup]
    answers: list[tuple[str, str]]
    """By split, what each setting reached, and whether the difference is beyond chance."""
    notes: list[str]
    """What to mind with the answers, or why there is none."""
    pairs: list[Pair]
    """The best setting and each other one, on the same test examples."""


def compare(runs: list[RunRecord], hits: list[list[bool]] | None = None) -> Comparison:
    """Compare runs: settings, results, means over seeds, and whether settings differ by chance.

    `hits` says of each run whether it names each test example rightly, if all have the same ones.
    """
    settings, columns = differing_settings(runs)
    answers, notes, pairs = _answers(runs, hits)
    return Comparison(
        settings=settings,
        metrics=sorted({name for run in runs for name in run.metrics}),
        rows=[
            ComparedRun(run_title(run, runs), run.state, settings=values, metrics=run.metrics)
            for run, values in zip(runs, columns, strict=True)
        ],
        groups=seed_groups(runs),
        answers=answers,
        notes=notes,
        pairs=pairs,
    )


def _answers(
    runs: list[RunRecord], hits: list[list[bool]] | None
) -> tuple[list[tuple[str, str]], list[str], list[Pair]]:
    """Return the answers by split, what to mind with them, and the pairs of runs."""
    finished = [run for run in runs if run.state == "finished"]
    notes = []
    if len(finished) < len(runs):
        count = len(runs) - len(finished)
        notes.append(f"{count} of the runs {'has' if count == 1 else 'have'} not finished.")
    if len(finished) < 2:
        return [], notes, []
    if len({run.facts.data_fingerprint for run in finished}) > 1:
        notes.append("No test compares the runs: their data are not the same.")
        return [], notes, []
    if len({run.config.data.fold for run in finished}) > 1:
        notes.append("No test compares the runs: they are folds; seqclf runs gives their mean.")
        return [], notes, []
    names = setting_names(runs)
    answers, pairs = [], []
    for split in ("val", "test"):
        settings = _settings(runs, names, split, hits if split == "test" else None)
        if settings:
            answers.append((f"{SPLITS[split]} accuracy", answer(settings)))
            pairs = pair_up(settings)
    if [title for title, _ in answers] == ["Test accuracy"] and len(set(names)) > 1:
        notes.append(
            "Warning: the settings are compared on the test split. A setting that was chosen by it "
            "looks better than it is. Choose by validation examples (--data.val_fraction 0.1), and "
            "the test accuracy of the chosen setting is the result."
        )
    elif len(set(names)) > 1 and answers:
        notes.append(
            "Choose a setting by its validation accuracy. Warning: chosen by its test accuracy it "
            "looks better than it is."
        )
    return answers, notes, pairs


def _settings(
    runs: list[RunRecord], names: list[str], split: str, hits: list[list[bool]] | None
) -> list[Setting]:
    """Return the finished runs by setting; none if one of them lacks the accuracy."""
    settings: dict[str, Setting] = {}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        if run.state != "finished":
            continue
        accuracy = run.metrics.get(f"{split}/accuracy")
        if accuracy is None:
            return []
        key = family(run.config, run.facts)
        setting = settings.setdefault(key, Setting(name, {}, {}))
        setting.accuracies[run.config.seed] = accuracy
        if hits is not None:
            setting.hits[run.config.seed] = hits[number]
    return list(settings.values())


def setting_names(runs: list[RunRecord]) -> list[str]:
    """Name each run by the settings that differ, but for the seed: "hidden_size 16, lr 0.01"."""
    settings, columns = differing_settings(runs)
    return [
        ", ".join(
            value if name == "data" else f"{name} {value.strip(chr(34))}"
            for name, value in zip(short_names(settings), values, strict=True)
            if name != "seed"
        )
        for values in columns
    ]


def differing_settings(runs: list[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the settings that differ between runs, and each run's values of them, as JSON."""
    settings = [settings_by_name(run.config) for run in runs]
    texts = [{name: json.dumps(value) for name, value in each.items()} for each in settings]
    names = [
        name for name in texts[0] if name not in UNNAMED and len({each[name] for each in texts}) > 1
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
            name = setting_names(runs)[runs.index(group[0])]
            groups.append(
                SeedGroup(name or "Seeds only", [run_title(run, runs) for run in group], metrics)
            )
    return groups


def run_title(run: RunRecord, runs: list[RunRecord]) -> str:
    """Return a run's name, with a number where there are several: figures cut long names."""
    names = [other.path.name for other in runs]
    name = run.path.name if names.count(run.path.name) == 1 else str(run.path)
    return name if len(runs) == 1 else f"{runs.index(run) + 1}: {name}"


def curves_by_setting(runs: list[RunRecord]) -> dict[str, str]:
    """Draw the curves of several runs: a colour a setting, a band over its seeds."""
    names = setting_names(runs)
    if len(set(names)) == 1:  # they differ in their seeds only, or in nothing
        names = [f"n = {len(runs)}: mean and range"] * len(runs)
    figures = {}
    for metric_name in sorted(METRICS, key=lambda name: not name.endswith("/loss")):
        metric = METRICS[metric_name]
        points: dict[str, list[list[Point]]] = {}
        for run, name in zip(runs, names, strict=True):
            if of_run := run.points(metric_name):
                points.setdefault(name, []).append(of_run)
        if metric.curve and any(len(one) > 1 for runs_of in points.values() for one in runs_of):
            figures[metric_name.replace("/", "-")] = draw_settings(
                points, metric.title, log_axis=metric.log_axis
            )
    return figures
