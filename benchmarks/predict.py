"""Measure `predict_proba` against a bare torch loop over batches sorted by length.

    python benchmarks/predict.py [--hidden-size 64 ...]

Both read the same 2,000 sequences of 20 to 99 steps with 6 features (random numbers: the time does
not depend on what they are) with the same model, on one thread, in turn. The loop pads 256
sequences at once, in inference mode, and checks nothing. Without --hidden-size the model is the one
that configs/files.yaml makes for these data.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import seqclf

ROUNDS = 15
AT_ONCE = 256
NUM_ALONE = 200  # calls with one sequence


def main() -> None:
    """Print the median seconds of both, and the milliseconds that one sequence takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden-size", type=int, nargs="*", default=[])
    sizes = parser.parse_args().hidden_size
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 100, 2000).tolist()
    sequences = [generator.normal(size=(length, 6)).astype(np.float32) for length in lengths]
    labels = [str(index % 3) for index in range(len(sequences))]
    for size in sizes or [None]:
        chosen = {} if size is None else {"model.hidden_size": size}
        settings = {"train.steps": 5, "train.threads": 1} | chosen
        classifier = seqclf.train(settings, train=(sequences, labels), verbose=0).model
        measure(classifier, sequences)


def measure(classifier: seqclf.Classifier, sequences: list[np.ndarray]) -> None:
    """Print a line about a model."""
    model = classifier._members[0].model
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    bare, ours, alone = [], [], []
    for number in range(ROUNDS + 1):  # the first one warms up
        start = time.perf_counter()
        with torch.inference_mode():
            for first in range(0, len(order), AT_ONCE):
                some = [torch.from_numpy(sequences[i]) for i in order[first : first + AT_ONCE]]
                lengths = torch.tensor(list(map(len, some)))
                model(pad_sequence(some, batch_first=True), lengths).softmax(1).numpy()
        middle = time.perf_counter()
        classifier.predict_proba(sequences)
        end = time.perf_counter()
        if number:
            bare.append(middle - start)
            ours.append(end - middle)
    for sequence in sequences[:NUM_ALONE]:
        start = time.perf_counter()
        classifier.predict_proba([sequence])
        alone.append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(bare, ours, strict=True))
    print(
        f"{classifier.title}: bare {statistics.median(bare):.3f} s, predict_proba "
        f"{statistics.median(ours):.3f} s, median of the ratios {ratio:.2f} (n = {ROUNDS}); one "
        f"sequence {1000 * statistics.median(alone):.2f} ms (n = {NUM_ALONE})"
    )


if __name__ == "__main__":
    main()
