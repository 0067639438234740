"""Features of fixed convolutions beside the LSTM, which see shapes wherever they stand.

Shapes: B batch, T steps, F features of a step, D dilations, K kernels, Q thresholds, and
R = D K Q features of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL_SIZE = 9
NUM_KERNELS = math.comb(KERNEL_SIZE, 3)  # one for each place of three weights of 2 among -1
MOST_DILATIONS = 20  # the last one spans four million steps
MOST_INPUTS = 9  # features that a kernel reads at most
SAMPLES = 256  # steps of a row that thresholds are chosen by
STEPS_AT_ONCE = 4096  # of a CPU: what they come to stays in its cache
WIDTH = 0.02  # share of steps around a threshold over which a step counts in part
LEAST_WIDTH = 1e-4  # in deviations of what kernels find; their sums are rounded by less
EPSILON, ROW_EPSILON = 0.01, 1e-5  # added to deviations of features, and to variances of rows
OUTSIDE = -3.0  # of a row, below nearly all values: so kernels see its ends, and how long it is
GAIN = 8.0  # the output layer learns from the features this much faster than from their mean
GOLDEN_RATIO = 0.618034  # its multiples, without what is before the point, lie evenly in 0 to 1

Batches = Callable[[], Iterable[tuple[Tensor, Tensor | None]]]


def choose_dilations(num_steps: int) -> tuple[int, ...]:
    """Return the powers of two at which a kernel spans at most so many steps; 1 at least."""
    reach = max(1, (num_steps - 1) // (KERNEL_SIZE - 1))
    return tuple(2**power for power in range(min(reach.bit_length(), MOST_DILATIONS)))


def round_features(num_features: int, num_dilations: int) -> int:
    """Return about as many features, with equally many thresholds of each kernel; 0 stays 0."""
    each = num_dilations * NUM_KERNELS
    return max(1, round(num_features / each)) * each if num_features else 0


class RocketFeatures(nn.Module):
    """For how large a share of the steps each of many fixed convolutions is above a threshold.

    The kernels are those of Dempster, Schmidt and Webb, "MiniRocket: A Very Fast (Almost)
    Deterministic Transform for Time Series Classification", KDD 2021, and so are the thresholds:
    quantiles of what the kernels find in training examples. Nothing here is trained, so a small
    data set cannot be learned by heart here. Other than there, half of the kernels read rows with
    mean 0 and variance 1, and the others see where a row ends; a step near a threshold counts in
    part, so that rounding decides little; and the features are normalised for an output layer that
    they share with the LSTM.
    """

    kernels: Tensor
    inputs: Tensor
    thresholds: Tensor
    widths: Tensor
    mean: Tensor
    factor: Tensor

    def __init__(self, num_inputs: int, dilations: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        self.dilations = dilations
        num_thresholds = num_features // (len(dilations) * NUM_KERNELS)
        shape = (len(dilations), num_thresholds, NUM_KERNELS)
        self.register_buffer("kernels", make_kernels(), persistent=False)
        self.register_buffer("inputs", _draw_inputs(len(dilations), num_inputs))
        self.register_buffer("thresholds", torch.zeros(shape))
        self.register_buffer("widths", torch.ones(shape))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("factor", torch.ones(num_features))

    @property
    def operations_per_step(self) -> int:
        """About how many numbers are added, multiplied or compared for a step."""
        num_dilations, num_thresholds, num_kernels = self.thresholds.shape
        per_kernel = KERNEL_SIZE + 3 * num_thresholds
        return self.inputs.numel() + num_dilations * num_kernels * per_kernel

    def forward(self, values_BTF: Tensor, lengths: Tensor | None) -> Tensor:
        """Map sequences [B, T, F] to features [B, R]; steps beyond `lengths` are padding."""
        # Half precision would not tell which side of a threshold a step is on.
        with torch.autocast(values_BTF.device.type, enabled=False):
            return (self._count(values_BTF, lengths) - self.mean) * self.factor

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        """Choose the thresholds by training examples, and normalise the features over these.

        `batches` gives the same sequences and lengths at each call, and is called twice.
        """
        samples: list[list[Tensor]] = [[] for _ in self.dilations]
        for values_BTF, lengths in batches():
            for number, found_BKT in enumerate(self._convolve(values_BTF, lengths)):
                samples[number].append(_sample(found_BKT, lengths))
        places_R = torch.arange(1, self.thresholds.numel() + 1) * GOLDEN_RATIO % 1
        places_DQK = places_R.view_as(self.thresholds)
        for number, parts in enumerate(samples):
            found_NK = torch.cat(parts).sort(0).values
            below_QK, threshold_QK, above_QK = (
                _quantiles(found_NK, places_DQK[number] + change) for change in (-WIDTH, 0, WIDTH)
            )
            # Of the kernel that finds most: what another one finds may be what rounding left.
            least = LEAST_WIDTH * found_NK.std(0, correction=0).max().clamp(min=1)
            # Between two values that steps have: many steps may have the same one.
            next_QK = _next(found_NK, threshold_QK + 2 * least)
            self.thresholds[number] = (threshold_QK + next_QK) / 2
            self.widths[number] = (above_QK - below_QK).clamp(min=least)
        features_NR = torch.cat([self._count(*batch) for batch in batches()])
        deviation_R = features_NR.std(0, correction=0)
        self.mean.copy_(features_NR.mean(0))
        self.factor.copy_(GAIN / math.sqrt(len(self.mean)) / (deviation_R + EPSILON))

    def _count(self, values_BTF: Tensor, lengths: Tensor | None) -> Tensor:
        """Return for how large a share of a row's steps a kernel is above a threshold, [B, R]."""
        num_rows, num_steps, _ = values_BTF.shape
        at_once = max(1, STEPS_AT_ONCE // num_steps) if values_BTF.is_cpu else num_rows
        shares = [
            self._count_together(
                values_BTF[first : first + at_once],
                None if lengths is None else lengths[first : first + at_once],
            )
            for first in range(0, num_rows, at_once)
        ]
        return torch.cat(shares)

    def _count_together(self, values_BTF: Tensor, lengths: Tensor | None) -> Tensor:
        valid_B1T = _valid(values_BTF, lengths)
        count = values_BTF.shape[1] if lengths is None else lengths[:, None]
        shares = []
        for number, found_BKT in enumerate(self._convolve(values_BTF, lengths)):
            # torch's hardsigmoid rises from 0 to 1 between -3 and 3.
            pairs = zip(self.thresholds[number], 6 / self.widths[number], strict=True)
            for threshold_K, slope_K in pairs:
                above_BKT = F.hardsigmoid((found_BKT - threshold_K[:, None]) * slope_K[:, None])
                shares.append(_keep(above_BKT, valid_B1T).sum(2) / count)
        return torch.cat(shares, 1)

    def _convolve(self, values_BTF: Tensor, lengths: Tensor | None) -> Iterator[Tensor]:
        """Yield what the kernels find at each dilation, [B, K, T]."""
        rows_BFT, outside_BF1 = centre_rows(values_BTF.mT, _valid(values_BTF, lengths))
        num_steps = rows_BFT.shape[2]
        for dilation, inputs_KF in zip(self.dilations, self.inputs, strict=True):
            outside_BKT = (inputs_KF @ outside_BF1).expand(-1, -1, dilation * (KERNEL_SIZE // 2))
            read_BKT = torch.cat([outside_BKT, inputs_KF @ rows_BFT, outside_BKT], 2)
            found_BKT = torch.zeros_like(read_BKT[..., :num_steps])
            # Sums, not conv1d: on a GPU that rounds its inputs to ten bits (TF32).
            for number, weight_K in enumerate(self.kernels.mT):
                start = number * dilation
                found_BKT.addcmul_(read_BKT[..., start : start + num_steps], weight_K[:, None])
            yield found_BKT


def make_kernels() -> Tensor:
    """Return all kernels with weights -1, but 2 at three places, [K, KERNEL_SIZE]."""
    places_K3 = torch.tensor(list(combinations(range(KERNEL_SIZE), 3)))
    return torch.full((NUM_KERNELS, KERNEL_SIZE), -1.0).scatter(1, places_K3, 2.0)


def _draw_inputs(num_dilations: int, num_inputs: int) -> Tensor:
    """Draw which features each kernel adds up, [D, K, 2 F]: with their scale, or without.

    Neighbours read the two in turn. One feature, or two, is as likely as more, up to MOST_INPUTS.
    """
    most = min(num_inputs, MOST_INPUTS)
    shape = (num_dilations, NUM_KERNELS)
    counts_DK = (most + 1) ** torch.rand(shape)
    ranks_DKF = torch.rand(*shape, num_inputs).argsort(2).argsort(2)
    drawn_DKF = (ranks_DKF < counts_DK.long().clamp(1, most)[..., None]).to(counts_DK)
    is_normalised_DK = (torch.arange(num_dilations)[:, None] + torch.arange(NUM_KERNELS)) % 2
    shares_DK2 = torch.stack([1 - is_normalised_DK, is_normalised_DK], 2)
    return (shares_DK2[..., None] * drawn_DKF[:, :, None]).flatten(2)


def _sample(found_BKT: Tensor, lengths: Tensor | None) -> Tensor:
    """Return SAMPLES steps of each row, evenly apart, [B SAMPLES, K]."""
    num_rows, num_kernels, num_steps = found_BKT.shape
    ends = found_BKT.new_full((num_rows,), num_steps) if lengths is None else lengths
    places = (torch.arange(SAMPLES, device=found_BKT.device) + 0.5) / SAMPLES
    steps_BS = (ends[:, None] * places).long()
    taken_BKS = found_BKT.gather(2, steps_BS[:, None].expand(-1, num_kernels, -1))
    return taken_BKS.mT.flatten(0, 1)


def _quantiles(sorted_NK: Tensor, places_QK: Tensor) -> Tensor:
    """Return of each column what so large a share of it is below, [Q, K]."""
    return sorted_NK.gather(0, (places_QK.clamp(0, 1) * (len(sorted_NK) - 1)).round().long())


def _next(sorted_NK: Tensor, values_QK: Tensor) -> Tensor:
    """Return the first number of each column above each value, or the value if there is none."""
    places_KQ = torch.searchsorted(sorted_NK.mT.contiguous(), values_QK.mT.contiguous(), right=True)
    return sorted_NK.gather(0, places_KQ.mT.clamp(max=len(sorted_NK) - 1)).maximum(values_QK)


def centre_rows(values_BFT: Tensor, valid_B1T: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows with mean 0, after them the same with variance 1, [B, 2 F, T], and their outside.

    The outside, [B, 2 F, 1], is what the steps before and after a row, and its padding, are read
    as: what OUTSIDE is without the row's mean; and 0 beside variance 1. The kernels' weights sum to
    0, so they find what they find in the row as it is, without the rounding of a large level.
    """
    # The first step is taken off before: what the mean of a level would be rounded by is as large
    # as the changes of a row that hardly changes.
    first_BF1 = values_BFT[..., :1]
    changes_BFT = _keep(values_BFT - first_BF1, valid_B1T)
    count = values_BFT.shape[2] if valid_B1T is None else valid_B1T.sum(2, keepdim=True)
    mean_BF1 = changes_BFT.sum(2, keepdim=True) / count
    centred_BFT = _keep(changes_BFT - mean_BF1, valid_B1T)
    variance_BF1 = centred_BFT.square().sum(2, keepdim=True) / count
    normal_BFT = centred_BFT * (variance_BF1 + ROW_EPSILON).rsqrt()
    below_BF1 = OUTSIDE - (first_BF1 + mean_BF1)
    outside_BF1 = torch.cat([below_BF1, torch.zeros_like(below_BF1)], 1)
    rows_BFT = torch.cat([centred_BFT, normal_BFT], 1)
    return (rows_BFT if valid_B1T is None else rows_BFT.where(valid_B1T, outside_BF1)), outside_BF1


def _valid(values_BTF: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which steps are no padding, bool [B, 1, T]; None if all are."""
    if lengths is None:
        return None
    steps_T = torch.arange(values_BTF.shape[1], device=lengths.device)
    return (steps_T < lengths[:, None])[:, None]


def _keep(values_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Return the values with zeros in place of padding."""
    return values_BCT if valid_B1T is None else values_BCT.where(valid_B1T, 0)
