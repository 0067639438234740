"""Which examples are held out: by class, and by group where some must stay together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqclf.data.batches import mix


def stratified(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split positions into (kept, held out), `fraction` of every class held out, in data order."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        chosen = torch.randperm(len(members), generator=generator)[: round(fraction * len(members))]
        held_out[members[chosen]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def by_group(labels: Tensor, groups: Tensor, fractions: Sequence[float], *, seed: int) -> Tensor:
    """Return each example's part, int64 [N]; parts have about their fraction of every class.

    Examples with the same number in `groups`, int64 [N], stay together: groups are dealt one by
    one, the largest first, each to the part that lacks most of its classes.
    """
    groups = groups.unique(return_inverse=True)[1]
    num_classes, num_groups = int(labels.max()) + 1, int(groups.max()) + 1
    counts = torch.zeros(num_groups * num_classes, dtype=torch.float64)
    pairs = groups * num_classes + labels
    counts.scatter_add_(0, pairs, torch.ones(len(labels), dtype=torch.float64))
    counts = counts.view(num_groups, num_classes)
    totals = counts.sum(0).clamp(min=1)
    wanted = torch.tensor(fractions, dtype=torch.float64)[:, None] * totals
    generator = torch.Generator().manual_seed(mix(seed, "groups"))
    shuffled = torch.randperm(num_groups, generator=generator)
    order = shuffled[counts[shuffled].sum(1).argsort(descending=True, stable=True)]
    part_of = torch.zeros(num_groups, dtype=torch.int64)
    for group in order.tolist():
        # a class that is rare counts as much as one that is not
        lacking = (wanted / totals) @ (counts[group] / totals)
        part = int(lacking.argmax())
        part_of[group] = part
        wanted[part] -= counts[group]
    return part_of[groups]
