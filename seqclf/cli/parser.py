"""The commands and their arguments."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn

from seqclf.cli.options import add_read_options
from seqclf.config.reference import SECTIONS, kind
from seqclf.config.settings import Config, choices, fields, is_switch, settings_by_name
from seqclf.config.yaml import dump_value
from seqclf.errors import UserError

STARTER_FILE = "seqclf.yaml"
READABLE = "a file such as .csv, .ts, .npz or .parquet, or a folder a class (docs/data.md)"
EPILOG = """\
seqclf COMMAND --help says more. Every launcher takes what `seqclf train` takes:
  accelerate launch launch/train.py --config configs/mnist.yaml --optim.lr 0.005

exit codes: 0 done; 2 a mistake that the message says how to mend; 143 stopped
by a signal, the same command goes on from the step that the last line names;
1 a failure, with traceback
"""


class _Parser(ArgumentParser):
    """argparse whose errors are ours, so that several processes print them once."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser(*, completing: bool = False) -> ArgumentParser:
    """Build the parser; for shell completion with the words that each setting may be."""
    parser = _Parser(
        "seqclf",
        usage="seqclf COMMAND ...",
        description="Train sequence classifiers, exactly, on any number of processes.",
        epilog=EPILOG,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"seqclf {version('seqclf')}")
    subparsers = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", prog="seqclf"
    )
    commands = _Commands(subparsers, completing)
    _add_train(commands)
    _add_sweep(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_export(commands)
    _add_demo(commands)
    _add_push(commands)
    _add_prepare(commands)
    _add_describe(commands)
    _add_baselines(commands)
    _add_runs(commands)
    _add_checkpoints(commands)
    _add_init(commands)
    _add_doctor(commands)
    _add_advise(commands)
    _add_completion(commands)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26)


class _Commands(NamedTuple):
    """The list to which each function below adds its command."""

    subparsers: argparse._SubParsersAction[_Parser]
    completing: bool

    def add(self, name: str, summary: str, *, usage: str, description: str = "") -> ArgumentParser:
        """Add a command; return its parser, which has no arguments yet."""
        return self.subparsers.add_parser(
            name,
            help=summary,
            usage=f"seqclf {name} {usage}",
            description=f"{summary[0].upper()}{summary[1:]}.\n{description}",
            formatter_class=_formatter,
            allow_abbrev=False,
        )

    def add_with_settings(self, name: str, summary: str, *, description: str) -> ArgumentParser:
        """Add a command that takes every setting as a flag."""
        usage = "[--config PATH] [--SETTING VALUE ...]"
        parser = self.add(name, summary, usage=usage, description=description)
        parser.add_argument("--config", metavar="PATH", help="YAML file of settings")
        defaults = settings_by_name(Config())
        groups: dict[str, argparse._ArgumentGroup] = {}
        for setting, annotation, meaning in fields():
            section = setting.partition(".")[0] if "." in setting else ""
            if section not in groups:
                title = f"{section} ({SECTIONS[section]})" if section else "the run"
                groups[section] = parser.add_argument_group(title)
            argument = groups[section].add_argument(
                f"--{setting}",
                metavar=kind(annotation),
                help=f"{meaning} [{dump_value(defaults[setting])}]".replace("%", "%%"),
                nargs="?" if is_switch(annotation) else None,
                const="true" if is_switch(annotation) else None,
            )
            # Otherwise load_config refuses a wrong word, and says more than argparse would.
            if self.completing:
                argument.choices = choices(annotation) or None
        return parser


TRAIN = """\
Settings are read from their defaults, then --config, then the flags below. Off
is null; a name may be written with dashes. The same command resumes; other
settings get a directory of their own.
"""


def _add_train(commands: _Commands) -> None:
    summary = "train a classifier; the same command resumes"
    parser = commands.add_with_settings("train", summary, description=TRAIN)
    parser.add_argument(
        "--print_config", action="store_true", help="print the settings that result, and leave"
    )


SWEEP = """\
Takes what `seqclf train` takes, and several values of a setting: 0.01,0.02, or
0-4 where it is a whole number. Each product of values is a run of its own, below
--run-dir. The same command goes on; other values get a directory of their own.
"""


def _add_sweep(commands: _Commands) -> None:
    summary = "train several runs at once, of several seeds or settings"
    parser = commands.add_with_settings("sweep", summary, description=SWEEP)
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at once [the number of GPUs, or of cores]"
    )


EVALUATE = """\
Without an INPUT the run's own test and validation examples are measured. An
INPUT is a file with labels; RUN_DIR may then be a bare folder model/. Several
runs are measured each alone, and then the mean of their probabilities.
"""


