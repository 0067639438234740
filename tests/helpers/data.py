"""A small data set of sequences of unequal length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np

from seqclf.data.prepare import Input, Preparation, prepare


class ToyRow(TypedDict):
    id: str
    steps: list[list[float]]
    label: str


def toy_rows(count: int, seed: int = 0) -> list[ToyRow]:
    """Return sequences of 1 to 15 steps of 3 features; the sign of the first one's sum decides."""
    generator = np.random.default_rng(seed)
    rows: list[ToyRow] = []
    for number in range(count):
        steps = generator.normal(1.0 if number % 3 else -1.0, 1.0, (1 + number % 15, 3))
        label = "up" if steps[:, 0].sum() > 0 else "down"
        rows.append({"id": f"row {number}", "steps": steps.tolist(), "label": label})
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write a .jsonl file; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def toy_dataset(folder: Path, count: int = 120, seed: int = 0) -> Path:
    """Prepare a data set of toy rows; return its folder."""
    source = write_rows(folder.with_suffix(".jsonl"), toy_rows(count, seed))
    prepare([Input(source)], folder, Preparation(fractions=(0.7, 0.1, 0.2)), print)
    source.unlink()
    return folder
