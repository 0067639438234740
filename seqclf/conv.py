"""A small convolution branch beside the LSTM, which sees shapes wherever they stand.

Shapes: B batch, T steps, F features, C channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Three layers, as in Wang, Yan and Oates, "Time series classification from scratch with deep
# neural networks", IJCNN 2017. The middle one is twice as wide.
KERNEL_SIZES = (8, 5, 3)


def count_parameters(num_features: int, channels: int) -> int:
    """Return how many numbers of a branch training changes."""
    sizes = zip(_widths(num_features, channels), KERNEL_SIZES, strict=True)
    return sum(after * (before * size + 2) for (before, after), size in sizes)


def _widths(num_features: int, channels: int) -> list[tuple[int, int]]:
    """Return what goes into each layer, and what comes out."""
    return list(pairwise((num_features, channels, 2 * channels, channels)))


class ConvBranch(nn.Module):
    """Three convolutions, and the mean over the steps of what the last one finds.

    Each layer is normalised over the steps of a row alone, not over the batch as in that paper: so
    a row's logits depend on no other row, and padding changes nothing.
    """

    def __init__(self, num_features: int, channels: int) -> None:
        super().__init__()
        widths = _widths(num_features, channels)
        self.layers = nn.ModuleList(
            Layer(before, after, size)
            for (before, after), size in zip(widths, KERNEL_SIZES, strict=True)
        )

    def forward(self, values_BTF: Tensor, lengths: Tensor | None) -> Tensor:
        """Map sequences [B, T, F] to [B, C]; steps beyond `lengths`, int64 [B], are padding."""
        output_BCT = values_BTF.mT
        num_steps = values_BTF.shape[1]
        if lengths is None:
            count_B1 = torch.full_like(output_BCT[:, 0, :1], num_steps)
            valid_B1T = None
        else:
            count_B1 = lengths[:, None].to(output_BCT.dtype)
            steps_T = torch.arange(num_steps, device=lengths.device)
            valid_B1T = (steps_T < lengths[:, None])[:, None]
        for layer in self.layers:
            output_BCT = layer(output_BCT, count_B1[..., None], valid_B1T)
        return _keep(output_BCT, valid_B1T).sum(2) / count_B1


class Layer(nn.Module):
    """A convolution, normalised over the steps of each row, and a rectifier."""

    def __init__(self, num_inputs: int, channels: int, size: int) -> None:
        super().__init__()
        # The normalisation takes a bias off again.
        self.conv = nn.Conv1d(num_inputs, channels, size, bias=False)
        self.scale = nn.Parameter(torch.ones(channels, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1))
        self.pad = ((size - 1) // 2, size // 2)  # as many steps come out as go in

    def forward(self, input_BFT: Tensor, count_B11: Tensor, valid_B1T: Tensor | None) -> Tensor:
        """Return [B, C, T]; a row has `count_B11` steps, those that are valid."""
        found_BCT = self.conv(F.pad(_keep(input_BFT, valid_B1T), self.pad))
        mean_BC1 = _keep(found_BCT, valid_B1T).sum(2, keepdim=True) / count_B11
        centred_BCT = _keep(found_BCT - mean_BC1, valid_B1T)
        variance_BC1 = centred_BCT.square().sum(2, keepdim=True) / count_B11
        normal_BCT = centred_BCT * (variance_BC1 + 1e-5).rsqrt()
        return (normal_BCT * self.scale + self.shift).relu()


def _keep(values_BCT: Tensor, valid_B1T: Tensor | None) -> Tensor:
    """Return the values with zeros in place of padding."""
    return values_BCT if valid_B1T is None else values_BCT.where(valid_B1T, 0)
