"""Exact metrics over a split: sums and counts over every example once, divided at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqclf.config.settings import Value
from seqclf.data.batches import evaluation_batches, split_range
from seqclf.data.sequences import Sequences
from seqclf.processes.runtime import Runtime

NUM_MISTAKES = 16
NUM_BINS = 15  # as in Guo et al., "On Calibration of Modern Neural Networks" (2017)


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal asked to stop before an evaluation was complete."""


class Calibrated(NamedTuple):
    """What the same examples give where the model's logits are divided by its temperature."""

    temperature: float
    loss: float
    calibration: Tensor  # as that of Metrics


class Mistake(NamedTuple):
    """A wrongly named example: its position in the split, and the numbers of both classes."""

    example: int
    truth: int
    guess: int
    probability: float  # of the guess


@dataclass(frozen=True)
class Metrics:
    """What an evaluation measures. `confusion[i, j]` counts examples of class i named j."""

    loss: float  # mean cross-entropy in nats, without label smoothing
    confusion: Tensor  # int64 [C, C]
    # The most confident mistakes first, at most NUM_MISTAKES.
    mistakes: list[Mistake] = field(default_factory=list)
    # float64 [NUM_BINS, 3]: examples, hits and summed probability of the guess. The bins are of
    # equal width in that probability.
    calibration: Tensor = field(default_factory=lambda: torch.zeros(NUM_BINS, 3).double())
    calibrated: Calibrated | None = None  # None: the temperature is 1

    @property
    def count(self) -> int:
        """Number of examples evaluated."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of the examples that were named correctly."""
        return int(self.confusion.diagonal().sum()) / self.count

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur in truth or prediction (scikit-learn's default)."""
        hits = self.confusion.diagonal().double()
        sums = self.confusion.sum(0) + self.confusion.sum(1)
        return float((2 * hits[sums > 0] / sums[sums > 0]).mean())

    def to_json(self, classes: tuple[str, ...]) -> dict[str, Value]:
        """Return the metrics of a file, and its confusion matrix."""
        return {
            "examples": self.count,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": list(classes),
            "confusion": self.confusion.tolist(),
        }

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

    With shards the metrics have the same bits on any number of processes. Collective. Leaves the
    model in the mode it was in. Raises Interrupted on every process if a signal asked one of them
    to stop meanwhile, and RuntimeError if the count is not that of the split.
    """
    training = model.training
    model.eval()
    num_shards = shards or runtime.world_size
    num_local_shards = num_shards // runtime.world_size
    first_shard = num_local_shards * runtime.rank
    shard_counts = []
    shard_rows = []
    for shard in range(first_shard, first_shard + num_local_shards):
        first, end = split_range(len(sequences), shard, num_shards)
        batches = evaluation_batches(sequences.lengths, first, end, batch_size)
        counts, rows = _evaluate_shard(runtime, model, sequences, batches)
        shard_counts.append(counts)
        shard_rows.append(rows)
    model.train(training)
    # Both collectives come before any error, because the other processes take part in them.
    counts = runtime.sum(torch.stack(shard_counts).sum(0)).cpu()
    rows = runtime.gather(torch.stack(shard_rows)).cpu()
    if counts[-1]:
        raise Interrupted
    metrics = _divide(counts[:-1], rows[:, :-NUM_BINS], sequences)
    temperature = temperature_of(model)
    if temperature == 1:
        return metrics
    loss = float(rows[:, 0, 1].sum()) / metrics.count
    calibrated = Calibrated(temperature, loss, rows[:, -NUM_BINS:, :3].sum(0))
    return replace(metrics, calibrated=calibrated)


def temperature_of(model: nn.Module) -> float:
    """Return a model's temperature; 1 while it trains."""
    return float(getattr(model, "temperature", 1.0))


def _evaluate_shard(
    runtime: Runtime, model: nn.Module, sequences: Sequences, batches: Iterator[Tensor | slice]
) -> tuple[Tensor, Tensor]:
    """Evaluate one shard; return its counts, int64 on the device, and its rows.

    The counts are the confusion matrix, flat, and a last one that is 1 if a signal asked to stop.
    The rows, float64 [1 + NUM_MISTAKES + 2 * NUM_BINS, 4], are the summed loss, raw and with the
    model's temperature; `tally_guesses`; and the bins of the probabilities with the temperature.
    """
    temperature = temperature_of(model)
    num_classes = len(sequences.classes)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=runtime.device)
    losses = []
    calibrated_losses = []
    columns = []
    for ids in batches:
        runtime.alive()
        if runtime.stop_requested:
            counts[-1:].fill_(1)
            break
        values, lengths = sequences.rows(ids)
        labels = sequences.labels[ids].to(runtime.device, non_blocking=True)
        logits = model(values.to(runtime.device, non_blocking=True), lengths).float()
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        guesses = logits.argmax(1)
        examples = torch.arange(ids.start, ids.stop) if isinstance(ids, slice) else ids
        confidences = logits.softmax(1).amax(1)
        calibrated = confidences
        if temperature != 1:
            warmer = logits / temperature
            calibrated_losses.append(F.cross_entropy(warmer, labels, reduction="sum"))
            calibrated = warmer.softmax(1).amax(1)
        columns.append((examples, labels, guesses, confidences, calibrated))
        pairs = labels * num_classes + guesses
        # Not bincount, which reads the largest value back from the device.
        counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    rows = torch.zeros(1 + NUM_MISTAKES + 2 * NUM_BINS, 4, dtype=torch.float64)
    if losses:
        # float64 on the CPU, because mps has none.
        rows[0, 0] = torch.stack(losses).cpu().double().sum()
        table = [torch.cat(column).cpu().double() for column in zip(*columns, strict=True)]
        guesses = torch.stack(table, 1)
        rows[1:-NUM_BINS] = tally_guesses(guesses[:, :4])
        if calibrated_losses:
            rows[0, 1] = torch.stack(calibrated_losses).cpu().double().sum()
            rows[-NUM_BINS:] = tally_guesses(guesses[:, [0, 1, 2, 4]])[NUM_MISTAKES:]
    return counts, rows


