"""What a run directory holds for a page. A damaged file is as good as a missing one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.run.records import (
    CONFIG,
    FACTS,
    METRICS,
    SESSIONS,
    STATUS,
    Evaluation,
    Facts,
    Session,
    Status,
    find_evaluation,
    find_record,
)

Line = TypeVar("Line")


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds for a page."""

    path: Path
    config: Config
    facts: Facts
    status: Status | None
    sessions: list[Session]
    metric_lines: list[dict[str, float | None]]
    evaluations: dict[str, Evaluation]
    """By split."""

    @property
    def state(self) -> str:
        """How the run stands; unknown if its status is missing."""
        return "unknown" if self.status is None else self.status.state

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the latest evaluation; None is one that is not finite."""
        return {} if self.status is None else self.status.metrics

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return a metric's finite values with their steps."""
        values = [(line.get("step"), line.get(name)) for line in self.metric_lines]
        return sorted((int(s), v) for s, v in values if s is not None and v is not None)

    @property
    def training_s(self) -> float:
        """Seconds of training, without evaluations and saves, up to the last line."""
        examples_at = dict(self.points("train/examples"))
        total_s = 0.0
        num_before = 0.0
        for step, rate in self.points("train/examples_per_s"):
            num_examples = examples_at.get(step, num_before)
            total_s += (num_examples - num_before) / rate if rate else 0.0
            num_before = num_examples
        return total_s


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory. Raises UserError if there is none."""
    if not (run_dir / CONFIG).is_file():
        raise UserError(f"{run_dir}: no run there (config.yaml is missing); see seqclf runs")
    evaluations = {}
    for split in ("val", "test"):
        evaluation = find_evaluation(run_dir, split)
        if evaluation is not None:
            evaluations[split] = evaluation
    return RunRecord(
        path=run_dir,
        config=load_config(run_dir / CONFIG)[0],
        facts=find_record(run_dir / FACTS, Facts) or Facts(),
        status=find_record(run_dir / STATUS, Status),
        sessions=_read_lines(run_dir / SESSIONS, TypeAdapter(Session)),
        metric_lines=_read_lines(run_dir / METRICS, TypeAdapter(dict[str, float | None])),
        evaluations=evaluations,
    )


def _read_lines(path: Path, line_type: TypeAdapter[Line]) -> list[Line]:
    """Read a file with a JSON value on each line; leave out lines that a kill has torn."""
    try:
        texts = path.read_bytes().splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        with suppress(ValidationError):
            lines.append(line_type.validate_json(text))
    return lines
