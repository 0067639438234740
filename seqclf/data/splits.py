"""Which examples are held out: by class, and by group where some must stay together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqclf.data.orders import mix


def hold_out_by_class(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out `fraction` of every class; return the positions of the others, and these."""
    generator = torch.Generator().manual_seed(seed)
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        is_held_out[members[chosen]] = True
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]


def deal_by_class(labels: Tensor, fractions: Sequence[float], *, seed: int) -> Tensor:
    """Return the split of each example, int64 [N]; a split gets its fraction of every class."""
    splits = torch.zeros_like(labels)
    rest = torch.arange(len(labels))
    fraction_left = 1.0
    for split in (2, 1):
        if fraction := fractions[split]:
            kept, held_out = hold_out_by_class(
                labels[rest], fraction / fraction_left, seed=mix(seed, "prepare", split)
            )
            splits[rest[held_out]] = split
            rest = rest[kept]
            fraction_left -= fraction
    return splits


def deal_by_group(
    labels: Tensor, groups: Tensor, fractions: Sequence[float], *, seed: int
) -> Tensor:
    """Return the split of each example, int64 [N]; a split gets about its fraction of every class.

    Examples with the same number in `groups`, int64 [N], stay together. Groups are dealt one by
    one, the largest first, each to the split that lacks most of the group's classes.
    """
    groups = groups.unique(return_inverse=True)[1]
    num_classes = int(labels.max()) + 1
    num_groups = int(groups.max()) + 1
    counts = torch.zeros(num_groups * num_classes, dtype=torch.float64)
    pairs = groups * num_classes + labels
    counts.scatter_add_(0, pairs, torch.ones(len(labels), dtype=torch.float64))
    counts = counts.view(num_groups, num_classes)
    totals = counts.sum(0).clamp(min=1)
    num_lacking = torch.tensor(fractions, dtype=torch.float64)[:, None] * totals
    generator = torch.Generator().manual_seed(mix(seed, "groups"))
    shuffled = torch.randperm(num_groups, generator=generator)
    order = shuffled[counts[shuffled].sum(1).argsort(descending=True, stable=True)]
    split_of_group = torch.zeros(num_groups, dtype=torch.int64)
    for group in order.tolist():
        # Divided by the totals, so that a rare class counts as much as a common one.
        need = (num_lacking / totals) @ (counts[group] / totals)
        split = int(need.argmax())
        split_of_group[group] = split
        num_lacking[split] -= counts[group]
    return split_of_group[groups]


def deal_into_folds(
    labels: Tensor, folds: int, *, seed: int, groups: Tensor | None = None
) -> Tensor:
    """Return the fold of each example, from 0 on, int64 [N].

    Without groups the folds' numbers of examples of a class differ by at most one, and so do their
    sizes. Examples with the same number in `groups`, int64 [N], stay together, and the folds are
    about alike.
    """
    if groups is not None:
        return deal_by_group(labels, groups, [1 / folds] * folds, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Class after class, each in a random order, dealt like cards.
    order = order[labels[order].argsort(stable=True)]
    fold_of = torch.empty_like(labels)
    fold_of[order] = torch.arange(len(labels)) % folds
    return fold_of
