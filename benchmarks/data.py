"""Examples a second of plan, fetch and augmentation alone, against what the model takes in.

MNIST by rows, LSTM(28, 64), one process. Blocks of 25 steps of each alternate in random order.

    python benchmarks/data.py --data-root data
"""

import argparse
import itertools
import json
import random
import statistics
import sys

from results import about, now, save

from seqclf.config.load import load_config
from seqclf.config.settings import Augment, Config
from seqclf.data import idx, sources
from seqclf.data.augment import augment
from seqclf.errors import UserError
from seqclf.optim import make_optimizer
from seqclf.processes.start import start_runtime
from seqclf.settle import settle
from seqclf.step import train_step

BLOCK, BLOCKS, WARM_UP = 25, 30, 2
MOVES = Augment(shift=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    options = parser.parse_args()
    rows = []
    for batch_size in (64, 512):
        flags = {"data.name": "mnist", "data.root": options.data_root, "train.epochs": "99"}
        config = load_config(None, flags | {"train.batch_size": str(batch_size)})[0]
        try:
            idx.fetch(config.data, print)
        except UserError as error:
            sys.exit(f"error: {error}")
        rows.append({"batch": batch_size} | measure(config))
    print(json.dumps(rows))
    save("data", about() | {"blocks": BLOCKS, "rows": rows})


def measure(config: Config) -> dict[str, float]:
    """Return the examples a second of each way, and the MB that the data take in memory."""
    runtime = start_runtime(config)
    setup = settle(config, sources.load(config.data, seed=0)).on_device(runtime.device)
    splits = setup.splits
    model = setup.build_model().to(runtime.device)
    optimizer = make_optimizer(model, config.optim)
    net = runtime.prepare(model)
    batches = runtime.loader(splits.train, setup.plan, start=0, workers=0)

    def block(way: str) -> float:
        started = now(runtime.device)
        for batch in itertools.islice(batches, BLOCK):
            if way == "fetch and shift":
                augment(batch, MOVES, 0)
            elif way == "fetch and train":
                train_step(runtime, net, optimizer, batch, config, 0.001)
        return now(runtime.device) - started

    times: dict[str, list[float]] = {"fetch": [], "fetch and shift": [], "fetch and train": []}
    draw = random.Random(0)
    for number in range(WARM_UP + BLOCKS):
        for way in draw.sample(list(times), len(times)):
            spent = block(way)
            if number >= WARM_UP:
                times[way].append(spent)
    runtime.close()
    tensors = [t for part in (splits.train, splits.test) for t in (part.values, part.labels)]
    examples = BLOCK * int(config.train.batch_size)
    rates = {f"{way}, examples/s": examples / statistics.median(of) for way, of in times.items()}
    return rates | {"memory_mb": sum(t.nbytes for t in tensors) / 1e6}


if __name__ == "__main__":
    main()
