"""Which columns of a wide table are the steps of a sequence, and in which order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from seqclf.data.readers.rows import Journal, ReadOptions, RowError, quote
from seqclf.data.readers.times import Moment, parse_time
from seqclf.errors import UserError

# Such as t0, or x(t-1).
_NUMBERED = re.compile(r"(.*?)([+-]?\d+(?:\.\d+)?)(\D*)")


def numbered_groups(names: Sequence[str], indices: Sequence[int]) -> list[list[int]]:
    """Return the columns that count, such as t0, t1, t2, or are times; the largest group first.

    Each group is in the order of its numbers, equal ones as the table has them.
    """
    groups: defaultdict[tuple[str, ...], list[tuple[Moment, int]]] = defaultdict(list)
    for index in indices:
        if found := _number_of(names[index].strip()):
            kind, number = found
            groups[kind].append((number, index))
    for index in indices:
        # x(t-2), x(t-1), x(t): the last one is step 0.
        for kind, members in groups.items():
            is_zero = len(kind) == 2 and names[index].strip() == "".join(kind)
            if is_zero and any(number < 0 for number, _ in members):
                members.append((0, index))
    return [_in_order(members) for members in sorted(groups.values(), key=len, reverse=True)]


def _number_of(name: str) -> tuple[tuple[str, ...], Moment] | None:
    """Return what names that count with this one have in common, and its number."""
    try:
        kind, moment = parse_time(name)
    except RowError:
        match = _NUMBERED.fullmatch(name)
        return ((match[1], match[3]), float(match[2])) if match else None
    return ((), moment) if kind == "a number" else ((kind, "", ""), moment)


def _in_order(members: Sequence[tuple[Moment, int]]) -> list[int]:
    ordered = sorted(members, key=lambda member: member[0])
    # In s-1, s-2, s-3 the sign is a hyphen; in t-3, t-2, t-1 it is none.
    if all(number < 0 for number, _ in members) and ordered != sorted(members, key=lambda m: m[1]):
        ordered = sorted(members, key=lambda member: -member[0])
    return [index for _, index in ordered]


def choose_steps(
    where: str, names: Sequence[str], values: Sequence[int], aside: dict[int, str], journal: Journal
) -> list[int]:
    """Return the columns of numbers that are steps, in order: those that count, if most do.

    The others go into `aside`. Raises UserError if several groups of columns count.
    """

    def titles(indices: Sequence[int]) -> str:
        shown = [f"'{quote(names[index])}'" for index in indices[:3]]
        return ", ".join(shown) + f" ... '{quote(names[indices[-1]])}'" * (len(indices) > 3)

    groups = [group for group in numbered_groups(names, values) if len(group) > 1]
    if 2 * sum(map(len, groups)) < len(values) or not groups:
        if len(values) > 1:
            journal.note(
                f"{where}: a line is a sequence, whose steps are the columns {titles(values)}, in "
                "this order; if a line is a step, say --id"
            )
        return list(values)
    if len(groups) > 1:
        raise UserError(
            f"{where}: {titles(groups[0])} and {titles(groups[1])} look like several features of a "
            "step, where a line holds one feature: choose the columns of the steps with "
            "--features, or write a line a step"
        )
    steps = groups[0]
    numbers = {index: _number_of(names[index].strip()) for index in steps}
    for one, other in pairwise(steps):
        if numbers[one] == numbers[other]:
            raise UserError(
                f"{where}: {titles([one, other])} are the same step; choose with --features or "
                "--drop"
            )
    if steps != sorted(steps):
        journal.note(
            f"{where}: the steps are {titles(steps)}, in the order of their numbers, which is not "
            "the order of the columns; --features gives another order"
        )
    for index in set(values).difference(steps):
        aside[index] = f"not one of the steps {titles(steps)}"
    return steps


def steps_of_model(
    names: Sequence[str], indices: Sequence[int], options: ReadOptions
) -> list[int] | None:
    """Return the columns that count as the `features` of a model or a file do.

    Sequences may be shorter or longer than those before: the last columns may lack, and where the
    files before had no others (`open_end`), further ones may follow. None if the columns differ in
    another way.
    """
    features = list(options.features or ())
    numbers = range(len(features))
    groups = numbered_groups(features, numbers)
    if not names or len(features) < 2 or len(groups) != 1 or groups[0] != list(numbers):
        return None
    groups = numbered_groups(names, indices)
    steps = next((group for group in groups if features[0] in [names[i] for i in group]), [])
    found = [names[index] for index in steps]
    shared = min(len(found), len(features))
    if shared < 2 or found[:shared] != features[:shared] or len(set(found)) < len(found):
        return None
    return steps if options.open_end else steps[: len(features)]
