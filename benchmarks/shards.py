"""Time a step in one process with `train.shards` against one without, on random images.

Blocks of 5 steps of each alternate in random order. One thread each, LSTM(28, 64), no augmentation.

    python benchmarks/shards.py
"""

import json
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch

from seqclf.config.load import load_config
from seqclf.data.sequences import Batch
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer
from seqclf.processes.start import start_runtime
from seqclf.step import train_step

BLOCK, BLOCKS, WARM_UP = 5, 40, 5
SHARDS = ("null", "2", "4")


def main() -> None:
    draw = random.Random(0)
    for batch_size in (64, 128, 512):
        steps = {shards: step_with(shards, batch_size) for shards in SHARDS}
        seconds: dict[str, list[float]] = {shards: [] for shards in SHARDS}
        for step in steps.values():
            for _ in range(WARM_UP):
                step()
        for _ in range(BLOCKS):
            for shards in draw.sample(SHARDS, len(SHARDS)):
                started = time.perf_counter()
                for _ in range(BLOCK):
                    steps[shards]()
                seconds[shards].append((time.perf_counter() - started) / BLOCK)
        medians = {shards: statistics.median(times) for shards, times in seconds.items()}
        result = {
            "batch_size": batch_size,
            "ms": {shards: round(median * 1000, 2) for shards, median in medians.items()},
            "ratio": {
                shards: round(median / medians["null"], 2) for shards, median in medians.items()
            },
            "blocks": BLOCKS,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        print(json.dumps(result))


def step_with(shards: str, batch_size: int) -> Callable[[], object]:
    """Return what makes one training step."""
    flags = {"device": "cpu", "train.threads": "1", "train.batch_size": str(batch_size)}
    config = load_config(None, flags | {"train.shards": shards})[0]
    runtime = start_runtime(config)
    model = LSTMClassifier(28, 10, scale=255.0)
    optimizer = make_optimizer(model, config.optim)
    prepared = runtime.prepare(model, reduces=shards == "null")
    images = torch.randint(0, 256, (batch_size, 28, 28), dtype=torch.uint8)
    batch = Batch(images, torch.randint(0, 10, (batch_size,)), 0, 0, batch_size)
    return lambda: train_step(runtime, prepared, optimizer, batch, config, lr=0.01)


if __name__ == "__main__":
    main()
