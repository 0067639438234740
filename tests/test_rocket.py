"""The features of fixed convolutions: what they are, by hand, and what they are fitted to."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from seqclf.model import LSTMClassifier
from seqclf.rocket import (
    RocketFeatures,
    centre_rows,
    choose_dilations,
    make_kernels,
    round_features,
)


def make_features(
    num_inputs: int = 3, dilations: tuple[int, ...] = (1, 2), num_features: int = 504
) -> RocketFeatures:
    """Return features that are fitted to noise."""
    torch.manual_seed(2)
    features = RocketFeatures(num_inputs, dilations, num_features)
    rows = torch.randn(12, 30, num_inputs)
    features.fit(lambda: [(rows[:5], None), (rows[5:], torch.tensor([30, 3, 9, 30, 20, 1, 12]))])
    return features


@pytest.mark.parametrize(
    ("num_steps", "dilations"),
    [
        *((1, (1,)), (9, (1,)), (16, (1,)), (17, (1, 2)), (33, (1, 2, 4))),
        (2000, (1, 2, 4, 8, 16, 32, 64, 128)),
    ],
)
def test_the_widest_kernel_spans_no_more_than_a_sequence(
    num_steps: int, dilations: tuple[int, ...]
) -> None:
    assert choose_dilations(num_steps) == dilations
    assert len(choose_dilations(10**12)) == 20


def test_each_kernel_has_equally_many_thresholds() -> None:
    assert [round_features(count, 2) for count in (0, 1, 168, 251, 253, 5000)] == [
        *(0, 168, 168, 168, 336, 5040)
    ]


def test_the_kernels_are_those_of_minirocket() -> None:
    """Dempster et al., 2021: all with weights -1 and 2 whose sum is 0."""
    kernels = make_kernels()
    assert kernels.shape == (84, 9)
    assert len({tuple(row) for row in kernels.tolist()}) == 84
    assert (kernels.sum(1) == 0).all()
    assert ((kernels == -1) | (kernels == 2)).all()


@pytest.mark.parametrize("num_steps", [30, 5, 1])
def test_a_feature_is_a_share_of_the_steps(num_steps: int) -> None:
    """The same in plain loops and float64, of one row."""
    features = make_features()
    values = torch.randn(1, num_steps, 3)
    row = values[0].double().numpy()
    deviation = np.sqrt(row.var(0) + 1e-5)
    both = np.concatenate([row, (row - row.mean(0)) / deviation], 1)
    expected = []
    for number, dilation in enumerate(features.dilations):
        inputs = features.inputs[number].double().numpy()
        for q in range(3):
            for k, places in enumerate(combinations(range(9), 3)):
                threshold, width = (
                    float(table[number, q, k]) for table in (features.thresholds, features.widths)
                )
                total = 0.0
                for t in range(num_steps):
                    found = 0.0
                    for tap in range(9):
                        step = t + (tap - 4) * dilation
                        read = both[step] if 0 <= step < num_steps else [-3.0] * 3 + [0.0] * 3
                        found += (2 if tap in places else -1) * float(inputs[k] @ read)
                    total += min(1.0, max(0.0, (found - threshold) / width + 0.5))
                expected.append(total / num_steps)
    mean, factor = features.mean.double().numpy(), features.factor.double().numpy()
    wanted = torch.from_numpy((np.array(expected) - mean) * factor)
    torch.testing.assert_close(features(values, None)[0].double(), wanted, rtol=0, atol=2e-4)
    exact = features.double()(values.double(), None)[0]
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-9)


def test_thresholds_are_quantiles_of_what_kernels_find() -> None:
    """So features of these examples have mean 0, and deviations near GAIN / sqrt(R)."""
    torch.manual_seed(0)
    features = RocketFeatures(1, (1,), 840)
    rows = torch.randn(200, 256, 1)
    features.fit(lambda: [(part, None) for part in rows.split(8)])
    shares = features(rows, None) / features.factor + features.mean
    places = torch.arange(1, 841) * 0.618034 % 1
    distance = (shares.mean(0) - (1 - places)).abs()
    assert (distance.median() < 0.003, distance.max() < 0.04) == (True, True)
    found = features(rows, None)
    torch.testing.assert_close(found.mean(0), torch.zeros(840), rtol=0, atol=1e-5)
    deviations = found.std(0, correction=0) * math.sqrt(840)
    assert 4.6 < deviations.median() <= deviations.max() < 8  # rare steps have small ones


def test_a_step_counts_in_part_near_a_threshold_among_one_step_in_twenty_five() -> None:
    """Closer steps than a kernel's rounding count in part together, as in rows that are quiet."""
    torch.manual_seed(0)
    features, rows = RocketFeatures(1, (1,), 840), torch.randn(100, 256, 1)
    for is_quiet in (False, True):
        if is_quiet:
            rows[:, 100:] *= 1e-6
        features.fit(lambda: [(rows, None)])
        (found_BKT,) = features._convolve(rows, None)
        found_KN = found_BKT.transpose(0, 1).flatten(1)
        distance_QKN = (found_KN - features.thresholds[0, :, :, None]).abs()
        shares = (2 * distance_QKN < features.widths[0, :, :, None]).float().mean(2)
        least = 1e-4 * found_KN.std(1, correction=0).max()
        is_least = features.widths[0] < 1.001 * least
        assert 0.035 < shares[~is_least].median() < 0.045
        assert is_least.float().mean() > 0.4 if is_quiet else not is_least.any()
        assert features.widths.min() > 0.999 * least


