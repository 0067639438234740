"""SequenceClassifier: an estimator that scikit-learn's tools take, on sequences of any length."""

from __future__ import annotations

import inspect
import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data import toy_rows
from helpers.training import train_tiny
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import seqclf
from seqclf import SequenceClassifier, UserError

ROWS = toy_rows(60)
X = [np.array(row["steps"]) for row in ROWS]
Y = np.array([row["label"] for row in ROWS])
TINY: dict[str, Any] = {"steps": 12, "hidden_size": 8, "settings": {"train.threads": 1}}

# What scikit-learn checks of tables of fixed width, and this estimator of sequences is not.
WIDTH = "a row of a table is a sequence of one number a step, and sequences may have any length"
OTHER_WORDS = "it is refused, in words about sequences"
LEFT_OUT = {
    "check_n_features_in": WIDTH,
    "check_n_features_in_after_fitting": WIDTH,
    "check_classifiers_train": f"{WIDTH}: the check wants another width to be refused",
    "check_do_not_raise_errors_in_init_or_set_params": "an unknown name is refused at once",
    "check_complex_data": OTHER_WORDS,
    "check_estimators_empty_data_messages": OTHER_WORDS,
    "check_fit2d_predict1d": OTHER_WORDS,
    "check_dtype_object": "Python objects are no numbers, and nothing guesses that they are",
}
# The check runs where pandas is installed.
OF_PANDAS = {"check_classifier_data_not_an_array": "a line of a data frame is a step, not a case"}
# It wants 1e-7; float32 in batches of another size gives 2e-7 on some processors.
# test_it_says_the_same_of_a_part holds the estimator to what float32 can keep.
OF_ROUNDING = {"check_methods_subset_invariance": "to 1e-6, as float32 can"}
NOT_RUN = {"check_array_api_input": "needs SCIPY_ARRAY_API"}


@pytest.mark.slow  # forty fits and more
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_checks_it() -> None:
    left_out = LEFT_OUT | (OF_PANDAS if find_spec("pandas") else {})
    checks = check_estimator(
        SequenceClassifier(**TINY | {"steps": 30}),
        expected_failed_checks=left_out | OF_ROUNDING,
        on_skip=None,
    )
    by_status: dict[str, set[str]] = {}
    for check in checks:
        by_status.setdefault(check["status"], set()).add(check["check_name"])
    assert by_status["xfail"] - OF_ROUNDING.keys() == left_out.keys()
    assert by_status.get("skipped", set()) <= NOT_RUN.keys() | OF_PANDAS.keys()
    assert len(by_status["passed"]) >= 40


@pytest.fixture(scope="module")
def fitted() -> SequenceClassifier:
    return SequenceClassifier(**TINY).fit(X, Y, validation=0.2)


def test_it_says_the_same_of_a_part(fitted: SequenceClassifier) -> None:
    whole = fitted.predict_proba(X)
    singles = np.concatenate([fitted.predict_proba([x]) for x in X])
    backwards = fitted.predict_proba(X[::-1])[::-1]
    assert np.abs(singles - whole).max() < 1e-6
    assert np.abs(backwards - whole).max() < 1e-6


def test_it_is_seqclf_train(fitted: SequenceClassifier) -> None:
    settings = {"train.steps": 12, "model.hidden_size": 8, "train.threads": 1}
    result = seqclf.train(settings, train=(X, Y), validation=0.2)
    assert np.array_equal(result.model.predict_proba(X), fitted.predict_proba(X))
    assert fitted.metrics_ == result.metrics
    assert fitted.history_[-1] == result.history[-1]


def test_each_parameter_is_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: dict[str, Any] = {
        "lr": 0.02,
        "hidden_size": 9,
        "num_layers": 2,
        "bidirectional": False,
        "dropout": 0.25,
        "pooling": "mean",
        "batch_size": 16,
        "steps": 3,
        "patience": 2,
        "seed": 5,
        "device": "cpu",
    }
    configs: list[Any] = []

    def look(config: Any, *_: object, **__: object) -> None:
        configs.append(config)
        raise UserError("seen")

    monkeypatch.setattr("seqclf.estimator.train_examples", look)
    with pytest.raises(UserError, match="seen"):
        SequenceClassifier(**parameters).fit(X, Y, validation=(X, Y))
    config = configs[0]
    model, train = config.model, config.train
    assert (config.optim.lr, config.seed, config.device) == (0.02, 5, "cpu")
    assert (model.hidden_size, model.num_layers, model.bidirectional) == (9, 2, False)
    assert (model.dropout, model.pooling) == (0.25, "mean")
    assert (train.batch_size, train.steps, train.patience) == (16, 3, 2)
    documented = SequenceClassifier.__doc__ or ""
    for name in SequenceClassifier().get_params():
        assert name in documented
    assert {*inspect.signature(SequenceClassifier).parameters} == {
        *SequenceClassifier().get_params(),
        "unknown",
    }


