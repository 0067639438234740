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
    if not (how.flip or how.shift or how.noise):
        return batch
    if how.flip:
        batch = batch._replace(values=flip_images(batch, seed))
    batch = batch._replace(values=shift_images(batch, how.shift, seed))
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
    flipped_B = rows_of(batch, flipped)
    return torch.where(flipped_B[:, None, None], batch.values.flip(2), batch.values)


def rows_of(batch: Batch, drawn: Tensor) -> Tensor:
    """Return a share's part of what was drawn for the global batch, [..., total], on its device."""
    # an empty share's filler row has a place outside of it: the last one's stands for it
    count = len(batch.values)
    first = min(batch.first, batch.total - count)
    return drawn[..., first : first + count].to(batch.values.device, non_blocking=True)


def shift_images(batch: Batch, limit: int, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], each moved by up to `limit` rows and columns.

    The moves depend on the seed, the step and an image's place in the global batch only, so any
    number of processes sees the same ones.
    """
    values = batch.values
    if limit == 0 or len(values) == 0:
        return values
    generator = torch.Generator().manual_seed(mix(seed, "shift", batch.step))
    moves = torch.randint(0, 2 * limit + 1, (2, batch.total), generator=generator)
    down, right = rows_of(batch, moves)
    count, height, width = values.shape
    padded = F.pad(values, (limit,) * 4)
    line = padded.shape[2]
    size = padded.shape[1] * line
    # A view of every window, by the place in memory where it begins; one index a window is twice as
    # fast as three.
    last = padded.numel() - (height - 1) * line - width
    windows = padded.as_strided((last + 1, height, width), (1, line, 1))
    begins = torch.arange(0, count * size, size, device=values.device) + down * line + right
    return windows.index_select(0, begins)
