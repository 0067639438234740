"""The recipes in configs/: the small ones run, the results are what is promised."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.files import read_metrics
from helpers.launching import ROOT

from seqclf.config.load import load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.training import train

GOLDEN = [2.3005917, 2.3317742, 2.3324738, 2.2867520, 2.2930629]


def test_launch_configs_hold_the_topology_only() -> None:
    for path in (ROOT / "configs/accelerate").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


def run(recipe: str, run_dir: Path, **flags: str) -> dict[str, float]:
    always = {"run_dir": str(run_dir), "tracking.wandb": "disabled", "report": "false"}
    assert train(load_config(ROOT / f"configs/{recipe}.yaml", always | flags)[0]) == 0
    metrics: dict[str, float] = json.loads((run_dir / "status.json").read_text())["metrics"]
    return metrics


def test_golden_first_losses(tmp_path: Path) -> None:
    run("digits", tmp_path, **{"train.steps": "5", "log.every": "1", "train.threads": "1"})
    losses = [line["train/loss"] for line in read_metrics(tmp_path) if "train/loss" in line]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


def test_the_debug_run_goes_on(tmp_path: Path) -> None:
    run("debug", tmp_path)
    run("debug", tmp_path, **{"train.steps": "60"})
    sessions = (tmp_path / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in sessions] == [0, 40]
    assert [line["step"] for line in read_metrics(tmp_path) if "test/loss" in line] == [20, 40, 60]


@pytest.mark.slow
def test_digits_reach_97_percent(tmp_path: Path) -> None:
    assert run("digits", tmp_path)["test/accuracy"] >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "middle", "promised"),
    [("tutorial", statistics.median, 0.96), ("mnist_fast", statistics.mean, 0.98)],
)
def test_accuracy_over_5_seeds(
    recipe: str,
    middle: Callable[[list[float]], float],
    promised: float,
    tmp_path: Path,
    mnist_root: str,
) -> None:
    flags = {"data.root": mnist_root}
    accuracies = [
        run(recipe, tmp_path / str(seed), seed=str(seed), **flags)["test/accuracy"]
        for seed in range(5)
    ]
    assert middle(accuracies) >= promised


def test_real_mnist_learns_within_200_steps(tmp_path: Path, mnist_root: str) -> None:
    flags = {"data.root": mnist_root, "train.steps": "200"}
    assert run("mnist_fast", tmp_path, **flags)["test/accuracy"] >= 0.9


@pytest.mark.slow
def test_japanese_vowels_over_5_seeds(tmp_path: Path) -> None:
    root = Path(os.environ.get("SEQCLF_DATA", "data"))
    files = [root / f"JapaneseVowels/JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")]
    if not all(file.is_file() for file in files):
        pytest.skip("SEQCLF_DATA does not hold JapaneseVowels")
    inputs = [Input(file, part) for file, part in zip(files, ("train", "test"), strict=True)]
    prepare(inputs, tmp_path / "vowels", Preparation(), print)
    flags = {"data.path": str(tmp_path / "vowels")}
    accuracies = [
        run("japanese_vowels", tmp_path / str(seed), seed=str(seed), **flags)["test/accuracy"]
        for seed in range(5)
    ]
    # 0.9812 over 20 runs (5 seeds, 4 ways of rounding); a mean of five scatters by 0.0013 about it
    assert statistics.mean(accuracies) >= 0.978
