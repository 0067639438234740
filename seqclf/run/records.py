"""The records of a run directory: the names of its files, and a type for each JSON file.

    config.yaml      the resolved config (config/)
    run.json         Facts
    metrics.jsonl    one JSON object a line, always with "step" (metrics_log.py)
    status.json      Status
    sessions.jsonl   Session, one a line
    evaluation/      SPLIT.json: Evaluation
    checkpoints/     step-N/, each with a state.json: State (checkpoint.py)
    model/           the result (weights.py)
    data/            the data set, if a Python program trained on it (fit.py)

This module does not import torch, so `seqclf runs` answers at once.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    ValidationError,
    model_serializer,
    model_validator,
)

from seqclf.config.settings import Value
from seqclf.data.pictures import Picture
from seqclf.errors import UserError
from seqclf.run.files import first_reason, read_json

CONFIG = "config.yaml"
FACTS = "run.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"
SESSIONS = "sessions.jsonl"
EVALUATION = "evaluation"
CHECKPOINTS = "checkpoints"
MODEL = "model"
DATA = "data"  # a data set that a Python program trained on
REPORT = "report.html"
LOCK = ".lock"

Record = TypeVar("Record", bound=BaseModel)


class State(BaseModel):
    """What a run carries besides weights and moments. Everything else is f(config, step)."""

    # NaN and infinity are kept: a run that diverged has such metrics, and must resume all the same.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    step: int = 0
    """Steps done."""
    judged: int = 0
    """Step of the last evaluation."""
    skipped: int = 0
    """Steps skipped so far, because the loss or the gradient was not finite."""
    skipped_in_a_row: int = 0
    """How many of the latest steps were skipped, without one between them that was not."""
    scaler: dict[str, float] = {}
    """The loss scale of fp16, as torch's GradScaler keeps it."""
    metrics_bytes: NonNegativeInt = 0
    """Length of metrics.jsonl when the checkpoint was made."""
    metrics: dict[str, float] = {}
    """Metrics of the latest evaluation."""
    best: dict[str, float] = {}
    """Metrics of the best evaluation that has a checkpoint, if the run chooses its weights."""
    best_step: int = 0
    """Step of the best evaluation."""
    waited: int = 0
    """How many of the latest evaluations in a row were not better than the best one."""
    longest_wait: int = 0
    """The largest value that `waited` ever had."""
    decay_from: int = 0
    """Step at which the patience ran out: from there on the rate falls to zero. 0: not yet."""


class Facts(BaseModel):
    """run.json: what the run met. Facts of another version are kept as they are."""

    model_config = ConfigDict(extra="allow")

    versions: dict[str, str] = {}
    host: str = ""
    device: str = ""
    precision: str = ""
    """The arithmetic that took effect: fp32, bf16 or fp16."""
    world_size: int = 0
    threads: int = 0
    git: str | None = None
    num_steps: int = 0
    order: str = "stored"
    """How the order of the examples is made: stored, or computed where they are very many."""
    data: str = ""
    data_fingerprint: str = ""
    architecture: dict[str, Any] = {}
    num_parameters: int = 0
    # The first start of a run finds these three, and all later starts keep them.
    branched_from: str | None = None
    init_sha256: str | None = None
    run_id: str | None = None
    weights_sha256: str | None = None
    """Of the result; None before the run has finished."""


class Status(BaseModel):
    """status.json: how far the run is. "running" while nobody holds the lock means crashed."""

    state: Literal["running", "finished", "preempted", "failed"]
    step: int
    epoch: float = 0.0
    metrics: dict[str, float | None]
    error: str | None = None


class Session(BaseModel):
    """One line of sessions.jsonl: a start of the run."""

    step: int
    time: str
    host: str
    device: str
    precision: str
    world_size: int
    threads: int
    versions: dict[str, str]
    branched_from: str | None = None
    init_sha256: str | None = None
    run_id: str | None = None