def tally_guesses(guesses: Tensor) -> Tensor:
    """Return the most confident mistakes and the calibration of some examples.

    `guesses` has a row an example: example, truth, guess, the guess's probability. The result has
    NUM_MISTAKES rows of the same columns, zeros below the last mistake, and NUM_BINS rows of
    examples, hits and summed probability.
    """
    guesses = guesses.nan_to_num(0)  # a model that diverged has probabilities that are NaN
    probabilities = guesses[:, 3]
    hits = (guesses[:, 1] == guesses[:, 2]).double()
    mistakes = guesses[hits == 0]
    mistakes = mistakes[mistakes[:, 0].argsort()]
    mistakes = mistakes[mistakes[:, 3].argsort(descending=True, stable=True)][:NUM_MISTAKES]
    rows = guesses.new_zeros(NUM_MISTAKES + NUM_BINS, 4)
    rows[: len(mistakes)] = mistakes
    bins = (probabilities * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    calibration = torch.stack([torch.ones_like(hits), hits, probabilities], 1)
    rows[NUM_MISTAKES:, :3].index_add_(0, bins, calibration)
    return rows


def _divide(confusion: Tensor, rows: Tensor, sequences: Sequences) -> Metrics:
    """Make metrics of the counts of all processes and the rows of all shards, in their order."""
    count = int(confusion.sum())
    if count != len(sequences):
        raise RuntimeError(f"evaluated {count} examples of {len(sequences)}")
    num_classes = len(sequences.classes)
    mistakes = [
        Mistake(int(example), int(truth), int(guess), probability)
        for example, truth, guess, probability in rows[:, 1:-NUM_BINS].flatten(0, 1).tolist()
        if truth != guess  # not where there were fewer mistakes than rows
    ]
    mistakes.sort(key=lambda mistake: (-mistake.probability, mistake.example))
    return Metrics(
        loss=float(rows[:, 0, 0].sum()) / count,
        confusion=confusion.view(num_classes, num_classes),
        mistakes=mistakes[:NUM_MISTAKES],
        calibration=rows[:, -NUM_BINS:, :3].sum(0),
    )
