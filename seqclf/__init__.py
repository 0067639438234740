"""seqclf: train sequence classifiers, exactly, on any number of processes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqclf.config import Config, UserError, load_config
    from seqclf.data.sequences import Sequences
    from seqclf.evaluate import Metrics, evaluate
    from seqclf.model import LSTMClassifier
    from seqclf.predict import load_model
    from seqclf.train import train

_HOMES = {
    "Config": "config",
    "LSTMClassifier": "model",
    "Metrics": "evaluate",
    "Sequences": "data.sequences",
    "UserError": "config",
    "evaluate": "evaluate",
    "load_config": "config",
    "load_model": "predict",
    "train": "train",
}
__all__ = [
    "Config",
    "LSTMClassifier",
    "Metrics",
    "Sequences",
    "UserError",
    "evaluate",
    "load_config",
    "load_model",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import seqclf` itself is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seqclf' has no attribute '{name}'")
    return getattr(import_module(f"seqclf.{_HOMES[name]}"), name)
