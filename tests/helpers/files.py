"""What the files of a run directory say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seqclf.metrics import CLOCK_METRICS
from seqclf.run.checkpoint import checkpoint_directories, checkpoint_name
from seqclf.run.records import Session, Status, read_record

Json = dict[str, Any]


def read_lines(path: Path) -> list[Json]:
    """Return the JSON objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_metrics(run_dir: Path, *, timed: bool = False) -> list[dict[str, float]]:
    """Return metrics.jsonl, without the figures that depend on the clock."""
    lines = read_lines(run_dir / "metrics.jsonl")
    return lines if timed else untimed(lines)


def untimed(lines: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Return lines of metrics.jsonl without the figures that depend on the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK_METRICS} for line in lines]


def logged(run_dir: Path, metric: str) -> dict[int, float]:
    """Return one metric by step."""
    return {int(line["step"]): line[metric] for line in read_metrics(run_dir) if metric in line}


def read_status(run_dir: Path) -> Status:
    return read_record(run_dir / "status.json", Status)


def read_facts(run_dir: Path) -> Json:
    facts: Json = json.loads((run_dir / "run.json").read_text())
    return facts


def change_json(path: Path, **changes: object) -> None:
    """Change what a JSON file says."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def read_sessions(run_dir: Path) -> list[Session]:
    return [Session.model_validate(line) for line in read_lines(run_dir / "sessions.jsonl")]


def starts_of(run_dir: Path) -> list[int]:
    """Return the step that each start of a run began with."""
    return [session.step for session in read_sessions(run_dir)]


def step_dir(run_dir: Path, step: int) -> Path:
    """Return the directory of a step's checkpoint."""
    return run_dir / "checkpoints" / checkpoint_name(step)


def weights_of(run_dir: Path, step: int | None = None) -> bytes:
    """Return the file of the result's weights, or of a step's."""
    folder = run_dir / "model" if step is None else step_dir(run_dir, step)
    return (folder / "model.safetensors").read_bytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def result_of(run_dir: Path) -> dict[str, str]:
    """Return the hashes of a run's result and of its last weights and moments."""
    last, *_ = checkpoint_directories(run_dir / "checkpoints")
    # Beside these lies the card, which has the day, and settings that change no bit.
    result = [run_dir / "model" / name for name in ("model.safetensors", "config.json")]
    files = [*last.glob("*.safetensors"), *result]
    assert len(files) == 4
    return {str(file.relative_to(run_dir)): sha256(file.read_bytes()) for file in files}


def same_end(one: Path, other: Path) -> bool:
    """Return whether two runs ended with the same weights, moments and metrics."""
    return (result_of(one), read_metrics(one)) == (result_of(other), read_metrics(other))


def files_in(path: Path) -> dict[str, bytes]:
    """Return all files in a directory and below."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
