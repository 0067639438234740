"""Time the package's whole training loop against bare.py doing the same arithmetic.

Both train MNIST in one process with the default recipe; the loop logs, shows its progress, saves
and can be stopped, the bare one does not. Blocks of 25 steps of each alternate in random order, so
that a machine whose speed drifts slows both. No evaluation: its arithmetic is the same in both.

    python benchmarks/loop.py --data-root data --batch-size 64
"""

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bare
import torch

from seqclf import runtime as runtimes
from seqclf.config import Config, UserError, load_config
from seqclf.console import Console
from seqclf.data import sources
from seqclf.data.sequences import Batch
from seqclf.run import open_run
from seqclf.tracking import Tracking
from seqclf.train import make_plan, train_loop

BLOCK = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    flags = {
        "data.name": "mnist",
        "data.root": options.data_root,
        "train.batch_size": str(options.batch_size),
        "train.steps": str(options.steps),
        "tracking.wandb": "disabled",
        "eval.every": str(options.steps),
        "checkpoint.every": str(options.steps // 3),
    }
    config = load_config(None, flags)[0]
    try:
        sources.fetch(config.data, print)
    except UserError as error:
        sys.exit(f"error: {error}")
    ours, theirs = measure(config, random.Random(0))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    milliseconds = [statistics.median(times) * 1000 / BLOCK for times in (ours, theirs)]
    quartiles = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    result = {
        "batch_size": options.batch_size,
        "seqclf_ms": round(milliseconds[0], 3),
        "bare_ms": round(milliseconds[1], 3),
        "ratio": round(ratio, 3),
        "ratio_of_totals": round(sum(ours) / sum(theirs), 3),
        "ratio_quartiles": [round(q, 3) for q in quartiles],
        "blocks": len(ours),
        "steps_per_block": BLOCK,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps(result))


def measure(config: Config, draw: random.Random) -> tuple[list[float], list[float]]:
    """Return the seconds of each block of steps of the loop and of the bare one."""
    runtime = runtimes.start(config)
    splits = sources.load(config.data, seed=config.seed)
    plan = make_plan(config, splits.train)
    steps = bare.train_steps(
        splits.train.values,
        splits.train.labels,
        plan.num_steps,
        batch_size=plan.batch_size,
    )
    ours: list[float] = []
    theirs: list[float] = []

    def bare_block() -> None:
        started = time.perf_counter()
        for _ in range(BLOCK):
            next(steps, None)
        theirs.append(time.perf_counter() - started)

    batches = runtime.loader

    def interleaved(*args: object, **kwargs: object) -> Iterator[Batch]:
        """Yield the loop's batches; at every block's end time it and let bare.py have its turn."""
        resumed = time.perf_counter()
        for index, batch in enumerate(batches(*args, **kwargs)):  # type: ignore[arg-type]
            if index and index % BLOCK == 0:
                ours.append(time.perf_counter() - resumed)
                while len(theirs) < len(ours) - 1:
                    bare_block()
                if draw.random() < 0.5:
                    bare_block()
                resumed = time.perf_counter()
            yield batch

    runtime.loader = interleaved  # type: ignore[method-assign]
    console = Console(enabled=True)
    tracking = Tracking(console.say, enabled=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(Path(folder), config, runtime, console, tracking, plan, {}) as run,
    ):
        train_loop(run, splits, plan)
    count = min(len(ours), len(theirs))
    return ours[:count], theirs[:count]


if __name__ == "__main__":
    main()
