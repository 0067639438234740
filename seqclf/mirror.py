"""Mirror a run directory, as it grows, in W&B or TensorBoard: a process beside the training.

    python -m seqclf.mirror wandb RUN_DIR            sends what is lacking there, and leaves
    python -m seqclf.mirror wandb RUN_DIR TRAINER    is what a training starts

That one is told on standard input with which code the training ended; silence there means that it
was killed. What W&B has already is read from its own logs, so a run that was killed, its mirror
too, goes on in W&B with the very next line.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from seqclf.config import PREEMPTED, Config, load_config, settings
from seqclf.figures import draw
from seqclf.tracking import TITLES, wandb_mode

POLL_S = 0.5
ERROR_LETTERS = 4000
HEADER, BLOCK, WHOLE = 7, 32 * 1024, (1, 4)  # of LevelDB's log format, which is that of W&B's logs
MOST_ROWS = 10_000  # that W&B shows of a table
PAIR = ("Actual", "Predicted", "nPredictions")  # as W&B's chart calls them
CLASS = ("class", "precision", "recall", "f1", "support")
MISTAKE = ("example", "truth", "guess", "probability")
BEST = {"accuracy": "max", "macro_f1": "max", "loss": "min"}  # of an evaluation's metrics


class Trainer:
    """The training, as heard of through standard input. `exit_code` is None if it was killed."""

    def __init__(self, pid: int | None, finish_s: float) -> None:
        self.pid = pid
        self.ended = threading.Event()
        self.exit_code: int | None = None
        self._finish_s = finish_s
        if pid is None:
            self.ended.set()
        else:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        word = sys.stdin.readline().strip()
        self.exit_code = int(word) if word.isdigit() else None
        self.ended.set()
        time.sleep(self._finish_s + 1)  # the trainer waits as long, unless it was killed
        os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Mirror until the trainer ends; return 0, or 2 if that failed."""
    parser = argparse.ArgumentParser("python -m seqclf.mirror", description=__doc__)
    parser.add_argument("kind", choices=list(TITLES))
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("trainer", type=int, nargs="?", help="its process's number")
    known = parser.parse_args()
    try:
        config, _ = load_config(known.run_dir / "config.yaml")
        trainer = Trainer(known.trainer, config.tracking.finish_s)
        with _alone(known.run_dir / f".{known.kind}.lock"):
            mirror = {"wandb": to_wandb, "tensorboard": to_tensorboard}[known.kind]
            mirror(known.run_dir, config, trainer)
    except Exception as error:  # a mirror that fails is reported once, and training goes on
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        say(f"warning: {TITLES[known.kind]} failed and is left out from here on: {reason}")
        return 2
    return 0


