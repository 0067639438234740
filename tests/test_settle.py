"""What the data decide before the first step."""

from __future__ import annotations

import pytest
import torch

from seqclf.config.settings import Config
from seqclf.conv import count_reference
from seqclf.data import sources
from seqclf.settle import settle


def test_convolutions_are_normalised_over_examples_of_all_classes() -> None:
    config = Config.model_validate({"data": {"name": "digits"}, "model": {"conv": 4}})
    splits = sources.load(config.data, seed=0)
    values, lengths = settle(config, splits).reference(torch.device("cpu")) or (None, None)
    assert values is not None
    assert (len(values), lengths) == (32, None)
    train = splits.train
    found = [(train.values == value).flatten(1).all(1).nonzero()[0, 0] for value in values]
    labels = train.labels[torch.stack(found)]
    assert set(labels.bincount(minlength=10).tolist()) <= {3, 4}
    without = config.model_copy(update={"model": config.model.model_copy(update={"conv": 0})})
    assert settle(without, splits).reference(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("num_steps", "count"), [(1, 32), (2048, 32), (4096, 16), (8192, 8), (10**6, 8)]
)
def test_of_long_sequences_fewer_are_enough(num_steps: int, count: int) -> None:
    assert count_reference(num_steps) == count
