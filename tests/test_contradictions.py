"""A config.json that no model can have is refused by name, before a model is built from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Capture, refusal

from seqclf import UserError
from seqclf.model import Architecture
from seqclf.run.weights import load_model, save_model

ARCHITECTURE = Architecture.model_validate(
    {
        "input_size": 3,
        "classes": ("a", "b"),
        "scale": 1.0,
        "read": "rows",
        "hidden_size": 5,
        "num_layers": 1,
        "bidirectional": False,
        "dropout": 0.0,
        "pooling": "last",
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "features": ("x", "y", "x measured"),
        "reading": {"measured": ["x"], "fill_missing": True, "offset": [0.0, 1e9]},
    }
)
HUGE = 10**12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", ARCHITECTURE.build("orthogonal"), ARCHITECTURE)
    return tmp_path / "model"


def describe(folder: Path, changes: dict[str, Any]) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["reading"] |= changes.pop("reading", {})
    (folder / "config.json").write_text(json.dumps(content | changes))


def test_a_description_that_fits_is_loaded(folder: Path) -> None:
    describe(folder, {})
    assert load_model(folder)[1] == ARCHITECTURE


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input_size": 0}, "input_size: Input should be greater than or equal to 1"),
        ({"hidden_size": -1}, "hidden_size: Input should be greater"),
        ({"num_layers": 0}, "num_layers: Input should be greater"),
        ({"stack": 0}, "stack: Input should be greater"),
        ({"rocket": -84}, "rocket: Input should be greater"),
        ({"rocket": 84}, "rocket, dilations: one of them without the other"),
        ({"rocket": 84, "dilations": [2]}, "dilations: not the first powers of two"),
        ({"rocket": 84, "dilations": [2**n for n in range(21)]}, "dilations: not the first"),
        ({"rocket": 85, "dilations": [1]}, "rocket: 85, no multiple of 84"),
        (
            {
                "rocket": 84,
                "dilations": [1],
                "num_tokens": 2,
                "tokens": ["u"],
                "mean": [],
                "std": [],
                "features": [],
                "reading": {"measured": [], "offset": []},
            },
            "rocket: fixed convolutions of tokens",
        ),
        ({"num_tokens": -1}, "num_tokens: Input should be greater"),
        ({"max_length": 0}, "max_length: Input should be greater"),
        ({"max_length": 2**63}, "max_length: Input should be less"),
        ({"dropout": 3.7}, "dropout: Input should be less"),
        ({"scale": 0}, "scale: Input should be greater"),
        ({"scale": float("inf")}, "scale: Input should be a finite number"),
        ({"temperature": float("nan")}, "temperature: Input should be"),
        ({"classes": []}, "classes: Tuple should have at least 1 item"),
        ({"classes": ["a", "a"]}, "classes: a name that comes twice"),
        ({"classes": ["\ud800", "a"]}, "classes: half of a letter of UTF-16"),
        ({"tokens": ["u", "u"], "num_tokens": 3}, "tokens: a name that comes twice"),
        ({"tokens": ["u", "v"], "num_tokens": 2}, "tokens: 2 of them, expected 1"),
        ({"mean": [0.0]}, "mean: 1 of them, expected 3"),
        ({"mean": [float("nan")] * 3}, "mean: 0: Input should be a finite number"),
        ({"mean": [1e308] * 3}, "mean: a number that float32 does not hold"),
        ({"mean": []}, "mean, std: one of them without the other"),
        ({"std": [0.0] * 3}, "std: a number that float32 does not tell from 0"),
        ({"std": [1e-300] * 3}, "std: a number that float32 does not tell from 0"),
        ({"std": [1.0] * 4}, "std: 4 of them, expected 3"),
        ({"features": ["x"]}, "features: 1 of them, expected 3"),
        ({"lengths": [0, 0]}, "lengths: 0: Input should be greater"),
        ({"lengths": [9, 2]}, "lengths: the shortest sequence is longer than the longest"),
        ({"read": "permuted"}, "read: permuted, whose steps have 1 number, not 3"),
        ({"reading": {"window": 0}}, "reading: window: Input should be greater"),
        ({"reading": {"stride": -1}}, "reading: stride: Input should be greater"),
        ({"reading": {"min_share": 2}}, "reading: min_share: Input should be less"),
        ({"reading": {"offset": [float("nan"), 0]}}, "reading: offset: 0: Input should be a fin"),
        ({"reading": {"offset": [1.0]}}, "reading.offset: 1 of them, expected 2"),
        ({"reading": {"measured": ["z"]}}, "reading.measured: 'z' is no feature"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    changes: dict[str, Any], problem: str, folder: Path, capsys: Capture
) -> None:
    describe(folder, changes)
    said = refusal(capsys, "demo", folder, "--out", folder.with_name("page.html"))
    assert said.startswith(f"error: {folder / 'config.json'}: damaged: {problem}")
    with pytest.raises(
        UserError, match=f"config.json: damaged: ({re.escape(problem)}|Invalid JSON)"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "stack"])
def test_a_model_much_larger_than_its_file_is_not_built(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"mean": [], "std": [], "features": [], "reading": {"offset": [], "measured": []}}
    describe(folder, empty | {name: HUGE})
    monkeypatch.setattr(Architecture, "build", lambda self: pytest.fail("was built"))
    with pytest.raises(UserError, match=r"numbers, where its config\.json describes a model of"):
        load_model(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    model = ARCHITECTURE.build("orthogonal")
    with torch.no_grad():
        model.out.bias[1] = torch.nan
    save_model(folder, model, ARCHITECTURE)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: holds numbers that are not"):
        load_model(folder)
