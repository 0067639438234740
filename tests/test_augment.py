from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqclf.config.settings import Augment
from seqclf.data.augment import add_noise, augment, crop_sequences, flip_images, shift_images
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


# ---- crops


def counted(lengths: list[int]) -> Batch:
    """Make a batch in which each step of each row has a number of its own."""
    count, longest = len(lengths), max(lengths)
    values = torch.arange(count * longest).view(count, longest, 1)
    labels = torch.zeros(count, dtype=torch.int64)
    return Batch(values, labels, 3, 0, count, torch.tensor(lengths))


def stretches(batch: Batch) -> list[list[int]]:
    """Return the numbers of each row's steps, without padding."""
    lengths = [batch.values.shape[1]] * len(batch.values)
    lengths = lengths if batch.lengths is None else batch.lengths.tolist()
    return [
        row.flatten()[:length].tolist() for row, length in zip(batch.values, lengths, strict=True)
    ]


@no_deadline
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0.01, 1), st.data())
def test_a_crop_is_a_stretch_of_its_row_wherever_the_row_is(
    lengths: list[int], least: float, data: st.DataObject
) -> None:
    whole = counted(lengths)
    found = stretches(crop_sequences(whole, least, seed=1))
    for row, (length, steps) in enumerate(zip(lengths, found, strict=True)):
        first = row * max(lengths)
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert first <= steps[0]
        assert steps[-1] < first + length
        assert len(steps) >= least * length
    row = data.draw(st.integers(0, len(lengths) - 1))
    alone = whole._replace(
        values=whole.values[row : row + 1, : lengths[row]], first=row, lengths=None
    )
    assert stretches(crop_sequences(alone, least, seed=1)) == [found[row]]


def test_stretches_of_all_lengths_start_everywhere() -> None:
    found = stretches(crop_sequences(counted([4] * 2000), 0.5, seed=0))
    places = {(row[0] % 4, len(row)) for row in found}
    assert places == {(0, 2), (1, 2), (2, 2), (0, 3), (1, 3), (0, 4)}


def test_crops_depend_on_seed_and_step_and_tokens_have_them_too() -> None:
    whole = counted([50] * 20)
    found = [
        stretches(crop_sequences(whole._replace(step=step), 0.5, seed))
        for seed in (0, 1)
        for step in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    tokens = whole._replace(values=whole.values[..., 0])
    assert stretches(crop_sequences(tokens, 0.5, 0)) == stretches(crop_sequences(whole, 0.5, 0))
    assert crop_sequences(whole, 1.0, 0) is whole
    filler = whole._replace(values=whole.values[:1], first=20, lengths=torch.tensor([50]))
    assert len(crop_sequences(filler, 0.5, 0).values) == 1


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
