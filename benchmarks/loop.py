"""Time the package's whole training loop against bare.py doing the same arithmetic.

Both train MNIST in one process with the default recipe; the loop logs, shows its progress, saves
and can be stopped, the bare one does not. Blocks of 25 steps of each alternate in random order, so
that a machine whose speed drifts slows both. No evaluation: its arithmetic is the same in both.
Where there is a GPU both train on it, with the data in its memory (see gpu.py).

    python benchmarks/loop.py --data-root data
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import bare
from results import about, mark, now, save, seconds

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.console import Console
from seqclf.data import idx, sources
from seqclf.data.sequences import Batch
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.loss import summed_loss
from seqclf.optim import make_optimizer, update
from seqclf.processes.start import start_runtime
from seqclf.run.directory import open_run
from seqclf.run.saves import restore
from seqclf.settle import settle
from seqclf.training import train_steps

BATCHES, STEPS, BLOCK = (64, 128, 512), 1500, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    rows = []
    for batch_size in BATCHES:
        flags = {
            "data.name": "mnist",
            "data.root": options.data_root,
            "train.batch_size": str(batch_size),
            "train.steps": str(STEPS),
            "tracking.wandb": "disabled",
            "eval.every": str(STEPS),
            "checkpoint.every": str(STEPS // 3),
        }
        config = load_config(None, flags)[0]
        try:
            idx.fetch(config.data, print)
        except UserError as error:
            sys.exit(f"error: {error}")
        splits = sources.load(config.data, seed=config.seed)
        ours, theirs = measure(config, splits, random.Random(0))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        row = {
            "batch": batch_size,
            "seqclf_ms": statistics.median(ours) * 1000 / BLOCK,
            "bare_ms": statistics.median(theirs) * 1000 / BLOCK,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4),
            "ratio_of_totals": sum(ours) / sum(theirs),
            "blocks": len(ours),
            "parts_ms": parts(config),
        }
        print(json.dumps(row))
        rows.append(row)
    save("loop", about() | {"steps_per_block": BLOCK, "rows": rows})


def measure(config: Config, splits: Splits, draw: random.Random) -> tuple[list[float], list[float]]:
    """Return the seconds of each block of steps of the loop and of the bare one.

    The data of the bare one are in the device's memory, wherever the config has those of the loop.
    """
    runtime = start_runtime(config)
    device = runtime.device
    setup = settle(config, splits).on_device(device)
    steps = bare.train_steps(
        splits.train.values.to(device),
        splits.train.labels.to(device),
        setup.plan.num_steps,
        batch_size=setup.plan.batch_size,
        hidden=setup.architecture.hidden_size,
    )
    ours: list[tuple[Any, Any]] = []  # the moments at which each block began and ended
    theirs: list[tuple[Any, Any]] = []

    def bare_block() -> None:
        started = mark(device)
        for _ in range(BLOCK):
            next(steps, None)
        theirs.append((started, mark(device)))

    batches = runtime.loader

    def interleaved(*args: object, **kwargs: object) -> Generator[Batch, None, None]:
        """Yield the loop's batches; at every block's end time it and let bare.py have its turn."""
        resumed = mark(device)
        for index, batch in enumerate(batches(*args, **kwargs)):  # type: ignore[arg-type]
            if index and index % BLOCK == 0:
                ours.append((resumed, mark(device)))
                while len(theirs) < len(ours) - 1:
                    bare_block()
                if draw.random() < 0.5:
                    bare_block()
                resumed = mark(device)
            yield batch

    runtime.loader = interleaved  # type: ignore[method-assign]
    console = Console(enabled=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(Path(folder), setup, runtime, console) as run,
    ):
        model = setup.build_model().to(device)
        optimizer = make_optimizer(model, config.optim)
        state = restore(run, model, optimizer)
        train_steps(setup, run, state, model, optimizer)
    count = min(len(ours), len(theirs))
    return [seconds(*block) for block in ours[:count]], [
        seconds(*block) for block in theirs[:count]
    ]


def parts(config: Config, steps: int = 300) -> dict[str, float]:
    """Return the milliseconds of each part of a step, medians; what the loop adds is not in it."""
    runtime = start_runtime(config)
    device = runtime.device
    setup = settle(config, sources.load(config.data, seed=config.seed)).on_device(device)
    model = setup.build_model().to(device)
    optimizer = make_optimizer(model, config.optim)
    net = runtime.prepare(model)
    times: dict[str, list[float]] = {
        name: [] for name in ("plan", "fetch", "forward", "backward", "clip and update")
    }
    for step in range(steps):
        clock = [now(device)]
        share = setup.plan.share(step, 0, 1)
        clock.append(now(device))
        batch = setup.splits.train.__getitems__(share)
        clock.append(now(device))
        loss = summed_loss(net(batch.values), batch.labels, label_smoothing=0.0)
        clock.append(now(device))
        runtime.backward(loss, loss.detach() * 0 + 1 / batch.total)
        clock.append(now(device))
        update(optimizer, 0.001, config.optim.clip)
        clock.append(now(device))
        for spent, before, after in zip(times.values(), clock, clock[1:], strict=False):
            spent.append(after - before)
    runtime.close()
    return {name: 1000 * statistics.median(spent) for name, spent in times.items()}


if __name__ == "__main__":
    main()
