"""What a page shows of an evaluation: numbers of evaluation/SPLIT.json, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from seqclf.data.pictures import Picture
from seqclf.report.figures import draw_reliability
from seqclf.report.intervals import macro_f1_interval, wilson
from seqclf.report.matrix import Cell, draw_confusion
from seqclf.run.records import Evaluation, MistakeRecord, class_table
from seqclf.run.verdict import why_no_result

MOST_PAIRS = 10  # of confused classes
MANY_CLASSES = 30  # of more than these the worst are first


class Example(NamedTuple):
    """An example, and how sure of its guess the model is."""

    title: str
    probability: float
    picture: Picture


class ClassLine(NamedTuple):
    """How well one class is named; None where there is nothing to measure it by."""

    name: str
    support: int
    precision: float | None
    """None of a class that is never the guess."""
    recall: float | None
    """None of a class without an example."""
    interval: tuple[float, float] | None
    """Of the recall."""
    f1: float | None
    """None of a class that is neither a truth nor a guess; macro F1 leaves it out, too."""


class CellSection(NamedTuple):
    """Examples of one cell of the confusion matrix."""

    key: str
    truth: str
    guess: str
    num_examples: int
    examples: list[Example]


@dataclass(frozen=True)
class EvaluationSection:
    """What a page shows of an evaluation."""

    step: int
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float | None
    macro_f1_interval: tuple[float, float]
    loss: float | None
    calibration_error: float
    calibrated: tuple[float, float, float | None] | None
    """The temperature of the result, and the calibration error and the loss with it."""
    doubt: str | None
    """Why the numbers are no result."""
    is_perfect: bool
    """Whether there is no mistake."""
    has_many_classes: bool
    classes: list[ClassLine]
    """Of many classes the worst are first, and those without an example last."""
    num_absent: int
    """Classes without an example."""
    pairs: list[tuple[int, str, str]]
    """Pairs of classes that are confused most: how often, truth, guess."""
    mistakes: list[MistakeRecord]
    cells: list[CellSection]
    """Those of which there are examples, the most frequent mistakes first."""
    figures: dict[str, str]


def show_evaluation(
    evaluation: Evaluation, split: str, examples: dict[Cell, list[Example]] | None = None
) -> EvaluationSection:
    """Return what a page shows of the evaluation of a split.

    `examples` are of cells of the confusion matrix; the evaluation's own mistakes fill the others.
    """
    classes = evaluation.classes
    matrix = evaluation.confusion
    hits = [row[number] for number, row in enumerate(matrix)]
    n = sum(map(sum, matrix))
    mistakes = {
        (truth, guess): count
        for truth, row in enumerate(matrix)
        for guess, count in enumerate(row)
        if truth != guess and count
    }
    worst_first = sorted(mistakes, key=lambda cell: -mistakes[cell])
    of_cell = mistakes_by_cell(evaluation) | (examples or {})
    cells = [
        CellSection(f"{i}-{j}", classes[i], classes[j], matrix[i][j], of_cell[i, j])
        for i, j in [*worst_first, *((i, i) for i in range(len(classes)))]
        if matrix[i][j] and (i, j) in of_cell
    ]
    figures = {
        f"{split}-confusion": draw_confusion(classes, matrix, of_cell),
        f"{split}-reliability": draw_reliability(evaluation.calibration),
    }
    calibrated = None
    if record := evaluation.calibrated:
        error = calibration_error(record.calibration)
        calibrated = (record.temperature, error, record.loss)
        figures[f"{split}-reliability-calibrated"] = draw_reliability(record.calibration)
    lines = class_lines(evaluation)
    has_many_classes = len(lines) > MANY_CLASSES
    if has_many_classes:
        lines.sort(key=lambda line: (not line.support, line.f1 or 0))
    return EvaluationSection(
        step=evaluation.step,
        n=n,
        accuracy=sum(hits) / n,
        accuracy_interval=wilson(sum(hits), n),
        macro_f1=evaluation.metrics[f"{split}/macro_f1"],
        macro_f1_interval=macro_f1_interval(matrix),
        loss=evaluation.metrics[f"{split}/loss"],
        calibration_error=calibration_error(evaluation.calibration),
        calibrated=calibrated,
        doubt=why_no_result(evaluation, split) if split == "test" else None,
        is_perfect=sum(hits) == n,
        has_many_classes=has_many_classes,
        classes=lines,
        num_absent=sum(not line.support for line in lines),
        pairs=[(mistakes[i, j], classes[i], classes[j]) for i, j in worst_first[:MOST_PAIRS]],
        mistakes=evaluation.mistakes,
        cells=cells,
        figures=figures,
    )


def class_lines(evaluation: Evaluation) -> list[ClassLine]:
    """Return precision, recall and F1 of each class, where the split can tell them."""
    lines = []
    for number, row in enumerate(class_table(evaluation)):
        hits = evaluation.confusion[number][number]
        num_named = sum(truth[number] for truth in evaluation.confusion)
        lines.append(
            ClassLine(
                row.name,
                row.support,
                precision=row.precision if num_named else None,
                recall=row.recall if row.support else None,
                interval=wilson(hits, row.support) if row.support else None,
                f1=row.f1 if num_named or row.support else None,
            )
        )
    return lines


def mistakes_by_cell(evaluation: Evaluation) -> dict[Cell, list[Example]]:
    """Return the mistakes that an evaluation recorded, by truth and guess."""
    numbers = {name: number for number, name in enumerate(evaluation.classes)}
    found: dict[Cell, list[Example]] = {}
    for mistake in evaluation.mistakes:
        cell = (numbers[mistake.truth], numbers[mistake.guess])
        example = Example(f"example {mistake.title}", mistake.probability, mistake.picture)
        found.setdefault(cell, []).append(example)
    return found


def calibration_error(calibration: list[list[float]]) -> float:
    """Return the expected calibration error: the mean gap of accuracy and confidence over bins."""
    gaps = (abs(hits - expected) for _, hits, expected in calibration)
    return sum(gaps) / sum(count for count, *_ in calibration)
