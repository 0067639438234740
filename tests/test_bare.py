"""benchmarks/bare.py is the specification: at world size 1 the package gives its bits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.files import weights_of
from helpers.launching import ROOT
from helpers.training import train_tiny
from safetensors.torch import load

from seqclf.config.settings import Data
from seqclf.data import sources

sys.path.insert(0, str(ROOT / "benchmarks"))
import bare


@pytest.mark.parametrize("batch_size", [64, 37])
def test_the_package_gives_the_bits_of_the_bare_loop(batch_size: int, tmp_path: Path) -> None:
    settings = {"train.steps": 150, "train.batch_size": batch_size, "model.hidden_size": 64}
    assert train_tiny(tmp_path, settings) == 0
    data = sources.load(Data(name="digits"), seed=0).train
    *_, model = bare.train_steps(data.values, data.labels, 150, batch_size=batch_size, scale=16.0)
    ours = load(weights_of(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
