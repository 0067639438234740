"""What a run says in a terminal, at its start and at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap

import torch
from torch import Tensor

from seqclf.config.settings import Model, settings_by_name
from seqclf.data.batches import padding_fraction
from seqclf.data.readers.rows import quote
from seqclf.data.sequences import Sequences, spread_over_classes
from seqclf.evaluate import Metrics
from seqclf.measure import Measured
from seqclf.metrics import percent
from seqclf.model import LSTMClassifier
from seqclf.prefixes import (
    classify_prefixes,
    image_lines,
    line_ends,
    probabilities,
    step_name,
    token_lines,
)
from seqclf.run.records import find_evaluation, finite_or_null
from seqclf.run.verdict import why_no_result
from seqclf.settle import FEW, Setup

WIDTH = 80  # columns of what is no terminal; a wider terminal is not filled
MOST_LINES = 32  # of a sequence that is drawn
MOST_FEATURES = 8  # of a series, a line each
MOST_LETTERS = 12  # of a feature's name
MOST_CHANGES = 8  # of the guess
SHADES = " .:-=+*#%@"  # dark to bright
SPARKS = "▁▂▃▄▅▆▇█"  # low to high
ERROR_COLUMNS = ("truth", "guess", "errors")
BAR_WIDTH = 20  # of probability 1, where the line has room for it


def terminal_width() -> int:
    """Return how many columns a line may have: those of the terminal, at most WIDTH."""
    isatty = getattr(sys.stdout, "isatty", None)
    if isatty is None or not isatty():
        return WIDTH
    return min(WIDTH, get_terminal_size((WIDTH, 24)).columns)


def predictions_text(model: LSTMClassifier, sequences: Sequences, count: int) -> str:
    """Return predictions over the true classes, as the tutorial prints them, of all classes.

    A mark stands under each error.
    """
    ids = spread_over_classes(sequences.labels, count)
    guesses = probabilities(model, *sequences.rows(ids)).argmax(1).tolist()
    truths = sequences.labels.cpu()[ids].tolist()
    names = sequences.classes
    width = max(len(names[number]) for number in (*guesses, *truths))
    rows = {
        "prediction ": [names[number] for number in guesses],
        "truth      ": [names[number] for number in truths],
        "           ": ["" if g == t else "^" for g, t in zip(guesses, truths, strict=True)],
    }
    per_line = max(1, (terminal_width() - len("prediction ")) // (width + 1))
    lines = []
    for start in range(0, len(ids), per_line):
        for title, words in rows.items():
            row = " ".join(word.rjust(width) for word in words[start : start + per_line])
            lines.append(f"{title} {row}".rstrip())
    return "\n".join(lines).rstrip()


def reading_text(model: LSTMClassifier, sequences: Sequences, index: int) -> str:
    """Draw one image or sequence, and beside it the model's guess after each part of it."""
    if sequences.starts is not None and not sequences.num_tokens:
        return _series_text(model, sequences, index)
    value = sequences[index][0].cpu()
    per_line, ends = line_ends(model, sequences, value, MOST_LINES)
    best_E, names = _guesses(model, sequences, value, ends)
    name_width = max(map(len, names))
    if sequences.num_tokens:
        drawings = token_lines(sequences, value, ends)
    else:
        most = terminal_width() - name_width - len("||    100% ")
        drawings = _shaded_lines(model, sequences, value, ends, most)
    width = max(map(len, drawings))
    bar_width = terminal_width() - width - name_width - len("||    100% ")
    bar_width = max(0, min(BAR_WIDTH, bar_width))
    unit = step_name(model, sequences)
    if per_line > 1:
        unit = f"{per_line} {unit}s"
    unit += " in permuted order" * (model.read == "permuted")
    text = _wrapped(f"reading {_title(sequences, index)}, its guess after every {unit}:")
    for drawing, name, probability in zip(drawings, names, best_E, strict=True):
        filled = "█" * round(probability * bar_width)
        guess = f"{name:<{name_width}}  {percent(probability, 0):>3}% {filled}"
        text.append(f"|{drawing:<{width}}|  {guess}".rstrip())
    return "\n".join(text)


def _wrapped(line: str) -> list[str]:
    """Break a line at blanks where the terminal ends, and nowhere within a name."""
    return wrap(line, terminal_width(), break_long_words=False, break_on_hyphens=False)


def _title(sequences: Sequences, index: int) -> str:
    truth = sequences.classes[int(sequences.labels[index])]
    return f"test {sequences.title(index)} (truth: {truth})"


