"""What the classifiers for aeon and sktime have in common: sequences are channels x time there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from seqclf.estimator import SequenceClassifier


class ChannelsFirst:
    """An LSTM classifier in the form of aeon and sktime, over `SequenceClassifier`.

    A subclass adds the library's base class, which calls the methods with an underscore.
    """

    def __init__(
        self,
        *,
        lr: float | None = None,
        hidden_size: int | str | None = None,
        num_layers: int | None = None,
        bidirectional: bool | None = None,
        dropout: float | None = None,
        pooling: str | None = None,
        batch_size: int | str | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        patience: int | float | None = None,
        validation: float | None = None,
        settings: Mapping[str, object] | None = None,
        random_state: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.lr = lr
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.pooling = pooling
        self.batch_size = batch_size
        self.epochs = epochs
        self.steps = steps
        self.patience = patience
        self.validation = validation
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose
        super().__init__()

    def _fit(self, X: Iterable[Any], y: np.ndarray) -> ChannelsFirst:
        parameters = {name: getattr(self, name) for name in _SHARED}
        self.estimator_ = SequenceClassifier(**parameters, seed=_seed_of(self.random_state))
        self.estimator_.fit(self._sequences(X), y, validation=self.validation)
        return self

    def _predict(self, X: Iterable[Any]) -> np.ndarray:
        return self.estimator_.predict(self._sequences(X))

    def _predict_proba(self, X: Iterable[Any]) -> np.ndarray:
        return self.estimator_.predict_proba(self._sequences(X))

    def _sequences(self, X: Iterable[Any]) -> list[np.ndarray]:
        """Return the library's sequences as arrays [T, F]."""
        return [np.asarray(values).T for values in X]


_SHARED = (
    "lr",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "dropout",
    "pooling",
    "batch_size",
    "epochs",
    "steps",
    "patience",
    "settings",
    "verbose",
)


def _seed_of(random_state: object) -> int | None:
    """Return a seed for what scikit-learn calls a random state; None takes the recipe's."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    return None if random_state is None else int(random_state)  # type: ignore[call-overload]