def test_each_row_counts_equally_in_the_thresholds() -> None:
    """A long row does not outvote short ones: as many steps of each are looked at."""
    ones = [(torch.randn(1, 20, 1), None) for _ in range(9)]
    features, other = RocketFeatures(1, (1,), 84), RocketFeatures(1, (1,), 84)
    features.fit(lambda: [*ones, (50 * torch.randn(1, 60, 1), None)])
    other.fit(lambda: [*ones, (50 * torch.randn(1, 60_000, 1), None)])
    raw = other.inputs[0, :, 0] == 1
    ratio = (other.thresholds - features.thresholds).abs() / features.thresholds.abs().mean()
    assert ratio[0, 0, raw].median() < 0.5


def test_padding_is_no_example_for_thresholds() -> None:
    rows = torch.randn(3, 40, 2)
    lengths = torch.tensor([9, 40, 13])
    together, alone = make_features(2), make_features(2)
    together.fit(lambda: [(rows, lengths)])
    alone.fit(lambda: [(row[None, :n], None) for row, n in zip(rows, lengths, strict=True)])
    for name, value in together.named_buffers():
        torch.testing.assert_close(value, alone.get_buffer(name), rtol=1e-4, atol=1e-3, msg=name)


def test_half_the_kernels_see_no_level_and_no_scale_of_a_row() -> None:
    features = make_features().double()
    values, lengths = torch.randn(3, 30, 3, dtype=torch.float64), torch.tensor([30, 9, 20])
    factor, level = torch.tensor([4.0, 9.0, 2.0]), torch.tensor([-50.0, 0.0, 7.0])
    found, changed = (
        features(read, lengths).unflatten(1, (2, 3, 84))
        for read in (values, values * factor[:, None, None] + level[:, None, None])
    )
    reads_normalised = features.inputs[:, :, 3:].sum(2) > 0
    assert (reads_normalised.sum(1) == 42).all()
    assert (reads_normalised[0] != reads_normalised[1]).all()
    difference = (found - changed).abs().amax(2)
    assert difference[:, reads_normalised].max() < 1e-3
    assert difference[:, ~reads_normalised].mean() > 0.01


def test_kernels_of_several_features_read_one_to_nine_of_them() -> None:
    torch.manual_seed(0)
    inputs = RocketFeatures(40, (1, 2, 4), 252).inputs
    counts = inputs.sum(2)
    assert (int(counts.min()), int(counts.max())) == (1, 9)
    assert (inputs.sum((0, 1)).view(2, 40).sum(0) > 0).all()
    assert (RocketFeatures(1, (1,), 84).inputs.sum(2) == 1).all()


@pytest.mark.parametrize(("level", "most"), [(0.0, 1e-3), (30.0, 0.03), (1000.0, 0.3)])
def test_rounding_moves_no_step_across_a_threshold(level: float, most: float) -> None:
    """A threshold lies between values that steps have, and the last digits of steps do not."""
    rows = torch.arange(90.0).remainder(7).repeat(4, 1)[:, :, None] + level
    features = RocketFeatures(1, (1, 2), 1680)
    features.fit(lambda: [(rows, None)])
    noisy = rows * (1 + 1e-7 * torch.randn(rows.shape))
    change = (features(noisy, None) - features(rows, None)).abs().max()
    assert change < most


def test_a_threshold_lies_between_values_that_steps_have() -> None:
    """So of rows with few values no step counts in part, and rounding decides nothing."""
    torch.manual_seed(1)
    rows = torch.randint(0, 2, (50, 40, 1)).double().mul(2).sub(1)
    rows[:, 20:] = -rows[:, :20]  # the mean of each row is 0, and its variance 1
    features = RocketFeatures(1, (1,), 84 * 9).double()
    features.fit(lambda: [(rows, None)])
    counts = (features(rows, None) / features.factor + features.mean) * 40
    is_whole = (counts - counts.round()).abs() < 1e-6
    assert is_whole.double().mean() > 0.7


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_rows_that_do_not_change_have_features(value: float) -> None:
    features = RocketFeatures(2, (1,), 84)
    rows = torch.full((3, 9, 2), value)
    features.fit(lambda: [(rows, torch.tensor([9, 1, 4]))])
    for tensor in (*features.state_dict().values(), features(rows, None)):
        assert tensor.isfinite().all()
    assert features(torch.randn(2, 1, 2), None).isfinite().all()


