"""seqclf.aeon: a classifier that passes aeon's own checks."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import seqclf


@pytest.mark.parametrize("name", ["aeon", pytest.param("sktime", marks=pytest.mark.slow)])
def test_a_missing_library_is_named(name: str) -> None:
    code = f"import sys; sys.modules['{name}'] = None; import seqclf.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"seqclf.{name} needs the library {name}: pip install 'seqclf[{name}]'" in done.stderr


@pytest.mark.slow  # numba compiles for half a minute
@pytest.mark.filterwarnings("ignore")
def test_aeon_checks_it() -> None:
    checking = pytest.importorskip("aeon.testing.estimator_checking", reason="needs aeon")
    from seqclf.aeon import LSTMClassifier

    results = checking.check_estimator(LSTMClassifier, verbose=False)
    assert {name: found for name, found in results.items() if found != "PASSED"} == {}
    assert len(results) >= 20


@pytest.mark.filterwarnings("ignore")
def test_channels_come_first() -> None:
    pytest.importorskip("aeon", reason="needs aeon")
    generator = np.random.default_rng(0)
    series = [generator.normal(i % 2, 1, (2, 5 + i % 4)) for i in range(40)]
    labels = np.arange(40) % 2
    from seqclf.aeon import LSTMClassifier

    parameters: dict[str, Any] = {
        "steps": 30,
        "hidden_size": 8,
        "settings": {"train.threads": 1},
    }
    by_aeon = LSTMClassifier(**parameters, random_state=3).fit(series, labels)
    ours = seqclf.SequenceClassifier(**parameters, seed=3).fit([x.T for x in series], labels)
    expected = ours.predict_proba([x.T for x in series])
    assert np.array_equal(by_aeon.predict_proba(series), expected)
