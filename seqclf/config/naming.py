"""Names of runs, after the settings that make them differ."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqclf.config.settings import UNNAMED, Config, Value, settings_by_name

MOST_OF_A_NAME = 80  # characters of flags in a run's name; a hash stands for more


def run_name(config: Config, path: str | Path | None, flagged: Sequence[str]) -> str:
    """Name a run: the config file's stem, or the data set, plus the flags that change the result.

    >>> run_name(Config(), "configs/mnist.yaml", [])
    'mnist'
    """
    values = settings_by_name(config)
    base = Path(path).stem if path is not None else config.data.name
    if config.data.path is not None:
        folder = Path(config.data.path).absolute().name
        base = folder if path is None or base == "files" else f"{base}-{folder}"
    settings = {
        name: values[name]
        for name in flagged
        if name not in UNNAMED and not (path is None and name == "data.name")
    }
    return f"{base}-{name_of(settings)}" if settings else base


def name_of(settings: Mapping[str, Value]) -> str:
    """Name a file after settings; a hash stands for a long name, and for letters of paths.

    >>> name_of({"seed": 1, "optim.lr": 0.02})
    'optim.lr=0.02-seed=1'
    """
    text = "-".join(f"{name}={_plain(settings[name])}" for name in sorted(settings))
    if len(text) >= MOST_OF_A_NAME or re.search(r"[^\w.=+,-]", text):
        return hashlib.sha256(f"-{text}".encode()).hexdigest()[:10]
    return text


def _plain(value: Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
