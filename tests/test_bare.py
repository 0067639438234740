"""benchmarks/bare.py is the specification: at world size 1 the package gives its bits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from seqclf.config import Data, load_config
from seqclf.data.sources import load
from seqclf.train import train

sys.path.insert(0, str(ROOT / "benchmarks"))
import bare


@pytest.mark.parametrize("batch_size", [64, 37])
def test_the_package_gives_the_bits_of_the_bare_loop(batch_size: int, tmp_path: Path) -> None:
    flags = {
        "data.name": "digits",
        "train.steps": "150",
        "train.batch_size": str(batch_size),
        "tracking.wandb": "disabled",
        "run_dir": str(tmp_path),
    }
    assert train(load_config(None, flags)[0]) == 0
    data = load(Data(name="digits"), seed=0).train
    *_, model = bare.train_steps(data.values, data.labels, 150, batch_size=batch_size, scale=16.0)
    ours = load_file(tmp_path / "model/model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[name], tensor), name