def _add_evaluate(commands: _Commands) -> None:
    summary = "measure a trained model again on its data, or on a file with labels"
    usage = "RUN_DIR [RUN_DIR ...] [INPUT] [options]"
    parser = commands.add("evaluate", summary, usage=usage, description=EVALUATE)
    _add_runs_and_input(parser, f"a file with labels: {READABLE}")
    _add_data_folders(parser)
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    _add_until(parser)
    _add_per(parser)
    _add_raw(parser)
    add_read_options(parser)


PREDICT = """\
With an INPUT each row's class and the probabilities of all classes are written,
in the order of the input, read as the training files were; without, examples of
the run's data are shown beside the truth, or written with --split and --out.
Of several runs the mean of their probabilities is taken.
"""


def _add_predict(commands: _Commands) -> None:
    summary = "name the classes of new sequences, or of test examples"
    usage = "RUN_DIR [RUN_DIR ...] [INPUT] [--out PATH] [options]"
    parser = commands.add("predict", summary, usage=usage, description=PREDICT)
    _add_runs_and_input(parser, f"what to read, or - for standard input: {READABLE}")
    _add_data_folders(parser)
    parser.add_argument(
        "--split", choices=["train", "val", "test"], help="examples to write [test]"
    )
    parser.add_argument("--count", type=int, help="examples to show [10], or to write [all]")
    parser.add_argument(
        "--out", type=Path, help="the file to write, .csv or .jsonl [csv on standard output]"
    )
    _add_until(parser)
    _add_per(parser)
    _add_raw(parser)
    add_read_options(parser)


