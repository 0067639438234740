"""The commands, one function each: from its arguments to its exit code.

Each imports what it needs when it is called, so that help and mistakes need not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from seqclf.cli.parser import build_parser
from seqclf.config.load import load_config
from seqclf.config.recipes import FOR_PREPARED_DATA
from seqclf.config.reference import STARTER, commented_yaml
from seqclf.config.settings import Config, fields
from seqclf.errors import UserError, printable_lines
from seqclf.processes.signals import Signals, end_with_launcher
from seqclf.run.records import CONFIG, FACTS, Facts, finite_or_null, read_record

if TYPE_CHECKING:
    from seqclf.data.readers.rows import ReadOptions
    from seqclf.predictions import Per, Source
    from seqclf.stepwise import Early


def train_command(arguments: Namespace) -> int:
    """Train; or print the settings that result, if --print-config asks for them."""
    config, flagged = load_settings(arguments)
    if arguments.print_config:
        print(commented_yaml(config), end="")
        return 0
    signals = Signals(owns_process=True)
    with signals.listening():
        end_with_launcher()
        from torch.distributed.elastic.multiprocessing.errors import record

        from seqclf.train import train

        return int(record(train)(config, arguments.config, flagged=flagged, signals=signals) or 0)


def load_settings(arguments: Namespace) -> tuple[Config, list[str]]:
    """Return the config of --config and the flags, and the names of the settings in flags.

    Prepared data have a recipe of their own, unless --config names another.
    """
    flags = {name: getattr(arguments, name) for name, _, _ in fields()}
    flags = {name: text for name, text in flags.items() if text is not None}
    is_prepared = flags.get("data.name", "files") == "files" and "data.path" in flags
    has_recipe = arguments.config is None and is_prepared
    if has_recipe:
        arguments.config = FOR_PREPARED_DATA
    config, flagged = load_config(arguments.config, flags)
    is_main = os.environ.get("RANK", "0") in ("", "0")
    is_silent = getattr(arguments, "print_config", False) or config.quiet
    if has_recipe and is_main and not is_silent:
        print(f"config      {FOR_PREPARED_DATA} (for prepared data; --config names another)")
    return config, flagged


def _print(text: str) -> None:
    """Print lines; names and paths in them may hold escape sequences, which are shown as text."""
    print(printable_lines(text))


def evaluate_command(arguments: Namespace) -> int:
    """Measure a run's result again on its data, or on a file with labels."""
    if arguments.input is not None:
        from seqclf.predictions import measure_file
        from seqclf.terminal import metrics_text

        metrics, classes = measure_file(arguments.run_dir, *_source(arguments))
        if arguments.json:
            loss = finite_or_null({"loss": metrics.loss})
            print(json.dumps(metrics.to_json(classes) | loss))
        else:
            _print(metrics_text(metrics, classes))
        return 0
    _refuse_read_options(arguments)
    if arguments.per is not None:
        raise UserError(f"--per {arguments.per}: needs INPUT, a file with labels")
    config, run_dir = _load_run(arguments)
    named = evaluate_run(config, run_dir)
    if arguments.json:
        print(json.dumps(finite_or_null(named)))
        return 0
    for name, value in named.items():
        print(f"{name:<14} {value:.6f}")
    return 0


def evaluate_run(config: Config, run_dir: Path) -> dict[str, float]:
    """Measure a run's result again on the data of its config, in the precision it was trained in.

    Collective. Raises UserError if model or data are missing or do not belong together.
    """
    from seqclf.data import sources
    from seqclf.evaluate import evaluate
    from seqclf.processes.start import start_runtime
    from seqclf.run.weights import load_model

    model, architecture = load_model(run_dir)
    facts = read_record(run_dir / FACTS, Facts)
    runtime = start_runtime(config, trained_in=facts.precision)
    for decision in runtime.decisions:
        if decision.remedy and runtime.is_main:
            print(printable_lines(decision.line()), file=sys.stderr)
    try:
        splits = sources.load(config.data, seed=config.seed)
        if splits.test.classes != architecture.classes:
            raise UserError(f"{run_dir}: trained on other classes than '{splits.name}' has")
        model = model.to(runtime.device)
        runtime.prepare(model)
        metrics: dict[str, float] = {}
        for split, sequences in splits.measured.items():
            result = evaluate(runtime, model, sequences, batch_size=config.eval.batch_size)
            metrics |= result.named(split)
        return metrics
    finally:
        runtime.close()