def _guesses(
    model: LSTMClassifier, sequences: Sequences, value: Tensor, ends: list[int]
) -> tuple[list[float], list[str]]:
    """Return the probability and the name of the guess after each end."""
    probabilities_EC = classify_prefixes(model, value[None], torch.tensor([ends]))[0]
    # The probabilities of a model that has diverged are NaN, and it is drawn all the same.
    best_E, guesses_E = probabilities_EC.nan_to_num(0).max(1)
    return best_E.tolist(), [sequences.classes[guess] for guess in guesses_E.tolist()]


def _shaded_lines(
    model: LSTMClassifier, sequences: Sequences, value: Tensor, ends: list[int], most: int
) -> list[str]:
    """Draw pixels dark to bright; of a wide image every second one, or fewer, on `most` columns."""
    lines = image_lines(model, value, ends) / sequences.scale
    per_pixel = 2 if 2 * lines.shape[1] <= most else 1
    lines = lines[:, :: -(-lines.shape[1] * per_pixel // max(1, most))]
    cells = (lines.clamp(0, 1).nan_to_num(0) * (len(SHADES) - 1)).round().int().tolist()
    return ["".join(SHADES[cell] * per_pixel for cell in row) for row in cells]


def _series_text(model: LSTMClassifier, sequences: Sequences, index: int) -> str:
    """Draw a series from left to right, a feature a line, from -2 to 2 deviations.

    The last line is the probability of the guess so far, from 0 to 1; then follows how the guess
    changed.
    """
    value = sequences[index][0].cpu()
    features = sequences.features or [str(n + 1) for n in range(value.shape[1])]
    names = [name[:MOST_LETTERS] for name in features[:MOST_FEATURES]]
    name_width = max(len("guess"), *map(len, names))
    class_width = max(map(len, sequences.classes))
    most = max(8, terminal_width() - name_width - class_width - len("      100%"))
    per_column, ends = line_ends(model, sequences, value, most)
    best_E, guesses = _guesses(model, sequences, value, ends)
    device = next(model.parameters()).device
    deviations_TF = model.embed(value[None].to(device))[0].float().cpu()
    columns = [part.mean(0) for part in deviations_TF.split(per_column)]
    heights_FE = (torch.stack(columns, 1) + 2) / 4
    unit = "step" if per_column == 1 else f"{per_column} steps"
    lines = _wrapped(f"reading {_title(sequences, index)}, {len(value)} steps left to right:")
    for name, row in zip(names, heights_FE.tolist(), strict=False):
        lines.append(f"{name:<{name_width}}  {_sparkline(row)}")
    if len(features) > len(names):
        lines.append(f"and {len(features) - len(names):,} more features")
    sure = f"{guesses[-1]} {percent(best_E[-1], 0)}%"
    lines.append(f"{'guess':<{name_width}}  {_sparkline(best_E)}  {sure}")
    changes = [n for n in range(len(ends)) if n == 0 or guesses[n] != guesses[n - 1]]
    told = [f"{guesses[n]} after {ends[n]}" for n in changes[:MOST_CHANGES]]
    if len(changes) > MOST_CHANGES:
        told.append(f"and {len(changes) - MOST_CHANGES} more changes")
    return "\n".join([*lines, *_wrapped(f"its guess after every {unit}: {', '.join(told)}")])


def _sparkline(heights: list[float]) -> str:
    """Draw numbers from 0 to 1, and a gap where one is missing.

    >>> _sparkline([0.0, 0.5, math.nan, 1.0, 9.0])
    '▁▅ ██'
    """
    top = len(SPARKS) - 1
    return "".join(
        " " if math.isnan(height) else SPARKS[int(min(max(height, 0), 1) * top + 0.5)]
        for height in heights
    )


def opening(setup: Setup, path: Path) -> list[str]:
    """Return the lines that say what is about to happen."""
    splits, config, plan = setup.splits, setup.config, setup.plan
    train = splits.train
    sizes = [f"{len(train):,} train"] + [f"{len(splits.test):,} test"] * (len(splits.test) > 0)
    if splits.validation is not None:
        sizes.insert(1, f"{len(splits.validation):,} validation")
    num_features = setup.architecture.input_size
    content = f"{num_features} feature{'s' * (num_features > 1)}"
    if train.num_tokens:
        content = f"one of {train.num_tokens:,} tokens"
    shortest = setup.longest if train.lengths is None else int(train.lengths.min())
    num_steps = f"{setup.longest}"
    if shortest != setup.longest:
        num_steps = f"{shortest} to {setup.longest}"
    lines = [
        f"data        {splits.name}: {', '.join(sizes)}",
        f"example     {num_steps} steps of {content}"
        + f" ({config.data.read})" * (train.starts is None)
        + f", {config.model.stack} at once" * (config.model.stack != 1),
    ]
    if config.data.folds is not None:
        lines.append(
            f"fold        {config.data.fold} of {config.data.folds}: its training examples are "
            "the test split here; the data set's own is left out"
        )
    lines += [f"note        {note}" for note in splits.notes]
    if plan.blocks is not None:
        buffer, size = plan.blocks.buffer, plan.blocks.size
        lines.append(f"shuffle     {buffer:,} examples at once, in blocks of {size:,}")
    elif config.data.shuffle_buffer is not None:
        lines.append(
            f"note        data.shuffle_buffer: {config.data.shuffle_buffer:,} holds all "
            f"{len(train):,} training examples: the order is as without it"
        )
    elif setup.waits_for_disk:
        lines.append(
            "note        the data set is larger than the memory that is free, and each batch reads "
            f"all over it; --data.shuffle-buffer {setup.fitting_buffer} reads it once an epoch"
        )
    if (plan.buckets or plan.blocks) and config.data.bucket and train.lengths is not None:
        padding = padding_fraction(train.lengths, plan)
        is_cropped = config.data.augment.crop != 1
        lines.append(
            f"batches     of like length: {padding:.1%} padding" + ", before crops" * is_cropped
        )
    return [
        *lines,
        *_choices(setup),
        f"model       {model_text(config.model, setup.architecture.num_parameters)}",
        f"run         {path}",
        f"length      {plan.num_steps:,} steps of {plan.batch_size} examples "
        f"({plan.num_steps / plan.steps_per_epoch:.3g} epochs)",
    ]


def _choices(setup: Setup) -> list[str]:
    """Return the lines that say what each `auto` became, and what small data do to patience."""
    config, validation = setup.config, setup.splits.validation
    requested = settings_by_name(setup.requested)
    settled = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in settings_by_name(config).items()
        if requested[name] == "auto" and value != "auto"
    ]
    lines = [f"auto        {', '.join(settled)}"] if settled else []
    if requested["data.augment.crop"] == "auto" and config.data.augment.crop != 1:
        lines.append(
            "note        sequences of a class have little in common at the same place, so training "
            "takes stretches of them; if a place or one rare event makes the class, take whole "
            "ones: --data.augment.crop 1"
        )
    count = 0 if validation is None else len(validation)
    if config.train.patience and count < FEW:
        lines.append(
            f"note        one of the {count} validation examples weighs {1 / count:.1%}: so "
            f"train.patience waits for {setup.patience} evaluations"
            + ", and the last weights are the result" * (not setup.takes_best)
            + f"; hold out {FEW} or more"
        )
    return lines


def model_text(model: Model, num_parameters: int) -> str:
    """Return what a model with settled settings is, and how many numbers training changes."""
    count = model.num_layers
    text = f"LSTM, {count} layer{'s' * (count > 1)} of {model.hidden_size}"
    text += ", both directions" * model.bidirectional
    text += f", {model.rocket:,} features of fixed convolutions beside it" * (model.rocket != 0)
    return f"{text}, pooling {model.pooling}: {num_parameters:,} parameters"


def measured_text(measured: Measured, classes: tuple[str, ...]) -> str:
    """Return what `evaluate` says: of several models a line each, then the metrics of the mean."""
    lines = []
    if measured.of_each:
        rows = {**measured.of_each, "the mean of their probabilities": measured.metrics}
        width = max(map(len, rows))
        lines = [f"{'':<{width}} {'accuracy':>9} {'macro F1':>9} {'loss':>9}"]
        lines += [
            f"{name:<{width}} {percent(m.accuracy, 2):>8}% {m.macro_f1:9.4f} {m.loss:9.4f}"
            for name, m in rows.items()
        ]
        lines.append("")
    lines.append(metrics_text(measured.metrics, classes))
    if measured.earliness is not None:
        lines += [
            "",
            f"earliness {measured.earliness:.4f}: the mean share of the steps that were read",
            f"harmonic mean of accuracy and 1 - earliness {measured.harmonic_mean:.4f}",
        ]
        if measured.num_unsure:
            lines.append(f"{measured.num_unsure:,} decided at their end, where no class was sure")
    return "\n".join(lines)


def metrics_text(metrics: Metrics, classes: tuple[str, ...]) -> str:
    """Return metrics and the confusion matrix, with a row for each true class.

    Where the matrix is wider than a terminal, its most frequent errors are listed in its place.
    """
    lines = [
        f"examples  {metrics.count:,}",
        f"accuracy  {percent(metrics.accuracy, 2)}%",
        f"macro F1  {metrics.macro_f1:.4f}",
        f"loss      {metrics.loss:.4f}",
        "",
    ]
    names = [quote(name) for name in classes]
    counts = [[f"{count:,}" for count in row] for row in metrics.confusion.tolist()]
    numbered = [f"{number} {name}" for number, name in enumerate(names)]
    for rows, columns in ((names, names), (numbered, [*map(str, range(len(names)))])):
        width = max(map(len, rows))
        cell = max(len(text) for row in [columns, *counts] for text in row)
        if width + (1 + cell) * len(names) > terminal_width():
            continue
        lines.append("rows: the truth; columns: the guess")
        lines.append(" " * width + "".join(f" {name:>{cell}}" for name in columns))
        for name, row in zip(rows, counts, strict=True):
            lines.append(f"{name:<{width}}" + "".join(f" {text:>{cell}}" for text in row))
        return "\n".join(lines)
    return "\n".join([*lines, *_error_lines(metrics.confusion, names)])


def _error_lines(confusion: Tensor, names: list[str]) -> list[str]:
    """Return the most frequent pairs of a truth and another guess, and their counts."""
    errors = confusion.clone().fill_diagonal_(0)
    counts, pairs = errors.flatten().sort(descending=True, stable=True)
    num_pairs = int((counts > 0).sum())
    num_shown = min(num_pairs, MOST_LINES)
    rows = [
        (names[pair // len(names)], names[pair % len(names)], f"{count:,}")
        for pair, count in zip(pairs[:num_shown].tolist(), counts.tolist(), strict=False)
    ]
    widths = [max(len(row[column]) for row in [ERROR_COLUMNS, *rows]) for column in range(2)]
    more = f"and {num_pairs - num_shown:,} more pairs; " if num_pairs > num_shown else ""
    return [
        *(
            f"{truth:<{widths[0]}}  {guess:<{widths[1]}}  {count}"
            for truth, guess, count in [ERROR_COLUMNS, *rows]
        ),
        f"{more}--json prints the whole confusion matrix",
    ]


def where_it_goes_on(step: int, saved_step: int) -> str:
    """Say from which step the same command goes on: this one, if its checkpoint was saved."""
    if saved_step == step:
        return f"saved at step {saved_step}; the same command goes on"
    start = "the beginning" if saved_step < 0 else f"step {saved_step}"
    return f"NOT saved, see above; the same command goes on from {start}"


def closing(
    setup: Setup, path: Path, metrics: Mapping[str, float], model: LSTMClassifier, sha256: str
) -> str:
    """Return what a run ends with: result, predictions, the model reading, what to do next."""
    config, splits = setup.config, setup.splits
    rows = [f"{'':<4} {'accuracy':>8} {'macro F1':>8} {'loss':>8} {'examples':>8}"]
    for split, sequences in splits.measured.items():
        accuracy = metrics[f"{split}/accuracy"]
        macro_f1 = metrics[f"{split}/macro_f1"]
        loss = metrics[f"{split}/loss"]
        rows.append(
            f"{split:<4} {percent(accuracy, 2):>7}% {macro_f1:8.4f} {loss:8.4f} {len(sequences):8,}"
        )
    # If the file could not be written, the run has said so, and an older one is of other weights.
    evaluation = find_evaluation(path, "test")
    doubt = None
    if evaluation and evaluation.metrics.items() <= finite_or_null(metrics).items():
        doubt = why_no_result(evaluation, "test")
    return "\n".join(
        [
            "",
            *rows,
            "",
            *_first_guesses(model, splits.test),
            f"sha256      {sha256}",
            f"result      {path}/model",
            f"try next    seqclf predict {path} --count 25",
            f"            the same command with --seed {config.seed + 1}"
            + " and another --run-dir" * (config.run_dir is not None),
            f"            seqclf runs {path.parent}",
            *([] if doubt is None else [f"warning: {doubt}"]),
        ]
    )


def _first_guesses(model: LSTMClassifier, test: Sequences) -> list[str]:
    """Return what the model says of some test examples; nothing if there are none."""
    if not len(test):
        return []
    return [
        "test examples, the first of each class in turn:",
        *[predictions_text(model, test, 10), "", reading_text(model, test, 0), ""],
    ]
