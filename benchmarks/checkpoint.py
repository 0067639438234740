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

from seqclf.config.load import load_config
from seqclf.console import Console
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.optim import make_optimizer
from seqclf.processes.start import start_runtime
from seqclf.run.checkpoint import checkpoint_name, encode_tensors, prune_checkpoints
from seqclf.run.directory import open_run
from seqclf.run.saves import restore, save
from seqclf.settle import settle
from seqclf.step import train_step

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
    flags = {
        "device": "cpu",
        "tracking.wandb": "disabled",
        "quiet": "true",
        "model.hidden_size": str(hidden_size),
        "model.num_layers": str(layers),
        "train.steps": str(10**6),
    }
    config = load_config(None, flags)[0]
    runtime = start_runtime(config)
    images = torch.randint(0, 256, (60_000, 28, 28), dtype=torch.uint8)
    examples = Sequences(
        images, torch.randint(0, 10, (60_000,)), classes=tuple("0123456789"), scale=255.0
    )
    setup = settle(config, Splits("random", examples, None, examples))
    plan = setup.plan
    model = setup.build_model()
    optimizer = make_optimizer(model, config.optim)
    batch = examples.__getitems__(plan.share(0, 0, 1))
    console = Console(enabled=True, quiet=True)
    parts: dict[str, list[float]] = defaultdict(list)
    steps: list[float] = []
    with (
        tempfile.TemporaryDirectory(dir=root) as folder,
        open_run(Path(folder), setup, runtime, console) as run,
    ):
        restore(run, model, optimizer)
        for number in range(-WARM_UP, saves):
            started = time.perf_counter()
            for _ in range(BLOCK):
                train_step(runtime, model, optimizer, batch, config, lr=0.01)
            step_s = (time.perf_counter() - started) / BLOCK
            run.state.step += BLOCK
            seconds = time_parts(lambda: save(run, model, optimizer))
            if number >= 0:
                steps.append(step_s)
                for part, second in seconds.items():
                    parts[part].append(second)
        files = run.checkpoints / checkpoint_name(run.state.step)
        size = sum(file.stat().st_size for file in files.iterdir())
    epoch_s = [step_s * plan.steps_per_epoch for step_s in steps]
    shares = [save_s / epoch for save_s, epoch in zip(parts["whole"], epoch_s, strict=True)]
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


def time_parts(action: Callable[[], object]) -> dict[str, float]:
    """Call an action; return the seconds of its parts, what is within one counted there only."""
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
        patch("seqclf.run.saves.encode_tensors", timed("serialise", encode_tensors)),
        patch(
            "seqclf.run.saves.prune_checkpoints", timed("verify and prune old", prune_checkpoints)
        ),
        patch.object(hashlib, "sha256", timed("hash", hashlib.sha256)),
        patch.object(os, "fsync", timed("fsync", os.fsync)),
    ):
        started = time.perf_counter()
        action()
        whole = time.perf_counter() - started
    return seconds | {"write, rename": whole - sum(seconds.values()), "whole": whole}


if __name__ == "__main__":
    main()
