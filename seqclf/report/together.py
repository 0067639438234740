"""Several runs on a page: what the mean of their probabilities is worth on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from seqclf.average import load_members, predict_split_together
from seqclf.config.load import load_config_of_run
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.measure import measure_examples
from seqclf.predict import Prediction
from seqclf.report.intervals import wilson
from seqclf.report.reading import flop_of_example
from seqclf.run.records import CONFIG

MOST_FLOP = 2e11  # for all runs together: some seconds of a small CPU


class Together(NamedTuple):
    """The test accuracy of the mean of several models, and of each alone."""

    accuracy: float
    interval: tuple[float, float]
    n: int
    of_each: dict[str, float]
    hits: list[list[bool]] | None
    """Of each run in their order, whether it names each test example rightly.

    None of windows: those of a recording are alike, and a test would count each for itself.
    """


def measure_together(run_dirs: list[Path], flags: dict[str, str]) -> Together:
    """Measure the mean of finished runs. Raises UserError with the reason if that cannot be."""
    members, _ = load_members(run_dirs)
    splits: list[Sequences] = []
    prints = set()
    for run_dir in run_dirs:
        config = load_config_of_run(run_dir / CONFIG, flags)
        found = sources.load(config.data, seed=config.seed)
        splits.append(found.test)
        prints.add(found.fingerprint_of(found.test))
    if not all(map(len, splits)):
        raise UserError("not all runs have test examples")
    if len(prints) > 1:
        raise UserError("the runs have not all the same test examples")
    flop = sum(
        flop_of_example(member.model, test) * len(test)
        for member, test in zip(members, splits, strict=True)
    )
    if flop > MOST_FLOP:
        raise UserError("it would take long; seqclf evaluate with these runs does it")
    predictions = list(predict_split_together(members, splits))
    measured = measure_examples(members, predictions)
    has_parts = any(test.origins is not None and test.origins.has_parts for test in splits)
    metrics = measured.metrics
    hits = int(metrics.confusion.diagonal().sum())
    return Together(
        metrics.accuracy,
        wilson(hits, metrics.count),
        metrics.count,
        {name: single.accuracy for name, single in measured.of_each.items()},
        None if has_parts else _hits_of_each(predictions, members[0].architecture.classes),
    )


def _hits_of_each(predictions: list[Prediction], classes: tuple[str, ...]) -> list[list[bool]]:
    """Return whether each run names each example rightly, in the order of the runs."""
    rows = [
        [one.truth == classes[one._replace(probabilities=said).guess] for said in one.of_each]
        for one in predictions
        if one.truth is not None
    ]
    return [list(column) for column in zip(*rows, strict=True)]