@pytest.mark.parametrize("n_jobs", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_the_tools_of_scikit_learn_take_ragged_lists(n_jobs: int | None) -> None:
    estimator = SequenceClassifier(**TINY)
    scores = cross_val_score(estimator, X, Y, cv=3, n_jobs=n_jobs)
    again = []
    for held_out in np.array_split(np.arange(60), 3):
        kept = [number for number in range(60) if number not in held_out]
        again.append(clone(estimator).fit([X[i] for i in kept], Y[kept]))
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert cross_val_score(estimator, X, Y, cv=3).tolist() == scores.tolist()
    if n_jobs:
        return
    search = GridSearchCV(estimator, {"lr": [1e-6, 0.05], "steps": [30]}, cv=2)
    search.fit(X, Y, validation=0.2)
    assert search.best_params_ == {"lr": 0.05, "steps": 30}
    assert {*search.best_estimator_.metrics_} == {"val/loss", "val/accuracy", "val/macro_f1"}
    halve = FunctionTransformer(lambda sequences: [x[:, :2] for x in sequences])
    pipeline = Pipeline([("halve", halve), ("lstm", estimator)])
    assert cross_val_score(pipeline, X, Y, cv=2).shape == (2,)
    assert pipeline.fit(X, Y, lstm__validation=0.1).score(X, Y) > 0


@pytest.mark.parametrize(
    "y",
    [
        [label == "up" for label in Y],
        [10 if label == "up" else 9 for label in Y],
        [10.0 if label == "up" else -9.0 for label in Y],
        torch.tensor([10 if label == "up" else 9 for label in Y]),
        np.array([str(label) for label in Y], dtype=object),
        ["10" if label == "up" else "9" for label in Y],
    ],
    ids=["bool", "int", "float", "tensor", "object", "text"],
)
def test_labels_come_back_as_they_were(y: Any, tmp_path: Path) -> None:
    fitted = SequenceClassifier(**TINY | {"steps": 40}).fit(X, y)
    labels = np.asarray(y)
    assert fitted.classes_.tolist() == np.unique(labels).tolist()
    assert fitted.classes_.dtype == labels.dtype
    assert fitted.predict(X).dtype == labels.dtype
    assert fitted.score(X, labels) > 0.7
    first = fitted.predict_proba(X)[:, 0] > 0.5
    assert np.array_equal(fitted.predict(X) == fitted.classes_[0], first)
    fitted.save(tmp_path / "model")
    loaded = SequenceClassifier.load(tmp_path / "model")
    assert loaded.get_params() == fitted.get_params()
    assert loaded.classes_.dtype == labels.dtype
    assert np.array_equal(loaded.predict(X), fitted.predict(X))
    by_name = seqclf.load(tmp_path / "model").predict_proba(X)
    assert np.array_equal(np.sort(by_name), np.sort(fitted.predict_proba(X)))
    assert not any(b"pickle" in file.read_bytes() for file in (tmp_path / "model").iterdir())


def test_the_model_of_a_run_is_an_estimator_too(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", train__steps=3)
    loaded = SequenceClassifier.load(tmp_path / "run")
    assert loaded.classes_.tolist() == [str(digit) for digit in range(10)]
    assert loaded.n_features_in_ == 8
    assert loaded.score(load_digits().images[:50], load_digits().target[:50].astype(str)) > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"parameters": {}}, "estimator.json: damaged: 'labels'"),
        ({"parameters": {"lrr": 1}, "labels": {}}, "estimator.json: damaged: lrr: unknown"),
        (
            {"parameters": {}, "labels": {"dtype": "<i8", "values": [1, 2]}},
            "estimator.json: damaged: '1'",
        ),
    ],
)
def test_a_damaged_estimator_is_refused(
    fitted: SequenceClassifier, tmp_path: Path, damage: dict[str, Any], message: str
) -> None:
    fitted.save(tmp_path / "model")
    (tmp_path / "model" / "estimator.json").write_text(json.dumps(damage))
    with pytest.raises(UserError, match=message):
        SequenceClassifier.load(tmp_path / "model")


def test_a_model_is_saved_over_a_model_only(fitted: SequenceClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    fitted.save(tmp_path / "model")
    with pytest.raises(UserError, match="holds something else than a model"):
        fitted.save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write it"):
        fitted.save(tmp_path / "file")


def test_a_fitted_estimator_may_be_pickled_by_others(fitted: SequenceClassifier) -> None:
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.predict_proba(X), fitted.predict_proba(X))


