"""Confidence intervals of a share and of macro F1.

Shapes: D draws, K cells of the confusion matrix that are not 0, C classes.
"""

from __future__ import annotations

import numpy as np


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson's score interval, 1927)."""
    from scipy.stats import binomtest  # here, because it takes a second to import

    if not n:
        return 0.0, 1.0
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def macro_f1_interval(confusion: list[list[int]], draws: int = 1000) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of macro F1: percentiles over resampled examples."""
    matrix = np.array(confusion)
    cells_K = np.flatnonzero(matrix)
    n = int(matrix.sum())
    rng = np.random.default_rng(0)
    counts_DK = rng.multinomial(n, matrix.ravel()[cells_K] / n, size=draws)
    truths_K, guesses_K = np.divmod(cells_K, len(matrix))
    hits_DC, sums_DC = np.zeros((2, draws, len(matrix)))
    for count_D, truth, guess in zip(counts_DK.T, truths_K, guesses_K, strict=True):
        hits_DC[:, truth] += count_D * (truth == guess)
        sums_DC[:, truth] += count_D
        sums_DC[:, guess] += count_D
    f1_D = (2 * hits_DC / np.maximum(sums_DC, 1)).sum(1) / (sums_DC > 0).sum(1)
    low, high = np.percentile(f1_D, [2.5, 97.5])
    return float(low), float(high)
