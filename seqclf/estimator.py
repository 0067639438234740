"""SequenceClassifier: a scikit-learn estimator over `seqclf.train`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from seqclf.classifier import Classifier, load
from seqclf.config.load import closest, closest_word
from seqclf.config.recipes import FOR_PREPARED_DATA
from seqclf.config.settings import fields
from seqclf.data.readers.rows import quote
from seqclf.errors import UserError
from seqclf.examples import label_names, take_examples
from seqclf.fit import ReadAs, settle_config, train_examples
from seqclf.run.files import read_json, write_json

ESTIMATOR_FILE = "estimator.json"  # in the folder of a saved model: parameters and labels
# The parameters that are settings, by the names of the settings.
SETTING_OF = {
    "lr": "optim.lr",
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
    "dropout": "model.dropout",
    "pooling": "model.pooling",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "patience": "train.patience",
    "seed": "seed",
    "device": "device",
    "run_dir": "run_dir",
}
TAGGED = ("two_d_array", "three_d_array", "string")  # of scikit-learn's tags of the input


class SequenceClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify sequences with an LSTM; a scikit-learn estimator.

    `fit` trains as `seqclf.train` and the command line do: the same settings, data and threads give
    the same weights. The parameters below are the settings that most people change; None takes what
    the recipe says, which for configs/files.yaml may depend on the data. `settings` sets all others
    by their dotted names (docs/settings.md).

    recipe: name or path of a file of settings
    lr: peak learning rate (optim.lr)
    hidden_size, num_layers, bidirectional, dropout, pooling: the model (model.*)
    batch_size, epochs, steps, patience: the training (train.*); patience needs validation examples
    window, stride, fill_missing, pad_value: what becomes of the sequences, as for `seqclf prepare`
    settings: a mapping such as {"optim.weight_decay": 0.01}
    seed: of all that is random; None takes the recipe's
    device: auto, cpu, cuda or mps
    run_dir: where the run is kept: its report, its checkpoints, from which the same `fit` goes on
    verbose: 0 for silence, 1 for a progress bar in a terminal or a notebook, 2 for lines, too

    After `fit`:

    classes_: the labels, sorted; the columns of `predict_proba`
    n_features_in_: numbers of a step; not there for tokens and texts
    classifier_: the `Classifier`, which evaluates and streams, too
    history_: the lines of the training, each with its `step`
    metrics_: of the validation examples, if there are any
    result_: all of it, as `seqclf.train` returns it

    >>> clf = seqclf.SequenceClassifier(epochs=20).fit(X, y, validation=0.1)  # doctest: +SKIP
    >>> clf.score(X_test, y_test)  # doctest: +SKIP
    0.975
    """

    def __init__(
        self,
        *,
        recipe: str | os.PathLike[str] = FOR_PREPARED_DATA,
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
        window: int | None = None,
        stride: int | None = None,
        fill_missing: bool = False,
        pad_value: float | None = None,
        settings: Mapping[str, object] | None = None,
        seed: int | None = None,
        device: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        verbose: int = 1,
        **unknown: Never,
    ) -> None:
        if unknown:
            raise UserError(_refuse_name(next(iter(unknown)), self._get_param_names()))
        self.recipe = recipe
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
        self.window = window
        self.stride = stride
        self.fill_missing = fill_missing
        self.pad_value = pad_value
        self.settings = settings
        self.seed = seed
        self.device = device
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(
        self,
        X: object,
        y: object,
        validation: tuple[object, object] | float | None = None,
    ) -> Self:
        """Train on N sequences in one of the forms that `Classifier` takes, and their N labels.

        `validation` is a pair (X, y), or a fraction of the examples that is held out. It is
        measured while the model trains; the best weights may be chosen by it (`patience`).

        Raises UserError, a ValueError, that names the sequence, the label or the setting.
        """
        labels = _check_labels(y)
        classes, names = _classes_of(labels)
        train = take_examples((X, labels))
        examples = {"train": train}
        fraction = None
        if isinstance(validation, int | float):
            fraction = float(validation)
        elif validation is not None:
            examples["val"] = take_examples(validation, "validation ")
        config = settle_config(
            self._settings(), recipe=self.recipe, val_fraction=fraction, run_dir=self.run_dir
        )
        read_as = ReadAs(self.window, self.stride, self.fill_missing, self.pad_value)
        self.result_ = train_examples(config, examples, read_as, verbose=self.verbose)
        self.history_ = self.result_.history
        self.metrics_ = self.result_.metrics
        self._take(self.result_.model, classes, names)
        return self

    def _take(self, classifier: Classifier, classes: np.ndarray, names: list[str]) -> None:
        """Predict with a classifier, whose names of classes are those of `classes`, in order."""
        self.classifier_ = classifier
        self.classes_ = classes
        columns = {name: column for column, name in enumerate(classifier.classes_.tolist())}
        self._columns = [columns[name] for name in names]
        if classifier.num_features is not None:
            self.n_features_in_ = classifier.num_features

    def _settings(self) -> dict[str, object]:
        """Return the settings that the parameters say. Raises UserError for one said twice."""
        settings = dict(self.settings or {})
        for parameter, name in SETTING_OF.items():
            value = getattr(self, parameter)
            if value is None:
                continue
            if name in settings:
                raise UserError(
                    f"settings: {name}: is the parameter {parameter}, too; leave one out"
                )
            settings[name] = value
        return settings

    def predict_proba(self, X: object) -> np.ndarray:
        """Return the probability of each class for each sequence, float64 [N, C]."""
        check_is_fitted(self)
        probabilities: np.ndarray = self.classifier_.predict_proba(X)[:, self._columns]
        return probabilities

    def predict(self, X: object) -> np.ndarray:
        """Return the label of the most probable class of each sequence, [N]."""
        best_N = self.predict_proba(X).argmax(1)
        labels: np.ndarray = self.classes_[best_N]
        return labels

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder, which `load` and `seqclf.load` read. Nothing is pickled."""
        check_is_fitted(self)
        self.classifier_.save(folder)
        parameters = self.get_params(deep=False)
        parameters |= {
            name: os.fspath(value)
            for name, value in parameters.items()
            if isinstance(value, os.PathLike)
        }
        labels = {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()}
        content = {"parameters": parameters, "labels": labels}
        write_json(Path(folder) / ESTIMATOR_FILE, json.loads(json.dumps(content, default=_to_json)))

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: str | torch.device = "auto"
    ) -> SequenceClassifier:
        """Load an estimator that `save` wrote, or the model of any run, ready to predict.

        The labels of a model that the command line trained are texts. Raises UserError if there is
        no model or if it is damaged.
        """
        classifier = load(folder, device)
        file = Path(folder) / ESTIMATOR_FILE
        if not file.is_file():
            estimator = cls()
            names = classifier.classes_.tolist()
            estimator._take(classifier, np.unique(names), sorted(names))
            return estimator
        content: Any = read_json(file)
        try:
            estimator = cls(**content["parameters"])
            classes = np.array(content["labels"]["values"], dtype=content["labels"]["dtype"])
            estimator._take(classifier, classes, label_names(classes))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: damaged: {error}") from None
        return estimator

    def _html_repr(self) -> str:
        """Draw scikit-learn's diagram in a notebook, and below it what `fit` came to."""
        diagram: str = super()._html_repr()
        result = getattr(self, "result_", None)
        return diagram if result is None else f"<div>{diagram}{result._repr_html_()}</div>"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        for name in TAGGED:
            setattr(tags.input_tags, name, True)
        return tags


