"""seqclf.sktime: a classifier that passes sktime's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import seqclf

pytest.importorskip("sktime", reason="needs sktime")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sktime_checks_it() -> None:
    from sktime.utils.estimator_checks import check_estimator

    from seqclf.sktime import LSTMClassifier

    results = check_estimator(LSTMClassifier, raise_exceptions=False, verbose=False)
    assert {name: found for name, found in results.items() if found != "PASSED"} == {}
    assert len(results) >= 200


@pytest.mark.filterwarnings("ignore")
def test_channels_come_first() -> None:
    from seqclf.sktime import LSTMClassifier

    generator = np.random.default_rng(0)
    series = generator.normal(0, 1, (40, 2, 6)) + (np.arange(40) % 2)[:, None, None]
    labels = np.arange(40) % 2
    parameters: dict[str, Any] = {
        "steps": 30,
        "hidden_size": 8,
        "settings": {"train.threads": 1},
    }
    by_sktime = LSTMClassifier(**parameters, random_state=3).fit(series, labels)
    swapped = series.swapaxes(1, 2)
    ours = seqclf.SequenceClassifier(**parameters, seed=3).fit(swapped, labels)
    assert np.array_equal(by_sktime.predict_proba(series), ours.predict_proba(swapped))
