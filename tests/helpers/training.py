"""Training on the embedded digits, as small as a test can do with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.processes.runtime import Runtime
from seqclf.training import train

Settings = Mapping[str, object]

TINY: Settings = {
    "data.name": "digits",
    "model.hidden_size": 8,
    "train.threads": 1,
    "tracking.wandb": "disabled",
    "report": False,  # 2 s a run
}
# All that could make two runs differ, at the chaotic rate.
EVERYTHING_ON: Settings = {
    "data.augment.shift": 1,
    "data.val_fraction": 0.1,
    "model.dropout": 0.3,
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.rocket": 84,
    "train.steps": 60,
    "train.batch_size": 50,
    "train.micro_batch_size": 16,
    "checkpoint.every": 7,
    "eval.every": 13,
    "log.every": 5,
}
# With a decay the steps already done would be others if the run were longer.
CONSTANT_RATE: Settings = {"optim.schedule": "constant", "optim.warmup": 0}
# A run that may grow, and keeps all its checkpoints.
GROWING: Settings = {
    **CONSTANT_RATE,
    "data.augment.shift": 1,
    "data.val_fraction": 0.1,
    "model.dropout": 0.2,
    "train.steps": 24,
    "checkpoint.every": 6,
    "checkpoint.keep_last": 9,
    "eval.every": 9,
    "log.every": 5,
}


def tiny_flags(settings: Mapping[str, object] = {}, **more: object) -> dict[str, str]:
    """Return TINY with other settings as a command line's flags; __ stands for a dot."""
    merged = {**TINY, **settings, **{name.replace("__", "."): more[name] for name in more}}
    return {name: _as_text(value) for name, value in merged.items()}


def tiny_config(settings: Mapping[str, object] = {}, **more: object) -> Config:
    return load_config(None, tiny_flags(settings, **more))[0]


def train_tiny(
    run_dir: Path | str,
    settings: Mapping[str, object] = {},
    *,
    stop_at: int | None = None,
    **more: object,
) -> int:
    """Train with TINY and other settings; return the exit code.

    `stop_at` is a step at which to stop, as a signal would ask for.
    """
    with pytest.MonkeyPatch.context() as patch:
        if stop_at is not None:
            patch.setattr(Runtime, "agree", lambda _, step, *, save: (step == stop_at, save))
        return train(tiny_config(settings, run_dir=run_dir, **more))


def _as_text(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
