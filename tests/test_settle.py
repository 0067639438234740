"""What the data decide before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import toy_dataset
from helpers.files import step_dir
from helpers.launching import ROOT
from helpers.training import CONSTANT_RATE, train_tiny

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.errors import UserError
from seqclf.run.weights import find_weights
from seqclf.settle import settle
from seqclf.terminal import opening


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


def test_a_crop_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    folder = toy_dataset(tmp_path / "data")
    flags = {"data.path": str(folder), "data.augment.crop": "0.99"}
    config = load_config(ROOT / "configs" / "files.yaml", flags)[0]
    splits = sources.load(config.data, seed=0)
    longest = splits.train.shape[0]
    with pytest.raises(UserError) as caught:
        settle(config, splits)
    assert str(caught.value).startswith(
        f"data.augment.crop: 0.99: takes nothing from sequences of at most {longest} steps"
    )


@pytest.mark.parametrize(("phase", "is_cropped"), [(0.0, False), (6.3, True)])
def test_a_run_says_that_it_takes_stretches(tmp_path: Path, phase: float, is_cropped: bool) -> None:
    lines = []
    for number in range(60):
        wave = np.sin(np.arange(80) * (0.3 + 0.1 * (number % 2)) + phase * number / 60)
        lines.append(json.dumps({"steps": wave[:, None].tolist(), "label": str(number % 2)}))
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", Preparation(), print)
    flags = {"data.path": str(tmp_path / "data")}
    for flag, is_said in (({}, is_cropped), ({"data.augment.crop": "0.5"}, False)):
        config = load_config(ROOT / "configs" / "files.yaml", {**flags, **flag})[0]
        setup = settle(config, sources.load(config.data, seed=0))
        assert setup.config.data.augment.crop == (0.5 if is_cropped or flag else 1.0)
        said = "\n".join(opening(setup, tmp_path))
        assert ("so training takes stretches of them" in said) == is_said
        assert ("padding, before crops" in said) == (setup.config.data.augment.crop < 1)


def test_a_checkpoint_holds_the_moments_of_its_own_weights(tmp_path: Path) -> None:
    """Also where nothing was evaluated at its step: predictions may be made from it."""
    settings = {"model.conv": 4, "train.steps": 9, "eval.every": 5, "checkpoint.every": 7}
    assert train_tiny(tmp_path, {**CONSTANT_RATE, **settings}) == 0
    config = load_config(tmp_path / "config.yaml")[0]
    setup = settle(config, sources.load(config.data, seed=config.seed))
    model = find_weights(step_dir(tmp_path, 7)).build()
    assert model.conv is not None
    stored = {name: buffer.clone() for name, buffer in model.conv.named_buffers()}
    assert len(stored) == 6
    model.reference = setup.reference(torch.device("cpu"))
    model.train().eval()  # computes them anew
    for name, buffer in model.conv.named_buffers():
        torch.testing.assert_close(buffer, stored[name], rtol=1e-5, atol=1e-6)