def say(text: str) -> None:
    """Have the trainer print a line, if it still lives."""
    with suppress(OSError):
        print(text, flush=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for the mirror of a session that was killed."""
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def follow(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """Yield the lines of a growing file until the end; from the first again if it is rewritten."""
    last, place = b"", 0  # the last line yielded, and where it stands
    while True:
        done = ended.is_set()
        content = b""
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(place)
            content = file.read()
        if not content.startswith(last):
            last, place = b"", 0
            continue
        *lines, _ = content[len(last) :].split(b"\n")
        for line in lines:
            place, last = place + len(last), line + b"\n"
            yield json.loads(line)
        if done:
            return
        ended.wait(POLL_S)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return a line's metrics; what JSON has no number for is NaN."""
    return {
        name: math.nan if value is None else value for name, value in line.items() if name != "step"
    }


def best_is(name: str) -> str | None:
    """Say whether the largest ("max") or the smallest ("min") of a metric is its best one.

    None of those of the training.
    """
    split, _, what = name.partition("/")
    return None if split == "train" else BEST.get(what)


# ---- Weights & Biases


class Sent(NamedTuple):
    """What W&B has: rows below `next_row`, the furthest of them of `step`, with these `keys`."""

    next_row: int = 0
    step: int = -1
    keys: frozenset[str] = frozenset()

    def has(self, step: int, keys: Iterable[str]) -> bool:
        """Say whether a line is among them."""
        return step < self.step or (step == self.step and self.keys.issuperset(keys))

    @property
    def has_tables(self) -> bool:
        """Whether the furthest step's tables are among them."""
        return any(name.endswith("/classes") for name in self.keys)

    def then(self, row: int, step: int, keys: Iterable[str]) -> Sent:
        """Return what W&B has with one row more; one of an earlier step counts to the furthest."""
        before = self.keys if step <= self.step else frozenset()
        return Sent(row + 1, max(step, self.step), before.union(keys))


def to_wandb(run_dir: Path, config: Config, trainer: Trainer) -> None:
    """Mirror in W&B: one run, each line once, in order, over any number of kills and resumes."""
    facts = json.loads((run_dir / "run.json").read_bytes())
    run = open_wandb(run_dir, config, str(facts["run_id"]), trainer.pid)
    run.config.update({**settings(config), **facts}, allow_val_change=True)
    run.define_metric("global_step", summary="max")
    run.define_metric("*", step_metric="global_step")
    sent = find_sent(run, run_dir / "metrics.jsonl")

    def send(step: int, values: dict[str, Any]) -> None:
        nonlocal sent
        row = max(sent.next_row, run.step)
        run.log({"global_step": step, **values}, step=row, commit=True)
        sent = sent.then(row, step, values)

    found: dict[str, dict[str, float]] = {}  # of each metric of an evaluation, the best and last
    reached, judge = 0, ""
    for line in follow(run_dir / "metrics.jsonl", trainer.ended):
        step, metrics = int(line["step"]), numbers(line)
        reached = max(reached, step)  # the best weights' test is of an earlier step
        is_new, is_best = not sent.has(reached, metrics), False
        for name, value in metrics.items():
            if how := best_is(name):
                split = name.partition("/")[0]
                judge = judge or f"{split}/{config.checkpoint.metric.partition('/')[2]}"
                if name not in found:
                    run.define_metric(name, summary=f"{how},last", step_metric="global_step")
                best = found.get(name, {}).get(how, math.nan)
                better = value < best if how == "min" else value > best
                if math.isnan(best) or better:
                    best, is_best = value, is_best or name == judge
                found[name] = {how: best, "last": value}
        if is_new:
            if run.sweep_id and judge in metrics:
                metrics["objective"] = found[judge].get("max", found[judge].get("min", math.nan))
            send(step, metrics)
            if is_best and config.tracking.tables == "best" and (made := tables(run_dir, step)):
                send(step, made)
    exit_code, error = how_it_ended(run_dir, trainer.exit_code)
    if exit_code == 0 and config.tracking.tables != "never" and not sent.has_tables:
        send(step, tables(run_dir, step))
    if exit_code == 0 and config.tracking.artifact:
        send_model(run, run_dir, config)
    run.summary.update(found)  # of all sessions, where W&B knows this one's
    if exit_code == PREEMPTED:
        run.mark_preempting()
    if error:
        run.summary["error"] = error[-ERROR_LETTERS:]
    run.finish(exit_code=exit_code)


def how_it_ended(run_dir: Path, exit_code: int | None) -> tuple[int, str | None]:
    """Return a training's exit code and error; of one that was killed, by what it had written."""
    status: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        status = json.loads((run_dir / "status.json").read_bytes())
    if exit_code is None:
        exit_code = {"finished": 0, "preempted": PREEMPTED}.get(str(status.get("state")))
    if exit_code in (0, PREEMPTED):
        return exit_code, None
    error = status.get("error")
    return exit_code or 1, str(error or "the training was killed")


def open_wandb(run_dir: Path, config: Config, run_id: str, trainer_pid: int | None) -> Any:
    """Start or go on with a run in W&B; offline, with a line that says so, if it cannot be had.

    What the settings leave out is left to W&B's environment variables.
    """
    options, environment = config.tracking, os.environ
    folder = environment.get("WANDB_DIR") or str(run_dir)
    # where tables lie until they are uploaded; else that is in the user's home
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
    }
    quiet = wandb.Settings(
        silent=True,
        console="off",
        x_stats_pid=trainer_pid or os.getpid(),
        init_timeout=max(1, options.finish_s / 2),
    )
    asked = "auto" if trainer_pid is None else options.wandb  # by hand: now it is wanted
    if wandb_mode(asked) != "offline":
        try:
            run = wandb.init(mode=None if asked == "auto" else asked, settings=quiet, **common)
        except Exception as error:  # no network, a wrong key: it is all kept for later
            reason = str(error).strip().partition("\n")[0]
            say(f"warning: W&B cannot be reached ({reason})")
            wandb.teardown()  # it holds on to the run's id
            say(f"wandb       offline; to upload: wandb sync {folder}/wandb/offline-run-*")
        else:
            say(f"wandb       {run.url}")
            return run
    return wandb.init(mode="offline", settings=quiet, **common)


def find_sent(run: Any, metrics_file: Path) -> Sent:
    """Find what W&B has of a run: what its server says, if that answers, else what its logs hold.

    A log loses its end if W&B's own process is killed with the rest.
    """
    sent = Sent()
    logs = Path(run.settings.wandb_dir).glob(f"*run-*-{run.id}/run-{run.id}.wandb")
    for log in sorted(logs, key=lambda path: path.parent.name.partition("run-")[2]):
        folder = log.parent
        if folder != Path(run.settings.sync_dir):
            mend(log)
        for row, item in rows_of(folder):
            if run.offline or row < run.starting_step:
                sent = sent.then(row, int(item.get("global_step", sent.step)), item)
    if run.offline or sent.next_row >= run.starting_step:
        return sent
    summary = dict(run.summary)  # the logs are on another host, or were killed
    lines = map(json.loads, metrics_file.read_bytes().splitlines())
    known = [line for line in lines if in_summary(numbers(line), summary)]
    # not by the summary of global_step, which W&B's client sets to 0 when it resumes
    step = max((line["step"] for line in known), default=-1)
    last = (line for line in known if line["step"] == step)
    return Sent(run.starting_step, step, frozenset().union(*last))


