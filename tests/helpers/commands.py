"""Commands as a user types them, and a small data set in the formats that users have."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.reading import write
from helpers.training import train_tiny
from seqclf.cli import main

Capture = pytest.CaptureFixture[str]
Line = dict[str, str]


def table(text: str) -> list[Line]:
    return list(csv.DictReader(io.StringIO(text)))


def call(capsys: Capture, *words: str | Path) -> tuple[int, str, str]:
    """Run a command; return its exit code and both outputs."""
    capsys.readouterr()
    code = main.main(list(map(str, words)))
    return code, *capsys.readouterr()


def predict(capsys: Capture, *words: str | Path) -> list[Line]:
    code, out, err = call(capsys, "predict", *words)
    assert code == 0, err
    return table(out)


def refusal(capsys: Capture, *words: str | Path) -> str:
    code, _, err = call(capsys, *words)
    assert code == 2
    assert "Traceback" not in err
    return err


def train(folder: Path, *words: str | Path, steps: int = 20) -> Path:
    """Prepare files and train on them; return the run."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    assert main.main(["prepare", *map(str, words), "--out", f"{folder}/data"]) == 0
    settings = {"data.name": "files", "data.path": folder / "data", "train.steps": steps}
    settings |= {"train.batch_size": 16}
    assert train_tiny(folder / "run", settings) == 0
    return folder / "run"


N, T = 60, 6
LABELS = ["up" if number * 7 % 5 % 2 else "down" for number in range(N)]
IDS = [f"rec{number * 37 % 101}" for number in range(N)]
VALUES = np.random.default_rng(0).normal(size=(N, T, 2)).round(3)
VALUES[:, :, 0] += np.array([2 * (label == "up") for label in LABELS])[:, None]
COUNTED = list(map(str, range(N)))  # the ids of rows without an id


def write_jsonl(path: Path, numbers: range = range(N), **changes: object) -> Path:
    rows = [
        {"id": IDS[i], "label": LABELS[i], "steps": VALUES[i].tolist(), **changes} for i in numbers
    ]
    return write(path.parent, path.name, "".join(json.dumps(row) + "\n" for row in rows))


def as_long(number: int, step: int) -> Line:
    return {
        "Id": f"r{number}",
        "t": str(step),
        "x": f"{VALUES[number, step, 0]:.3f}",
        "y": f"{VALUES[number, step, 1]:.3f}",
        "result": LABELS[number],
    }


def write_table(path: Path, lines: list[Line], separator: str = ",") -> Path:
    rows = [separator.join(lines[0]), *(separator.join(line.values()) for line in lines)]
    return write(path.parent, path.name, "\n".join(rows) + "\n")


def write_wide(path: Path, *, has_ids: bool) -> Path:
    lines = [
        ([IDS[i]] if has_ids else []) + [LABELS[i], *map(str, VALUES[i, :, 0])] for i in range(N)
    ]
    header = ["name"] * has_ids + ["label", *(f"t{step}" for step in range(T))]
    return write(path.parent, path.name, "\n".join(map(",".join, [header, *lines])))
