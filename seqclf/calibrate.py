"""The temperature of a result: what divides its logits, so that its probabilities are honest.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from seqclf.data.batches import evaluation_batches, split_range
from seqclf.data.sequences import Sequences
from seqclf.evaluate import Interrupted
from seqclf.model import LSTMClassifier
from seqclf.processes.runtime import Runtime

FEWEST_EXAMPLES = 50  # of the validation split, to fit a temperature to
LOWEST, HIGHEST = 0.05, 20.0
MOST_LOGITS = 20_000_000  # of a split; of a larger one, examples are chosen evenly


class Temperature(NamedTuple):
    """A temperature, and the line that says where it comes from."""

    value: float
    line: str


def fit(
    runtime: Runtime,
    model: LSTMClassifier,
    validation: Sequences,
    *,
    batch_size: int,
    shards: int | None,
) -> Temperature:
    """Fit a model's temperature to validation examples. Collective.

    With shards it has the same bits on any number of processes. Raises Interrupted on every process
    if a signal asked one of them to stop meanwhile.
    """
    num_classes = len(validation.classes)
    count = min(len(validation), max(FEWEST_EXAMPLES, MOST_LOGITS // num_classes))
    if count < len(validation):
        validation = validation.select(torch.arange(count) * len(validation) // count)
    logits_NC = gather_logits(runtime, model, validation, batch_size=batch_size, shards=shards)
    labels_N = validation.labels.cpu().numpy()
    found = runtime.from_main(lambda: list(fit_to_logits(logits_NC, labels_N)))
    assert isinstance(found, list)
    return Temperature(float(str(found[0])), str(found[1]))


@torch.inference_mode()
def gather_logits(
    runtime: Runtime,
    model: LSTMClassifier,
    sequences: Sequences,
    *,
    batch_size: int,
    shards: int | None,
) -> np.ndarray:
    """Return the logits of all examples, float64 [N, C], in batches as `evaluate` makes them."""
    training = model.training
    model.eval()
    num_shards = shards or runtime.world_size
    num_local_shards = num_shards // runtime.world_size
    ranges = [split_range(len(sequences), shard, num_shards) for shard in range(num_shards)]
    most = max(end - first for first, end in ranges)
    rows = torch.zeros(num_local_shards, most, len(sequences.classes))
    stopped = torch.zeros(1, dtype=torch.int64)
    for number, (first, end) in enumerate(ranges[num_local_shards * runtime.rank :][: len(rows)]):
        for ids in evaluation_batches(sequences.lengths, first, end, batch_size):
            runtime.alive()
            if runtime.stop_requested:
                stopped.fill_(1)
                break
            values, lengths = sequences.rows(ids)
            logits = model(values.to(runtime.device, non_blocking=True), lengths)
            examples = torch.arange(ids.start, ids.stop) if isinstance(ids, slice) else ids.cpu()
            rows[number, examples - first] = logits.float().cpu()
    model.train(training)
    # Both collectives come before any error, because the other processes take part in them.
    rows = runtime.gather(rows).cpu()
    if runtime.sum(stopped).item():
        raise Interrupted
    parts = [row[: end - first] for row, (first, end) in zip(rows, ranges, strict=True)]
    return torch.cat(parts).double().numpy()


def fit_to_logits(logits_NC: np.ndarray, labels_N: np.ndarray) -> Temperature:
    """Return the temperature of the lowest mean cross-entropy, or 1 with the reason for none."""
    reason = _reason_for_none(logits_NC, labels_N)
    if reason is None:
        from scipy.optimize import brentq  # here, because only the end of a run needs it

        ends = [_slope(math.log(end), logits_NC, labels_N) for end in (LOWEST, HIGHEST)]
        if not ends[1] < 0 < ends[0]:
            bound, side = (LOWEST, "below") if ends[0] <= 0 else (HIGHEST, "above")
            reason = f"the best one is {side} {bound:g}"
    if reason is not None:
        return Temperature(1.0, f"temperature none: {reason}")
    best = brentq(_slope, math.log(LOWEST), math.log(HIGHEST), args=(logits_NC, labels_N))
    value = float(f"{math.exp(best):.6g}")
    losses = [mean_cross_entropy(logits_NC / number, labels_N) for number in (1.0, value)]
    return Temperature(
        value,
        f"temperature {value:.3g}: validation loss {losses[0]:.4f} to {losses[1]:.4f}; predict "
        "--raw leaves it out",
    )


def _reason_for_none(logits_NC: np.ndarray, labels_N: np.ndarray) -> str | None:
    count = len(labels_N)
    if count < FEWEST_EXAMPLES:
        return f"{count:,} validation examples are too few; hold out {FEWEST_EXAMPLES} or more"
    if not np.isfinite(logits_NC).all():
        return "not all logits of the validation examples are finite"
    if (logits_NC.argmax(1) == labels_N).all():
        # The surer the model, the lower its loss: the best temperature would be 0.
        return f"all {count:,} validation examples are named rightly, so no loss bounds it"
    return None


def mean_cross_entropy(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the mean cross-entropy in nats, in float64."""
    shifted_NC = logits_NC - logits_NC.max(1, keepdims=True)
    sums_N = np.log(np.exp(shifted_NC).sum(1))
    return float((sums_N - shifted_NC[np.arange(len(labels_N)), labels_N]).mean())


def _slope(log_temperature: float, logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the derivative of the mean cross-entropy by 1 / temperature, in which it is convex.

    So it falls as the temperature rises, and is 0 where the loss is lowest.
    """
    shifted_NC = logits_NC - logits_NC.max(1, keepdims=True)
    shares_NC = np.exp(shifted_NC / math.exp(log_temperature))
    expected_N = (shares_NC * shifted_NC).sum(1) / shares_NC.sum(1)
    return float((expected_N - shifted_NC[np.arange(len(labels_N)), labels_N]).mean())
