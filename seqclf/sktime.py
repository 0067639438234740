"""An LSTM classifier for sktime: `seqclf.sktime.LSTMClassifier` (pip install 'seqclf[sktime]')."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from seqclf.channels import ChannelsFirst
from seqclf.errors import library_missing

try:
    from sktime.classification.base import BaseClassifier
except ModuleNotFoundError as error:
    raise library_missing("sktime") from error


class LSTMClassifier(ChannelsFirst, BaseClassifier):  # type: ignore[misc]
    """An LSTM classifier of series of any number of channels, and of unequal lengths.

    The parameters are those of `seqclf.SequenceClassifier`; `validation` is the fraction of the
    instances that is held out, and `random_state` the seed.

    >>> from seqclf.sktime import LSTMClassifier  # doctest: +SKIP
    >>> LSTMClassifier(epochs=50).fit(X, y).score(X_test, y_test)  # doctest: +SKIP
    0.975
    """

    _tags: ClassVar = {
        "X_inner_mtype": "df-list",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:predict_proba": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "python_dependencies": "torch",
    }

    def _sequences(self, X: Iterable[Any]) -> list[np.ndarray]:
        return [frame.to_numpy() for frame in X]  # sktime's data frames are time x channels

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters with which sktime's own tests take seconds."""
        usual = {"steps": 20, "hidden_size": 8, "settings": {"train.threads": 1}}
        return [usual, usual | {"pooling": "last", "validation": 0.2}]
