"""A long run holds what a short one does: memory stays flat, files grow by their lines only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
from conftest import read_metrics, run_ranks

import seqclf.train
from seqclf.config import load_config

EPOCHS, MOST_MB = 50, 2


def watched_epochs(run_dir: str) -> list[float]:
    """Train on the digits; return the MB of resident memory at each epoch's end."""
    seen: list[float] = []
    honest = seqclf.train.measure

    def measure(*arguments: Any) -> dict[str, float]:
        found = honest(*arguments)
        seen.append(psutil.Process().memory_info().rss / 1e6)
        return found

    seqclf.train.measure = measure  # type: ignore[assignment]
    flags = {
        "data.name": "digits",
        "data.augment.shift": "1",
        "train.epochs": str(EPOCHS),
        "model.hidden_size": "32",
        "model.dropout": "0.2",
        "log.every": "1",
        "run_dir": run_dir,
        "tracking.wandb": "disabled",
        "quiet": "true",
    }
    assert seqclf.train.train(load_config(None, flags)[0]) == 0
    return seen


def test_memory_and_files_do_not_grow_with_epochs(tmp_path: Path) -> None:
    [seen] = run_ranks(1, watched_epochs, str(tmp_path / "run"))
    assert len(seen) == EPOCHS
    print([round(mb, 1) for mb in seen])
    assert max(seen[9:]) - seen[9] < MOST_MB
    lines = read_metrics(tmp_path / "run")
    steps = 23 * EPOCHS
    assert len(lines) == steps + EPOCHS
    others = [
        file
        for file in (tmp_path / "run").rglob("*")
        if file.is_file() and file.name != "metrics.jsonl"
    ]
    assert len(others) < 20
    text = [file for file in others if file.suffix in (".json", ".jsonl", ".yaml")]
    assert max(file.stat().st_size for file in text) < 20_000