def test_rows_that_differ_in_length_alone_have_other_features() -> None:
    features = RocketFeatures(1, (1, 2), 84 * 4)
    rows, lengths = torch.zeros(9, 60, 1), torch.arange(20, 65, 5)
    features.fit(lambda: [(rows, lengths)])
    deviations = features(rows, lengths).std(0).view(2, 2, 84)
    is_raw_DK = features.inputs[:, :, 0] > 0
    assert (deviations[:, 0][is_raw_DK] > 0.05).float().mean() > 0.5
    assert (deviations[:, 0][~is_raw_DK] == 0).all()


def test_a_gradient_reaches_the_steps() -> None:
    """So an explanation by gradients sees these features, too."""
    features, values = make_features(), torch.randn(2, 30, 3, requires_grad=True)
    features(values, None).square().sum().backward()
    assert values.grad is not None
    assert (values.grad != 0).any((1, 2)).all()


def test_nothing_here_is_trained() -> None:
    model = LSTMClassifier(3, 2, hidden_size=4, rocket=84, dilations=(1,))
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 9, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(name.startswith("rocket") for name, _ in model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_row_that_hardly_changes_is_normalised_with_the_digits_it_has() -> None:
    values = 1000 + 0.01 * torch.randn(2, 3, 40)
    found, exact = (centre_rows(read, None)[0] for read in (values, values.double()))
    torch.testing.assert_close(found[:, 3:].double(), exact[:, 3:], rtol=1e-4, atol=1e-4)
    level = torch.full((1, 1, 7), 0.1)
    assert (centre_rows(level, None)[0] == 0).all()


def test_padding_may_hold_anything() -> None:
    features, lengths = make_features(), torch.tensor([30, 9])
    values = torch.randn(2, 30, 3)
    spoiled: Tensor = values.clone()
    spoiled[1, 9:] = torch.nan
    spoiled.requires_grad_()
    found = features(spoiled, lengths)
    torch.testing.assert_close(found, features(values, lengths))
    found.sum().backward()
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()


@pytest.mark.parametrize(("most", "noise"), [(3, 0.0), (3, 1e-4), (90, 0.0), (90, 0.01)])
def test_a_large_level_leaves_no_rounding_as_a_shape(most: int, noise: float) -> None:
    """A kernel's weights sum to 0, and only at the ends does a level come to anything."""
    torch.manual_seed(3)
    levels = torch.linspace(-most, most, 13)[:, None, None].expand(-1, 2500, 1)
    rows = levels + noise * torch.randn(levels.shape)
    features = RocketFeatures(1, choose_dilations(2500), 756)
    features.fit(lambda: [(rows, None)])
    found, wanted = features(rows, None), features.double()(rows.double(), None)
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() < 3e-3


@pytest.mark.parametrize("num_steps", [2, 3, 5])
def test_a_level_is_no_shape_of_a_short_row(num_steps: int) -> None:
    """Where all that a kernel reads cancels, only rounding is left, and it counts for nothing."""
    torch.manual_seed(1)
    rows = (torch.arange(-300.0, 301, 50)[:, None, None]).repeat(1, num_steps, 2)
    features = RocketFeatures(2, (1,), 84 * 4)
    features.fit(lambda: [(rows, None)])
    found, exact = features(rows, None), features.double()(rows.double(), None)
    assert exact.std() > 0.01
    assert (found - exact).abs().max() < 1e-3


@pytest.mark.parametrize("num_steps", [1, 29, 3000])
def test_rows_of_any_number_are_read_alike(num_steps: int) -> None:
    """A CPU reads a few rows at a time."""
    features, values = make_features(), torch.randn(9, num_steps, 3)
    alone = torch.cat([features(row[None], None) for row in values])
    torch.testing.assert_close(features(values, None), alone, rtol=0, atol=1e-4)
    lengths = torch.randint(1, num_steps + 1, (9,))
    alone = torch.cat(
        [features(row[None, :n], None) for row, n in zip(values, lengths.tolist(), strict=True)]
    )
    torch.testing.assert_close(features(values, lengths), alone, rtol=0, atol=1e-4)


def test_half_precision_beside_it_changes_no_feature() -> None:
    features, values = make_features(), torch.randn(4, 30, 3)
    expected = features(values, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(values, None), expected)
