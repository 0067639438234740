"""What seqclf reads of a user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, ReadOptions, Row


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, **options: object) -> list[Row]:
    everything = list(read_rows(path, ReadOptions(**options)))  # type: ignore[arg-type]
    good = [row for row in everything if isinstance(row, Row)]
    assert good == everything, everything
    return good


def problems(path: Path, **options: object) -> list[str]:
    """Return all that is wrong, without the folder."""
    everything = read_rows(path, ReadOptions(**options))  # type: ignore[arg-type]
    texts = [f"{bad.where}: {bad.problem}" for bad in everything if isinstance(bad, BadRow)]
    return [text.replace(f"{path.parent}/", "") for text in texts]


def numbers(row: Row) -> list[list[float]]:
    assert isinstance(row.steps, np.ndarray)
    assert row.steps.dtype in (np.float32, np.float64)
    steps: list[list[float]] = row.steps.astype(np.float32).tolist()
    return steps
