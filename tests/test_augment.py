from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqclf.config.settings import Augment
from seqclf.data.augment import add_noise, augment, flip_images, shift_images
from seqclf.data.batches import split_range
from seqclf.data.orders import mix
from seqclf.data.sequences import Batch

no_deadline = settings(deadline=None)


def batch(values: Tensor, step: int = 3, first: int = 0, total: int | None = None) -> Batch:
    labels = torch.zeros(len(values), dtype=torch.int64)
    return Batch(values, labels, step, first, len(values) if total is None else total)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(1, 256, (count, 4, 6), generator=generator, dtype=torch.uint8)


def slow_shift(values: Tensor, limit: int, seed: int, step: int) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(mix(seed, "shift", step))
    moves = torch.randint(0, 2 * limit + 1, (2, len(values)), generator=generator) - limit
    shifted = torch.zeros_like(values)
    _, height, width = values.shape
    for i, (down, right) in enumerate(moves.T.tolist()):
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    shifted[i, y, x] = values[i, y + down, x + right]
    return shifted.tolist()


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_shift_is_that_of_a_slow_loop(limit: int) -> None:
    moved = shift_images(batch(images(20)), limit, seed=5)
    assert moved.tolist() == slow_shift(images(20), limit, 5, 3)
    assert moved.dtype == torch.uint8


def test_every_move_up_to_the_limit_occurs_and_no_other() -> None:
    values = torch.zeros(400, 5, 5, dtype=torch.uint8)
    values[:, 2, 2] = 1
    _, rows, columns = shift_images(batch(values), 1, seed=0).nonzero().T.tolist()
    assert set(zip(rows, columns, strict=True)) == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}


@no_deadline
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.data())
def test_a_ranks_slice_is_the_slice_of_the_whole(
    total: int, world_size: int, limit: int, data: st.DataObject
) -> None:
    values = images(total)
    whole = shift_images(batch(values), limit, seed=1)
    first, end = split_range(total, data.draw(st.integers(0, world_size - 1)), world_size)
    share = shift_images(batch(values[first:end], first=first, total=total), limit, seed=1)
    assert share.tolist() == whole[first:end].tolist()


def test_half_of_the_images_are_mirrored_wherever_they_are_trained() -> None:
    values = images(400)
    whole = flip_images(batch(values), seed=1)
    mirrored = (whole == values.flip(2)).all(2).all(1)
    assert ((whole == values).all(2).all(1) | mirrored).all()
    assert 160 < int(mirrored.sum()) < 240
    parts = [
        flip_images(batch(values[first : first + 100], first=first, total=400), seed=1)
        for first in range(0, 400, 100)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(flip_images(batch(values, step=4), seed=1), whole)
    assert not torch.equal(flip_images(batch(values), seed=2), whole)
    both = augment(batch(values), Augment(shift=1, flip=True), 1).values
    assert torch.equal(both, shift_images(batch(whole), 1, seed=1))


def test_the_filler_of_an_empty_share_at_the_end_works() -> None:
    moved = shift_images(batch(images(1), first=4, total=4), 2, seed=0)
    assert moved.shape == (1, 4, 6)


def test_limit_zero_is_the_identity() -> None:
    values = images(3)
    assert shift_images(batch(values), 0, seed=0) is values


def test_the_moves_depend_on_seed_and_step() -> None:
    moved = [
        shift_images(batch(images(30), step=step), 2, seed).tolist()
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(moved) for b in moved[:i])


# ---- noise


def series(lengths: list[int]) -> Batch:
    """Make a batch of series, padded to the longest."""
    count = len(lengths)
    values = torch.zeros(count, max(lengths), 3)
    labels = torch.zeros(count, dtype=torch.int64)
    return Batch(values, labels, 3, 0, count, torch.tensor(lengths), std=(1.0, 10.0, 0.1))


@no_deadline
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data())
def test_a_rows_noise_is_its_own_however_it_is_padded(
    lengths: list[int], data: st.DataObject
) -> None:
    whole = add_noise(series(lengths), 0.5, seed=1)
    row = data.draw(st.integers(0, len(lengths) - 1))
    length = lengths[row]
    alone = series(lengths)._replace(
        values=torch.zeros(1, length, 3), first=row, lengths=None, labels=torch.zeros(1)
    )
    assert add_noise(alone, 0.5, seed=1)[0].tolist() == whole[row, :length].tolist()
    assert not whole[row, length:].any()


def test_noise_has_the_deviations_that_are_asked_for() -> None:
    batch = series([500] * 20)
    noise = add_noise(batch, 0.5, seed=0).flatten(0, 1)
    assert noise.mean(0).abs().div(torch.tensor(batch.std)).max() < 0.02
    torch.testing.assert_close(noise.std(0), 0.5 * torch.tensor(batch.std), rtol=0.02, atol=0)
    rows = add_noise(batch, 0.5, seed=0)
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows, add_noise(batch._replace(step=4), 0.5, seed=0))
    assert not torch.equal(rows, add_noise(batch, 0.5, seed=1))
    assert add_noise(batch, 0.0, seed=0) is batch.values
