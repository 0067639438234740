"""seqclf: train sequence classifiers, exactly, on any number of processes.

    result = seqclf.train({"train.epochs": 5}, train=(X, y), test=(X_test, y_test))
    classifier = seqclf.load("runs/mine")

docs/python.md shows all of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqclf.classifier import Classifier, load
    from seqclf.config import Config, load_config
    from seqclf.data.sequences import Sequences
    from seqclf.errors import UserError
    from seqclf.estimator import SequenceClassifier
    from seqclf.evaluate import Metrics
    from seqclf.fit import Result, train
    from seqclf.model import LSTMClassifier
    from seqclf.run.weights import load_model

_HOMES = {
    "Classifier": "classifier",
    "Config": "config",
    "LSTMClassifier": "model",
    "Metrics": "evaluate",
    "Result": "fit",
    "SequenceClassifier": "estimator",
    "Sequences": "data.sequences",
    "UserError": "errors",
    "load": "classifier",
    "load_config": "config",
    "load_model": "run.weights",
    "train": "fit",
}
__all__ = [
    "Classifier",
    "Config",
    "LSTMClassifier",
    "Metrics",
    "Result",
    "SequenceClassifier",
    "Sequences",
    "UserError",
    "load",
    "load_config",
    "load_model",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import seqclf` itself is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seqclf' has no attribute '{name}'")
    with _short_openmp_waits():
        return getattr(import_module(f"seqclf.{_HOMES[name]}"), name)


@contextmanager
def _short_openmp_waits() -> Iterator[None]:
    """Have OpenMP, which reads its variables when torch is imported, wait as the command line does.

    Else two programs on the same cores get nowhere (docs/design.md). The variable does not stay.
    """
    name = "GOMP_SPINCOUNT"
    is_chosen = "OMP_WAIT_POLICY" in os.environ or name in os.environ
    if "torch" in sys.modules or is_chosen:
        yield
        return
    os.environ[name] = "20000"
    try:
        yield
    finally:
        del os.environ[name]


def __dir__() -> list[str]:
    """List the public names, which a shell or a notebook completes."""
    return sorted({*globals(), *__all__})
