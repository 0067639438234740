"""What padding costs where lengths are skewed, and what a PackedSequence does.

Lengths are log-normal; the model is LSTM(12, 64) and a step forward, backward, clip and update. The
ways take turns in blocks of BLOCK steps, in random order, through an epoch or as far as asked; a
rate is all examples over all seconds.

    python benchmarks/ragged.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

sys.path.insert(0, str(Path(__file__).parents[1]))

from seqclf.config.settings import Optim
from seqclf.data.batches import BatchPlan, padding_fraction
from seqclf.data.orders import make_buckets
from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer, update

FEATURES, CLASSES, BLOCK = 12, 10, 20
Forward = Callable[[LSTMClassifier, Tensor, Tensor | None], Tensor]


def main() -> None:
    """Print a line of JSON per way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    data = skewed(options.examples)
    assert data.lengths is not None
    buckets = make_buckets(data.lengths, options.batch_size)
    plans = {
        "bucketed": BatchPlan(len(data), options.batch_size, 0, 10**6, buckets),
        "unbucketed": BatchPlan(len(data), options.batch_size, 0, 10**6),
    }
    ways: dict[str, tuple[BatchPlan, Forward]] = {
        "bucketed, padded (seqclf)": (plans["bucketed"], padded),
        "unbucketed, padded": (plans["unbucketed"], padded),
        "unbucketed, PackedSequence": (plans["unbucketed"], packed),
        "bucketed, PackedSequence": (plans["bucketed"], packed),
    }
    steps = {name: stepper(data, *way) for name, way in ways.items()}
    examples, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for step in steps.values():
        step()  # the first one is slower
    draw = random.Random(0)
    for _ in range(options.blocks):
        for name in draw.sample(sorted(ways), len(ways)):
            started = time.perf_counter()
            examples[name] += sum(steps[name]() for _ in range(BLOCK))
            seconds[name] += time.perf_counter() - started
    rates = {name: examples[name] / seconds[name] for name in ways}
    for name, (plan, forward) in ways.items():
        share = padding_fraction(data.lengths, plan)
        found = {
            "way": name,
            "padding": round(share, 3) if forward is padded else 0.0,
            "examples_per_s": round(rates[name]),
            "seqclf_is_faster_by": round(rates["bucketed, padded (seqclf)"] / rates[name], 2),
            "steps": options.blocks * BLOCK,
            "threads": options.threads,
            "batch_size": options.batch_size,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        print(json.dumps(found), flush=True)


def skewed(count: int) -> Sequences:
    """Make sequences of log-normal lengths: half below 55 steps, one in a hundred over 350."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(count, generator=generator).mul(0.8).add(4).exp().ceil().to(torch.int64)
    values = torch.randn(int(lengths.sum()), FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    starts = lengths.cumsum(0) - lengths
    classes = tuple(map(str, range(CLASSES)))
    return Sequences(values, labels, classes, starts=starts, lengths=lengths)


def padded(model: LSTMClassifier, values: Tensor, lengths: Tensor | None) -> Tensor:
    """Read a padded batch as seqclf does."""
    logits: Tensor = model(values, lengths)
    return logits


def packed(model: LSTMClassifier, values: Tensor, lengths: Tensor | None) -> Tensor:
    """Read it as torch's documentation shows."""
    if lengths is None:
        lengths = torch.full((len(values),), values.shape[1])
    sequences = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
    _, (state, _) = model.rnn(sequences)
    logits: Tensor = model.out(state[-1])
    return logits


def stepper(data: Sequences, plan: BatchPlan, forward: Forward) -> Callable[[], int]:
    """Return a function that trains for a step and says on how many examples."""
    torch.manual_seed(0)
    model = LSTMClassifier(FEATURES, CLASSES)
    optimizer = make_optimizer(model, Optim())
    shares = plan.shares(0, 0, 1)

    def step() -> int:
        batch = data.__getitems__(next(shares))
        loss = F.cross_entropy(forward(model, batch.values, batch.lengths), batch.labels)
        loss.backward()
        update(optimizer, 0.001, 1.0)
        return len(batch.labels)

    return step


if __name__ == "__main__":
    main()
