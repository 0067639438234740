"""Predictions whose truth is known -> metrics: of one model, of several and their mean, or early.

Shapes: C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from seqclf.average import Member
from seqclf.config.settings import Value
from seqclf.counts import Counts
from seqclf.data.readers.roles import list_names
from seqclf.data.readers.rows import BadRow, Journal, count_of, quote
from seqclf.errors import UserError
from seqclf.evaluate import Metrics
from seqclf.model import Architecture
from seqclf.predict import Prediction, count_truth
from seqclf.predictions import Per, Source, read_predictions, rows_were, say_notes
from seqclf.run.records import finite_or_null
from seqclf.stepwise import Early
from seqclf.tally import Tally


class Measured(NamedTuple):
    """What predictions come to where the truth is known."""

    metrics: Metrics
    of_each: dict[str, Metrics]
    """Of a mean over models: the metrics of each alone, by its name."""
    earliness: float | None = None
    """Of decisions before the end: the mean share of the steps that were read."""
    num_unsure: int = 0
    """Decisions at the end, where no class was as probable as it had to be."""

    @property
    def harmonic_mean(self) -> float:
        """The harmonic mean of accuracy and 1 - earliness.

        Schäfer and Leser, "TEASER: early and accurate time series classification", Data Mining and
        Knowledge Discovery 34, 2020.
        """
        assert self.earliness is not None
        return harmonic_mean(self.metrics.accuracy, self.earliness)

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Value]:
        """Return all of it for a JSON file."""
        content = _to_json(self.metrics, classes)
        if self.of_each:
            content["runs"] = {
                name: _to_json(metrics, classes) for name, metrics in self.of_each.items()
            }
        if self.earliness is not None:
            content["earliness"] = self.earliness
            content["harmonic_mean"] = self.harmonic_mean
            content["unsure"] = self.num_unsure
        return content


def _to_json(metrics: Metrics, classes: tuple[str, ...]) -> dict[str, Value]:
    return metrics.to_json(classes) | dict(finite_or_null({"loss": metrics.loss}))


def harmonic_mean(accuracy: float, earliness: float) -> float:
    """Return the harmonic mean of accuracy and 1 - earliness; 0 if both are 0.

    >>> harmonic_mean(0.8, 0.2)
    0.8
    """
    total = accuracy + 1 - earliness
    return 2 * accuracy * (1 - earliness) / total if total else 0.0


class Meter:
    """Adds predictions up."""

    def __init__(self, members: Sequence[Member]) -> None:
        classes = members[0].architecture.classes
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._names = [member.name for member in members] if len(members) > 1 else []
        shape = (1 + len(self._names), len(classes), len(classes))
        self._confusion = torch.zeros(shape, dtype=torch.int64)
        self._losses = [0.0] * len(self._confusion)
        self._shares_read: list[float] = []
        self._num_unsure = 0

    def add(self, one: Prediction) -> None:
        """Add a prediction whose truth is a class of the model."""
        assert one.truth is not None
        truth = self._numbers[one.truth]
        for number, probabilities in enumerate((one.probabilities, *one.of_each)):
            said = one._replace(probabilities=probabilities)
            self._losses[number] += count_truth(self._confusion[number], truth, said)
        if one.step is not None:
            self._shares_read.append(one.step / one.num_steps)
            self._num_unsure += not one.is_sure

    def result(self) -> Measured:
        """Return what the predictions come to."""
        all_metrics = [
            Metrics(loss / int(confusion.sum()), confusion)
            for loss, confusion in zip(self._losses, self._confusion, strict=True)
        ]
        shares = self._shares_read
        return Measured(
            all_metrics[0],
            dict(zip(self._names, all_metrics[1:], strict=True)),
            earliness=sum(shares) / len(shares) if shares else None,
            num_unsure=self._num_unsure,
        )


def measure_examples(members: Sequence[Member], predictions: Iterable[Prediction]) -> Measured:
    """Measure predictions of a split's examples."""
    meter = Meter(members)
    for one in predictions:
        if one.truth is not None:  # a recording's windows may have more than one label
            meter.add(one)
    return meter.result()


def measure_file(
    members: Sequence[Member], source: Source, per: Per | None, early: Early | None = None
) -> Measured:
    """Measure models on a file with labels. Raises UserError for rows that cannot be measured."""
    architecture = members[0].architecture
    classes = architecture.classes
    options = replace(source.options, needs_label=source.options.labels is None)
    source = source._replace(options=options)
    journal = Journal()
    tally = Tally()
    counts = Counts()
    meter = Meter(members)
    for one in read_predictions(members, source, journal, tally, per, early):
        bad = one if isinstance(one, BadRow) else _find_bad_label(one, architecture, source)
        if bad is not None:
            counts.add_bad(bad)
            continue
        assert isinstance(one, Prediction)
        counts.add(one, classes)
        if one.truth is not None:
            meter.add(one)
    counts.finish()
    say_notes(journal, tally, architecture)
    label = architecture.reading.label
    lacking = ""
    if label is not None and source.options.label is None and "label" not in journal.roles:
        lacking = f" (no '{quote(label)}', the label of the training files)"
    _check_measured(counts, source, lacking)
    return meter.result()


def _find_bad_label(
    prediction: Prediction, architecture: Architecture, source: Source
) -> BadRow | None:
    """Return what is wrong with a label; None if it can be measured, or if there is none."""
    truth = prediction.truth
    if truth is not None and truth not in architecture.classes:
        problem = (
            f"label '{quote(truth)}': no class of the model; its classes are "
            f"{list_names(architecture.classes)}"
        )
    elif prediction.part.is_undecided and not architecture.reading.has_parts:
        problem = "more than one label"
    else:
        return None
    return BadRow(f"{source.path}, '{quote(prediction.id)}'", problem)


def _check_measured(counts: Counts, source: Source, lacking: str) -> None:
    """Say what was not measured, and what the file lacks. Raises UserError if nothing was."""
    remedy = "--on-bad-row skip leaves them out"
    if counts.num_bad and not source.skip_bad:
        raise UserError(
            f"{count_of(counts.num_bad, 'row')} cannot be measured, see above; {remedy}"
        )
    if not counts.predicted:
        raise UserError(f"{source.path}: no sequence there can be measured")
    if not counts.labelled:
        raise UserError(
            f"{source.path}: no sequence has a label{lacking}; name their column with --label, or "
            "a file of labels with --labels"
        )
    if counts.unlabelled and not source.skip_bad:
        raise UserError(
            f"{source.path}: {counts.unlabelled:,} sequences, the first of them "
            f"'{quote(counts.first_unlabelled)}', have no label; {remedy}"
        )
    if counts.num_bad:
        print(f"{rows_were(counts.num_bad)} left out, see above", file=sys.stderr)
    if counts.unlabelled:
        print(f"{counts.unlabelled:,} sequences without a label were left out", file=sys.stderr)
