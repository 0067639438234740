"""A small convolution branch beside the LSTM, which sees shapes wherever they stand.

Shapes: B batch, R reference rows, T steps, F features, C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Three layers, as in Wang, Yan and Oates, "Time series classification from scratch with deep
# neural networks", IJCNN 2017. The middle one is twice as wide.
KERNEL_SIZES = (8, 5, 3)
EPSILON = 1e-3  # added to variances
# Training examples over which the layers are normalised; of very long ones fewer are enough.
REFERENCE, LEAST_REFERENCE, REFERENCE_STEPS = 32, 8, 2**16


def count_parameters(num_features: int, channels: int) -> int:
    """Return how many numbers of a branch training changes."""
    sizes = zip(_widths(num_features, channels), KERNEL_SIZES, strict=True)
    return sum(after * (before * size + 2) for (before, after), size in sizes)


def count_reference(num_steps: int) -> int:
    """Return over how many examples of so many steps the layers are normalised."""
    return min(REFERENCE, max(LEAST_REFERENCE, REFERENCE_STEPS // num_steps))


def _widths(num_features: int, channels: int) -> list[tuple[int, int]]:
    """Return what goes into each layer, and what comes out."""
    return list(pairwise((num_features, channels, 2 * channels, channels)))


class Moments(NamedTuple):
    """Mean and variance of each channel, [C, 1]."""

    mean: Tensor
    variance: Tensor


class ConvBranch(nn.Module):
    """Three convolutions, and the mean over the steps of what the last one finds.

    Each layer is normalised by the mean and variance of its channels over reference rows, which are
    the same training examples in every step: Salimans et al., "Improved Techniques for Training
    GANs", NeurIPS 2016 (virtual batch normalisation). With the batch's own statistics, as in the
    paper above, a row's logits would depend on the other rows, and on the number of processes.
    """

    def __init__(self, num_features: int, channels: int) -> None:
        super().__init__()
        widths = _widths(num_features, channels)
        self.layers = nn.ModuleList(
            Layer(before, after, size)
            for (before, after), size in zip(widths, KERNEL_SIZES, strict=True)
        )

    @property
    def _all_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def forward(
        self, values_BTF: Tensor, lengths: Tensor | None, moments: list[Moments] | None = None
    ) -> Tensor:
        """Map sequences [B, T, F] to [B, C]; steps beyond `lengths`, int64 [B], are padding.

        `moments` are those of each layer; without them the stored ones count.
        """
        output_BCT, valid_B1T = values_BTF.mT, _valid(values_BTF, lengths)
        for number, layer in enumerate(self._all_layers):
            output_BCT = layer(output_BCT, valid_B1T, None if moments is None else moments[number])
        sum_BC = _keep(output_BCT, valid_B1T).sum(2)
        return sum_BC / (values_BTF.shape[1] if lengths is None else lengths[:, None])

    def measure(self, values_RTF: Tensor, lengths: Tensor | None) -> list[Moments]:
        """Return the moments of each layer over reference rows [R, T, F]."""
        output_RCT, valid_R1T = values_RTF.mT, _valid(values_RTF, lengths)
        count = len(values_RTF) * values_RTF.shape[1] if lengths is None else lengths.sum()
        found = []
        for layer in self._all_layers:
            found.append(layer.measure(output_RCT, valid_R1T, count))
            output_RCT = layer(output_RCT, valid_R1T, found[-1])
        return found

    @torch.no_grad()
    def store(self, moments: list[Moments]) -> None:
        """Keep the moments of the weights as they are, for whoever has no reference rows."""
        for layer, (mean_C1, variance_C1) in zip(self._all_layers, moments, strict=True):
            layer.mean.copy_(mean_C1)
            layer.variance.copy_(variance_C1)


class Layer(nn.Module):
    """A convolution, normalised by given moments, and a rectifier."""

    mean: Tensor
    variance: Tensor

    def __init__(self, num_inputs: int, channels: int, size: int) -> None:
        super().__init__()
        # The normalisation takes a bias off again.
        self.conv = nn.Conv1d(num_inputs, channels, size, bias=False)
        self.scale = nn.Parameter(torch.ones(channels, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1))
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("variance", torch.ones(channels, 1))
        self.pad = ((size - 1) // 2, size // 2)  # as many steps come out as go in

    def forward(
        self, input_BFT: Tensor, valid_B1T: Tensor | None, moments: Moments | None = None
    ) -> Tensor:
        """Return [B, C, T]; without moments the stored ones count."""
        mean_C1, variance_C1 = moments or Moments(self.mean, self.variance)
        normal_BCT = (self._find(input_BFT, valid_B1T) - mean_C1) * (variance_C1 + EPSILON).rsqrt()
        return (normal_BCT * self.scale + self.shift).relu()

    def measure(self, input_RFT: Tensor, valid_R1T: Tensor | None, count: Tensor | int) -> Moments:
        """Return the moments of what the convolution finds in `count` steps, the valid ones."""
        found_RCT = self._find(input_RFT, valid_R1T)
        # Half precision would lose the digits of a sum over thousands of steps.
        found_RCT = found_RCT.to(torch.promote_types(found_RCT.dtype, torch.float32))
        mean_C1 = _keep(found_RCT, valid_R1T).sum((0, 2))[:, None] / count
        centred_RCT = _keep(found_RCT - mean_C1, valid_R1T)
        return Moments(mean_C1, centred_RCT.square().sum((0, 2))[:, None] / count)

    def _find(self, input_BFT: Tensor, valid_B1T: Tensor | None) -> Tensor:
        found_BCT: Tensor = self.conv(F.pad(_keep(input_BFT, valid_B1T), self.pad))
        return found_BCT


def _valid(values_BTF: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which steps are no padding, bool [B, 1, T]; None if all are."""
    if lengths is None:
        return None
    steps_T = torch.arange(values_BTF.shape[1], device=lengths.device)
    return (steps_T < lengths[:, None])[:, None]


def _keep(values_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Return the values with zeros in place of padding."""
    return values_BCT if valid_B1T is None else values_BCT.where(valid_B1T, 0)
