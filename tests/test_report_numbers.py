"""What a page says of numbers and names: nothing is rounded up to all, nothing known of nothing."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.training import train_tiny

from seqclf.metrics import percent
from seqclf.report.evaluation import show_evaluation
from seqclf.report.figures import short_labels
from seqclf.report.matrix import draw_confusion
from seqclf.report.page import page_of_run
from seqclf.report.reading import choose_examples, in_ten_thousandths
from seqclf.report.render import render
from seqclf.report.run_record import read_run


def test_unsure_is_where_a_second_class_is_half_as_probable_or_more() -> None:
    sure = torch.tensor(
        [[0.9, 0.1], [0.95, 0.05], [0.2, 0.8], [0.1, 0.9], [0.33, 0.67], [0.66, 0.34]]
    )
    labels = torch.tensor([0, 0, 1, 0, 1, 0])
    chosen = choose_examples(sure, labels)
    # The first two of different classes, then the next; the one that is wrong is 3.
    assert chosen == {0: "right", 2: "right", 1: "right", 3: "wrong, and most sure", 5: "unsure"}
    assert "unsure" not in choose_examples(sure[:5], labels[:5]).values()
    # Of 60 classes 0.4 is sure if no other one has half of it; the most unsure come first.
    many = torch.full((6, 60), 0.6 / 59)
    many[:, 0] = 0.4
    many[1:, 1] = torch.tensor([0.15, 0.21, 0.3, 0.25, 0.39])
    chosen = choose_examples(many, torch.zeros(6).long())
    assert [position for position, kind in chosen.items() if kind == "unsure"] == [5, 3, 4]
    assert "unsure" not in choose_examples(many[:2], torch.zeros(2).long()).values()
    assert choose_examples(torch.ones(2, 1), torch.zeros(2).long()) == {0: "right", 1: "right"}


def test_less_than_all_is_never_100_percent() -> None:
    assert [percent(share, 0) for share in (0.994, 0.995, 0.9999, 1.0)] == [
        "99",
        ">99",
        ">99",
        "100",
    ]
    assert percent(0.99999999, 2) == ">99.99"
    assert percent(0.98328, 2) == "98.33"
    assert percent(float("nan")) == "nan"
    chances = torch.tensor([[1.0, 0.99999, 0.99994, 0.5, 0.00001]])
    assert in_ten_thousandths(chances) == [[10_000, 9_999, 9_999, 5_000, 0]]


def test_what_a_split_cannot_tell_of_a_class_is_a_dash(tmp_path: Path) -> None:
    settings = {"train.steps": 3, "eval.every": 3, "quiet": True}
    assert train_tiny(tmp_path / "digits", settings) == 0
    run = read_run(tmp_path / "digits")
    evaluation = run.evaluations["test"].model_copy(
        # Of b there is no example, yet one is named b; c is never the guess; d is neither.
        update={
            "classes": ("a", "b", "c", "d"),
            "confusion": [[3, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]],
            "mistakes": [],
        }
    )
    section = show_evaluation(evaluation, "test")
    a, b, c, d = section.classes
    assert (a.precision, a.recall, a.f1) == pytest.approx((0.6, 0.75, 2 / 3))
    assert (b.precision, b.recall, b.interval, b.f1) == (0, None, None, 0)
    assert (c.precision, c.recall, c.f1) == (None, 0, 0)
    assert (d.precision, d.recall, d.f1, section.num_absent) == (None, None, None, 2)
    page = page_of_run(replace(run, evaluations={"test": evaluation}), {})
    text = render(page)
    assert "<tr><td>d</td><td>0</td><td>–</td><td>–</td><td>–</td><td>–</td></tr>" in text
    assert "2 of 4 classes have no test example, so their recall is unknown (–)." in text
    many = evaluation.model_copy(
        update={
            "classes": tuple(f"c{n:02}" for n in range(40)),
            "confusion": [[9 * (i == j > 3) for j in range(40)] for i in range(40)],
        }
    )
    assert [line.name for line in show_evaluation(many, "test").classes[-4:]] == [
        "c00",
        "c01",
        "c02",
        "c03",
    ]


def test_long_names_lose_the_words_that_all_begin_with() -> None:
    names = ["gesture up at 1 Hz", "gesture under 2 Hz"]
    assert short_labels(names) == ["…up at 1 Hz", "…under 2 Hz"]
    assert short_labels(["a b", "a c"]) == ["a b", "a c"]
    assert short_labels(["a-very-long-name-alone"]) == ["a-very…name-alone"[:7] + "name-alone"[-9:]]
    svg = draw_confusion(tuple(names), [[1, 2], [3, 4]])
    assert "…under 2 Hz" in svg
    assert "truth gesture up at 1 Hz, guess gesture under 2 Hz: 2" in svg


@pytest.mark.parametrize(("count", "expected"), [(10, 10), (26, 26), (60, 20)])
def test_labels_of_a_matrix_stand_apart(count: int, expected: int) -> None:
    names = tuple(chr(97 + number) * (1 if count < 30 else 12) for number in range(count))
    svg = draw_confusion(names, [[int(i == j) for j in range(count)] for i in range(count)])
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="end"', svg)]
    assert len(heights) == expected
    assert min(b - a for a, b in itertools.pairwise(heights)) > 10
