"""What other methods name right of a prepared data set: the numbers to put beside a result.

They are the commonest class, 1-nearest-neighbour DTW, and MiniRocket (Dempster, Schmidt and Webb,
"MiniRocket", KDD 2021), the last two from the package aeon. Shapes: N sequences, F features, T
steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from seqclf.data.prepared import open_dataset
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.processes.device import usable_cores
from seqclf.run.files import write_json

FILE = "baselines.json"
NAMES = ("majority", "dtw", "minirocket")
TITLES = {"majority": "majority class", "dtw": "1-NN DTW", "minirocket": "MiniRocket"}
MOST_CELLS = 1e11  # of DTW's tables, minutes of a core; more only if it is asked for by name
LEAST_STEPS = 9  # MiniRocket's kernels are as long


class Baseline(BaseModel):
    """A method's result on the test split."""

    name: str
    accuracy: float | None = None
    """None: the method was left out."""
    seconds: float = 0.0
    """To learn from the training split and to name the test split."""
    note: str = ""
    """Why it was left out."""


class Baselines(BaseModel):
    """baselines.json, beside the data set."""

    fingerprint: str
    """Of the data set that was measured."""
    num_test: int
    rows: list[Baseline]


def measure_baselines(folder: Path, only: tuple[str, ...] | None) -> Iterator[str]:
    """Measure methods on a prepared data set, keep the results beside it; yield lines of a table.

    Without `only` all methods are measured, DTW where that takes minutes at most. Raises UserError
    for a method that is not known, and without aeon.
    """
    for name in only or ():
        if name not in NAMES:
            raise UserError(f"--only {name}: no baseline; there are {', '.join(NAMES)}")
    if find_spec("aeon") is None and set(only or NAMES) != {"majority"}:
        raise UserError("1-NN DTW and MiniRocket need aeon: pip install 'seqclf[baselines]'")
    info, splits, _ = open_dataset(folder)
    for split in ("train", "test"):
        if split not in splits:
            raise UserError(f"{folder}: no {split} examples to measure with; prepare it with some")
    train, test = splits["train"], splits["test"]
    yield f"{'baseline':<15} {'accuracy':>9} {'seconds':>8}   (of {len(test):,} test examples)"
    rows = []
    for name in only or NAMES:
        started = time.monotonic()
        reason = why_left_out(name, train, test, asked=only is not None)
        if reason:
            rows.append(Baseline(name=name, note=reason))
            yield f"{TITLES[name]:<15}  left out: {reason}"
            continue
        hits = int((METHODS[name](train, test) == test.labels.numpy()).sum())
        accuracy, seconds = hits / len(test), time.monotonic() - started
        rows.append(Baseline(name=name, accuracy=accuracy, seconds=seconds))
        yield f"{TITLES[name]:<15} {accuracy:9.2%} {seconds:8.1f}"
    found = Baselines(fingerprint=info.fingerprint, num_test=len(test), rows=rows)
    write_json(folder / FILE, found.model_dump())


def find_baselines(folder: Path, fingerprint: str | None) -> Baselines | None:
    """Return what was measured on this very data set; None if nothing was, or if it is damaged."""
    try:
        found = Baselines.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.fingerprint == fingerprint else None


def why_left_out(name: str, train: Sequences, test: Sequences, *, asked: bool) -> str | None:
    """Return why a method cannot be measured, or would take too long; None if it can."""
    if name == "majority":
        return None
    if train.num_tokens:
        return "the data are tokens or text, and it reads numbers"
    lengths = [one.lengths for one in (train, test) if one.lengths is not None]
    steps = np.concatenate([one.numpy() for one in lengths])
    if name == "minirocket":
        if steps.min() < steps.max():
            return (
                f"it needs sequences of one length, and these have {steps.min()} to {steps.max()}"
            )
        if steps[0] < LEAST_STEPS:
            return f"it needs {LEAST_STEPS} steps, and these sequences have {steps[0]}"
        return None
    cells = float(lengths[0].sum()) * float(lengths[1].sum()) * train.shape[1]
    if cells > MOST_CELLS and not asked:
        return f"it would fill {cells:.1g} cells; --only {name} does it all the same"
    return None


def name_majority(train: Sequences, test: Sequences) -> np.ndarray:
    """Name each test example as the commonest training class, int64 [N]."""
    return np.full(len(test), int(train.labels.bincount().argmax()))


def name_by_dtw(train: Sequences, test: Sequences) -> np.ndarray:
    """Name each test example as its nearest training example, without a window, int64 [N]."""
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    cores, _ = usable_cores()
    method = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw", n_jobs=cores)
    return _fit_predict(method, train, test)


def name_by_minirocket(train: Sequences, test: Sequences) -> np.ndarray:
    """Name each test example by MiniRocket's 10,000 features and a ridge classifier, int64 [N]."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    cores, _ = usable_cores()
    return _fit_predict(MiniRocketClassifier(random_state=0, n_jobs=cores), train, test)


METHODS: dict[str, Callable[[Sequences, Sequences], np.ndarray]] = {
    "majority": name_majority,
    "dtw": name_by_dtw,
    "minirocket": name_by_minirocket,
}


def _fit_predict(method: Any, train: Sequences, test: Sequences) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what numba says of aeon's code
        method.fit(_as_aeon_reads(train), train.labels.numpy())
        found: np.ndarray = method.predict(_as_aeon_reads(test))
    return found


def _as_aeon_reads(sequences: Sequences) -> np.ndarray | list[np.ndarray]:
    """Return features x steps of each sequence, normalised as in training; one array if it can."""
    mean_F, std_F = np.array(sequences.mean), np.array(sequences.std)
    found = []
    for index in range(len(sequences)):
        steps_TF, _ = sequences[index]
        found.append(np.ascontiguousarray(((steps_TF.double().numpy() - mean_F) / std_F).T))
    return np.stack(found) if len({one.shape for one in found}) == 1 else found