def _add_runs_and_input(parser: ArgumentParser, what: str) -> None:
    """Add the paths of runs and of a file; `commands` finds out which of them are runs."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN_DIR [INPUT]",
        help="directory of a run, its folder model/, or a checkpoint; the probabilities of several "
        f"are averaged. INPUT: {what}",
    )


def _add_until(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--until",
        type=float,
        help="decide each sequence as soon as a class is so probable, such as 0.9 [at its end]",
    )
    parser.add_argument("--min_steps", type=int, help="steps before any decision of --until [1]")


def _add_raw(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--raw", action="store_true", help="leave out the temperature fitted on validation examples"
    )


def _add_per(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--per",
        choices=["window", "recording"],
        help="a line for each window, or for each recording (the mean of its windows) [window]",
    )


def _add_report(commands: _Commands) -> None:
    summary = "write a page of a run, or of several: curves, classes, the reading"
    parser = commands.add("report", summary, usage="RUN_DIR [RUN_DIR ...] [options]")
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="runs to show")
    parser.add_argument(
        "--out", type=Path, help="the page [RUN_DIR/report.html; of several report.html]"
    )
    _add_data_folders(parser)


EXPORT = """\
The file reads raw sequences, as `seqclf predict` does, and needs no torch. Each
export is compared with torch first (docs/serving.md).
"""


def _add_export(commands: _Commands) -> None:
    summary = "write a trained model as an ONNX file, to serve it without torch"
    usage = "RUN_DIR --out model.onnx [options]"
    parser = commands.add("export", summary, usage=usage, description=EXPORT)
    parser.add_argument("run_dir", type=Path, help="directory of a run, or its folder model/")
    _add_data_folders(parser)
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="write into a model repository of Triton"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="weights of 8 bits; prints test accuracy and loss before and after",
    )
    parser.add_argument(
        "--state", action="store_true", help="a model of one time step, with its state in and out"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


DEMO = """\
The page is one file with the model inside. It opens from disk, needs no server
and makes no request.
"""


def _add_demo(commands: _Commands) -> None:
    summary = "write a page that runs a trained model in the browser"
    parser = commands.add("demo", summary, usage="RUN_DIR [options]", description=DEMO)
    parser.add_argument("run_dir", type=Path, help="directory of a run, or its folder model/")
    _add_data_folders(parser)
    parser.add_argument("--out", type=Path, default=Path("demo.html"), help="the page [demo.html]")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")


PUSH = """\
The weights go as safetensors, with the card of the model. You must be logged in
(hf auth login); --dry-run sends nothing.
"""


def _add_push(commands: _Commands) -> None:
    summary = "upload a trained model to the Hugging Face Hub"
    parser = commands.add("push", summary, usage="RUN_DIR ORG/NAME [options]", description=PUSH)
    parser.add_argument("run_dir", type=Path, help="directory of a run, or its folder model/")
    parser.add_argument("name", metavar="ORG/NAME", help="the model's name on the Hub")
    parser.add_argument("--private", action="store_true", help="if it is made: for you alone")
    parser.add_argument(
        "--dry_run", type=Path, metavar="DIR", help="write the files into a folder, send nothing"
    )


def _add_data_folders(parser: ArgumentParser) -> None:
    """Add the settings that say where the data of a run are now."""
    parser.add_argument("--data.root", help="folder of the data files [the run's]")
    parser.add_argument("--data.path", help="folder of the prepared data set [the run's]")


PREPARE = """\
Without --train and --test the input is split by class, and by --group where
rows of a group must stay together. Nothing is left behind by a mistake.
"""


def _add_prepare(commands: _Commands) -> None:
    summary, usage = "turn files into a data set to train on", "INPUT ... --out DIR [options]"
    parser = commands.add("prepare", summary, usage=usage, description=PREPARE)
    parser.add_argument("inputs", type=Path, nargs="*", metavar="INPUT", help=READABLE)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for split in ("train", "val", "test"):
        flag, text = f"--{split}", f"files for {split}"
        parser.add_argument(flag, type=Path, nargs="+", default=[], help=text)
    parser.add_argument(
        "--test_ids", type=Path, metavar="FILE", help="numbers of the test sequences of an .npy"
    )
    parser.add_argument("--split", help="shares of train,val,test where no file says [0.8,0.1,0.1]")
    parser.add_argument("--seed", type=int, default=0, help="of the split [0]")
    parser.add_argument("--window", type=int, help="cut sequences into windows of so many steps")
    parser.add_argument("--stride", type=int, help="steps between two windows [the window's]")
    parser.add_argument(
        "--on_label_change",
        choices=["error", "majority", "cut"],
        help="where the label changes within a sequence: a window takes the label of most of its "
        "steps, or each label makes a sequence [majority with --window, else error]",
    )
    parser.add_argument(
        "--min_share", type=float, help="share of a window's steps that must have its label [any]"
    )
    parser.add_argument(
        "--measured", action="store_true", help="add a 0/1 feature beside each feature with gaps"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set in --out")
    add_read_options(parser)


def _add_describe(commands: _Commands) -> None:
    summary = "show what a data set holds: lengths, classes, features"
    parser = commands.add("describe", summary, usage="DIR")
    parser.add_argument("path", type=Path, help="folder that seqclf prepare wrote")
    parser.add_argument(
        "--verify", action="store_true", help="compare its contents with what was written"
    )


def _add_baselines(commands: _Commands) -> None:
    summary = "measure what simple methods name right of a data set, beside a result"
    parser = commands.add("baselines", summary, usage="DIR [options]")
    parser.add_argument("path", type=Path, help="folder that seqclf prepare wrote")
    parser.add_argument(
        "--only", metavar="LIST", help="of majority, dtw and minirocket, with commas between"
    )


def _add_runs(commands: _Commands) -> None:
    parser = commands.add("runs", "list runs: state, step, metrics, age", usage="[DIR] [options]")
    parser.add_argument("dir", type=Path, nargs="?", default=Path("runs"), help="where [runs]")
    parser.add_argument(
        "--sort", metavar="METRIC", help="the best first, by val/accuracy or another [the latest]"
    )


def _add_checkpoints(commands: _Commands) -> None:
    summary = "list a run's checkpoints and verify each"
    parser = commands.add("checkpoints", summary, usage="RUN_DIR")
    parser.add_argument("run_dir", type=Path, help="directory of a run")


def _add_init(commands: _Commands) -> None:
    summary = f"write {STARTER_FILE}, a commented config to edit"
    parser = commands.add("init", summary, usage="[PATH]")
    path = Path(STARTER_FILE)
    parser.add_argument("path", type=Path, nargs="?", default=path, help="the new file")


def _add_doctor(commands: _Commands) -> None:
    summary = "check machine and set-up for a run of these settings"
    launched = "Launched: accelerate launch -m seqclf doctor, torchrun ... -m seqclf doctor.\n"
    commands.add_with_settings("doctor", summary, description=launched)


ADVISE = """\
A small model of a step, fitted to steps of this model on this machine: each
line says what is measured and what is assumed (docs/scaling.md). Launched, as
by torchrun ... -m seqclf advise, it measures the all-reduce, too.
"""
ADVISE_OPTIONS: dict[str, tuple[type[int] | type[float], str]] = {
    "gpus": (int, "GPUs of each host, or processes on CPUs [those here, or the cores]"),
    "hosts": (int, "hosts [1]"),
    "step_ms": (float, "fixed part of a step, where it was measured elsewhere [measured here]"),
    "example_us": (float, "part of a step for each example [measured here]"),
    "latency_us": (
        float,
        "of a message between two processes [measured if launched, else assumed]",
    ),
    "gb_per_s": (float, "of the link between two processes [measured if launched, else assumed]"),
}


def _add_advise(commands: _Commands) -> None:
    summary = "say whether more processes or hosts pay for these settings"
    parser = commands.add_with_settings("advise", summary, description=ADVISE)
    for name, (number, text) in ADVISE_OPTIONS.items():
        parser.add_argument(f"--{name}", type=number, metavar="N", help=text)


def _add_completion(commands: _Commands) -> None:
    parser = commands.add("completion", "print a shell's completion script", usage="SHELL")
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])
