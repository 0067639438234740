"""A long run holds what a short one does: memory stays flat, files grow by their lines only."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from helpers.files import files_in, read_metrics
from helpers.patches import watch_calls
from helpers.ranks import run_ranks
from helpers.training import train_tiny

EPOCHS, MOST_MB = 50, 2
SETTINGS = {
    "data.augment.shift": 1,
    "train.epochs": EPOCHS,
    "eval.every": 23,  # an epoch
    "model.hidden_size": 32,
    "model.dropout": 0.2,
    "log.every": 1,
    "quiet": True,
}


def watch_memory(run_dir: Path) -> list[float]:
    """Train on the digits; return the MB of resident memory before each evaluation."""
    seen: list[float] = []

    def look(*_: object, **__: object) -> None:
        seen.append(psutil.Process().memory_info().rss / 1e6)

    watch_calls(pytest.MonkeyPatch(), "seqclf.training.measure", look)
    assert train_tiny(run_dir, SETTINGS) == 0
    return seen


def test_memory_and_files_do_not_grow_with_epochs(tmp_path: Path) -> None:
    [seen] = run_ranks(1, watch_memory, tmp_path)
    assert len(seen) == EPOCHS
    print([round(mb, 1) for mb in seen])
    assert max(seen[9:]) - seen[9] < MOST_MB
    lines = read_metrics(tmp_path)
    steps = 23 * EPOCHS
    assert len(lines) == steps + EPOCHS
    others = {
        name: content for name, content in files_in(tmp_path).items() if name != "metrics.jsonl"
    }
    assert len(others) < 20
    texts = [
        content for name, content in others.items() if name.endswith(("json", "jsonl", "yaml"))
    ]
    assert max(map(len, texts)) < 20_000
