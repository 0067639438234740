"""What a prepared data set holds, as text: `seqclf describe`."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqclf.data.prepared import DatasetInfo, open_dataset

NUM_BARS = 12
BAR_WIDTH = 40


def describe_dataset(folder: Path) -> str:
    """Return what a prepared data set holds: sizes, lengths, classes, features."""
    info, splits, groups = open_dataset(folder)
    content = {
        "vectors": f"{len(info.features)} feature{'s' * (len(info.features) != 1)} a step",
        "tokens": f"{len(info.tokens):,} tokens",
        "text": "text, read byte by byte",
    }[info.kind]
    lines = [f"data        {folder}: {content}, {len(info.classes)} classes"]
    for name, split in info.parts.items():
        num_groups = f", {len(groups[name].unique()):,} groups" if name in groups else ""
        lines.append(
            f"{name:<11} {split.examples:,} sequences, {split.steps:,} steps, {split.shortest} to "
            f"{split.longest} steps each{num_groups}"
        )
    if info.left_out:
        lines.append(f"left out    {info.left_out:,} bad rows")
    lengths = torch.cat([split.lengths for split in splits.values() if split.lengths is not None])
    lines += ["", "lengths (steps, all parts)", *_histogram(lengths), "", *_class_lines(info)]
    if info.features:
        width = max(map(len, info.features))
        lines += ["", f"{'feature':<{max(width, 7)}} {'mean':>12} {'std':>12}  (training part)"]
        for name, mean, std in zip(info.features, info.mean, info.std, strict=True):
            lines.append(f"{name:<{max(width, 7)}} {mean:>12.5g} {std:>12.5g}")
    return "\n".join(lines)


def _histogram(lengths: Tensor) -> list[str]:
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.linspace(low, high + 1, min(NUM_BARS, high - low + 1) + 1).round().astype(int)
    counts, _ = np.histogram(lengths.numpy(), edges)
    width = len(str(high))
    return [
        f"{first:>{width}} to {end - 1:<{width}} {count:>9,} "
        f"{'█' * round(BAR_WIDTH * count / counts.max())}".rstrip()
        for (first, end), count in zip(pairwise(edges), counts, strict=True)
    ]


def _class_lines(info: DatasetInfo) -> list[str]:
    width = max(5, *(len(name) for name in info.classes))
    lines = [f"{'class':<{width}} " + "".join(f"{name:>9}" for name in info.parts)]
    totals: Counter[str] = Counter()
    for split in info.parts.values():
        totals.update(split.classes)
    for name in info.classes:
        counts = "".join(f"{split.classes[name]:>9,}" for split in info.parts.values())
        fraction = totals[name] / max(1, totals.total())
        lines.append(f"{name:<{width}} {counts}  {fraction:6.1%}")
    return lines
