"""What the data decide before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import toy_dataset
from helpers.launching import ROOT

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.errors import UserError
from seqclf.rocket import Batches, RocketFeatures
from seqclf.settle import settle
from seqclf.terminal import opening


def test_fixed_convolutions_are_fitted_to_examples_of_all_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config.model_validate({"data": {"name": "digits"}, "model": {"rocket": 100}})
    splits = sources.load(config.data, seed=0)
    taken: list[torch.Tensor] = []
    real = RocketFeatures.fit

    def fit(self: RocketFeatures, batches: Batches) -> None:
        taken.extend(values for values, _ in batches())
        real(self, batches)

    monkeypatch.setattr(RocketFeatures, "fit", fit)
    setup = settle(config, splits)
    assert (setup.config.model.rocket, setup.architecture.dilations) == (84, (1,))
    model = setup.build_model()
    values = torch.cat(taken) * splits.train.scale
    assert len(values) == 256
    train = splits.train
    found = [(train.values == value).flatten(1).all(1).nonzero()[0, 0] for value in values]
    labels = train.labels[torch.stack(found)]
    assert set(labels.bincount(minlength=10).tolist()) <= {25, 26}
    again = setup.build_model().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_fixed_convolutions_of_tokens_are_refused(tmp_path: Path) -> None:
    lines = [{"text": "ab" * 9, "label": name} for name in "xy" * 9]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", Preparation(), print)
    flags = {"data.path": str(tmp_path / "data"), "model.rocket": "500"}
    config = load_config(ROOT / "configs" / "files.yaml", flags)[0]
    with pytest.raises(UserError, match=r"model\.rocket: 500: fixed convolutions read numbers"):
        settle(config, sources.load(config.data, seed=0))


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
