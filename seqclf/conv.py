"""A small convolution branch beside the LSTM, which sees shapes wherever they stand.

Shapes: B batch, R reference rows, T steps, F features, C channels, and D of them, the first half.
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
EPSILON, ROW_EPSILON = 1e-3, 1e-5  # added to variances: over the reference rows, over one row
# The layers are normalised over so many training examples, and so many steps of each at most.
REFERENCE, REFERENCE_STEPS = 32, 512
GOLDEN_RATIO = 0.618034  # its multiples, without what is before the point, lie evenly in 0 to 1


def count_parameters(num_features: int, channels: int) -> int:
    """Return how many numbers of a branch training changes."""
    sizes = zip(_widths(num_features, channels), KERNEL_SIZES, strict=True)
    return sum(after * (before * size + 2) for (before, after), size in sizes)


def _widths(num_features: int, channels: int) -> list[tuple[int, int]]:
    """Return what goes into each layer, and what comes out."""
    return list(pairwise((num_features, channels, 2 * channels, channels)))


class Moments(NamedTuple):
    """Mean and variance of channels: [D, 1] over reference rows, [B, C - D, 1] of each row."""

    mean: Tensor
    variance: Tensor


class ConvBranch(nn.Module):
    """Three convolutions, and the mean over the steps of what the last one finds.

    Half of a layer's channels are normalised by their mean and variance over reference rows, which
    are the same training examples in every step: Salimans et al., "Improved Techniques for Training
    GANs", NeurIPS 2016 (virtual batch normalisation). With the batch's own statistics, as in the
    paper above, a row's logits would depend on the other rows, and on the number of processes. The
    other half are normalised over the steps of each row alone: Pan et al., "Two at Once: Enhancing
    Learning and Generalization Capacities via IBN-Net", ECCV 2018. docs/recipes.md compares the
    two. In the first layer this half reads normalised rows, too, each feature by itself: a row far
    from zero would else begin and end with a jump, as zeros stand around it, larger than all shapes
    in it. The first half reads the values as they are, so that a row's level and scale count.
    """

    def __init__(self, num_features: int, channels: int) -> None:
        super().__init__()
        widths = _widths(num_features, channels)
        self.layers = nn.ModuleList(
            Layer(before, after, size, num_groups=1 if number else 2)
            for number, ((before, after), size) in enumerate(zip(widths, KERNEL_SIZES, strict=True))
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
        valid_B1T = _valid(values_BTF, lengths)
        output_BCT = join_normalised(values_BTF.mT, valid_B1T)
        for number, layer in enumerate(self._all_layers):
            output_BCT = layer(output_BCT, valid_B1T, None if moments is None else moments[number])
        sum_BC = _keep(output_BCT, valid_B1T).sum(2)
        return sum_BC / (values_BTF.shape[1] if lengths is None else lengths[:, None])

    def measure(self, values_RTF: Tensor, lengths: Tensor | None) -> list[Moments]:
        """Return the moments of each layer over reference rows [R, T, F]."""
        valid_R1T = _valid(values_RTF, lengths)
        output_RCT = join_normalised(values_RTF.mT, valid_R1T)
        if values_RTF.shape[1] > REFERENCE_STEPS:
            output_RCT, valid_R1T = _take_windows(output_RCT, lengths)
        found = []
        for layer in self._all_layers:
            found.append(layer.measure(output_RCT, valid_R1T))
            output_RCT = layer(output_RCT, valid_R1T, found[-1])
        return found

    @torch.no_grad()
    def store(self, moments: list[Moments]) -> None:
        """Keep the moments of the weights as they are, for whoever has no reference rows."""
        for layer, (mean_D1, variance_D1) in zip(self._all_layers, moments, strict=True):
            layer.mean.copy_(mean_D1)
            layer.variance.copy_(variance_D1)


class Layer(nn.Module):
    """A convolution, normalised, and a rectifier.

    With two groups each half of the channels has `num_inputs` inputs of its own.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, num_inputs: int, channels: int, size: int, *, num_groups: int = 1) -> None:
        super().__init__()
        # The normalisation takes a bias off again.
        self.conv = nn.Conv1d(
            num_groups * num_inputs, channels, size, groups=num_groups, bias=False
        )
        self.scale = nn.Parameter(torch.ones(channels, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1))
        self.num_by_reference = channels // 2
        self.register_buffer("mean", torch.zeros(self.num_by_reference, 1))
        self.register_buffer("variance", torch.ones(self.num_by_reference, 1))
        self.pad = ((size - 1) // 2, size // 2)  # as many steps come out as go in

    def forward(
        self, input_BFT: Tensor, valid_B1T: Tensor | None, moments: Moments | None = None
    ) -> Tensor:
        """Return [B, C, T]; without moments of the reference rows the stored ones count."""
        found_BCT = self._find(input_BFT, valid_B1T)
        by_reference_BDT, by_row_BCT = found_BCT.tensor_split([self.num_by_reference], dim=1)
        mean_D1, variance_D1 = moments or Moments(self.mean, self.variance)
        normal_BCT = torch.cat(
            [
                (by_reference_BDT - mean_D1) * (variance_D1 + EPSILON).rsqrt(),
                _normalise_rows(by_row_BCT, valid_B1T),
            ],
            dim=1,
        )
        return (normal_BCT * self.scale + self.shift).relu()

    def measure(self, input_RFT: Tensor, valid_R1T: Tensor | None) -> Moments:
        """Return the moments of the first channels over all valid steps of reference rows."""
        found_RDT = self._find(input_RFT, valid_R1T)[:, : self.num_by_reference]
        mean_1D1, variance_1D1 = _moments(found_RDT, valid_R1T, dims=(0, 2))
        return Moments(mean_1D1[0], variance_1D1[0])

    def _find(self, input_BFT: Tensor, valid_B1T: Tensor | None) -> Tensor:
        found_BCT: Tensor = self.conv(F.pad(_keep(input_BFT, valid_B1T), self.pad))
        return found_BCT


def _take_windows(values_RCT: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Take REFERENCE_STEPS steps in a row of each row, and return which of them are no padding.

    Early ones of some rows, and late ones of others, so that every part of a series counts.
    """
    num_rows, num_channels, num_steps = values_RCT.shape
    places_R = torch.arange(num_rows, device=values_RCT.device) * GOLDEN_RATIO % 1
    ends = num_steps if lengths is None else lengths
    spare_R = (places_R.new_zeros(num_rows) + ends - REFERENCE_STEPS).clamp(min=0)
    window_T = torch.arange(REFERENCE_STEPS, device=values_RCT.device)
    steps_RT = (places_R * spare_R).long()[:, None] + window_T
    windows_RCT = values_RCT.gather(2, steps_RT[:, None].expand(-1, num_channels, -1))
    return windows_RCT, None if lengths is None else (steps_RT < lengths[:, None])[:, None]


def join_normalised(values_BFT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Return the values, and after them the same, normalised over each row, [B, 2 F, T].

    The first step is taken off before: what the mean of a level would be rounded by is as large as
    the changes of a row that hardly changes.
    """
    changes_BFT = values_BFT - values_BFT[..., :1]
    return torch.cat([values_BFT, _normalise_rows(changes_BFT, valid_B1T)], 1)


def _normalise_rows(found_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Give each channel of each row mean 0 and variance 1 over its valid steps."""
    mean_BC1, variance_BC1 = _moments(found_BCT, valid_B1T, dims=(2,))
    return (found_BCT - mean_BC1) * (variance_BC1 + ROW_EPSILON).rsqrt()


def _moments(found_BCT: Tensor, valid_B1T: Tensor | None, *, dims: tuple[int, ...]) -> Moments:
    """Return the moments over the valid steps, along these dimensions, which stay as ones."""
    # Half precision would lose the digits of a sum over thousands of steps.
    found_BCT = found_BCT.to(torch.promote_types(found_BCT.dtype, torch.float32))
    of_steps = torch.ones_like(found_BCT[:, :1]) if valid_B1T is None else valid_B1T
    count = of_steps.sum(dims, keepdim=True)
    mean = _keep(found_BCT, valid_B1T).sum(dims, keepdim=True) / count
    centred_BCT = _keep(found_BCT - mean, valid_B1T)
    return Moments(mean, centred_BCT.square().sum(dims, keepdim=True) / count)


def _valid(values_BTF: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Return which steps are no padding, bool [B, 1, T]; None if all are."""
    if lengths is None:
        return None
    steps_T = torch.arange(values_BTF.shape[1], device=lengths.device)
    return (steps_T < lengths[:, None])[:, None]


def _keep(values_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Return the values with zeros in place of padding."""
    return values_BCT if valid_B1T is None else values_BCT.where(valid_B1T, 0)