class MistakeRecord(BaseModel):
    """An example that was named wrongly. In the file the picture's keys stand beside the others."""

    example: int
    """Its position in the split."""
    name: str = ""
    """What the user's file calls it; empty where the data set has no names."""
    truth: str
    guess: str
    probability: float
    picture: Picture

    @property
    def title(self) -> str:
        """What a page calls the example."""
        return f"'{self.name}'" if self.name else str(self.example)

    @model_validator(mode="before")
    @classmethod
    def _gather_picture(cls, content: object) -> object:
        if not isinstance(content, dict) or "picture" in content:
            return content
        return {**content, "picture": content}

    @model_serializer(mode="plain")
    def _spread_picture(self) -> dict[str, Any]:
        mistake = {name: getattr(self, name) for name in ("example", "name", "truth", "guess")}
        picture = self.picture.model_dump(exclude_unset=True)
        return {**mistake, "probability": self.probability, **picture}


class CalibratedRecord(BaseModel):
    """What the same examples give where the logits are divided by the result's temperature."""

    temperature: float
    loss: float | None
    calibration: list[list[float]]


class Evaluation(BaseModel):
    """evaluation/SPLIT.json: what an evaluation found, for tables and pictures.

    In the file the metrics stand beside the other keys, as "SPLIT/loss" and so on.
    """

    step: int
    metrics: dict[str, float | None]
    classes: tuple[str, ...]
    confusion: list[list[int]]
    """confusion[i][j]: examples of class i that were named j."""
    calibration: list[list[float]]
    """A row a bin of the guess's probability: examples, hits, sum of the probability."""
    mistakes: list[MistakeRecord]
    """The most confident ones first."""
    calibrated: CalibratedRecord | None = None
    """With the temperature of the result, where it has one; all else is of the raw logits."""

    @model_validator(mode="before")
    @classmethod
    def _gather_metrics(cls, content: object) -> object:
        if not isinstance(content, dict) or "metrics" in content:
            return content
        metrics = {name: value for name, value in content.items() if "/" in name}
        return {**content, "metrics": metrics}

    def to_json(self) -> str:
        """Return the file's content."""
        content = self.model_dump(mode="json", exclude_unset=True)
        step = content.pop("step")
        metrics = content.pop("metrics")
        return json.dumps({"step": step, **metrics, **content})


def read_record(path: Path, cls: type[Record]) -> Record:
    """Read a JSON file of a run directory. Raises UserError naming it if it is damaged."""
    try:
        return cls.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: missing or damaged ({first_reason(error)})") from None


def find_record(path: Path, cls: type[Record]) -> Record | None:
    """Read a JSON file of a run directory; None if it is missing or damaged."""
    try:
        return read_record(path, cls)
    except UserError:
        return None


def find_evaluation(run_dir: Path, split: str) -> Evaluation | None:
    """Read evaluation/SPLIT.json; None if it is missing or damaged."""
    # Not by find_record, which reads 1 MiB at most: many classes, or large images, take more.
    try:
        content = (run_dir / EVALUATION / f"{split}.json").read_bytes()
        return Evaluation.model_validate_json(content)
    except (OSError, ValidationError):
        return None


def to_json(record: BaseModel) -> dict[str, Value]:
    """Return a record as a JSON object: the fields that were set."""
    return record.model_dump(mode="json", exclude_unset=True)


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    names = ("seqclf", "torch", "accelerate", "safetensors", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def git_revision() -> str | None:
    """Return the revision of the source code, if it lies in a git repository of its own.

    An installation may lie within the repository of another project, whose revision says nothing.
    """
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=package, capture_output=True, text=True, timeout=5, check=False
        )
        return done.stdout.strip()

    try:
        if git("rev-parse", "--show-toplevel") != str(package.parent.resolve()):
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40") or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def finite_or_null(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Put null where JSON has no number: for NaN and infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class ClassRow(NamedTuple):
    """How well one class is named. A share of nothing is 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """Examples of the class."""


def class_table(evaluation: Evaluation) -> list[ClassRow]:
    """Return precision, recall, F1 and support of each class."""
    rows = []
    for number, name in enumerate(evaluation.classes):
        hits = evaluation.confusion[number][number]
        support = sum(evaluation.confusion[number])
        named = sum(row[number] for row in evaluation.confusion)
        rows.append(
            ClassRow(
                name,
                precision=hits / max(1, named),
                recall=hits / max(1, support),
                f1=2 * hits / max(1, named + support),
                support=support,
            )
        )
    return rows
