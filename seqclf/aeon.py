"""An LSTM classifier for aeon: `seqclf.aeon.LSTMClassifier` (pip install 'seqclf[aeon]')."""

from __future__ import annotations

from typing import Any, ClassVar

from seqclf.channels import ChannelsFirst
from seqclf.errors import library_missing

try:
    from aeon.classification.base import BaseClassifier
except ModuleNotFoundError as error:
    raise library_missing("aeon") from error


class LSTMClassifier(ChannelsFirst, BaseClassifier):  # type: ignore[misc]
    """An LSTM classifier of series of any number of channels, and of unequal lengths.

    The parameters are those of `seqclf.SequenceClassifier`; `validation` is the fraction of the
    cases that is held out, and `random_state` the seed.

    >>> from seqclf.aeon import LSTMClassifier  # doctest: +SKIP
    >>> LSTMClassifier(epochs=50).fit(X, y).score(X_test, y_test)  # doctest: +SKIP
    0.975
    """

    _tags: ClassVar = {
        "X_inner_type": ["np-list", "numpy3D"],
        "algorithm_type": "deeplearning",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "non_deterministic": False,
        "python_dependencies": "torch",
    }

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"steps": 20, "hidden_size": 8, "settings": {"train.threads": 1}}
