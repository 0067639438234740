"""Mirror a run in Weights & Biases: one run, each line once, in order, over any number of kills.

A line decides the number of its row in W&B, and the server says which rows it has. So a run that
was killed, and its mirror with it, goes on in W&B with the very next line.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from seqclf.config.settings import Config, settings_by_name
from seqclf.data.pictures import draw_picture
from seqclf.errors import PREEMPTED, UserError
from seqclf.metrics import best_of
from seqclf.run.records import (
    FACTS,
    METRICS,
    MODEL,
    Evaluation,
    Facts,
    class_table,
    find_evaluation,
    read_record,
    to_json,
)
from seqclf.tracking.mirrors import choose_wandb, sync_command
from seqclf.tracking.trainer import Trainer, follow, how_it_ended, say
from seqclf.tracking.wandb_logs import find_next_row, logs_of, mark_whole, put_aside

SPLITS = ("train", "val", "test")  # in the order of a step's lines
ERROR_LETTERS = 4000
MOST_ROWS = 10_000  # W&B shows no more of a table
# W&B's own chart of a confusion matrix calls its columns so.
PAIR_COLUMNS = ("Actual", "Predicted", "nPredictions")
CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")
MISTAKE_COLUMNS = ("example", "name", "truth", "guess", "probability")


class Bests:
    """The best and the last value of each evaluation metric, for W&B's summary.

    `judge` is the metric that chooses the best evaluation: `checkpoint.metric` on the first split
    that is evaluated.
    """

    def __init__(self, metric: str) -> None:
        self._measure = metric.partition("/")[2]
        self.judge = ""
        self.summary: dict[str, dict[str, float]] = {}

    def add(self, metrics: Mapping[str, float]) -> bool:
        """Take in a line; return whether it is the best evaluation so far."""
        is_best = False
        for name, value in metrics.items():
            if (direction := best_of(name)) is None:
                continue
            split = name.partition("/")[0]
            self.judge = self.judge or f"{split}/{self._measure}"
            best = self.summary.get(name, {}).get(direction, math.nan)
            is_better = value < best if direction == "min" else value > best
            if math.isnan(best) or is_better:
                best = value
                is_best = is_best or name == self.judge
            self.summary[name] = {direction: best, "last": value}
        return is_best

    @property
    def objective(self) -> float:
        """The best value of the judging metric, which a sweep looks at."""
        best = self.summary[self.judge]
        return best.get("max", best.get("min", math.nan))


def to_wandb(run_dir: Path, config: Config, trainer: Trainer) -> int:
    """Mirror a run until its trainer ends; return the number of lines that W&B has, or its log."""
    facts = read_record(run_dir / FACTS, Facts)
    run, next_row = open_wandb(run_dir, config, str(facts.run_id), trainer.pid)
    run.config.update({**settings_by_name(config), **to_json(facts)}, allow_val_change=True)
    run.define_metric("global_step", summary="max")
    run.define_metric("*", step_metric="global_step")

    def send(row: int, step: int, values: Mapping[str, Any]) -> None:
        nonlocal next_row
        if row >= next_row and values:
            run.log({"global_step": step, **values}, step=row, commit=True)
            next_row = row + 1

    tables_at = config.tracking.tables
    bests = Bests(config.checkpoint.metric)
    num_lines = step = reached = 0
    best_step = -1
    for line in follow(run_dir / METRICS, trainer.ended):
        num_lines, step, metrics = line
        # The last line may test the best weights, which are of an earlier step.
        reached = max(reached, step)
        row = row_of(reached, metrics)
        for name in metrics.keys() - bests.summary.keys():
            if direction := best_of(name):
                run.define_metric(name, summary=f"{direction},last", step_metric="global_step")
        is_best = bests.add(metrics)
        if run.sweep_id and bests.judge in metrics:
            metrics["objective"] = bests.objective
        send(row, step, metrics)
        if is_best:
            best_step = step
            if tables_at == "best" and row + 1 >= next_row:
                send(row + 1, step, tables(run_dir, step, {bests.judge.partition("/")[0]}))
    exit_code, error = how_it_ended(run_dir, trainer.exit_code)
    # The last row of a step is free: the step's last line has its tables there, if it has any.
    last_row = row_of(reached + 1, {}) - 1
    if exit_code == 0 and tables_at != "never" and last_row >= next_row:
        is_sent = tables_at == "best" and step == best_step
        unsent = set(SPLITS) - ({bests.judge.partition("/")[0]} if is_sent else set())
        send(last_row, step, tables(run_dir, step, unsent))
    if exit_code == 0 and config.tracking.artifact:
        send_model(run, run_dir, config)
    run.summary.update(bests.summary)  # over all sessions, where W&B knows this one's
    if exit_code == PREEMPTED:
        run.mark_preempting()
    if error:
        run.summary["error"] = error[-ERROR_LETTERS:]
    run.finish(exit_code=exit_code)
    close_wandb()
    mark_whole(Path(run.settings.sync_file), next_row)
    return num_lines


def row_of(step: int, metrics: Mapping[str, float]) -> int:
    """Return the number of a line's row in W&B; the row after it is that of its tables.

    The number grows from line to line, and is the same each time that a line is written.
    """
    split = next(iter(metrics), "train/").partition("/")[0]
    return 2 * (len(SPLITS) * step + SPLITS.index(split))


# ---- opening


def open_wandb(
    run_dir: Path, config: Config, run_id: str, trainer_pid: int | None
) -> tuple[Any, int]:
    """Start or go on with a run in W&B; return it and the number of the first row that it lacks.

    The run is offline, with a line that says so, if W&B cannot be had. What the settings leave out
    is left to W&B's environment variables. Raises UserError if they turn W&B off.
    """
    options, environment = config.tracking, os.environ
    # A mirror that is started by hand is wanted now, whatever the settings say.
    mode, why = choose_wandb("auto" if trainer_pid is None else options.wandb)
    if mode == "disabled":
        raise UserError(f"W&B is turned off ({why})")
    set_environment(mode)
    folder = environment.get("WANDB_DIR") or str(run_dir)
    # Tables lie here until they are uploaded; W&B's default is in the user's home.
    environment.setdefault("WANDB_DATA_DIR", str(Path(folder) / "wandb"))
    import wandb

    common: dict[str, Any] = {
        "id": run_id,
        "resume": "allow",
        "project": options.project or environment.get("WANDB_PROJECT") or "seqclf",
        "entity": options.entity,
        "name": options.name or environment.get("WANDB_NAME") or run_dir.name,
        "group": options.group,
        "tags": options.tags,
        "notes": options.notes,
        "dir": folder,
        "settings": wandb.Settings(
            silent=True,
            console="off",
            x_stats_pid=trainer_pid or os.getpid(),
            init_timeout=max(1, options.finish_s / 2),
        ),
    }
    if mode != "offline":
        old_logs = logs_of(folder, run_id)
        try:
            run = wandb.init(**common | {"mode": mode})
        except Exception as error:  # no network, or a wrong key: all is kept for later
            reason = str(error).strip().partition("\n")[0]
            say(f"warning: W&B cannot be reached ({reason})")
            wandb.teardown()  # it holds on to the run's id
            for log in set(logs_of(folder, run_id)).difference(old_logs):
                put_aside(log)  # nothing of it was sent
            say(f"wandb       offline; to upload: {sync_command(folder)}")
            set_environment("offline")
        else:
            say(f"wandb       {run.url}")
            for log in old_logs:
                if log.parent.name.startswith("offline-"):
                    put_aside(log)  # the server gets its lines now: wandb sync would double them
            return run, run.starting_step
    next_row = find_next_row(folder, run_id, run_dir)
    return wandb.init(mode="offline", **common), next_row


def set_environment(mode: str) -> None:
    """Have W&B take this mode, and report nothing to its maker if that is offline.

    Call it before W&B is imported. A run that is offline by `wandb.init(mode="offline")` alone
    posts telemetry all the same.
    """
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if not os.environ[name]:  # an empty variable means unset; W&B takes some for a value
            del os.environ[name]
    os.environ["WANDB_MODE"] = mode
    if mode == "offline":
        os.environ["WANDB_ERROR_REPORTING"] = "false"


# ---- at the end


def close_wandb() -> None:
    """Wait for W&B's own process, which writes the end of its log after `finish` has returned."""
    import wandb

    wandb.teardown()


