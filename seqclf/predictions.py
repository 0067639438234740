"""Predictions -> a table of them."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import torch

from seqclf.average import (
    Member,
    load_members,
    predict_rows_together,
    predict_split_together,
)
from seqclf.counts import LISTED, Counts
from seqclf.data.readers import read_rows
from seqclf.data.readers.roles import list_names
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, count_of, quote
from seqclf.data.sequences import Origins, Sequences
from seqclf.errors import USAGE_ERROR, UserError, printable_lines
from seqclf.model import Architecture
from seqclf.predict import (
    MAX_ROWS,
    Prediction,
    by_recording,
    options_of_model,
)
from seqclf.processes.device import flush_denormals
from seqclf.stepwise import Early, reason_against
from seqclf.tally import Tally

SUFFIXES = (".csv", ".jsonl")
Per = Literal["window", "recording"]


class Source(NamedTuple):
    """A file to predict, and how to read it."""

    path: Path
    options: ReadOptions
    format: str | None
    skip_bad: bool


def load_predictors(paths: Sequence[Path], *, raw: bool) -> list[Member]:
    """Load models to predict with, on the GPU if there is one; say which are not finished."""
    members, loaded = load_members(paths, raw=raw)
    for path, saved in loaded:
        if saved.step is not None:
            where = f" in {path}" * (len(paths) > 1)
            say(f"note: no result yet{where}; the weights are of step {saved.step}")
        if raw and saved.architecture.temperature == 1:
            say(f"note: {path} has no temperature that --raw could leave out")
    if len(members) > 1:
        names = ", ".join(member.name for member in members)
        say(f"note: the mean of {len(members)} models: {names}")
    flush_denormals()  # as in training, whose numbers these are to be
    return members


def predict_file(
    members: Sequence[Member],
    source: Source,
    out: Path | None,
    per: Per | None,
    early: Early | None = None,
) -> int:
    """Write the class and all probabilities of each row of a file, in the order of the file.

    With `early` the table also says after which step a sequence was decided.

    Return the exit code: 0, or 2 if some rows could not be used and are not to be skipped. Each of
    the first LISTED of those rows is named on stderr. The file `out` appears when it is complete,
    and one that exists already stays as it is if the exit code is 2. Raises UserError.
    """
    _check_out(out, source.path)
    architecture = members[0].architecture
    journal = Journal()
    tally = Tally()
    predictions = read_predictions(members, source, journal, tally, per, early)
    counts = Counts()
    # A call that fails never touches a file that is there.
    is_precious = out is not None and os.path.exists(out) and not source.skip_bad
    with _written(out, keeps=lambda: is_precious and counts.num_bad > 0) as file:
        start = list(islice(predictions, MAX_ROWS))
        extras = {
            "parts": architecture.reading.has_parts and per != "recording",
            "early": early is not None,
            "truth": "label" in journal.roles
            or any(isinstance(one, Prediction) and one.truth is not None for one in start),
        }
        table = _Table(file, out, architecture.classes, extras)
        for one in chain(start, predictions):
            if isinstance(one, BadRow):
                counts.add_bad(one)
            else:
                counts.add(one, architecture.classes)
                table.write(one)
    counts.finish()
    say_notes(journal, tally, architecture)
    if counts.labelled and not extras["truth"]:
        print(
            f"note: the first {MAX_ROWS} rows have no label, so no truth is shown", file=sys.stderr
        )
    where = "" if out is None else f" in {out}"
    if is_precious and counts.num_bad:
        where = f"; {out} is left as it was, --on-bad-row skip writes it"
    say(_summary(counts, where) + _unsure(counts, early))
    if counts.in_classes < counts.labelled:
        say(f"note: {_unknown_labels(counts, journal, architecture)}")
    return USAGE_ERROR if counts.num_bad and not source.skip_bad else 0


def _check_out(out: Path | None, source: Path | None = None) -> None:
    if out is None:
        return
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    if source is not None and _is_same(out, source):
        raise UserError(f"--out {out}: is the input; name another file")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


@contextmanager
def _written(out: Path | None, keeps: Callable[[], bool] = lambda: False) -> Iterator[TextIO]:
    """Give standard output, or a text file that becomes `out` at the end, unless it `keeps`."""
    if out is None:
        yield sys.stdout
        return
    staging = out.with_name(f".{out.name}.partial")
    try:
        with staging.open("w", encoding="utf-8", newline="") as file:
            yield file
        if not keeps():
            staging.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)


def read_predictions(
    members: Sequence[Member],
    source: Source,
    journal: Journal,
    tally: Tally,
    per: Per | None,
    early: Early | None = None,
) -> Iterator[Prediction | BadRow]:
    """Return what the models say of a file's sequences, in their order. Raises UserError."""
    architecture = members[0].architecture
    _check_per(architecture, per)
    _check_early(members, early, per)
    options = options_of_model(architecture, source.options)
    rows = read_rows(source.path, options, journal, format=source.format)
    predictions = predict_rows_together(members, rows, tally, early)
    return by_recording(predictions) if per == "recording" else predictions