def predict_command(arguments: Namespace) -> int:
    """Name the classes of the sequences in a file, or of examples of a split beside the truth."""
    if arguments.count is not None and arguments.count < 1:
        raise UserError(f"--count {arguments.count}: must be at least 1")
    early = _early(arguments)
    from seqclf.processes.device import keep_to_quota

    keep_to_quota()
    if arguments.input is not None:
        from seqclf.predictions import predict_file

        for option in ("count", "split"):
            if (value := getattr(arguments, option)) is not None:
                raise UserError(
                    f"--{option} {value}: chooses from the run's data, not {arguments.input}"
                )
        source, per = _source(arguments)
        return predict_file(arguments.run_dir, source, arguments.out, per, early)
    _refuse_read_options(arguments)
    config, run_dir = _load_run(arguments)
    from seqclf.data import sources
    from seqclf.predictions import load_predictor, write_split
    from seqclf.terminal import predictions_text, reading_text

    model, architecture = load_predictor(run_dir)
    splits = sources.load(config.data, seed=config.seed)
    name = arguments.split or "test"
    sequences = {"train": splits.train, "val": splits.validation, "test": splits.test}[name]
    if sequences is None:
        raise UserError(f"--split {name}: the data of {run_dir} have no validation examples")
    if arguments.out is not None or arguments.split is not None:
        if arguments.count is not None:
            sequences = sequences.first(arguments.count)
        write_split(model, architecture, sequences, arguments.out, arguments.per, early)
        return 0
    if early is not None:
        raise UserError(f"--until {early.until:g}: needs INPUT, --split or --out")
    if arguments.per is not None:
        raise UserError(f"--per {arguments.per}: needs INPUT, --split or --out")
    _print(predictions_text(model, sequences, arguments.count or 10))
    _print(f"\n{reading_text(model, sequences, 0)}")
    return 0


def _early(arguments: Namespace) -> Early | None:
    """Return when a sequence is decided before its end. Raises UserError."""
    until, min_steps = arguments.until, arguments.min_steps
    if until is None:
        if min_steps is not None:
            raise UserError(f"--min-steps {min_steps}: needs --until")
        return None
    from seqclf.stepwise import Early

    if not 0 < until <= 1:
        raise UserError(f"--until {until:g}: must be above 0 and at most 1")
    if min_steps is not None and min_steps < 1:
        raise UserError(f"--min-steps {min_steps}: must be at least 1")
    return Early(until, min_steps or 1)


def _source(arguments: Namespace) -> tuple[Source, Per | None]:
    """Return the file to predict, and what makes a line."""
    from seqclf.predictions import Source

    source = Source(
        arguments.input,
        _read_options(arguments),
        arguments.format,
        skip_bad=arguments.on_bad_row == "skip",
    )
    return source, arguments.per


def _refuse_read_options(arguments: Namespace) -> None:
    """Refuse options that say how to read a file, where there is none."""
    from seqclf.data.readers.rows import ReadOptions

    given, default = _read_options(arguments), ReadOptions()
    for field in dataclasses.fields(ReadOptions):
        if getattr(given, field.name) != getattr(default, field.name):
            flag = {"split": "split-column"}.get(field.name, field.name.replace("_", "-"))
            raise UserError(
                f"--{flag}: says how to read a file; name the file after {arguments.run_dir}"
            )
    for name, usual in (("format", None), ("on_bad_row", "error")):
        if getattr(arguments, name) != usual:
            raise UserError(
                f"--{name.replace('_', '-')}: says how to read a file, and none is named"
            )


def report_command(arguments: Namespace) -> int:
    """Write a page of a run, or of several."""
    from seqclf.processes.device import keep_to_quota
    from seqclf.report.page import write_report

    keep_to_quota()
    page = write_report(arguments.run_dirs, arguments.out, flags=_data_folders(arguments))
    _print(f"report      {page}")
    return 0


def prepare_command(arguments: Namespace) -> int:
    """Turn files into a data set, and describe it."""
    files = _files_of_splits(arguments)
    from seqclf.data.describe import describe_dataset
    from seqclf.data.prepare import Input, Preparation, parse_fractions, prepare

    preparation = Preparation(
        options=_read_options(arguments),
        format=arguments.format,
        fractions=parse_fractions(arguments.split),
        seed=arguments.seed,
        window=arguments.window,
        stride=arguments.stride,
        on_label_change=arguments.on_label_change,
        min_share=arguments.min_share,
        adds_measured=arguments.measured,
        skip_bad=arguments.on_bad_row == "skip",
        overwrite=arguments.overwrite,
    )
    inputs = [Input(path, split) for split, paths in files.items() for path in paths]
    prepare(inputs, arguments.out, preparation, say=partial(print, flush=True))
    _print(describe_dataset(arguments.out))
    _print(f"\ntry next    seqclf train --data.path {arguments.out}")
    return 0


