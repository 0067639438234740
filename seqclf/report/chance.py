"""Settings beside each other: what differs beyond chance, and which test says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

WELCH = "Welch's t-test over seeds"
MCNEMAR = "McNemar's exact test"
EQUAL = "equal results"
MORE_SEEDS = "it takes two seeds or more of each setting that do not all reach the same"
LEVEL = 0.05  # of p, below which a difference is called beyond chance


class Setting(NamedTuple):
    """Finished runs that differ in their seed only."""

    name: str
    """Of what it sets and other runs set otherwise, such as "hidden_size 16"."""
    accuracies: dict[int, float]
    """By seed."""
    hits: dict[int, list[bool]]
    """By seed, whether each test example was named rightly; empty where it was not measured."""

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.mean(self.accuracies.values())

    def text(self) -> str:
        """Return mean and standard deviation; of one run there is none."""
        values = list(self.accuracies.values())
        if len(values) == 1:
            return f"{100 * values[0]:.1f} %"
        return f"{100 * self.mean:.1f} ± {100 * statistics.stdev(values):.1f} %"


class Pair(NamedTuple):
    """Two runs on the same test examples: McNemar's exact test."""

    first: str
    second: str
    seeds: str
    n: int
    only_first: int
    """Examples that the first names rightly, and the second does not."""
    only_second: int
    p: float

    @property
    def p_text(self) -> str:
        """How a page shows p."""
        return p_text(self.p)


class Finding(NamedTuple):
    """Whether two settings differ: p, and the numbers it rests on."""

    p: float
    test: str
    numbers: str


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """Return t, the degrees of freedom and p of Welch's t-test, two-sided.

    None where it says nothing: of one value, and where no value differs from its group's others.
    """
    groups = (first, second)
    if min(map(len, groups)) < 2:
        return None
    errors = [statistics.variance(group) / len(group) for group in groups]  # squared, of the means
    if not any(errors):
        return None
    from scipy.stats import t as student  # here, because it takes a second to import

    t = (statistics.mean(first) - statistics.mean(second)) / math.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(group) - 1) for error, group in zip(errors, groups, strict=True)
    )
    return t, freedom, float(2 * student.sf(abs(t), freedom))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return p of McNemar's exact test: of examples that one alone names, either half the time."""
    from scipy.stats import binomtest

    count = only_first + only_second
    return float(binomtest(only_first, count).pvalue) if count else 1.0


def pair_up(settings: Sequence[Setting]) -> list[Pair]:
    """Compare the best setting with each other one, on the same test examples and by seed.

    Settings without a common seed are compared with the lowest seed of each.
    """
    if len(settings) < 2 or not all(setting.hits for setting in settings):
        return []
    best = max(settings, key=lambda setting: setting.mean)
    return [
        pair for other in settings if other is not best for pair in _pairs_of_seeds(best, other)
    ]


def _pairs_of_seeds(first: Setting, second: Setting) -> list[Pair]:
    common = sorted(first.hits.keys() & second.hits.keys())
    seeds = [(seed, seed) for seed in common] or [(min(first.hits), min(second.hits))]
    pairs = []
    for one, other in seeds:
        both = list(zip(first.hits[one], second.hits[other], strict=True))
        only_first, only_second = both.count((True, False)), both.count((False, True))
        pairs.append(
            Pair(
                first.name,
                second.name,
                str(one) if one == other else f"{one} and {other}",
                n=len(both),
                only_first=only_first,
                only_second=only_second,
                p=mcnemar(only_first, only_second),
            )
        )
    return pairs


def find_difference(first: Setting, second: Setting) -> Finding | None:
    """Compare two settings over seeds; else a run of each, on the same test examples.

    What two runs differ in says nothing of their settings: two seeds of one setting may differ as
    much. None where neither can be compared: then nothing is known of chance.
    """
    if len({*first.accuracies.values(), *second.accuracies.values()}) == 1:
        return Finding(1.0, EQUAL, "")
    result = welch(list(first.accuracies.values()), list(second.accuracies.values()))
    if result is not None:
        t, freedom, p = result
        numbers = f"t = {abs(t):.2f}, {freedom:.1f} degrees of freedom"
        return Finding(p, WELCH, numbers)
    if not first.hits or not second.hits:
        return None
    pair = _pairs_of_seeds(first, second)[0]
    numbers = (
        f"seed {pair.seeds}, of {pair.n:,} test examples {pair.only_first} named rightly by "
        f"{first.name} alone, {pair.only_second} by {second.name} alone"
    )
    return Finding(pair.p, MCNEMAR, numbers)


def answer(settings: Sequence[Setting]) -> str:
    """Return a line that says what each setting reached, and whether that is beyond chance."""
    counts = {len(setting.accuracies) for setting in settings}
    shown = [setting.text() for setting in settings]
    if len(counts) > 1:
        ns = [len(setting.accuracies) for setting in settings]
        shown = [f"{text} (n = {n})" for text, n in zip(shown, ns, strict=True)]
    names = [setting.name for setting in settings]
    heads = [name.rpartition(" ")[0] for name in names]
    if len(set(heads)) == 1 and heads[0] and "," not in names[0]:  # the first one says what it is
        names[1:] = [name.rpartition(" ")[2] for name in names[1:]]
    each = [f"{name}: {text}" if name else text for name, text in zip(names, shown, strict=True)]
    line = ", ".join(each) + f", n = {max(counts)} seed{'s' * (max(counts) > 1)}" * (
        len(counts) == 1
    )
    verdict = _verdict(settings)
    return f"{line}; {verdict}." if verdict else f"{line}."


def _verdict(settings: Sequence[Setting]) -> str:
    if len(settings) == 1:
        return ""
    num_pairs = len(list(combinations(settings, 2)))
    ordered = sorted(settings, key=lambda setting: -setting.mean)
    findings = {other.name: find_difference(ordered[0], other) for other in ordered[1:]}
    if all(one is None or (num_pairs > 1 and one.test == MCNEMAR) for one in findings.values()):
        return f"whether this is chance cannot be said: {MORE_SEEDS}"
    if num_pairs == 1:
        [finding] = findings.values()
        assert finding is not None
        if finding.test == EQUAL:
            return "the results are equal"
        seen = "beyond" if finding.p < LEVEL else "within"
        numbers = f"({finding.test}: {finding.numbers}, {p_text(finding.p)})"
        if finding.test == WELCH:
            return f"the difference is {seen} chance {numbers}"
        return (
            f"whether the settings differ cannot be said: {MORE_SEEDS}; the two runs differ {seen} "
            f"chance on these test examples {numbers}, and two seeds of one setting may, too"
        )
    # The best was chosen after the look at all of them, so every pair counts (Bonferroni).
    parts = []
    for name, finding in findings.items():
        if finding is None:
            parts.append(f"from {name}: cannot be said")
            continue
        if finding.test == MCNEMAR:
            parts.append(f"from {name}: cannot be said without more seeds")
            continue
        p = min(1.0, num_pairs * finding.p)
        parts.append(f"from {name} {'beyond' if p < LEVEL else 'within'} chance ({p_text(p)})")
    tests = {one.test for one in findings.values() if one is not None} & {WELCH}
    return (
        f"the best is {ordered[0].name}; it differs {', '.join(parts)} "
        f"({WELCH if tests else EQUAL}; p times the {num_pairs} pairs of settings)"
    )


def p_text(p: float) -> str:
    """Return a p-value as text.

    >>> p_text(0.0551), p_text(1e-9)
    ('p = 0.055', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
