"""Train on sequences in memory: `seqclf.train`.

The data become a prepared data set in a temporary directory, and `seqclf.training.train` trains
there, as the command line does: the same settings give the same weights, bit for bit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from seqclf.classifier import Classifier
from seqclf.config.load import config_from
from seqclf.config.recipes import FOR_PREPARED_DATA
from seqclf.config.settings import Config, settings_by_name
from seqclf.console import Console
from seqclf.data.memory import write_dataset
from seqclf.data.prepared import INFO, DatasetInfo, read_info
from seqclf.data.readers.rows import ReadOptions
from seqclf.data.reading import Reading
from seqclf.data.staging import staged
from seqclf.errors import PREEMPTED, UserError
from seqclf.examples import (
    Examples,
    check_classes,
    make_reader,
    role_of,
    rows_of,
    take_examples,
)
from seqclf.inputs import is_frame
from seqclf.predict import place
from seqclf.processes.guest import as_guest, refuse_groups
from seqclf.processes.signals import Signals
from seqclf.report.run_record import read_run
from seqclf.run.lock import refuse_what_is_not_ours
from seqclf.run.records import DATA, Evaluation
from seqclf.run.verdict import why_no_result
from seqclf.run.weights import load_model
from seqclf.training import train as train_run

# They say where a run is kept and shown, which a run without a directory is not.
OF_A_DIRECTORY = ("report", "resume", "checkpoint.every", "checkpoint.minutes")
NEVER = 2**31  # steps between two checkpoints that nobody would go on from


@dataclass(frozen=True)
class Result:
    """What a training came to. `seqclf.train` returns one."""

    metrics: dict[str, float | None]
    """Of the result: `test/accuracy`, `val/loss` ...; None is one that is not finite."""
    model: Classifier
    """The trained model, on the device that it was trained on."""
    path: Path | None
    """The run directory; None: the run was kept nowhere."""
    history: list[dict[str, float | None]]
    """The lines of metrics.jsonl, each with its `step`; pandas.DataFrame(history) is a table."""
    evaluations: dict[str, Evaluation]
    """What the splits' evaluations found, by `val` and `test`: confusion matrix, mistakes ..."""

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {value:.4f}" for name, value in self.metrics.items() if value is not None
        )
        return f"<Result: {shown or 'trained'}{f', {self.path}' if self.path else ''}>"

    def _repr_html_(self) -> str:
        """Draw the result in a notebook."""
        from seqclf.report.cell import draw_cell  # matplotlib, which nothing else here needs

        return draw_cell(self.model.title, self.evaluations, self.history)


class ReadAs(NamedTuple):
    """What becomes of the numbers of sequences before training, as options of `prepare`."""

    window: int | None = None
    stride: int | None = None
    fill_missing: bool = False
    pad_value: float | None = None


def train(
    config: Config | Mapping[str, object] | str | os.PathLike[str] | None = None,
    *,
    train: tuple[object, object],
    test: tuple[object, object] | None = None,
    validation: tuple[object, object] | float | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    fill_missing: bool = False,
    pad_value: float | None = None,
    verbose: int = 1,
) -> Result:
    """Train a classifier of sequences in memory, and measure it.

    `config` holds settings by their dotted names, such as {"optim.lr": 0.01}; they go over those
    of configs/files.yaml. Or it is the name or the path of a recipe, or a whole `Config`.
    `train` and `test` are pairs (X, y) of N sequences in one of the forms that `Classifier` takes
    and N labels. `validation` is such a pair, or a fraction of the training examples that is held
    out; by it the best weights may be chosen (`train.patience`, `checkpoint.keep_best`).

    `run_dir` keeps all of the run there: its report, its checkpoints, from which the same call goes
    on, and its data. Without it the run leaves nothing behind. `window`, `stride`, `fill_missing`
    and `pad_value` are the options of `seqclf prepare`. `verbose` is 0 for silence, 1 for a
    progress bar in a terminal or a notebook, 2 for the lines of the command line, too.

    The process stays as it was: seeds, threads and flags of torch, and the environment. A Ctrl-C
    ends the training at the next step; with `run_dir` the same call goes on from there.

    Raises UserError (a ValueError) that names the sequence, the label or the setting.

    >>> result = seqclf.train({"train.epochs": 5}, train=(X, y), test=(X_test, y_test))
    ... # doctest: +SKIP
    >>> result.metrics["test/accuracy"]  # doctest: +SKIP
    0.975
    """
    read_as = ReadAs(window, stride, fill_missing, pad_value)
    examples = {"train": take_examples(train, "train ")}
    fraction = None
    if isinstance(validation, int | float):
        fraction = float(validation)
    elif validation is not None:
        examples["val"] = take_examples(validation, "validation ")
    if test is not None:
        examples["test"] = take_examples(test, "test ")
    settled = settle_config(config, val_fraction=fraction, run_dir=run_dir)
    return train_examples(settled, examples, read_as, verbose=verbose)