def mend(log: Path) -> None:
    """Cut off a record that a kill has torn; without any the log goes. wandb sync stops at both.

    Records have a header (checksum, length, and which part of a record it is) and lie in blocks.
    """
    content = log.read_bytes()
    place = whole = HEADER  # the file's own is as long
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, part = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        place += HEADER + length
        if place <= len(content) and part in WHOLE:
            whole = place
    if whole == HEADER:
        log.unlink()
    elif whole < len(content):
        os.truncate(log, whole)


def in_summary(metrics: dict[str, float], summary: dict[str, Any]) -> bool:
    """Say whether a line's values are the last that W&B has of each."""
    # of W&B's own kind of mapping, which is no Mapping
    last = {k: v.get("last") if hasattr(v, "get") else v for k, v in summary.items()}
    return all(last.get(name) == value for name, value in metrics.items())


def rows_of(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that a log of W&B's holds, each with its number."""
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    for line in done.stdout.splitlines():
        with suppress(ValueError, KeyError):
            record = json.loads(line)
            if record["type"] == "history":
                item = record["history"]["item"]
                # a table is flattened to NAME._type, NAME._path ...
                yield int(item["_step"]), {k.partition("._")[0]: v for k, v in item.items()}


def send_model(run: Any, run_dir: Path, config: Config) -> None:
    """Send model/ as an artifact."""
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    artifact.add_dir(str(run_dir / "model"))
    aliases = ["best", "latest"] if config.chooses_best else ["latest"]
    run.log_artifact(artifact, aliases=aliases)


def tables(run_dir: Path, step: int) -> dict[str, Any]:
    """Make W&B's tables of the evaluations of a step: confusion, classes, worst mistakes."""
    import wandb
    from PIL import Image

    made: dict[str, Any] = {}
    for file in sorted((run_dir / "evaluation").glob("[!.]*.json")):
        about: dict[str, Any] = {}
        with suppress(ValueError):  # after a power cut
            about = json.loads(file.read_bytes())
        if about.get("step") != step:
            continue
        split, classes, confusion = file.stem, about["classes"], about["confusion"]
        pairs = [
            [truth, guess, count]
            for truth, row in zip(classes, confusion, strict=True)
            for guess, count in zip(classes, row, strict=True)
        ]
        if len(pairs) > MOST_ROWS:
            pairs = sorted(pairs, key=lambda pair: -pair[2])[:MOST_ROWS]
        made[f"{split}/confusion"] = wandb.plot_table(
            vega_spec_name="wandb/confusion_matrix/v1",
            data_table=wandb.Table(list(PAIR), pairs),
            fields={name: name for name in PAIR},
            string_fields={"title": f"{split}: truth and guess"},
        )
        rows = class_table(classes, confusion)
        made[f"{split}/classes"] = wandb.Table(list(CLASS), rows)
        rows = [
            [mistake[name] for name in MISTAKE]
            + [wandb.Image(Image.open(io.BytesIO(draw(mistake))))]
            for mistake in about["mistakes"]
        ]
        made[f"{split}/mistakes"] = wandb.Table([*MISTAKE, "input"], rows)
    return made


def class_table(classes: list[str], confusion: list[list[int]]) -> list[list[Any]]:
    """Return precision, recall, F1 and support of each class; what nothing decides is 0."""
    rows: list[list[Any]] = []
    for number, name in enumerate(classes):
        hits, support = confusion[number][number], sum(confusion[number])
        named = sum(row[number] for row in confusion)
        rows.append(
            [
                name,
                hits / max(1, named),
                hits / max(1, support),
                2 * hits / max(1, named + support),
                support,
            ]
        )
    return rows


# ---- TensorBoard


def to_tensorboard(run_dir: Path, config: Config, trainer: Trainer) -> None:
    """Mirror in TensorBoard's files, which are made anew from metrics.jsonl at each start."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run_dir / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder), flush_secs=5) as writer:
        writer.add_text("config", "```\n" + (run_dir / "config.yaml").read_text() + "\n```")
        for line in follow(run_dir / "metrics.jsonl", trainer.ended):
            for name, value in numbers(line).items():
                writer.add_scalar(name, value, int(line["step"]))


if __name__ == "__main__":
    sys.exit(main())
