"""seqclf: train sequence classifiers, exactly, on any number of processes.

    classifier = seqclf.load("runs/mine")  # docs/python.md

The functions that share their module's name stay there: `from seqclf.train import train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqclf.classifier import Classifier, load
    from seqclf.config import Config, load_config
    from seqclf.data.sequences import Sequences
    from seqclf.errors import UserError
    from seqclf.evaluate import Metrics
    from seqclf.model import LSTMClassifier
    from seqclf.run.weights import load_model

_HOMES = {
    "Classifier": "classifier",
    "Config": "config",
    "LSTMClassifier": "model",
    "Metrics": "evaluate",
    "Sequences": "data.sequences",
    "UserError": "errors",
    "load": "classifier",
    "load_config": "config",
    "load_model": "run.weights",
}
__all__ = [
    "Classifier",
    "Config",
    "LSTMClassifier",
    "Metrics",
    "Sequences",
    "UserError",
    "load",
    "load_config",
    "load_model",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import seqclf` itself is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seqclf' has no attribute '{name}'")
    return getattr(import_module(f"seqclf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, which a shell or a notebook completes."""
    return sorted({*globals(), *__all__})
