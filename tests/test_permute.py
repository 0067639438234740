"""The computed order: every position once, and no structure that a shuffled order has not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from seqclf.data.permute import permute

LEAST_CHANCE = 1e-4  # of what is found in a true shuffle; the seeds are fixed


def order(length: int, seed: int) -> np.ndarray:
    return permute(torch.arange(length), length, seed).numpy()


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**63 - 1), st.data())
def test_every_position_once_and_each_by_itself(
    length: int, seed: int, data: st.DataObject
) -> None:
    whole = order(length, seed)
    assert sorted(whole.tolist()) == list(range(length))
    some = data.draw(st.lists(st.integers(0, length - 1)))
    found = permute(torch.tensor(some, dtype=torch.int64), length, seed)
    assert found.tolist() == whole[some].tolist()


@pytest.mark.parametrize("length", [2**24 + 1, 10**8, 2**40 - 1])
def test_very_many_positions_stay_apart(length: int) -> None:
    ends = torch.cat([torch.arange(5000), torch.arange(length - 5000, length)])
    found = permute(ends, length, seed=1)
    assert len(found.unique()) == 10_000
    assert 0 <= int(found.min()) < int(found.max()) < length


def test_the_order_is_the_same_on_every_machine() -> None:
    expected = [10516715, 59905702, 98966406, 6006123]  # by whole numbers of Python
    assert permute(torch.arange(4), 10**8, seed=3).tolist() == expected


@pytest.mark.parametrize("length", [60, 1000, 100_003])
def test_a_position_may_hold_anything(length: int) -> None:
    for position in (0, 1, length // 2, length - 1):
        where = torch.tensor([position])
        found = [int(permute(where, length, seed)) for seed in range(2000)]
        counts = np.bincount(np.array(found) * 20 // length, minlength=20)
        assert chisquare(counts).pvalue > LEAST_CHANCE, position


@pytest.mark.parametrize("length", [1000, 100_003, 1_000_000])
def test_neither_place_nor_remainder_nor_neighbour_tells_what_comes(length: int) -> None:
    for seed in (0, 1):
        found, positions = order(length, seed), np.arange(length)
        assert independent(positions * 20 // length, found * 20 // length)
        assert independent(positions % 7, found % 7)
        differences = np.diff(found) % length
        counts = np.bincount(differences * 20 // length, minlength=20)
        assert chisquare(counts).pvalue > LEAST_CHANCE
        assert independent(order(length, seed + 2) * 20 // length, found * 20 // length)


def independent(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Say whether two groupings of the same positions look independent."""
    table = np.zeros((ours.max() + 1, theirs.max() + 1))
    np.add.at(table, (ours, theirs), 1)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    # A shuffle draws without putting back, which makes it a little more even.
    statistic = ((table - expected) ** 2 / expected).sum() * (len(ours) - 1) / len(ours)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return bool(LEAST_CHANCE < chi2.sf(statistic, freedom) < 1 - LEAST_CHANCE)
