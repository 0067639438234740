from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, ttest_ind

from seqclf.report.chance import Setting, answer, find_difference, mcnemar, pair_up, welch


def setting(name: str, *accuracies: float, hits: list[str] | None = None) -> Setting:
    """Return a setting with seeds 0, 1 ... and hits written as "1101"."""
    by_seed = {seed: [letter == "1" for letter in one] for seed, one in enumerate(hits or [])}
    return Setting(name, dict(enumerate(accuracies)), by_seed)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, of equal values
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0.9, 0.92, 0.97], [0.8, 0.85, 0.81]),
        ([0.9, 0.95], [0.91, 0.92, 0.97, 0.99]),
        ([1.0, 1.0, 1.0], [0.95, 0.97, 0.98]),
        ([0.5, 0.6], [0.6, 0.5]),
    ],
)
def test_the_test_over_seeds_is_that_of_scipy(first: list[float], second: list[float]) -> None:
    expected = ttest_ind(first, second, equal_var=False)
    found = (expected.statistic, expected.df, expected.pvalue)
    assert welch(first, second) == pytest.approx(found)


def test_known_values_of_both_tests() -> None:
    # At 2 degrees of freedom p is 1 - t / sqrt(t^2 + 2) in closed form.
    _, freedom, p = welch([0.0, 0.0, 0.0], [2.0, 3.0, 4.0]) or (0.0, 0.0, 0.0)
    t = 3 / math.sqrt(1 / 3)
    assert (freedom, p) == pytest.approx((2, 1 - t / math.sqrt(t * t + 2)))
    # Of 6 examples that one of the runs alone names, 1 or fewer: (1 + 6) / 2^6 on either side.
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(2 * 7 / 64)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(40, 71) == pytest.approx(binomtest(40, 111).pvalue)


def test_one_value_or_no_spread_is_no_test_over_seeds() -> None:
    assert welch([0.9], [0.8, 0.7]) is None
    assert welch([0.9, 0.9], [0.8, 0.8]) is None


def test_the_answer_names_each_setting_and_the_test() -> None:
    line = answer(
        [setting("hidden_size 16", 1.0, 1.0, 1.0), setting("hidden_size 64", 0.95, 0.97, 0.98)]
    )
    assert line == (
        "hidden_size 16: 100.0 ± 0.0 %, 64: 96.7 ± 1.5 %, n = 3 seeds; the difference is within "
        "chance (Welch's t-test over seeds: t = 3.78, 2.0 degrees of freedom, p = 0.063)."
    )
    clear = answer([setting("lr 1", 0.9, 0.91, 0.92), setting("lr 2", 0.7, 0.71, 0.72)])
    assert "; the difference is beyond chance (" in clear
    assert clear.endswith("p < 0.001).")


def test_of_one_run_each_only_the_same_examples_speak() -> None:
    alone = answer([setting("lr 1", 0.9), setting("lr 2", 0.8)])
    assert alone.startswith("lr 1: 90.0 %, 2: 80.0 %, n = 1 seed; whether this is chance cannot be")
    hits = ["1" * 9 + "0", "1" * 3 + "0" * 6 + "1"]
    paired = answer([setting("lr 1", 0.9, hits=hits[:1]), setting("lr 2", 0.4, hits=hits[1:])])
    assert "whether the settings differ cannot be said: it takes two seeds or more" in paired
    assert "; the two runs differ within chance on these test examples (McNemar's exact" in paired
    assert "of 10 test examples 6 named rightly by lr 1 alone, 1 by lr 2 alone, p = 0.12)" in paired
    # However much two runs differ, one seed says nothing of another.
    far = [setting("lr 1", 1.0, hits=["1" * 99]), setting("lr 2", 0.0, hits=["0" * 99])]
    assert "the settings differ cannot be said" in answer(far)
    assert "the two runs differ beyond chance on these test examples" in answer(far)
    three = answer([*far, setting("lr 3", 0.0, hits=["0" * 99])])
    assert "whether this is chance cannot be said" in three
    mixed = answer([far[0], setting("lr 2", 0.5, 0.6, hits=["0" * 99] * 2), far[1]])
    assert "whether this is chance cannot be said" in mixed


def test_settings_without_spread_are_paired_where_they_can_be() -> None:
    one, two = setting("lr 1", 0.9, 0.9), setting("lr 2", 0.8, 0.8)
    assert find_difference(one, two) is None
    assert "cannot be said" in answer([one, two])
    equal = answer([one, setting("lr 2", 0.9, 0.9)])
    assert equal == "lr 1: 90.0 ± 0.0 %, 2: 90.0 ± 0.0 %, n = 2 seeds; the results are equal."


def test_seeds_alone_have_no_verdict_and_other_counts_are_said() -> None:
    assert answer([setting("", 0.5, 0.7)]) == "60.0 ± 14.1 %, n = 2 seeds."
    line = answer([setting("lr 1, seq 2", 0.5, 0.7), setting("lr 1, seq 3", 0.6)])
    assert line.startswith("lr 1, seq 2: 60.0 ± 14.1 % (n = 2), lr 1, seq 3: 60.0 % (n = 1); ")


def test_of_eight_settings_every_pair_counts() -> None:
    eight = [
        setting(f"lr {n}", *(0.9 - n / 100 + wiggle for wiggle in (0, 0.01, 0.03)))
        for n in range(8)
    ]
    line = answer(eight)
    assert "; the best is lr 0; it differs from lr 1 within chance (p = 1)," in line
    single = welch(list(eight[0].accuracies.values()), list(eight[7].accuracies.values()))
    assert single is not None
    assert 0.05 / 28 < single[2] < 0.05  # alone it were beyond chance
    assert f"from lr 7 within chance (p = {28 * single[2]:.2g})" in line
    assert line.endswith("(Welch's t-test over seeds; p times the 28 pairs of settings).")
    tied = [setting(f"lr {n}", 0.9, 0.9) for n in range(3)]
    assert "from lr 1 within chance (p = 1), from lr 2 within chance (p = 1)" in answer(tied)


def test_the_best_setting_is_paired_with_each_other_one_by_seed() -> None:
    best = setting("a", 0.9, 0.8, hits=["1110", "1111"])
    other = setting("b", 0.5, 0.4, hits=["1001", "0001"])
    pairs = pair_up([other, best])
    assert [(p.first, p.second, p.seeds, p.only_first, p.only_second) for p in pairs] == [
        ("a", "b", "0", 2, 1),
        ("a", "b", "1", 3, 0),
    ]
    assert [pair.p for pair in pairs] == [1.0, 0.25]
    elsewhere = Setting("c", {7: 0.1}, {7: [False] * 4})
    assert [pair.seeds for pair in pair_up([best, elsewhere])] == ["0 and 7"]
    assert pair_up([best, setting("d", 0.1)]) == []
    assert pair_up([best]) == []
