"""What people should know of a data set that was prepared: one line for each finding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from seqclf.data.draft import Draft, as_tensor
from seqclf.data.passes import FeatureFacts, find_facts
from seqclf.data.prepared import LEFT_OUT, SPLITS
from seqclf.data.readers.rows import quote

MOST_NAMED = 5  # features that a note names
MOST_FEATURES = 2000  # of which the facts are compared
MOST_DECIMALS = 10  # classes that may be called 0.5, 1.5 ...


def find_notes(
    draft: Draft, labels: Tensor, classes: Sequence[str], splits: Tensor
) -> Iterator[str]:
    """Yield a line for each finding, about features or sequences, that may be a mistake."""
    kept = splits != LEFT_OUT
    lengths = as_tensor(draft.offsets).diff()[kept]
    longest = int(lengths.max())
    if longest == 1 and draft.kind != "text" and not draft.reading.has_parts:
        yield "every sequence has one step: is a line one sequence? --form wide reads it so"
    elif draft.kind == "vectors" and longest < draft.num_features:
        yield (
            f"no sequence has more than {longest} steps, but a step has {draft.num_features:,} "
            "features; --channels-first reads arrays of cases x channels x time"
        )
    for number, split in enumerate(SPLITS):
        if number and not (splits == number).any():
            yield f"no example is in {split}"
    yield from _class_notes(labels[splits == SPLITS.index("test")], classes)
    if _are_measured(draft.class_ids):
        yield (
            f"the {len(draft.class_ids):,} labels are numbers with decimals: seqclf tells classes "
            "apart and predicts no numbers"
        )
    if draft.kind == "vectors" and draft.num_features <= MOST_FEATURES:
        yield from _feature_notes(draft, find_facts(draft, labels, splits), longest=longest)


def _class_notes(test_labels: Tensor, classes: Sequence[str]) -> Iterator[str]:
    """Name the classes that the test examples tell nothing of, if there are any such examples."""
    counts = torch.bincount(test_labels, minlength=len(classes)).tolist()
    missing = [name for name, count in zip(classes, counts, strict=True) if not count]
    if 0 < len(missing) < len(classes):
        shown = ", ".join(map(quote, missing[:MOST_NAMED]))
        more = f" and {len(missing) - MOST_NAMED} more" * (len(missing) > MOST_NAMED)
        yield f"no test example is of class {shown}{more}: no test figure tells how well it does"


def _feature_notes(draft: Draft, facts: FeatureFacts, *, longest: int) -> Iterator[str]:
    names = draft.feature_names

    def titles(indices: list[int]) -> str:
        shown = ", ".join(quote(names[index]) for index in indices[:MOST_NAMED])
        return shown + f" and {len(indices) - MOST_NAMED} more" * (len(indices) > MOST_NAMED)

    constant = facts.constant if longest > 1 else []
    # A single feature is the measurement itself, and may well rise or decide.
    rising = facts.rising if draft.num_features > 1 else []
    decisive = facts.decisive if draft.num_features > 1 else []
    if facts.too_small:
        yield (
            f"{titles(facts.too_small)}: all values within 1.2e-38, which training counts as 0; "
            "give them in a smaller unit"
        )
    if constant:
        yield (
            f"{titles(constant)}: the same at all steps of a sequence, in every sequence; "
            "leave it out, if it tells nothing (--drop, of a column)"
        )
    if rising:
        yield (
            f"{titles(rising)}: rises from step to step in every sequence; if it is the time, "
            "--time sorts the steps by it"
        )
    if decisive:
        yield (
            f"{titles(decisive)}: this feature alone tells the classes apart; if it says the label "
            "in other words, leave it out (--drop, of a column)"
        )


def _are_measured(labels: Collection[str]) -> bool:
    """Return whether labels look like measured numbers."""
    try:
        numbers = list(map(float, labels))
    except ValueError:
        return False
    return len(numbers) > MOST_DECIMALS and any(number % 1 for number in numbers)


def num_classes_of(labels: Tensor, splits: Tensor) -> int:
    """Return the number of classes that some split has."""
    return len(torch.unique(labels[splits != LEFT_OUT]))