def _files_of_splits(arguments: Namespace) -> dict[str | None, list[Path]]:
    """Return the files of each split; those under None are split by `prepare`."""
    inputs: list[Path] = arguments.inputs
    split_files: dict[str | None, list[Path]] = {
        split: getattr(arguments, split) for split in ("train", "val", "test")
    }
    if inputs and any(split_files.values()) and not split_files["train"]:
        inputs, split_files["train"] = [], inputs
    if bool(inputs) == any(split_files.values()):
        raise UserError("name INPUT files to split, or --train and --test, and maybe --val")
    if arguments.split and any(split_files.values()):
        raise UserError(f"--split {arguments.split}: the files say already which part they are")
    return {None: inputs, **split_files}


def _read_options(arguments: Namespace) -> ReadOptions:
    from seqclf.data.readers.rows import ReadOptions

    return ReadOptions(
        id=arguments.id,
        time=arguments.time,
        label=arguments.label,
        group=arguments.group,
        split=arguments.split_column,
        tokens=arguments.tokens,
        text=arguments.text,
        features=_names(arguments.features),
        drop=_names(arguments.drop) or (),
        form=arguments.form,
        header=None if arguments.header is None else arguments.header == "first",
        encoding=arguments.encoding,
        labels=arguments.labels,
        pad_value=arguments.pad_value,
        channels_first=arguments.channels_first,
        fill_missing=arguments.fill_missing,
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list that commas separate."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def describe_command(arguments: Namespace) -> int:
    """Show what a prepared data set holds."""
    from seqclf.data.describe import describe_dataset
    from seqclf.data.prepared import verify

    if arguments.verify:
        verify(arguments.path)
    _print(describe_dataset(arguments.path))
    if arguments.verify:
        print("\nverified: all files are as they were written")
    return 0


def baselines_command(arguments: Namespace) -> int:
    """Measure simple methods on a prepared data set."""
    from seqclf.baselines import measure_baselines

    for line in measure_baselines(arguments.path, _names(arguments.only)):
        print(line, flush=True)  # each takes minutes at times
    return 0


def runs_command(arguments: Namespace) -> int:
    """List runs."""
    from seqclf.run.listing import runs_table

    _print(runs_table(arguments.dir))
    return 0


def checkpoints_command(arguments: Namespace) -> int:
    """List a run's checkpoints, each verified."""
    from seqclf.run.listing import checkpoints_table

    _print(checkpoints_table(_run_dir(arguments)))
    return 0


def init_command(arguments: Namespace) -> int:
    """Write a commented config to edit; never over a file that is there."""
    path: Path = arguments.path
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("# Settings of a run: `seqclf train --config THIS_FILE`. Off is null.\n")
            file.write("# Take a # away to change what follows it.\n\n")
            file.write(commented_yaml(Config(), active=STARTER))
    except FileExistsError:
        raise UserError(f"{path} exists already; name another file: seqclf init PATH") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from None
    _print(f"wrote {path}; edit it, then: seqclf train --config {path}")
    return 0


def doctor_command(arguments: Namespace) -> int:
    """Check machine and set-up for a run of these settings."""
    config, _ = load_settings(arguments)
    from seqclf.cli.doctor import check

    return check(config)


def completion_command(arguments: Namespace) -> int:
    """Print a shell's completion script."""
    import shtab

    print(shtab.complete(build_parser(completing=True), arguments.shell))
    return 0


def _run_dir(arguments: Namespace) -> Path:
    run_dir: Path = arguments.run_dir
    # os.path, as a name that cannot be is no file either.
    if os.path.isfile(run_dir / CONFIG):
        return run_dir
    from seqclf.run.checkpoint import MODEL_FILE

    if os.path.isfile(run_dir / MODEL_FILE):
        remedy = "name a file after it, or the directory of its run"
        raise UserError(f"{run_dir}: a model without its run, and so without its data; {remedy}")
    raise UserError(f"{run_dir}: no run there (config.yaml is missing); see seqclf runs")


def _load_run(arguments: Namespace) -> tuple[Config, Path]:
    """Return a run's config, with the data folders that the flags name, and its directory."""
    run_dir = _run_dir(arguments)
    return load_config(run_dir / CONFIG, _data_folders(arguments))[0], run_dir


def _data_folders(arguments: Namespace) -> dict[str, str]:
    folders = {name: getattr(arguments, name) for name in ("data.root", "data.path")}
    return {name: folder for name, folder in folders.items() if folder}


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "report": report_command,
    "prepare": prepare_command,
    "baselines": baselines_command,
    "describe": describe_command,
    "runs": runs_command,
    "checkpoints": checkpoints_command,
    "init": init_command,
    "doctor": doctor_command,
    "completion": completion_command,
}