def predict_examples(
    members: Sequence[Member],
    splits: Sequence[Sequences],
    per: Per | None,
    early: Early | None = None,
) -> Iterator[Prediction]:
    """Return what the models say of the examples of a split, in their order. Raises UserError."""
    _check_per(members[0].architecture, per)
    _check_early(members, early, per)
    predictions: Iterable[Prediction | BadRow] = predict_split_together(members, splits, early)
    if per == "recording":
        predictions = by_recording(predictions)
    return (one for one in predictions if isinstance(one, Prediction))


def _check_per(architecture: Architecture, per: Per | None) -> None:
    if per is not None and architecture.reading.window is None:
        raise UserError(f"--per {per}: the model was not trained on windows")


def _check_early(members: Sequence[Member], early: Early | None, per: Per | None) -> None:
    """Refuse a model that cannot decide before the end of a sequence. Raises UserError."""
    if early is None:
        return
    if len(members) > 1:
        raise UserError(
            f"--until {early.until:g}: one model decides, and {len(members)} are named: name one"
        )
    if (reason := reason_against(members[0].architecture)) is not None:
        raise UserError(f"--until {early.until:g}: {reason}")
    if per == "recording":
        raise UserError(f"--until {early.until:g}: decides each window; leave --per recording out")


def write_split(
    members: Sequence[Member],
    splits: Sequence[Sequences],
    out: Path | None,
    per: Per | None,
    early: Early | None = None,
) -> None:
    """Write id, truth, class and all probabilities of each example of a split.

    `splits` are these examples as each of the models reads them. Raises UserError.
    """
    _check_out(out)
    predictions = predict_examples(members, splits, per, early)
    architecture, sequences = members[0].architecture, splits[0]
    origins = sequences.origins
    extras = {
        "place": origins is not None and _has_twins(origins),
        "parts": origins is not None and origins.has_parts and per != "recording",
        "early": early is not None,
        "truth": True,
    }
    counts = Counts()
    with _written(out) as file:
        table = _Table(file, out, architecture.classes, extras)
        for one in predictions:
            counts.add(one, architecture.classes)
            table.write(one)
    if origins is None and sequences.starts is not None:
        print(
            "note: an older version prepared these data and kept no ids, so id counts the examples "
            "of the split",
            file=sys.stderr,
        )
    where = "" if out is None else f" in {out}"
    say(_summary(counts, where) + _unsure(counts, early))


def _has_twins(origins: Origins) -> bool:
    """Return whether the split's files have an id twice, as files without ids have."""
    is_of_split = torch.isin(origins.sources, origins.sources[origins.rows])
    rows = is_of_split.nonzero()[:, 0].tolist()
    return len({origins.ids[row] for row in rows}) < len(rows)