def send_model(run: Any, run_dir: Path, config: Config) -> None:
    """Send model/ as an artifact."""
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    artifact.add_dir(str(run_dir / MODEL))
    aliases = ["best", "latest"] if config.chooses_best else ["latest"]
    run.log_artifact(artifact, aliases=aliases)


def tables(run_dir: Path, step: int, splits: Collection[str]) -> dict[str, Any]:
    """Make W&B's tables of a step's evaluations: confusion, classes, worst mistakes."""
    made: dict[str, Any] = {}
    for split in sorted(splits):
        evaluation = find_evaluation(run_dir, split)
        if evaluation is not None and evaluation.step == step:
            made |= _tables_of(split, evaluation)
    return made


def _tables_of(split: str, evaluation: Evaluation) -> dict[str, Any]:
    import wandb
    from PIL import Image

    pairs: list[tuple[str, str, int]] = [
        (truth, guess, count)
        for truth, row in zip(evaluation.classes, evaluation.confusion, strict=True)
        for guess, count in zip(evaluation.classes, row, strict=True)
    ]
    if len(pairs) > MOST_ROWS:
        pairs = sorted(pairs, key=lambda pair: -pair[2])[:MOST_ROWS]
    confusion = wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(list(PAIR_COLUMNS), pairs),
        fields={name: name for name in PAIR_COLUMNS},
        string_fields={"title": f"{split}: truth and guess"},
    )
    classes = wandb.Table(list(CLASS_COLUMNS), [list(row) for row in class_table(evaluation)])
    mistakes = [
        [getattr(mistake, name) for name in MISTAKE_COLUMNS]
        + [wandb.Image(Image.open(io.BytesIO(draw_picture(mistake.picture))))]
        for mistake in evaluation.mistakes
    ]
    return {
        f"{split}/confusion": confusion,
        f"{split}/classes": classes,
        f"{split}/mistakes": wandb.Table([*MISTAKE_COLUMNS, "input"], mistakes),
    }
