"""Notes point out what may be a mistake, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from seqclf.cli import main
from seqclf.data.passes import CONSTANT as DEVIATION_OF_CONSTANT
from seqclf.data.passes import FeatureFacts
from seqclf.data.prepared import open_dataset

GENERATOR = np.random.default_rng(0)
Steps = Callable[[int], np.ndarray]  # of the sequence with this number

CONSTANT = (
    "{}: the same at all steps of a sequence, in every sequence; leave it out, if it tells nothing "
    "(--drop, of a column)"
)
TINY = "{}: all values within 1.2e-38, which training counts as 0; give them in a smaller unit"
RISING = (
    "{}: rises from step to step in every sequence; if it is the time, --time sorts the steps by it"
)
DECISIVE = (
    "{}: this feature alone tells the classes apart; if it says the label in other words, leave it "
    "out (--drop, of a column)"
)
ONE_STEP = "every sequence has one step: is a line one sequence? --form wide reads it so"


def notes_of(
    folder: Path, sequences: Iterable[np.ndarray], *words: str, num_classes: int = 2
) -> list[str]:
    """Prepare a table of sequences with the columns f0, f1 ...; return the notes."""
    lines = [
        ",".join([f"r{number}", f"class{number % num_classes}", *map(str, step)])
        for number, sequence in enumerate(sequences)
        for step in sequence.tolist()
    ]
    names = [f"f{index}" for index in range(lines[0].count(",") - 1)]
    (folder / "x.csv").write_text("\n".join([",".join(["id", "label", *names]), *lines]))
    words = ("prepare", f"{folder}/x.csv", "--id", "id", "--out", f"{folder}/d", *words)
    assert main.main(list(words)) == 0
    return list(open_dataset(folder / "d")[0].notes)


def noise(num_steps: int, num_features: int = 1) -> np.ndarray:
    return GENERATOR.normal(size=(num_steps, num_features)).round(4)


def beside_noise(feature: Steps, num_steps: int = 20) -> Steps:
    """Return sequences of noise, f0, and another feature, f1."""
    return lambda number: np.hstack(
        [noise(num_steps), np.broadcast_to(feature(number), (num_steps, 1))]
    )


@pytest.mark.parametrize(
    ("steps", "num_classes", "expected"),
    [
        (lambda number: noise(20, 3), 2, []),
        (lambda number: noise(5 + number % 7, 6) + number % 2, 2, []),
        (beside_noise(lambda number: noise(1)), 2, [CONSTANT.format("f1")]),
        (beside_noise(lambda number: noise(20) * 1e-42), 2, [TINY.format("f1")]),
        (beside_noise(lambda number: noise(20) * 1e-36), 2, []),
        (
            beside_noise(lambda number: np.array(number % 2)),
            2,
            [CONSTANT.format("f1"), DECISIVE.format("f1")],
        ),
        (
            beside_noise(lambda number: np.array(7 - number % 3)),
            3,
            [CONSTANT.format("f1"), DECISIVE.format("f1")],
        ),
        (beside_noise(lambda number: np.array(number % 3 // 2)), 3, [CONSTANT.format("f1")]),
        (
            beside_noise(lambda number: number * 100 + np.arange(20.0)[:, None]),
            2,
            [RISING.format("f1")],
        ),
        (
            beside_noise(lambda number: GENERATOR.random((20, 1)) + 2 * (number % 2)),
            2,
            [DECISIVE.format("f1")],
        ),
        (lambda number: noise(1, 2), 2, [ONE_STEP]),
        (
            lambda number: noise(3, 5),
            2,
            [
                "no sequence has more than 3 steps, but a step has 5 features; --channels-first "
                "reads arrays of cases x channels x time"
            ],
        ),
        # A single feature is the measurement itself.
        (lambda number: np.cumsum(GENERATOR.random((20, 1)), 0), 2, []),
        (lambda number: GENERATOR.random((20, 1)) + 2 * (number % 2), 2, []),
    ],
)
def test_findings(steps: Steps, num_classes: int, expected: list[str], tmp_path: Path) -> None:
    sequences = [steps(number) for number in range(40)]
    assert notes_of(tmp_path, sequences, num_classes=num_classes) == expected


def test_few_sequences_prove_nothing_but_a_code_does(tmp_path: Path) -> None:
    """Of six random numbers, three and three, one in ten orders tells the classes apart."""
    split = ("--split", "0.5,0,0.5")
    low_then_high = [np.array([[number % 2 + number / 10, 1.0]] * 2) for number in range(6)]
    assert notes_of(tmp_path, low_then_high, *split) == [
        "no example is in val",
        CONSTANT.format("f0, f1"),
    ]
    codes = [np.array([[number % 2, number]] * 2) for number in range(6)]
    found = notes_of(tmp_path, codes, *split, "--overwrite")
    assert found[1:] == [CONSTANT.format("f0, f1"), DECISIVE.format("f0")]
    rising = [np.array([[0.5, number], [0.4, number + 1]]) for number in range(4)]
    assert notes_of(tmp_path, rising, *split, "--overwrite") == ["no example is in val"]


def test_random_features_are_seldom_noted() -> None:
    """Of 200 small data sets of noise at most every twentieth may have a finding."""
    for num_sequences, num_steps, is_constant in ((6, 3, False), (8, 1, False), (10, 4, True)):
        found = 0
        for _ in range(200):
            values = GENERATOR.normal(size=(num_sequences, 1 if is_constant else num_steps, 5))
            values = np.broadcast_to(values, (num_sequences, num_steps, 5)).reshape(-1, 5)
            facts = FeatureFacts(5, 2)
            labels = np.arange(num_sequences) % 2
            facts.add(values, np.arange(num_sequences + 1) * num_steps, labels)
            found += bool(facts.decisive or facts.rising)
            assert facts.constant == (list(range(5)) if is_constant or num_steps == 1 else [])
        assert found <= 10


def test_facts_do_not_depend_on_how_sequences_come() -> None:
    labels = np.arange(60) % 3
    lengths = 1 + np.arange(60) % 5
    offsets = np.cumsum([0, *lengths])
    steps = np.arange(offsets[-1], dtype=float)
    of_step = np.repeat(labels, lengths)
    values = np.stack([steps, of_step, of_step + GENERATOR.random(len(steps)) / 2, -steps], 1)
    for size in (60, 7, 1):
        facts = FeatureFacts(4, 3)
        for first in range(0, 60, size):
            part = offsets[first : first + size + 1]
            facts.add(values[part[0] : part[-1]], part, labels[first : first + size])
        assert (facts.constant, facts.rising, facts.decisive) == ([1], [0], [1, 2])


def test_a_code_of_many_values_is_not_followed_for_ever() -> None:
    facts = FeatureFacts(1, 2)
    for _ in range(3):
        values = GENERATOR.random((9000, 1))
        facts.add(values, np.arange(9001), np.arange(9000) % 2)
    assert facts.constant == [0]
    assert facts.decisive == []


def test_examples_that_are_left_out_decide_nothing(tmp_path: Path) -> None:
    sequences = [np.array([[number % 2, step] for step in noise(4)[:, 0]]) for number in range(30)]
    rows = [
        {"label": "ab"[number % 2], "steps": sequence.tolist()}
        for number, sequence in enumerate(sequences)
    ]
    rows.insert(3, {"label": "alone", "steps": [[0, 1], [1, 2]]})
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", f"{tmp_path}/x.jsonl", "--out", f"{tmp_path}/d", "--on-bad-row", "skip"]
    assert main.main(words) == 0
    assert list(open_dataset(tmp_path / "d")[0].notes) == [
        CONSTANT.format("feature 0"),
        DECISIVE.format("feature 0"),
    ]


def test_labels_that_are_measured_are_noted(tmp_path: Path) -> None:
    rows = [{"label": number % 12 / 2, "steps": [1, 2]} for number in range(240)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main.main(["prepare", f"{tmp_path}/x.jsonl", "--out", f"{tmp_path}/d"]) == 0
    assert list(open_dataset(tmp_path / "d")[0].notes) == [
        "the 12 labels are numbers with decimals: seqclf tells classes apart and predicts no "
        "numbers"
    ]


def test_a_feature_below_float32s_normal_numbers_is_constant(tmp_path: Path) -> None:
    """By its own deviation it would be divided by 0, as training counts such numbers as 0."""
    steps = beside_noise(lambda number: noise(20) * 1e-42)
    notes_of(tmp_path, map(steps, range(20)))
    std = open_dataset(tmp_path / "d")[0].std
    assert std[0] == pytest.approx(1, abs=0.3)
    assert std[1] == DEVIATION_OF_CONSTANT
