"""The model reading, on a page: what the model says after every step.

The page's script plays it; without a script the page shows the figure of the first example.
Shapes: B batch, N examples, E prefixes, C classes.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqclf.data.batches import MAX_EVAL_STEPS
from seqclf.data.pictures import Picture, take_picture
from seqclf.data.sequences import Sequences
from seqclf.metrics import percent
from seqclf.model import LSTMClassifier
from seqclf.prefixes import (
    classify_prefixes,
    decided_at,
    image_lines,
    line_ends,
    most_steps,
    step_name,
    token_lines,
)
from seqclf.report.evaluation import Example
from seqclf.report.figures import Reading, draw_decisions, draw_reading, draw_share_curve
from seqclf.report.intervals import wilson
from seqclf.report.matrix import Cell
from seqclf.report.thumbnails import png_url, scaled

MOST_FLOP = 2e10  # for reading many examples: half a second of a small CPU
ELEMENTWISE = 6  # times as long as in a product of matrices an operation takes, number by number
FEWEST_EXAMPLES = 20  # that are read, whatever it takes
AT_ONCE = 250  # examples in a batch
MOST_SHARES = 40  # points of the curve of accuracy
MOST_CLASSES = 20  # in the figure of decisions, which has a row for each
EXAMPLES_OF_A_KIND = 3  # that are drawn
UNSURE = 0.5  # an example is unsure where a second class has at least this share of the guess's
EXAMPLES_OF_A_CELL = 3  # of the confusion matrix
MOST_EXAMPLES = 60  # in all cells
MOST_NUMBERS = 2000  # of a series that is played
MOST_LINES = 100  # of a drawn example
MOST_COLUMNS = 10  # of classes beside it


class ReadExample(NamedTuple):
    """An example that a page plays."""

    kind: str
    title: str
    truth: str
    guess: str
    story: str
    picture: Picture
    figure: str
    """The name of the figure that shows it as a whole."""
    played: dict[str, Any]
    """What the script of a page reads."""


@dataclass(frozen=True)
class ReadingSection:
    """What a page shows of the model reading the test split."""

    num_read: int
    num_examples: int
    num_decided: int
    """Classes of which an example is named rightly; of many the figure shows the ends alone."""
    examples: list[ReadExample]
    cells: dict[Cell, list[Example]]
    """Examples of the confusion matrix, by truth and guess."""
    figures: dict[str, str]

    @property
    def leaves_out(self) -> bool:
        """Whether the figure of decisions does not show all classes."""
        return self.num_decided > MOST_CLASSES

    @property
    def groups(self) -> dict[str, dict[int, ReadExample]]:
        """The examples by their kind, each with its number."""
        groups: dict[str, dict[int, ReadExample]] = {}
        for number, example in enumerate(self.examples):
            groups.setdefault(example.kind, {})[number] = example
        return groups


def watch_reading(model: LSTMClassifier, test: Sequences) -> ReadingSection:
    """Let the model read test examples: play some, and count over many."""
    ids_N = choose_evenly(model, test, anew=model.reads_prefixes_anew)
    shares, probabilities_NEC = classify_shares(model, test, ids_N)
    labels_N = test.labels[ids_N].cpu()
    guesses_NE = probabilities_NEC.argmax(2)
    num_read = len(ids_N)
    hits = (guesses_NE == labels_N[:, None]).sum(0).tolist()
    xs, xlabel = share_axis(model, test, shares)
    figures = {
        "reading-share": draw_share_curve(
            xs,
            [hit / num_read for hit in hits],
            bounds=[wilson(hit, num_read) for hit in hits],
            xlabel=xlabel,
        )
    }
    points = decision_points(guesses_NE, labels_N, xs=xs, classes=test.classes)
    num_decided = len(points)
    if num_decided > MOST_CLASSES:
        names = list(points)
        kept = names[: MOST_CLASSES // 2] + names[-MOST_CLASSES // 2 :]
        points = {name: points[name] for name in kept}
    if points:
        figures["reading-decided"] = draw_decisions(points, end=xs[-1], xlabel=xlabel)
    examples = []
    for position, kind in choose_examples(probabilities_NEC[:, -1], labels_N).items():
        example, figure = read_example(model, test, int(ids_N[position]), kind)
        examples.append(example)
        figures[example.figure] = figure
    return ReadingSection(
        num_read,
        len(test),
        num_decided,
        examples=examples,
        cells=examples_of_cells(test, ids_N, probabilities_NEC[:, -1]),
        figures=figures,
    )


def examples_of_cells(
    test: Sequences, ids_N: Tensor, probabilities_NC: Tensor
) -> dict[Cell, list[Example]]:
    """Return examples of each cell of the confusion matrix, first of those that are mistakes."""
    best_N, guesses_N = probabilities_NC.nan_to_num(0).max(1)
    places: dict[Cell, list[int]] = {}
    for place, (index, guess) in enumerate(zip(ids_N.tolist(), guesses_N.tolist(), strict=True)):
        places.setdefault((int(test.labels[index]), guess), []).append(place)
    found: dict[Cell, list[Example]] = {}
    num_left = MOST_EXAMPLES
    for cell in sorted(places, key=lambda cell: (cell[0] == cell[1], -len(places[cell]))):
        taken = places[cell][: min(EXAMPLES_OF_A_CELL, num_left)]
        num_left -= len(taken)
        if taken:
            found[cell] = [
                Example(
                    test.title(int(ids_N[place])),
                    float(best_N[place]),
                    take_picture(test, int(ids_N[place])),
                )
                for place in taken
            ]
    return found


def flop_of_example(model: LSTMClassifier, test: Sequences) -> float:
    """Return what it takes to read the longest example once."""
    of_step = 0 if model.rocket is None else ELEMENTWISE * model.rocket.operations_per_step
    of_stack = sum(p.numel() for layer in (model.rnn, *model.upper) for p in layer.parameters())
    flop: float = 2 * most_steps(model, test) * (of_step + of_stack / model.stack)
    return flop


def choose_evenly(model: LSTMClassifier, test: Sequences, *, anew: bool) -> Tensor:
    """Choose the examples to read, evenly over the split: all, or what MOST_FLOP allows.

    `anew` is whether each prefix takes a pass of its own.
    """
    num_passes = min(most_steps(model, test), MOST_SHARES) / 2 if anew else 1
    flop = num_passes * flop_of_example(model, test)
    count = min(len(test), max(FEWEST_EXAMPLES, int(MOST_FLOP / flop)))
    return torch.arange(count) * len(test) // count


def classify_shares(
    model: LSTMClassifier, test: Sequences, ids: Tensor
) -> tuple[list[float], Tensor]:
    """Return shares of a sequence, and the probabilities after each of them, [N, E, C]."""
    num_steps = most_steps(model, test)
    count = min(num_steps, MOST_SHARES)
    numbers_E = torch.arange(1, count + 1)
    batches = []
    for ids_B in ids.split(min(AT_ONCE, max(1, MAX_EVAL_STEPS // num_steps))):
        values, lengths_B = test.rows(ids_B)
        if lengths_B is None:
            lengths_B = torch.full([len(ids_B)], model.steps(values).shape[1])
        ends_BE = -(-lengths_B[:, None] * numbers_E // count)  # rounded up: at least one step
        batches.append(classify_prefixes(model, values, ends_BE))
    return [number / count for number in range(1, count + 1)], torch.cat(batches)


def share_axis(
    model: LSTMClassifier, test: Sequences, shares: list[float]
) -> tuple[list[float], str]:
    """Return where shares stand on an axis, and its label: steps if all examples have as many."""
    if test.lengths is not None and int(test.lengths.min()) != int(test.lengths.max()):
        return [100 * share for share in shares], "share of the sequence read (%)"
    num_steps = most_steps(model, test)
    count = len(shares)
    return [-(-number * num_steps // count) for number in range(1, count + 1)], "steps read"


def decision_points(
    guesses_NE: Tensor, labels_N: Tensor, *, xs: list[float], classes: tuple[str, ...]
) -> dict[str, list[float]]:
    """Return where the guesses that end right are decided, by class, the earliest class first."""
    decided_N = decided_at(guesses_NE)
    ends_right_N = guesses_NE[:, -1] == labels_N
    points = {}
    for number, name in enumerate(classes):
        decided = decided_N[(labels_N == number) & ends_right_N].tolist()
        if decided:
            points[name] = [xs[place] for place in decided]
    return dict(sorted(points.items(), key=lambda item: statistics.median(item[1])))


def choose_examples(probabilities_NC: Tensor, labels_N: Tensor) -> dict[int, str]:
    """Return the positions of the examples to play, each once, with the kind that it is of.

    The right ones are the first of as many classes. Unsure is only what is less sure than UNSURE,
    the most unsure first.
    """
    best_N, guesses_N = probabilities_NC.nan_to_num(0).max(1)
    ratio_N = ratio_of_second(probabilities_NC)
    is_right_N = guesses_N == labels_N
    surest_first = best_N.argsort(descending=True, stable=True)
    least_sure = ratio_N.argsort(descending=True, stable=True)
    first_of_class: dict[int, int] = {}
    others = []
    for position in is_right_N.nonzero()[:, 0].tolist():
        if first_of_class.setdefault(int(labels_N[position]), position) != position:
            others.append(position)
    candidates = {
        "right": [*first_of_class.values(), *others],
        "wrong, and most sure": surest_first[~is_right_N[surest_first]].tolist(),
        "unsure": least_sure[ratio_N[least_sure] >= UNSURE].tolist(),
    }
    chosen: dict[int, str] = {}
    for kind, positions in candidates.items():
        new = [position for position in positions if position not in chosen]
        chosen |= dict.fromkeys(new[:EXAMPLES_OF_A_KIND], kind)
    return chosen


def ratio_of_second(probabilities_NC: Tensor) -> Tensor:
    """Return how probable the second class is, as a share of the first: of any number of classes.

    A fixed limit for the guess would call nearly every example of a hundred classes unsure.
    """
    if probabilities_NC.shape[1] == 1:
        return torch.zeros(len(probabilities_NC))
    first_N, second_N = probabilities_NC.nan_to_num(0).topk(2).values.unbind(1)
    return second_N / first_N.clamp(min=1e-12)


def read_example(
    model: LSTMClassifier, test: Sequences, index: int, kind: str
) -> tuple[ReadExample, str]:
    """Let the model read one example; return what a page plays, and the figure."""
    value = test[index][0].cpu()
    per_line, ends = line_ends(model, test, value, MOST_LINES)
    probabilities_EC = classify_prefixes(model, value[None], torch.tensor([ends]))[0].nan_to_num(0)
    guesses_E = probabilities_EC.argmax(1)
    truth = int(test.labels[index])
    final = int(guesses_E[-1])
    columns = choose_columns(probabilities_EC, always=[truth, final])
    reading = Reading(
        picture_of_lines(model, test, index=index, ends=ends),
        probabilities_EC[:, columns].tolist(),
        ends=ends,
        classes=[test.classes[number] for number in columns],
    )
    unit = step_name(model, test)
    across = reading.picture.kind == "series" or unit == "column"
    num_changes = int((guesses_E[1:] != guesses_E[:-1]).sum())
    decided = ends[int(decided_at(guesses_E[None])[0])]
    story = f"truth {test.classes[truth]}; "
    story += f"says {test.classes[final]} ({percent(float(probabilities_EC[-1].max()))} %) "
    story += f"for good from {unit} {decided} of {ends[-1]} on"
    if num_changes:
        story += f", after {num_changes} change{'s' * (num_changes != 1)} of mind"
    if per_line > 1:
        story += f"; drawn every {per_line} {unit}s"
    example = ReadExample(
        kind,
        test.title(index),
        truth=test.classes[truth],
        guess=test.classes[final],
        story=story,
        picture=take_picture(test, index),
        figure=f"reading-example-{index}",
        played={
            "truth": test.classes[truth],
            "title": test.title(index),
            "story": story,
            "unit": unit,
            "ends": ends,
            "classes": reading.classes,
            "num_others": len(test.classes) - len(columns),
            "chances": in_ten_thousandths(probabilities_EC[:, columns]),
            **played_picture(reading.picture, across=across, is_text=not test.tokens),
        },
    )
    return example, draw_reading(reading, across=across)


def in_ten_thousandths(probabilities_EC: Tensor) -> list[list[int]]:
    """Return probabilities in few letters; 10,000 is 1 and nothing less."""
    rounded_EC = (10_000 * probabilities_EC).round()
    return rounded_EC.clamp(max=9_999).where(probabilities_EC < 1, rounded_EC).long().tolist()


def played_picture(picture: Picture, *, across: bool, is_text: bool) -> dict[str, Any]:
    """Return what a page's script draws of an example, line by line or step by step."""
    values = picture.values
    if picture.kind == "image":
        rows = list(zip(*values, strict=True)) if across else values
        size = [len(rows[0]), len(rows)]
        return {"kind": "image", "image": png_url(rows), "size": size, "across": across}
    if picture.kind == "text":
        return {"kind": "text", "lines": values, "separator": "" if is_text else " "}
    most = max(2, MOST_NUMBERS // len(values[0]))
    return {"kind": "series", "series": scaled(values, most, 100)}


def choose_columns(probabilities_EC: Tensor, *, always: list[int]) -> list[int]:
    """Return the classes to show: all, or `always` and those with the highest probabilities."""
    num_classes = probabilities_EC.shape[1]
    if num_classes <= MOST_COLUMNS:
        return list(range(num_classes))
    peaks_C = probabilities_EC.amax(0)
    peaks_C[always] = 2.0  # more than any probability
    return sorted(peaks_C.topk(MOST_COLUMNS).indices.tolist())


def picture_of_lines(
    model: LSTMClassifier, test: Sequences, *, index: int, ends: list[int]
) -> Picture:
    """Take the picture of an example with a line for each end; of a series as it is."""
    value = test[index][0].cpu()
    if test.starts is None:
        return Picture(kind="image", values=image_lines(model, value, ends).tolist())
    if test.num_tokens:
        return Picture(kind="text", values=token_lines(test, value, ends))
    return take_picture(test, index)