class _Table:
    """A .csv or .jsonl of predictions. Not every table has all of the columns in `extras`."""

    def __init__(
        self, file: TextIO, out: Path | None, classes: tuple[str, ...], extras: Mapping[str, bool]
    ) -> None:
        self._file = file
        self._classes = classes
        self._extras = extras
        is_csv = out is None or out.suffix.lower() == ".csv"
        self._csv = csv.writer(file) if is_csv else None
        if self._csv:
            names = {"place": ["place"], "parts": ["first_step", "last_step"], "truth": ["truth"]}
            chosen = [name for extra in names if extras.get(extra) for name in names[extra]]
            decision = ["step", "sure", "probability"] if extras.get("early") else []
            shares = (f"p({name})" for name in classes)
            self._csv.writerow(["id", *chosen, "class", *decision, *shares])

    def write(self, prediction: Prediction) -> None:
        """Write a line."""
        line: dict[str, object] = {"id": prediction.id}
        if self._extras.get("place"):
            line["place"] = prediction.place
        if self._extras.get("parts"):
            # People count steps from 1, and the last step is in the window.
            line |= {"first_step": prediction.part.first + 1, "last_step": prediction.part.end}
        if self._extras.get("truth"):
            line["truth"] = prediction.truth
        line["class"] = self._classes[prediction.guess]
        if self._extras.get("early"):
            line["step"] = prediction.step
            line["sure"] = prediction.is_sure
            line["probability"] = prediction.probabilities[prediction.guess]
        if self._csv:
            if self._extras.get("early"):
                line["sure"] = "yes" if prediction.is_sure else "no"
                line["probability"] = f"{line['probability']:.6g}"
            shown = (f"{p:.6g}" for p in prediction.probabilities)
            self._csv.writerow([*line.values(), *shown])
        else:
            named = dict(zip(self._classes, prediction.probabilities, strict=True))
            self._file.write(json.dumps({**line, "probabilities": named}) + "\n")


def say_notes(journal: Journal, tally: Tally, architecture: Architecture) -> None:
    """Print on stderr what the reading decided, and what is unlike the training data."""
    aside = [
        f"{quote(name) if name else repr(name)} ({why})" for name, why in journal.left_aside.items()
    ]
    if aside:
        more = f" and {len(aside) - LISTED} more" * (len(aside) > LISTED)
        say(f"left aside: {', '.join(aside[:LISTED])}{more}")
    for note in [*journal.notes, *tally.notes(architecture)]:
        say(f"note: {note}")


def say(text: str) -> None:
    """Print lines on stderr; names in them may hold escape sequences, shown as text."""
    print(printable_lines(text), file=sys.stderr)


def _unsure(counts: Counts, early: Early | None) -> str:
    if early is None or not counts.unsure:
        return ""
    return (
        f"\nnote: {counts.unsure:,} of {counts.predicted:,} sequences never reach "
        f"{early.until:g} and are decided at their end (sure: no)"
    )


def rows_were(count: int) -> str:
    """Return a count of rows and its verb."""
    return f"{count_of(count, 'row')} {'was' if count == 1 else 'were'}"


def _summary(counts: Counts, where: str) -> str:
    text = f"{count_of(counts.predicted, 'prediction')}{where}"
    if counts.labelled:
        share = counts.hits / counts.labelled
        text += f"; {share:.2%} of the {counts.labelled:,} labels in the input agree"
    if counts.num_bad:
        text += f"; {rows_were(counts.num_bad)} left out"
        is_more = counts.num_bad > LISTED and not counts.is_alike
        text += f", the first {LISTED} are named above" if is_more else ", see above"
    return text


def _unknown_labels(counts: Counts, journal: Journal, architecture: Architecture) -> str:
    """Return what to say of labels in the input that are no classes of the model."""
    column = f" in '{quote(journal.roles['label'])}'" if "label" in journal.roles else ""
    classes = f"such as '{quote(counts.first_unknown)}'; its classes are " + list_names(
        architecture.classes
    )
    if not counts.in_classes:
        return f"none of the labels{column} is a class of the model, {classes}; are they labels?"
    count = counts.labelled - counts.in_classes
    return (
        f"{count:,} of the {counts.labelled:,} labels{column} are no classes of the model, "
        f"{classes}"
    )
