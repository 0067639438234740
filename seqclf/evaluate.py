"""Exact metrics over a split: sums and counts from every example once, divided at the end."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqclf import checkpoint
from seqclf import runtime as runtimes
from seqclf.config import Config, UserError
from seqclf.data import sources
from seqclf.data.batches import evaluation_batches, split_range
from seqclf.data.sequences import Sequences
from seqclf.predict import load_model
from seqclf.runtime import Runtime

NUM_MISTAKES = 16  # that are kept
NUM_BINS = 15  # of confidence, as in Guo et al., "On Calibration of Modern Neural Networks" (2017)


class Interrupted(Exception):  # noqa: N818 (not an error)
    """An evaluation was left before its end, because a signal asked to stop."""


class Mistake(NamedTuple):
    """An example that was named wrongly: its position in the split, and classes by number."""

    example: int
    truth: int
    guess: int
    probability: float  # of the guess


@dataclass(frozen=True)
class Metrics:
    """What an evaluation found. `confusion[i, j]` counts examples of class i named j."""

    loss: float  # mean cross-entropy in nats, without smoothing
    confusion: Tensor  # int64 [C, C]
    mistakes: list[Mistake] = field(
        default_factory=list
    )  # the most confident, at most NUM_MISTAKES
    # float64 [NUM_BINS, 3], of equal widths of the guess's probability: examples, hits, sum of it
    calibration: Tensor = field(default_factory=lambda: torch.zeros(NUM_BINS, 3).double())

    @property
    def count(self) -> int:
        """Number of examples evaluated."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the examples named rightly."""
        return int(self.confusion.diagonal().sum()) / self.count

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur in truth or prediction (scikit-learn's default)."""
        hits = self.confusion.diagonal().double()
        sums = self.confusion.sum(0) + self.confusion.sum(1)
        return float((2 * hits[sums > 0] / sums[sums > 0]).mean())

    def named(self, split: str) -> dict[str, float]:
        """Return the metrics under their names in metrics.jsonl."""
        return {
            f"{split}/loss": self.loss,
            f"{split}/accuracy": self.accuracy,
            f"{split}/macro_f1": self.macro_f1,
        }


@torch.inference_mode()
def evaluate(
    runtime: Runtime,
    model: nn.Module,
    sequences: Sequences,
    *,
    batch_size: int,
    shards: int | None = None,
) -> Metrics:
    """Evaluate a model on every example of a split exactly once, on any number of processes.

    With shards the same bits, too. Collective. Leaves the model in the mode it was in. Raises
    Interrupted on every process if a signal asked one of them to stop meanwhile, and RuntimeError
    if the count is not that of the split.
    """
    training = model.training
    model.eval()
    num_classes = len(sequences.classes)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=runtime.device)
    confusion, interrupted = counts[:-1], counts[-1:]
    parts = shards or runtime.world_size
    mine = parts // runtime.world_size
    numbers = torch.arange(len(sequences))
    rows = []  # of this process's parts, float64 on the CPU: mps has none
    for part in range(mine * runtime.rank, mine * (runtime.rank + 1)):
        losses, guesses, order = [], [], []
        first, end = split_range(len(sequences), part, parts)
        for ids in evaluation_batches(sequences.lengths, first, end, batch_size):
            runtime.watch.progress()
            if runtime.watch.requested is not None:
                interrupted.fill_(1)
                break
            values, lengths = sequences.rows(ids)
            labels = sequences.labels[ids].to(runtime.device, non_blocking=True)
            logits = model(values.to(runtime.device, non_blocking=True), lengths).float()
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            guess = logits.argmax(1)
            guesses.append((labels, guess, logits.softmax(1).amax(1)))
            order.append(numbers[ids])
            pairs = labels * num_classes + guess
            # not bincount: it reads the largest value back
            confusion.scatter_add_(0, pairs, torch.ones_like(pairs))
        row = torch.zeros(1 + NUM_MISTAKES + NUM_BINS, 4, dtype=torch.float64)
        if losses:
            row[0, 0] = torch.stack(losses).cpu().double().sum()
            columns = [torch.cat(column).cpu().double() for column in zip(*guesses, strict=True)]
            look_at(torch.stack([torch.cat(order).double(), *columns], 1), row[1:])
        rows.append(row)
    model.train(training)
    counts = runtime.sum(counts).cpu()
    everyones = runtime.gather(torch.stack(rows)).cpu()
    confusion, interrupted = counts[:-1], counts[-1:]
    if interrupted:
        raise Interrupted
    if int(confusion.sum()) != len(sequences):
        raise RuntimeError(f"evaluated {int(confusion.sum())} examples of {len(sequences)}")
    found = [
        Mistake(int(example), int(truth), int(guess), probability)
        for example, truth, guess, probability in everyones[:, 1:-NUM_BINS].flatten(0, 1).tolist()
        if truth != guess
    ]
    found.sort(key=lambda mistake: (-mistake.probability, mistake.example))
    return Metrics(
        float(everyones[:, 0, 0].sum()) / len(sequences),
        confusion.view(num_classes, num_classes),
        found[:NUM_MISTAKES],
        everyones[:, -NUM_BINS:, :3].sum(0),
    )


