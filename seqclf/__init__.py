"""seqclf: train sequence classifiers, exactly, on any number of processes.

The functions that share their module's name stay there: `from seqclf.train import train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqclf.config import Config, load_config
    from seqclf.data.sequences import Sequences
    from seqclf.errors import UserError
    from seqclf.evaluate import Metrics
    from seqclf.model import LSTMClassifier
    from seqclf.run.weights import load_model

_HOMES = {
    "Config": "config",
    "LSTMClassifier": "model",
    "Metrics": "evaluate",
    "Sequences": "data.sequences",
    "UserError": "errors",
    "load_config": "config",
    "load_model": "run.weights",
}
__all__ = [
    "Config",
    "LSTMClassifier",
    "Metrics",
    "Sequences",
    "UserError",
    "load_config",
    "load_model",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import seqclf` itself is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seqclf' has no attribute '{name}'")
    return getattr(import_module(f"seqclf.{_HOMES[name]}"), name)
