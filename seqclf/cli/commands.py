"""The commands, one function each: from its arguments to its exit code.

Each imports what it needs when it is called, so that help and mistakes need not wait for torch.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import get_terminal_size

from seqclf.cli.demonstrating import demo_command
from seqclf.cli.exporting import export_command
from seqclf.cli.options import (
    check_run,
    data_folders,
    load_settings,
    read_options,
    split_names,
)
from seqclf.cli.parser import ADVISE_OPTIONS, build_parser
from seqclf.cli.predicting import evaluate_command, predict_command
from seqclf.cli.pushing import push_command
from seqclf.cli.sweeping import sweep_command
from seqclf.config.reference import STARTER, commented_yaml
from seqclf.config.settings import Config
from seqclf.errors import UserError, printable_lines
from seqclf.processes.signals import Signals, end_with_launcher


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

        from seqclf.training import train

        return int(record(train)(config, arguments.config, flagged=flagged, signals=signals) or 0)


def _print(text: str) -> None:
    """Print lines; names and paths in them may hold escape sequences, which are shown as text."""
    print(printable_lines(text))


def report_command(arguments: Namespace) -> int:
    """Write a page of a run, or of several."""
    from seqclf.processes.device import keep_to_quota
    from seqclf.report.page import write_report

    keep_to_quota()
    page = write_report(arguments.run_dirs, arguments.out, flags=data_folders(arguments))
    _print(f"report      {page}")
    return 0


def prepare_command(arguments: Namespace) -> int:
    """Turn files into a data set, and describe it."""
    files = _files_of_splits(arguments)
    from seqclf.data.describe import describe_dataset
    from seqclf.data.prepare import Input, Preparation, parse_fractions, prepare

    preparation = Preparation(
        options=replace(read_options(arguments), test_ids=arguments.test_ids),
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
    ids, is_array = arguments.test_ids, [path.suffix.lower() == ".npy" for path in inputs] == [True]
    if ids is not None and (arguments.split or not is_array):
        raise UserError(
            f"--test-ids {ids}: names the test sequences of one INPUT, an .npy; leave out --split, "
            "--train, --val and --test, or leave it out"
        )
    return {None: inputs, **split_files}


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

    for line in measure_baselines(arguments.path, split_names(arguments.only)):
        print(line, flush=True)  # each takes minutes at times
    return 0


def runs_command(arguments: Namespace) -> int:
    """List runs."""
    from seqclf.run.listing import runs_table

    width = get_terminal_size().columns if sys.stdout.isatty() else None
    _print(runs_table(arguments.dir, arguments.sort, width=width))
    return 0


def checkpoints_command(arguments: Namespace) -> int:
    """List a run's checkpoints, each verified."""
    from seqclf.run.listing import checkpoints_table

    _print(checkpoints_table(check_run(arguments.run_dir)))
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


def advise_command(arguments: Namespace) -> int:
    """Say whether more processes pay."""
    config, _ = load_settings(arguments)
    options = {name: getattr(arguments, name) for name in ADVISE_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be a number above 0")
    gpus = given.pop("gpus", None)
    hosts = given.pop("hosts", 1)
    from seqclf.cli.advise import advise

    return advise(config, given, gpus=gpus, hosts=hosts)


def completion_command(arguments: Namespace) -> int:
    """Print a shell's completion script."""
    import shtab

    print(shtab.complete(build_parser(completing=True), arguments.shell))
    return 0


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": train_command,
    "sweep": sweep_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "report": report_command,
    "export": export_command,
    "demo": demo_command,
    "push": push_command,
    "prepare": prepare_command,
    "baselines": baselines_command,
    "describe": describe_command,
    "runs": runs_command,
    "checkpoints": checkpoints_command,
    "init": init_command,
    "doctor": doctor_command,
    "advise": advise_command,
    "completion": completion_command,
}
