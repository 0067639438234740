"""How alike two sequences of a class are at the same place, and what `auto` makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from seqclf.auto import choose_crop
from seqclf.data.alignment import alignment
from seqclf.data.sequences import Sequences


def sequences(rows: list[np.ndarray], labels: list[int]) -> Sequences:
    """Make a data set of rows [T, F] of any lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    names = tuple(map(str, range(max(labels) + 1)))
    num_features = rows[0].shape[1]
    return Sequences(
        torch.from_numpy(np.concatenate(rows)).float(),
        torch.tensor(labels),
        names,
        starts=lengths.cumsum(0) - lengths,
        lengths=lengths,
        mean=(0.0,) * num_features,
        std=(1.0,) * num_features,
    )


def waves(count: int, num_steps: int, *, phase: float, level: float = 0.0) -> Sequences:
    """Make noisy waves of two frequencies; each starts at a place of its own, up to `phase`."""
    draw = np.random.default_rng(0)
    rows, labels = [], []
    for index in range(count):
        steps = np.arange(num_steps) * (0.3 + 0.1 * (index % 2)) + draw.uniform(0, phase)
        wave = np.sin(steps) + draw.normal(size=num_steps) * 0.3
        rows.append(np.stack([wave, -wave], 1) + level)
        labels.append(index % 2)
    return sequences(rows, labels)


def slow_alignment(rows: list[np.ndarray], labels: list[int]) -> float:
    """Return the sum of products over all pairs of a class, by the same sum of squares."""
    normal = []
    for row in rows:
        centred = row - row.mean(0)
        deviation = np.sqrt((centred**2).mean(0))
        normal.append(np.divide(centred, deviation, out=0 * centred, where=deviation > 0))
    products = squares = 0.0
    for label in set(labels):
        of_class = [row for row, other in zip(normal, labels, strict=True) if other == label]
        for step in range(max(map(len, of_class))):
            there = [row[step] for row in of_class if len(row) > step]
            if len(there) > 1:
                pairs = sum(float(a @ b) for a, b in combinations(there, 2))
                products += 2 * pairs / (len(there) - 1)
                squares += sum(float(a @ a) for a in there)
    return products / squares if squares else math.nan


@settings(deadline=None)
@given(st.data())
def test_it_is_the_mean_over_all_pairs(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    whole = st.integers(-9, 9)
    rows = [
        data.draw(arrays.arrays(np.float64, (data.draw(st.integers(1, 7)), 2), elements=whole))
        for _ in range(count)
    ]
    labels = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    found = alignment(sequences(rows, labels))
    assert found == pytest.approx(slow_alignment(rows, labels), abs=1e-9, nan_ok=True)


def test_the_same_is_1_and_a_start_anywhere_is_0() -> None:
    row = waves(1, 50, phase=0.0).values.numpy()
    assert alignment(sequences([row, row, row], [0, 0, 0])) == pytest.approx(1)
    assert alignment(waves(60, 200, phase=2 * math.pi)) == pytest.approx(0, abs=0.08)
    assert alignment(waves(60, 200, phase=0.0)) > 0.7


def test_a_level_changes_nothing() -> None:
    there, here = waves(60, 200, phase=3.0, level=1e4), waves(60, 200, phase=3.0)
    assert alignment(there) == pytest.approx(alignment(here), abs=1e-3)


def test_nothing_to_compare_is_not_a_number() -> None:
    row = np.arange(6.0)[:, None]
    assert math.isnan(alignment(sequences([row, row], [0, 1])))  # no two of a class
    constant = np.full((96, 1), 0.1)
    assert math.isnan(alignment(sequences([constant, constant], [0, 0])))  # nothing changes
    assert math.isnan(alignment(replace(sequences([row, row], [0, 0]), num_tokens=6)))


def test_pieces_of_long_sequences_count_by_their_means() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=(32, 2)) for _ in range(5)]
    short = sequences(rows, [0, 0, 0, 1, 1])
    long = sequences([row.repeat(3, axis=0) for row in rows], [0, 0, 0, 1, 1])
    assert alignment(long) == pytest.approx(alignment(short))


def test_a_place_shows_through_noise() -> None:
    """A small bump at the same place in each row, which a single step does not show."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        row = draw.normal(size=(192, 1))
        row[60:68] += 1.5
        rows.append(row)
    assert slow_alignment(rows, [0] * 200) < 0.1
    assert alignment(sequences(rows, [0] * 200)) > 0.2


def test_one_very_long_sequence_costs_no_more_than_its_first_steps() -> None:
    rows = [np.sin(np.arange(200.0))[:, None]] * 6
    longer = np.concatenate([rows[0], rows[0], np.full((10_000, 1), 1e3)])
    assert alignment(sequences([*rows, longer], [0] * 7)) == pytest.approx(1, abs=0.05)


def test_many_classes_have_two_examples_each() -> None:
    row = np.sin(np.arange(64.0))[:, None]
    labels = [number // 2 for number in range(600)]
    assert alignment(sequences([row] * 600, labels)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("count", "num_steps", "phase", "crop"),
    [
        (60, 200, 2 * math.pi, 0.5),  # windows of a recording
        (60, 200, 0.0, 1.0),  # all start together
        (60, 40, 2 * math.pi, 1.0),  # short
        (2000, 64, 2 * math.pi, 1.0),  # many
    ],
)
def test_auto_crops_what_starts_anywhere(
    count: int, num_steps: int, phase: float, crop: float
) -> None:
    examples = waves(count, num_steps, phase=phase)
    assert choose_crop(examples, longest=num_steps) == crop