def settle_config(
    config: Config | Mapping[str, object] | str | os.PathLike[str] | None,
    *,
    recipe: str | os.PathLike[str] = FOR_PREPARED_DATA,
    val_fraction: float | None = None,
    run_dir: str | os.PathLike[str] | None = None,
) -> Config:
    """Return the config of a run on data in memory. Raises UserError for what cannot be set."""
    settings = dict(config) if isinstance(config, Mapping) else {}
    if isinstance(config, Config):
        settings = _named(config)
    elif isinstance(config, str | os.PathLike):
        recipe = config
    for name in ("data.name", "data.path", "data.root"):
        if settings.get(name, "auto") not in ("auto", "files"):
            raise UserError(
                f"{name}: {settings[name]}: the data are those of `train`; leave it out"
            )
    if run_dir is not None:
        settings["run_dir"] = os.fspath(run_dir)
    if val_fraction is not None:
        settings["data.val_fraction"] = val_fraction
    settings |= {"data.name": "files", "data.path": "."}  # where they lie is known later
    base = None if isinstance(config, Config) else os.fspath(recipe)
    settled = config_from(settings, base, "settings")
    if settled.train.threads is None:
        # What the caller or joblib has set for this process, not all the cores.
        train = settled.train.model_copy(update={"threads": torch.get_num_threads()})
        settled = settled.model_copy(update={"train": train})
    return settled if settled.run_dir is not None else _without_directory(settled, settings)


def _named(config: Config) -> dict[str, object]:
    """Return the settings of a config that are not the defaults, by their dotted names."""
    defaults = settings_by_name(Config())
    return {
        name: value for name, value in settings_by_name(config).items() if value != defaults[name]
    }


def _without_directory(config: Config, settings: Mapping[str, object]) -> Config:
    """Return the config of a run that is kept nowhere. Raises UserError for one without effect."""
    for name, value in settings.items():
        is_of_directory = name in OF_A_DIRECTORY or name.startswith("tracking.")
        if is_of_directory and value not in (False, None, "disabled"):
            raise UserError(f"{name}: {value}: needs run_dir: without it nothing is kept")
    return config.model_copy(
        update={
            "report": False,
            "tracking": config.tracking.model_copy(update={"wandb": "disabled"}),
            "checkpoint": config.checkpoint.model_copy(update={"every": NEVER}),
        }
    )


