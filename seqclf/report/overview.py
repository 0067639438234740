"""What was run, on a page: the facts of a run, its settings, its data, and what to do with it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from seqclf.config.settings import Config, settings_by_name
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.metrics import percent
from seqclf.report.run_record import RunRecord
from seqclf.run.records import CONFIG, EVALUATION, FACTS, METRICS, MODEL, SESSIONS, STATUS
from seqclf.settle import takes_best
from seqclf.terminal import model_text

FILES = {
    CONFIG: "all settings",
    FACTS: "data, machine and versions",
    METRICS: "what training logged",
    f"{EVALUATION}/test.json": "the test result",
    f"{EVALUATION}/val.json": "the validation result",
    SESSIONS: "the starts of the run",
    STATUS: "how the run stands",
    MODEL: "the trained model",
}


class SplitRow(NamedTuple):
    """The size of a split, and how its classes share it."""

    name: str
    num_examples: int
    steps: str
    most: str
    """The commonest class, and its share."""
    fewest: str
    """The rarest one."""


class SettingRow(NamedTuple):
    """A setting that is not the default."""

    name: str
    value: str
    default: str


def overview(run: RunRecord) -> list[tuple[str, str]]:
    """Return what was run, as names and values."""
    facts = run.facts
    config = run.config
    step, epoch = (0, 0.0) if run.status is None else (run.status.step, run.status.epoch)
    times = [session.time.replace("T", " ") for session in run.sessions]
    rows = {
        "data": facts.data or config.data.name,
        "model": model_text(config.model, facts.num_parameters),
        "steps": f"{step:,} of {facts.num_steps:,} ({epoch:.3g} epochs)",
        "training time": f"{run.training_s:,.1f} s of steps, beside start, evaluations and saves",
        "started": ", ".join(dict.fromkeys((times[0], times[-1]))) if times else "",
        "starts": str(len(run.sessions)),
        "where": ", ".join(filter(None, (facts.host, facts.device, facts.precision))),
        "processes": str(facts.world_size or ""),
        "CPU threads of each": str(facts.threads) * bool(facts.world_size),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "code": facts.git or "",
        "weights": (facts.weights_sha256 or "")[:16],
    }
    return [(name, value) for name, value in rows.items() if value]


def changed_settings(config: Config) -> list[SettingRow]:
    """Return every setting that is not the default."""
    defaults = settings_by_name(Config())
    return [
        SettingRow(name, json.dumps(value, ensure_ascii=False), json.dumps(defaults[name]))
        for name, value in settings_by_name(config).items()
        if value != defaults[name]
    ]


def split_rows(splits: Splits) -> list[SplitRow]:
    """Return the sizes of the splits that a run has."""
    named = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return [
        _split_row(name, split) for name, split in named.items() if split is not None and len(split)
    ]


def _split_row(name: str, split: Sequences) -> SplitRow:
    n = len(split)
    counts = split.labels.bincount(minlength=len(split.classes)).tolist()
    most, fewest = counts.index(max(counts)), counts.index(min(counts))
    if split.lengths is None:
        steps = "{} x {} pixels".format(*split.values.shape[1:])
    else:
        shortest, longest = int(split.lengths.min()), int(split.lengths.max())
        steps = f"{shortest:,} to {longest:,} steps" if shortest < longest else f"{longest:,} steps"
    return SplitRow(
        name,
        n,
        steps,
        most=f"{split.classes[most]}: {counts[most]:,} ({percent(counts[most] / n)} %)",
        fewest=f"{split.classes[fewest]}: {counts[fewest]:,} ({percent(counts[fewest] / n)} %)",
    )


def loss_note(run: RunRecord) -> str | None:
    """Say what raises the training loss where it ends above the others; else None."""
    train = [value for _, value in run.points("train/loss")]
    others = [points[-1][1] for name in ("val/loss", "test/loss") if (points := run.points(name))]
    config = run.config
    augment = config.data.augment
    reasons = {
        "label smoothing": config.loss.label_smoothing > 0,
        "class weights": config.loss.class_weights is not None,
        "dropout": config.model.dropout > 0,
        "augmentation": augment.shift > 0
        or augment.flip
        or augment.noise not in (0, "auto")
        or augment.crop not in (1, "auto"),
    }
    found = [name for name, is_so in reasons.items() if is_so]
    if not (len(train) > 1 and others and train[-1] > max(others) and found):
        return None
    names = " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))
    return f"The training loss lies above the others: it alone is taken with {names}."


def role_of_validation(config: Config, num_examples: int, *, is_calibrated: bool) -> str:
    """Say what the validation examples did, so that their figures are no result."""
    chose = []
    if takes_best(config, num_examples):
        chose.append("chose the weights")
    elif config.train.patience is not None:
        chose.append("decided when training ends")
    if is_calibrated:
        chose.append("fitted the temperature")
    return f"{' and '.join(chose) or 'watched training'}, so it is no result"


def next_commands(name: str) -> list[tuple[str, str]]:
    """Return what people do with a run."""
    run = shlex.quote(name)
    return [
        (f"seqclf predict {run} FILE", "name the sequences of a file"),
        (f"seqclf demo {run}", "a page that runs the model in the browser"),
        (f"seqclf export {run} --out model.onnx", "a file for onnxruntime"),
    ]


def command_again(name: str, seed: int) -> str:
    """Return the command that trains with a run's settings, and with another seed."""
    config = shlex.quote(f"{name}/{CONFIG}")
    return f"seqclf train --config {config} --seed {seed + 1}"


def links_to_files(run_dir: Path, folder: Path) -> list[tuple[str, str, str]]:
    """Return the files of a run that are there: the address from `folder`, the name, what it is."""
    way = Path(os.path.relpath(run_dir.resolve(), folder.resolve())).as_posix()
    start = "" if way == "." else f"{way}/"
    return [
        (quote(f"{start}{name}"), name, what)
        for name, what in FILES.items()
        if (run_dir / name).exists()
    ]