def test_tokens_texts_and_arrays_are_taken() -> None:
    words = [[f"w{round(abs(step[0]))}" for step in values] for values in X]
    estimator = SequenceClassifier(**TINY)
    assert not hasattr(estimator.fit(words, Y), "n_features_in_")
    assert estimator.predict(words).shape == (60,)
    texts = np.array([" ".join(one) for one in words])
    assert estimator.fit(texts, Y).predict_proba(texts).shape == (60, 2)
    padded = np.full((60, 15, 3), np.nan)
    for row, values in zip(padded, X, strict=True):
        row[: len(values)] = values
    by_array = estimator.fit(padded, Y).predict_proba(padded)
    assert estimator.n_features_in_ == 3
    assert np.array_equal(by_array, estimator.fit(X, Y).predict_proba(X))
    assert np.array_equal(by_array, estimator.fit(torch.tensor(padded), Y).predict_proba(X))


class Frame:
    """A data frame in long form, as much as a duck needs."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._columns[name])


def test_a_data_frame_names_the_features() -> None:
    steps = np.concatenate(X)
    lengths = [len(values) for values in X]
    order = np.random.default_rng(0).permutation(len(steps))
    columns = {
        "id": np.repeat([f"r{number}" for number in range(60)], lengths),
        "time": np.concatenate([np.arange(length) for length in lengths]),
        "label": np.repeat(Y, lengths),
        "a": steps[:, 0],
        "b": steps[:, 1],
        "c": steps[:, 2],
    }
    first = np.unique(columns["id"][order], return_index=True)[1]
    ids = [int(columns["id"][order][at][1:]) for at in sorted(first)]
    frame = Frame(**{name: column[order] for name, column in columns.items()})
    estimator = SequenceClassifier(**TINY).fit(frame, Y[ids])
    assert estimator.classifier_.features_ == ("a", "b", "c")
    sorted_X = [X[number] for number in ids]
    by_lists = SequenceClassifier(**TINY).fit(sorted_X, Y[ids])
    assert np.array_equal(estimator.predict_proba(frame), by_lists.predict_proba(sorted_X))
    swapped = Frame(c=columns["c"], **{n: columns[n] for n in ("a", "b", "id", "time")})
    assert np.array_equal(estimator.predict_proba(swapped), by_lists.predict_proba(X))
    frames = [Frame(a=x[:, 0], b=x[:, 1], c=x[:, 2]) for x in sorted_X]
    by_frames = SequenceClassifier(**TINY).fit(frames, Y[ids])
    assert by_frames.classifier_.features_ == ("a", "b", "c")
    assert np.array_equal(by_frames.predict_proba(frames), by_lists.predict_proba(sorted_X))
    with pytest.raises(UserError, match="no column 'id' that tells sequences apart, in a, b"):
        SequenceClassifier(**TINY).fit(Frame(a=[1, 2], b=[3, 4]), ["x", "y"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hiden_size": 3}, "hiden_size: unknown parameter; did you mean hidden_size"),
        ({"weight_decay": 3}, "did you mean settings={'optim.weight_decay': ...}"),
        ({"zzzz": 3}, "zzzz: unknown parameter; batch_size, bidirectional"),
        ({"lr": -1}, r"settings: optim.lr: must be greater than 0 \(found -1\)"),
        ({"lr": 1, "settings": {"optim.lr": 1}}, "optim.lr: is the parameter lr, too"),
        ({"pooling": "meen"}, "did you mean 'mean'"),
        ({"patience": 3}, "needs validation examples to choose by"),
        ({"recipe": "nowhere.yaml"}, "nowhere.yaml: cannot read it"),
    ],
)
def test_a_mistake_is_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(**parameters).fit(X, Y)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "requires y to be passed"),
        ([1, "1"] * 30, "y: one class alone"),
        (["1", "1.0"] * 30, "the labels .*'1'.* and .*'1.0'.* have one name, '1'"),
        (np.array([1, "1"] * 30, dtype=object), "Unknown label type"),
        (["a", None] * 30, r"y\[1\]: no label"),
        ([0.5, 1.5] * 30, "Unknown label type"),
        (np.zeros((60, 2)), "y should be a 1d array"),
    ],
)
def test_bad_labels_are_named(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SequenceClassifier(**TINY).fit(X, labels)


def test_what_is_not_fitted_does_not_predict(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        SequenceClassifier().predict(X)
    with pytest.raises(NotFittedError):
        SequenceClassifier().save(tmp_path)
    with pytest.raises(ValueError, match=r"X\[1\]: 2 features a step, where the model reads 3"):
        SequenceClassifier(**TINY).fit(X, Y).predict([X[0], X[1][:, :2]])


def test_it_draws_itself_in_a_notebook(fitted: SequenceClassifier) -> None:
    shown = fitted._repr_html_()
    assert "sk-estimator" in shown  # scikit-learn's diagram
    assert "validation: truth down, guess across" in shown
    assert "truth down, guess across" in fitted._repr_mimebundle_()["text/html"]
    assert "truth down, guess across" not in SequenceClassifier()._repr_html_()
