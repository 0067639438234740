"""What a prepared data set holds, as text: `seqclf describe`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqclf.data.passes import CONSTANT
from seqclf.data.prepared import DatasetInfo, open_dataset
from seqclf.data.readers.rows import quote

NUM_BARS = 12
BAR_WIDTH = 40
MOST_NAMED = 20  # features or columns in a line; dataset.json has all
MOST_LINES = 100  # of classes or of features


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
    lines += ["features    " + _features_line(info), "left aside  " + _aside_line(info)]
    if info.roles:
        roles = ", ".join(f"{role} = {quote(name)}" for role, name in info.roles.items())
        lines.append(f"columns     {roles}")
    lines += [f"note        {note}" for note in info.notes]
    if info.left_out:
        lines.append(f"left out    {info.left_out:,} bad rows")
    lengths = torch.cat([split.lengths for split in splits.values() if split.lengths is not None])
    lines += ["", "lengths (steps, all parts)", *_histogram(lengths), "", *_class_lines(info)]
    if info.features:
        lines += ["", *_feature_lines(info)]
    return "\n".join(lines)


def _features_line(info: DatasetInfo) -> str:
    if info.kind == "text":
        return f"the bytes of the text{_in_column(info.reading.text)}"
    if info.kind == "tokens":
        return f"the tokens{_in_column(info.reading.tokens)}"
    if columns := info.reading.columns:
        shown = [*map(quote, columns)] if len(columns) < 4 else [columns[0], "...", columns[-1]]
        return f"one number a step; the steps are {', '.join(shown)} ({len(columns):,} columns)"
    if info.reading.form == "wide":
        return "one number a step; a line is a sequence"
    return _cut(map(quote, info.features))


def _in_column(name: str | None) -> str:
    return f" in '{quote(name)}'" if name else ""


def _aside_line(info: DatasetInfo) -> str:
    named = (
        f"{quote(name) if name else repr(name)} ({reason})"
        for name, reason in info.left_aside.items()
    )
    return _cut(named) or "nothing"


def _cut(texts: Iterable[str]) -> str:
    """Join texts; of many, the first ones and a count."""
    texts = list(texts)
    rest = len(texts) - MOST_NAMED
    return ", ".join(texts[:MOST_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


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
    totals: Counter[str] = Counter()
    for split in info.parts.values():
        totals.update(split.classes)
    shown = [quote(name) for name in info.classes[:MOST_LINES]]
    width = max(map(len, ["class", *shown]))
    lines = [f"{'class':<{width}} " + "".join(f"{name:>9}" for name in info.parts)]
    for title, name in zip(shown, info.classes, strict=False):
        counts = "".join(f"{split.classes[name]:>9,}" for split in info.parts.values())
        fraction = totals[name] / max(1, totals.total())
        lines.append(f"{title:<{width}} {counts}  {fraction:6.1%}")
    return lines + _more(info.classes)


def _feature_lines(info: DatasetInfo) -> list[str]:
    shown = [quote(name) for name in info.features[:MOST_LINES]]
    width = max(map(len, ["feature", *shown]))
    lines = [f"{'feature':<{width}} {'mean':>12} {'std':>12}  (training part)"]
    # As the files have them: the numbers that are stored may lack an offset.
    for title, mean, std, offset in zip(
        shown, info.mean, info.std, info.reading.offset or (0.0,) * len(info.mean), strict=False
    ):
        number = f"{mean + offset:.10g}" if offset else f"{mean:.5g}"
        spread = "constant" if std == CONSTANT else f"{std:.5g}"
        lines.append(f"{title:<{width}} {number:>12} {spread:>12}")
    return lines + _more(info.features)


def _more(names: Sequence[str]) -> list[str]:
    return [f"and {len(names) - MOST_LINES:,} more"] * (len(names) > MOST_LINES)
