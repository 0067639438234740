"""Seconds of an epoch at one, two and four times the examples, and the steps of each.

Random sequences of 4 features, LSTM(4, 64), batch 64; whole epochs in turn, in random order.

    python benchmarks/linear.py --rounds 5
"""

import argparse
import json
import random
import statistics
import time

import torch
from results import about, save

from seqclf.config.load import load_config
from seqclf.data.batches import BatchPlan
from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer
from seqclf.processes.start import start_runtime
from seqclf.step import train_step

EXAMPLES, STEPS = 4_000, 50
SHAPES = {
    "1 x 1": (EXAMPLES, STEPS),
    "2 x examples": (2 * EXAMPLES, STEPS),
    "4 x examples": (4 * EXAMPLES, STEPS),
    "2 x steps": (EXAMPLES, 2 * STEPS),
    "4 x steps": (EXAMPLES, 4 * STEPS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = load_config(None, {"device": "cpu"})[0]
    runtime = start_runtime(config)
    model = LSTMClassifier(4, 10, hidden_size=64)
    net, optimizer = runtime.prepare(model), make_optimizer(model, config.optim)
    data = {
        name: Sequences(
            torch.randn(count, steps, 4), torch.zeros(count).long(), tuple("0123456789")
        )
        for name, (count, steps) in SHAPES.items()
    }

    def epoch(name: str) -> float:
        plan = BatchPlan(len(data[name]), 64, seed=0, num_steps=-(-len(data[name]) // 64))
        started = time.perf_counter()
        for batch in runtime.loader(data[name], plan, start=0):
            train_step(runtime, net, optimizer, batch, config, 1e-6)
        return time.perf_counter() - started

    epoch("1 x 1")
    found: dict[str, list[float]] = {name: [] for name in SHAPES}
    draw = random.Random(0)
    for _ in range(options.rounds):
        for name in draw.sample(list(SHAPES), len(SHAPES)):
            found[name].append(epoch(name))
    runtime.close()
    middle = {name: statistics.median(times) for name, times in found.items()}
    ratios = {name: seconds / middle["1 x 1"] for name, seconds in middle.items()}
    print(json.dumps(ratios))
    told = {"rounds": options.rounds, "seconds": middle, "ratios": ratios}
    save("linear", about(cpu_only=True) | told)


if __name__ == "__main__":
    main()
