"""The convolution branch: how it is normalised, and over what."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqclf.conv import EPSILON, ROW_EPSILON, Layer, join_normalised
from seqclf.model import LSTMClassifier, Pooling, run_lstm


def make_model(*, pooling: Pooling = "last", bidirectional: bool = True) -> LSTMClassifier:
    """Return a small model with a branch, and a mean and a deviation of its features."""
    torch.manual_seed(2)
    return LSTMClassifier(
        input_size=3,
        num_classes=4,
        hidden_size=6,
        bidirectional=bidirectional,
        pooling=pooling,
        mean=(0.5, 0.0, -1.0),
        std=(2.0, 1.0, 0.5),
        conv=4,
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, torch.tensor([20, 3, 11])])
def test_convolutions_are_normalised_over_the_reference_and_over_each_row(
    lengths: Tensor | None,
) -> None:
    """torch's own normalisation of the reference rows, each cut at its length, and of each row."""
    model = make_model().train()
    assert model.conv is not None
    values, reference = torch.randn(2, 20, 3), torch.randn(3, 20, 3)
    model.reference = (reference, lengths)
    found = model.embed(values).mT
    ends = [20] * 3 if lengths is None else lengths.tolist()
    rows = [model.embed(row[None, :n]).mT for row, n in zip(reference, ends, strict=True)]
    for number, layer in enumerate(model.conv.layers):
        assert isinstance(layer, Layer)
        rows = [convolve(layer, row, is_first=number == 0) for row in rows]
        found = convolve(layer, found, is_first=number == 0)
        steps = torch.cat(rows, 2)[:, : found.shape[1] // 2]
        moments = steps.mean((0, 2)), steps.var((0, 2), correction=0)
        rows = [normalise_halves(row, *moments) for row in rows]
        found = normalise_halves(found, *moments)
    state = run_lstm(model.rnn, model.embed(values), None)[1]
    expected = model.out(torch.cat([state, found.mean(2)], 1))
    torch.testing.assert_close(model(values), expected, rtol=0, atol=1e-5)
    model.eval().reference = None  # the stored moments count, as in a model that is loaded
    torch.testing.assert_close(model(values), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, torch.tensor([700, 600, 40])])
def test_of_long_reference_rows_a_window_counts(lengths: Tensor | None) -> None:
    model = make_model()
    assert model.conv is not None
    values = torch.randn(3, 700, 3).cumsum(1)
    windows = []
    ends = [700] * 3 if lengths is None else lengths.tolist()
    for row, end, place in zip(values, ends, (0, 0.618034, 0.236068), strict=True):
        start = int(place * max(0, end - 512))
        windows.append(row[None, start : min(end, start + 512)].mT)
    first = model.conv.layers[0]
    assert isinstance(first, Layer)
    found = [convolve(first, window, is_first=True) for window in windows]
    steps = torch.cat(found, 2)[:, : len(first.mean)]
    moments = model.conv.measure(values, lengths)[0]
    torch.testing.assert_close(moments.mean[:, 0], steps.mean((0, 2)), rtol=0, atol=1e-5)
    expected = steps.var((0, 2), correction=0)
    torch.testing.assert_close(moments.variance[:, 0], expected, rtol=1e-5, atol=1e-6)


def convolve(layer: Layer, row: Tensor, *, is_first: bool) -> Tensor:
    """Convolve a row; half the channels of the first layer read the normalised row."""
    size = layer.conv.kernel_size[0]
    weights = layer.conv.weight.chunk(2)
    second = F.instance_norm(row, eps=ROW_EPSILON) if is_first else row
    pad = ((size - 1) // 2, size // 2)
    halves = zip((row, second), weights, strict=True)
    return torch.cat([F.conv1d(F.pad(read, pad), weight) for read, weight in halves], 1)


def normalise_halves(found: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Normalise half the channels of a row by given moments, the others by the row's own."""
    first, second = found.chunk(2, dim=1)
    by_reference = F.batch_norm(first, mean, variance, eps=EPSILON)
    return F.relu(torch.cat([by_reference, F.instance_norm(second, eps=ROW_EPSILON)], 1))


def test_moments_have_the_digits_of_full_precision() -> None:
    layer = Layer(1, 2, 1).half()
    values = torch.ones(20, 1, 5000, dtype=torch.float16)
    found = layer.measure(values, None)  # 100,000 steps are more than half precision counts
    assert found.mean.item() == pytest.approx(layer.conv.weight[0].item(), rel=1e-6)
    assert found.variance.item() == pytest.approx(0, abs=1e-9)


def test_half_the_convolutions_see_a_shape_at_any_scale() -> None:
    model = make_model().eval()
    assert model.conv is not None
    values = torch.randn(2, 4, 30)
    small, large = (model.conv.layers[1](values * factor, None) for factor in (1, 50))
    torch.testing.assert_close(small[:, 4:], large[:, 4:], rtol=1e-3, atol=1e-3)
    assert (small[:, :4] - large[:, :4]).abs().max() > 1


@torch.no_grad()
def test_half_the_first_convolutions_see_no_level_and_no_scale_of_a_row() -> None:
    """Nor the jump from the zeros around a row to its level: docs/recipes.md, PLAID."""
    model = make_model().double().eval()
    assert model.conv is not None
    values, lengths = torch.randn(3, 3, 30, dtype=torch.float64), torch.tensor([30, 9, 20])
    factor, level = torch.tensor([4.0, 9.0, 2.0]), torch.tensor([-50.0, 0.0, 7.0])
    valid = (torch.arange(30) < lengths[:, None])[:, None]
    found, changed = (
        model.conv.layers[0](join_normalised(read, valid), valid).where(valid, 0)
        for read in (values, values * factor[:, None, None] + level[:, None, None])
    )
    torch.testing.assert_close(changed[:, 2:], found[:, 2:], rtol=1e-3, atol=1e-3)
    assert (changed[:, :2] - found[:, :2]).abs().amax((1, 2)).min() > 1


def test_gradients_go_through_the_reference() -> None:
    """So the weights' size means nothing, as with batch normalisation: its gradient is 0."""
    model = make_model().double().train()
    assert model.conv is not None
    model.reference = (torch.randn(6, 30, 3, dtype=torch.float64), None)
    model(torch.randn(5, 30, 3, dtype=torch.float64)).square().sum().backward()
    for layer in model.conv.layers:
        assert isinstance(layer, Layer)
        weight = layer.conv.weight
        assert weight.grad is not None
        along = (weight * weight.grad).sum((1, 2)) / (weight.norm() * weight.grad.norm())
        assert along.abs().max() < 0.02  # 0 but for EPSILON


def test_a_sequence_of_one_step_or_of_one_value_has_convolutions() -> None:
    model = make_model(pooling="max", bidirectional=False).train()
    model.reference = (torch.full((1, 9, 3), 7.0), None)
    for values in (torch.randn(2, 1, 3), torch.full((2, 9, 3), 7.0)):
        logits = model(values)
        logits.sum().backward()
        assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_row_that_hardly_changes_is_normalised_with_the_digits_it_has() -> None:
    values = 1000 + 0.01 * torch.randn(2, 3, 40)
    found, exact = (join_normalised(read, None) for read in (values, values.double()))
    torch.testing.assert_close(found[:, 3:].double(), exact[:, 3:], rtol=1e-4, atol=1e-4)
    level = torch.full((1, 1, 7), 0.1)
    assert (join_normalised(level, None)[:, 1:] == 0).all()