def train_examples(
    config: Config, examples: Mapping[str, Examples], read_as: ReadAs, *, verbose: int
) -> Result:
    """Train on examples of the splits train, val and test; the last two may be missing."""
    refuse_groups()
    if config.chooses_best and "val" not in examples and not config.data.val_fraction:
        raise UserError(
            "train.patience or checkpoint.keep_best: needs validation examples to choose by: give "
            "validation, a fraction such as 0.1 or a pair (X, y)"
        )
    is_kept = config.run_dir is not None
    with tempfile.TemporaryDirectory(prefix="seqclf-") as folder:
        home = Path(folder)
        run_dir = Path(config.run_dir) if config.run_dir is not None else home / "run"
        console = _Console(verbose)
        for note in _write(home / DATA, examples, read_as).notes:
            console.say(f"note        {note}")
        if is_kept:
            _keep(home / DATA, run_dir)
        data_path = os.path.abspath((run_dir if is_kept else home) / DATA)
        data = config.data.model_copy(update={"path": data_path})
        config = config.model_copy(update={"data": data, "run_dir": str(run_dir)})

        def run(signals: Signals) -> Result | None:
            exit_code = train_run(config, signals=signals, console=console)
            return None if exit_code == PREEMPTED else _read_result(run_dir, is_kept=is_kept)

        try:
            result = as_guest(run)
        finally:
            for text in console.warnings:
                warnings.warn(text, stacklevel=3)
    if result is None:
        raise KeyboardInterrupt("the training was stopped")
    if "test" in result.evaluations:
        doubt = why_no_result(result.evaluations["test"], "test")
        if doubt is not None:
            warnings.warn(doubt, stacklevel=3)
    return result


def _read_result(run_dir: Path, *, is_kept: bool) -> Result:
    """Return what a run directory holds of a run that has finished."""
    record = read_run(run_dir)
    model, architecture = load_model(run_dir)
    name = str(run_dir) if is_kept else ""
    return Result(
        metrics=record.metrics,
        model=Classifier(place(model, record.facts.device), architecture, name=name),
        path=run_dir if is_kept else None,
        history=record.metric_lines,
        evaluations=record.evaluations,
    )


def _write(folder: Path, examples: Mapping[str, Examples], read_as: ReadAs) -> DatasetInfo:
    """Write examples as a data set. Raises UserError that names what cannot be read."""
    train, *others = examples.values()
    options, reading = _how_to_read(read_as, train.X)
    reader = make_reader(train, options, reading)
    check_classes(train, others)
    folder.mkdir()
    rows = {split: rows_of(some, reader) for split, some in examples.items()}
    return write_dataset(folder, rows, reading)


def _how_to_read(read_as: ReadAs, X: object) -> tuple[ReadOptions, Reading]:
    """Return how sequences are read, now and by the model. Raises UserError for what cannot be."""
    window, stride, fill_missing, pad_value = read_as
    for name, steps in (("window", window), ("stride", stride)):
        if steps is not None and steps < 1:
            raise UserError(f"{name}: {steps}: must be at least 1")
    if stride is not None and window is None:
        raise UserError(f"stride: {stride}: needs window")
    reading = Reading(
        id=role_of(X, "id") if is_frame(X) else None,
        time=role_of(X, "time") if is_frame(X) else None,
        fill_missing=fill_missing,
        pad_value=pad_value,
        window=window,
        stride=stride,
        on_label_change="error" if window is None else "majority",
    )
    return ReadOptions(fill_missing=fill_missing, pad_value=pad_value), reading


def _keep(folder: Path, run_dir: Path) -> None:
    """Copy the data set into a run directory; where one is already, compare the two.

    Raises UserError if that is another one, or if the directory is none of a run.
    """
    refuse_what_is_not_ours(run_dir)
    kept = run_dir / DATA
    if (kept / INFO).is_file():
        if read_info(kept).fingerprint != read_info(folder).fingerprint:
            raise UserError(f"{run_dir}: holds a run on other data; choose another run_dir")
        return
    with staged(kept, overwrite=False, info=INFO) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)


class _Console(Console):
    """Shows a progress bar from verbose=1 on, lines from 2 on, and keeps all warnings."""

    def __init__(self, verbose: int) -> None:
        super().__init__(enabled=verbose > 0, quiet=verbose < 1)
        self._says = verbose > 1
        self.warnings: list[str] = []

    def say(self, text: str, *, if_quiet: str = "") -> None:
        """Print lines, or keep a warning for Python's own warnings."""
        if text.startswith("warning: "):
            self.warnings.append(text.removeprefix("warning: "))
        elif self._says:
            super().say(text, if_quiet=if_quiet)
