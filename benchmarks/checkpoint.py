"""Time a checkpoint against an epoch, and say where its time goes, on random images.

One process, MNIST's 60,000 examples in batches of 64, a checkpoint an epoch. Blocks of 10 steps
and single saves alternate, so that a machine whose speed drifts slows both.

    python benchmarks/checkpoint.py --root runs
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from seqclf import checkpoint
from seqclf import runtime as runtimes
from seqclf.config import load_config
from seqclf.console import Console
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Batch
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer
from seqclf.run import open_run
from seqclf.tracking import Tracking
from seqclf.train import train_step

BLOCK, WARM_UP = 10, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", help="where to write, on the file system in question")
    parser.add_argument("--saves", type=int, default=40)
    options = parser.parse_args()
    for hidden_size, layers in ((64, 1), (256, 1), (512, 2)):
        print(json.dumps(measure(hidden_size, layers, options.saves, options.root)), flush=True)


def measure(hidden_size: int, layers: int, saves: int, root: str | None) -> dict[str, object]:
    """Return the cost of a save as a share of an epoch, and the medians of its parts."""
    config = load_config(None, {"device": "cpu", "tracking.wandb": "disabled", "quiet": "true"})[0]
    runtime = runtimes.start(config)
    plan = BatchPlan(length=60_000, batch_size=64, seed=0, num_steps=10**6)
    model = LSTMClassifier(28, 10, hidden_size=hidden_size, num_layers=layers, scale=255.0)
    optimizer = make_optimizer(model, config.optim)
    images = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8)
    batch = Batch(images, torch.randint(0, 10, (64,)), 0, 0, 64)
    console = Console(enabled=True, quiet=True)
    tracking = Tracking(console.say, enabled=True)
    parts: dict[str, list[float]] = defaultdict(list)
    steps: list[float] = []
    with (
        tempfile.TemporaryDirectory(dir=root) as folder,
        open_run(Path(folder), config, runtime, console, tracking, plan, {}) as run,
    ):
        for number in range(-WARM_UP, saves):
            started = time.perf_counter()
            for _ in range(BLOCK):
                train_step(runtime, model, optimizer, batch, config, lr=0.01)
            step_s = (time.perf_counter() - started) / BLOCK
            run.state.step += BLOCK
            seconds = time_parts(lambda: run.save(model, optimizer))
            if number >= 0:
                steps.append(step_s)
                for part, second in seconds.items():
                    parts[part].append(second)
        files = run.checkpoints / checkpoint.directory_name(run.state.step)
        size = sum(file.stat().st_size for file in files.iterdir())
    epoch_s = [step_s * plan.steps_per_epoch for step_s in steps]
    shares = [save / epoch for save, epoch in zip(parts["whole"], epoch_s, strict=True)]
    return {
        "hidden_size": hidden_size,
        "layers": layers,
        "MB": round(size / 1e6, 2),
        "percent_of_an_epoch": round(100 * statistics.median(shares), 3),
        "worst_percent": round(100 * max(shares), 3),
        "ms": {part: round(1000 * statistics.median(times), 2) for part, times in parts.items()},
        "epoch_s": round(statistics.median(epoch_s), 1),
        "saves": saves,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def time_parts(save: Callable[[], object]) -> dict[str, float]:
    """Call a save; return the seconds of its parts, what is within one counted there only."""
    seconds: dict[str, float] = {}
    within: list[str] = []

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            within.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                within.pop()
                if not within:
                    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started

        return call

    with (
        patch.object(checkpoint, "encode", timed("serialise", checkpoint.encode)),
        patch.object(checkpoint, "prune", timed("verify and prune old", checkpoint.prune)),
        patch.object(hashlib, "sha256", timed("hash", hashlib.sha256)),
        patch.object(os, "fsync", timed("fsync", os.fsync)),
    ):
        started = time.perf_counter()
        save()
        whole = time.perf_counter() - started
    return seconds | {"write, rename": whole - sum(seconds.values()), "whole": whole}


if __name__ == "__main__":
    main()
