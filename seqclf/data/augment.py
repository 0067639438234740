"""Augmentation on the device: f(seed, step, index in the global batch), so ranks do not matter.

Stretches, mirrors and moves are drawn for the whole global batch: a share takes its rows of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqclf.config.settings import Augment
from seqclf.data.orders import mix
from seqclf.data.sequences import Batch, unequal_lengths


def augment(batch: Batch, settings: Augment, seed: int) -> Batch:
    """Return a batch cropped, mirrored, moved and with noise, as the settings ask."""
    batch = crop_sequences(batch, float(settings.crop), seed)
    if settings.flip:
        batch = batch._replace(values=flip_images(batch, seed))
    batch = batch._replace(values=shift_images(batch, settings.shift, seed))
    return batch._replace(values=add_noise(batch, float(settings.noise), seed))


def crop_sequences(batch: Batch, least: float, seed: int) -> Batch:
    """Return a batch with a stretch of each sequence: `least` of its steps, or more, from any step.

    The stretch of a row depends only on the seed, the step, the row's index in the global batch and
    its length. Le Guennec, Malinowski and Tavenard, "Data Augmentation for Time Series
    Classification using Convolutional Neural Networks", AALTD 2016 (window slicing).
    """
    values = batch.values
    if least == 1:
        return batch
    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(mix(seed, "crop", batch.step))
    draws = torch.rand(2, batch.total, generator=generator, dtype=torch.float64)
    size_B, place_B = rows_of(batch, draws, cpu)
    all_B = batch.lengths
    if all_B is None:
        all_B = torch.full((len(values),), values.shape[1])
    least_B = (all_B.double() * least).ceil().long()
    lengths_B = least_B + (size_B * (all_B - least_B + 1)).long()
    starts_B = (place_B * (all_B - lengths_B + 1)).long()
    longest, lengths = unequal_lengths(lengths_B)
    steps_BT = starts_B[:, None] + torch.arange(longest).minimum(lengths_B[:, None] - 1)
    rows_B = torch.arange(len(values), device=values.device)[:, None]
    steps_BT = steps_BT.to(values.device, non_blocking=True)
    return batch._replace(values=values[rows_B, steps_BT], lengths=lengths)


def add_noise(batch: Batch, deviations: float, seed: int) -> Tensor:
    """Return features [B, T, F] plus normal noise of `deviations` of their standard deviations.

    The noise of a row depends only on the seed, the step, the row's index in the global batch and
    its length. It is drawn on the CPU, so that every device gets the same.
    """
    values = batch.values
    if deviations == 0:
        return values
    noise_BTF = torch.zeros(values.shape)
    lengths = [values.shape[1]] * len(values) if batch.lengths is None else batch.lengths.tolist()
    generator = torch.Generator()
    for index, (row_TF, length) in enumerate(zip(noise_BTF, lengths, strict=True), batch.first):
        generator.manual_seed(mix(seed, "noise", batch.step, index))
        row_TF[:length].normal_(generator=generator)
    noise_BTF *= deviations * torch.tensor(batch.std)
    return values + noise_BTF.to(values.device, non_blocking=True)


def flip_images(batch: Batch, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], half of them mirrored left to right.

    Which ones depends only on the seed, the step and an image's index in the global batch.
    """
    generator = torch.Generator().manual_seed(mix(seed, "flip", batch.step))
    is_flipped = torch.randint(0, 2, (batch.total,), generator=generator).bool()
    is_flipped_B = rows_of(batch, is_flipped, batch.values.device)
    return torch.where(is_flipped_B[:, None, None], batch.values.flip(2), batch.values)


def rows_of(batch: Batch, draw: Tensor, device: torch.device) -> Tensor:
    """Return a share's rows of a draw for the global batch, [..., total], on a device."""
    count = len(batch.values)
    # The filler row of an empty share may lie behind the global batch. It takes the last row's.
    first = min(batch.first, batch.total - count)
    return draw[..., first : first + count].to(device, non_blocking=True)


def shift_images(batch: Batch, limit: int, seed: int) -> Tensor:
    """Return a batch's images [B, T, F], each moved by up to `limit` rows and columns.

    The moves depend only on the seed, the step and an image's index in the global batch.
    """
    values = batch.values
    if limit == 0 or len(values) == 0:
        return values
    generator = torch.Generator().manual_seed(mix(seed, "shift", batch.step))
    moves = torch.randint(0, 2 * limit + 1, (2, batch.total), generator=generator)
    down, right = rows_of(batch, moves, values.device)
    count, height, width = values.shape
    padded = F.pad(values, (limit,) * 4)
    line = padded.shape[2]
    size = padded.shape[1] * line
    # A moved image is a window of its padded image. Take a view of all windows, by the offset in
    # memory where each begins: to select by one index is twice as fast as by three.
    last = padded.numel() - (height - 1) * line - width
    windows = padded.as_strided((last + 1, height, width), (1, line, 1))
    offsets = torch.arange(0, count * size, size, device=values.device) + down * line + right
    return windows.index_select(0, offsets)
