"""Augmentation on the device, drawn for the whole global batch and sliced: f(seed, step, place)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqclf.config import Augment
from seqclf.data.batches import mix
from seqclf.data.sequences import Batch


def augment(batch: Batch, how: Augment, seed: int) -> Batch:
    """Return a batch whose values are changed as training asks for."""
    if not (how.flip or how.shift or how.erase or how.noise):
        return batch
    if how.flip:
        batch = batch._replace(values=flip_images(batch, seed))
    batch = batch._replace(values=shift_images(batch, how.shift, seed))
    if how.erase:
        batch = batch._replace(values=erase_images(batch, how.erase, seed))
    return batch._replace(values=add_noise(batch, float(how.noise), seed))


def add_noise(batch: Batch, deviations: float, seed: int) -> Tensor:
    """Return features [B, T, F] with normal noise of so many of their standard deviations.

    A row's noise depends on the seed, the step, its place in the global batch and its own length
    only. Drawn on the CPU, so that it is the same on every device.
    """
    values = batch.values
    if deviations == 0:
        return values
    noise_BTF = torch.zeros(values.shape)
    lengths = [values.shape[1]] * len(values) if batch.lengths is None else batch.lengths.tolist()
    generator = torch.Generator()
    for place, (row_TF, length) in enumerate(zip(noise_BTF, lengths, strict=True), batch.first):
        generator.manual_seed(mix(seed, "noise", batch.step, place))
        row_TF[:length].normal_(generator=generator)
    noise_BTF *= deviations * torch.tensor(batch.std)
    return values + noise_BTF.to(values.device, non_blocking=True)


def flip_images(batch: Batch, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], half of them mirrored left to right.

    Which ones depends on the seed, the step and an image's place in the global batch only.
    """
    generator = torch.Generator().manual_seed(mix(seed, "flip", batch.step))
    flipped = torch.randint(0, 2, (batch.total,), generator=generator).bool()
    flipped_B = flipped[places(batch)].to(batch.values.device, non_blocking=True)
    return torch.where(flipped_B[:, None, None], batch.values.flip(2), batch.values)


def erase_images(batch: Batch, share: float, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], each with zeros in a rectangle of its own.

    Its height and width are up to `share` of the image's; they and its place depend on the seed,
    the step and an image's place in the global batch only. Random erasing: Zhong et al., AAAI 2020.
    """
    generator = torch.Generator().manual_seed(mix(seed, "erase", batch.step))
    draws = torch.rand((4, batch.total), generator=generator)[:, places(batch)]
    down, right, high, wide = draws.to(batch.values.device, non_blocking=True)

    def within(first_B: Tensor, size_B: Tensor, length: int) -> Tensor:
        size_B = (size_B * (int(share * length) + 1)).floor()
        first_B = (first_B * (length - size_B + 1)).floor()
        place_T = torch.arange(length, device=first_B.device)
        return (first_B[:, None] <= place_T) & (place_T < (first_B + size_B)[:, None])

    rows_BT = within(down, high, batch.values.shape[1])
    columns_BF = within(right, wide, batch.values.shape[2])
    return batch.values.masked_fill(rows_BT[:, :, None] & columns_BF[:, None], 0)


def places(batch: Batch) -> Tensor:
    """Return the places of a share's examples in the global batch, int64 [B]."""
    # an empty share's filler row has a place outside of it: clamp
    return torch.arange(batch.first, batch.first + len(batch.values)).clamp(max=batch.total - 1)


def shift_images(batch: Batch, limit: int, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], each moved by up to `limit` rows and columns.

    The moves depend on the seed, the step and an image's place in the global batch only, so any
    number of processes sees the same ones.
    """
    values = batch.values
    if limit == 0:
        return values
    generator = torch.Generator().manual_seed(mix(seed, "shift", batch.step))
    moves = torch.randint(0, 2 * limit + 1, (2, batch.total), generator=generator)
    down, right = moves[:, places(batch)].to(values.device, non_blocking=True)
    _, height, width = values.shape
    padded = F.pad(values, (limit,) * 4)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # [B, 2L+1, 2L+1, T, F], a view
    return windows[torch.arange(len(values), device=values.device), down, right]
