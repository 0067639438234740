"""Data larger than memory: what training and preparing hold of it does not grow with it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.launching import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
STEPS, FEATURES = 100, 12
MANY, FEW = 200_000, 2_000  # sequences: 20 million steps of 960 MB, and a hundredth
MOST_MB = 300


def write_arrays(folder: Path, count: int) -> None:
    """Write a noisy data set of two classes, a part at a time."""
    folder.mkdir()
    shape = (count, STEPS, FEATURES)
    values = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, shape)
    labels = np.arange(count) % 2
    generator = np.random.default_rng(0)
    for first in range(0, count, FEW):
        part = generator.standard_normal((FEW, STEPS, FEATURES), np.float32)
        values[first : first + FEW] = part + labels[first : first + FEW, None, None]
    values.flush()
    np.save(folder / "y.npy", labels)


def peak_of(*words: str | Path) -> float:
    """Run seqclf; return the largest anonymous resident memory seen, in MB."""
    command = [sys.executable, "-m", "seqclf", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        sizes = [int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line]
        peak = max([peak, *sizes])
        time.sleep(0.02)
    out = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0, out
    return peak / 1024


def test_twenty_million_steps_are_prepared_and_trained_on_in_little_memory(tmp_path: Path) -> None:
    peaks: dict[str, list[float]] = {"prepare": [], "train": []}
    for name, count in (("few", FEW), ("many", MANY)):
        source, data = tmp_path / f"{name}-source", tmp_path / name
        write_arrays(source, count)
        words: list[str | Path] = [source / "x.npy", "--labels", source / "y.npy", "--out", data]
        peaks["prepare"].append(peak_of("prepare", *words, "--split", "0.98,0.01,0.01"))
        (source / "x.npy").unlink()
        flags = ["--train.steps", "40", "--tracking.wandb", "disabled", "--quiet"]
        run_dir = tmp_path / f"run-{name}"
        peaks["train"].append(peak_of("train", "--data.path", data, "--run-dir", run_dir, *flags))
    for command, (few, many) in peaks.items():
        print(f"{command}: {few:.0f} MB, with a hundred times as many sequences {many:.0f} MB")
        assert many - few < MOST_MB, command