def _refuse_name(name: str, known: list[str]) -> str:
    """Return what is wrong with a parameter that is none of those known."""
    if near := closest_word(name, known):
        return f"{name}: unknown parameter; did you mean {near}?"
    setting = closest(name, [full for full, _, _ in fields()])
    if setting is None:
        return f"{name}: unknown parameter; {', '.join(known)} are known"
    return f"{name}: unknown parameter; did you mean settings={{'{setting}': ...}}?"


def _check_labels(y: object) -> np.ndarray:
    """Return labels as an array [N]. Raises UserError."""
    if y is None:
        raise UserError("y: a NoneType: fit requires y to be passed, but the target y is None")
    try:
        if isinstance(y, torch.Tensor):
            y = y.numpy()
        label_names(np.asarray(y).ravel())  # a missing label is named by its place
        labels: np.ndarray = column_or_1d(y, warn=True)
        check_classification_targets(labels)
    except UserError:
        raise
    except ValueError as error:  # scikit-learn's own words, which its checks expect
        raise UserError(f"y: {error}") from None
    return labels


def _classes_of(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return the labels' different values, sorted, and their names. Raises UserError."""
    classes = np.unique(labels)
    names = label_names(classes)
    for index, name in enumerate(names):
        if name in names[:index]:
            other = classes[names.index(name)]
            raise UserError(
                f"y: the labels {other!r} and {classes[index]!r} have one name, '{quote(name)}'"
            )
    return classes, names


def _to_json(value: object) -> object:
    """Return what JSON has in place of a number of numpy or a mapping."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise UserError(f"{value!r}: cannot be saved as a parameter")