def look_at(guesses: Tensor, out: Tensor) -> None:
    """Write the most confident mistakes and the calibration of some examples into `out`.

    `guesses` holds a row for each: example, truth, guess, its probability. `out` takes NUM_MISTAKES
    such rows (where there are fewer, zeros) and NUM_BINS of examples, hits, sum of probability.
    """
    guesses[:, 3].nan_to_num_(0)  # of a model that diverged
    chances, hits = guesses[:, 3], (guesses[:, 1] == guesses[:, 2]).double()
    wrong = guesses[hits == 0]
    wrong = wrong[wrong[:, 0].argsort()]
    wrong = wrong[wrong[:, 3].argsort(descending=True, stable=True)][:NUM_MISTAKES]
    out[: len(wrong)] = wrong
    bins = (chances * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    calibration = torch.stack([torch.ones_like(hits), hits, chances], 1)
    out[NUM_MISTAKES:, :3].index_add_(0, bins, calibration)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson's score interval, 1927)."""
    if not n:
        return 0.0, 1.0
    z, share = statistics.NormalDist().inv_cdf(0.975), hits / n
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def macro_f1_interval(confusion: list[list[int]], draws: int = 1000) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of macro F1: percentiles over resampled examples."""
    matrix = np.array(confusion)
    cells, n = np.flatnonzero(matrix), int(matrix.sum())
    rng = np.random.default_rng(0)
    counts_DK = rng.multinomial(n, matrix.ravel()[cells] / n, size=draws)
    truths_K, guesses_K = np.divmod(cells, len(matrix))
    hits_DC, sums_DC = np.zeros((2, draws, len(matrix)))
    for count_D, truth, guess in zip(counts_DK.T, truths_K, guesses_K, strict=True):
        hits_DC[:, truth] += count_D * (truth == guess)
        sums_DC[:, truth] += count_D
        sums_DC[:, guess] += count_D
    f1_D = (2 * hits_DC / np.maximum(sums_DC, 1)).sum(1) / (sums_DC > 0).sum(1)
    low, high = np.percentile(f1_D, [2.5, 97.5])
    return float(low), float(high)


def evaluate_run(config: Config, run_dir: Path) -> dict[str, float]:
    """Measure a run's result again on the data of its config, in the precision it was trained in.

    Collective. Raises UserError if model or data are missing or do not belong together.
    """
    model, card = load_model(run_dir)
    precision = checkpoint.read_json(run_dir / "run.json").get("precision")
    if precision != "bf16" and not torch.cuda.is_available():
        precision = "fp32"  # fp16 exists on a GPU only
    runtime = runtimes.start(config.model_copy(update={"precision": precision}))
    try:
        splits = sources.load(config.data, seed=config.seed)
        if splits.test.classes != card.classes:
            raise UserError(f"{run_dir}: trained on other classes than '{splits.name}' has")
        model = model.to(runtime.device)
        runtime.prepare(model)
        metrics: dict[str, float] = {}
        for split, sequences in splits.measured.items():
            found = evaluate(runtime, model, sequences, batch_size=config.eval.batch_size)
            metrics |= found.named(split)
        return metrics
    finally:
        runtime.close()
