"""The command line: `seqclf train`, `evaluate`, `predict` ..., one function each.

Imports nothing heavy before a command has been read: help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import codecs
import ctypes
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from seqclf.config import (
    DISK_FULL,
    PREEMPTED,
    Config,
    UserError,
    choices,
    closest,
    dump_value,
    fields,
    is_switch,
    load_config,
    settings,
)
from seqclf.reference import SECTIONS, STARTER, commented_yaml, kind
from seqclf.watch import Watch

if TYPE_CHECKING:
    from seqclf.data.readers import Reading

USAGE_ERROR = 2
PR_SET_PDEATHSIG = 1
STARTER_FILE = "seqclf.yaml"
PLAIN = {"█": "#", "±": "+-"}

EPILOG = """\
seqclf COMMAND --help says more. Every launcher takes what `seqclf train` takes:
  accelerate launch launch/train.py --config configs/mnist.yaml --optim.lr 0.005

exit codes: 0 done; 2 a mistake that the message says how to mend; 143 stopped
by a signal, the same command goes on from the step that the last line names;
1 a failure, with traceback
"""
READS = "a manifest, .csv, .tsv, .ts, .jsonl, .npy, .npz or .parquet (docs/data.md)"
PREPARE = """\
Without --train and --test the input is split by class, and by --group where
rows of a group must stay together. Nothing is left behind by a mistake.
"""
PREDICT = """\
With an INPUT each row's class and the probabilities of all classes are written,
in the order of the input; without, test examples are shown beside the truth.
"""
TRAIN = """\
Settings are read from their defaults, then --config, then the flags below. Off
is null; a name may be written with dashes. The same command resumes; other
settings get a directory of their own.
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, so that several processes print them once."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _help(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks, such as a bar where there is ASCII only, in plain letters."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in missing), error.end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, 143 when preempted."""
    codecs.register_error("plain", _plain)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read by OpenMP when torch is imported, after this: its threads spin for a fifteenth of
        # the usual time at a barrier. Two runs on the same cores else get nowhere (docs/design.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    try:
        try:
            known = _parse(list(sys.argv[1:] if arguments is None else arguments))
            command: Callable[[argparse.Namespace], int] = known.run
            return command(known)
        finally:
            sys.stdout.flush()  # here, where its failure can be told
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            # Most mistakes meet every rank: rank 0 speaks, and the launcher stops the others before
            # they can repeat it. What this rank alone met is said by it.
            time.sleep(2)
        print(f"error: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr, flush=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("stopped before training began; nothing was changed", file=sys.stderr)
        return PREEMPTED
    except OSError as error:
        if error.errno not in DISK_FULL | {errno.EPIPE}:
            raise
        # The output's end is gone (`seqclf runs | head`) or its disk full; Python flushes it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 1
        print(f"error: cannot write the output: {error.strerror}; make room", file=sys.stderr)
        return USAGE_ERROR


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    known, unknown = parser.parse_known_args(_normalise(words))
    if not unknown:
        return known
    flags = [flag for flag in vars(known) if flag not in ("run", "command")]
    mistakes = []
    after_flag = False  # its value
    for word in unknown:
        flag, equals, _ = word.partition("=")
        if not (after_flag and not word.startswith("-")):
            meant = closest(flag.lstrip("-"), flags)
            hint = f"did you mean --{meant}?" if meant else f"see seqclf {known.command} --help"
            mistakes.append(f"unknown argument {flag}; {hint}")
        after_flag = word.startswith("--") and not equals
    raise UserError("\n".join(mistakes))


def _normalise(words: Sequence[str]) -> list[str]:
    """Read --train.batch-size as --train.batch_size, and -1e-3 as a value, not a flag."""
    normal: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            normal.append("--" + flag[2:].replace("-", "_") + equals + value)
        elif normal and normal[-1].startswith("--") and re.fullmatch(r"-[\d.][\d.eE+-]*", word):
            normal[-1] += "=" + word
        else:
            normal.append(word)
    return normal


def build_parser(*, completing: bool = False) -> argparse.ArgumentParser:
    """Build the parser; for shell completion with the words that each setting may be."""
    parser = _Parser(
        "seqclf",
        usage="seqclf COMMAND ...",
        description="Train sequence classifiers, exactly, on any number of processes.",
        epilog=EPILOG,
        formatter_class=_help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"seqclf {version('seqclf')}")
    commands = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND", prog="seqclf"
    )

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        summary: str,
        usage: str,
        description: str = "",
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            usage=f"seqclf {name} {usage}",
            description=f"{summary[0].upper()}{summary[1:]}.\n{description}",
            formatter_class=_help,
            allow_abbrev=False,
        )
        made.set_defaults(run=run)
        return made

    train = command(
        *("train", _train, "train a classifier; the same command resumes"),
        *("[--config PATH] [--SETTING VALUE ...]", TRAIN),
    )
    _add_settings(train, completing)
    train.add_argument(
        "--print_config", action="store_true", help="print the settings that result, and leave"
    )
    evaluate = command(
        *("evaluate", _evaluate, "measure a trained model again on its data"), "RUN_DIR [options]"
    )
    predict = command(
        *("predict", _predict, "name the classes of new sequences, or of test examples"),
        *("RUN_DIR [INPUT --out PATH] [options]", PREDICT),
    )
    for made in (evaluate, predict):
        made.add_argument("run_dir", type=Path, help="directory of a finished run")
        made.add_argument("--data.root", help="folder of the data files [the run's]")
        made.add_argument("--data.path", help="folder of the prepared data set [the run's]")
    predict.add_argument(
        "input", type=Path, nargs="?", help=f"a file to read, or - for standard input: {READS}"
    )
    predict.add_argument("--count", type=int, default=10, help="test examples to show [10]")
    predict.add_argument(
        "--out", type=Path, help="the file to write, .csv or .jsonl [csv on standard output]"
    )
    _add_reading(predict)
    made = command(
        *("report", _report, "write a page of a run, or of several: curves, classes, the reading"),
        "RUN_DIR [RUN_DIR ...] [options]",
    )
    made.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="runs to show")
    made.add_argument(
        "--out", type=Path, help="the page [RUN_DIR/report.html; of several report.html]"
    )
    made.add_argument("--data.root", help="folder of the data files [the run's]")
    made.add_argument("--data.path", help="folder of the prepared data set [the run's]")
    made = command(
        *("prepare", _prepare, "turn files into a data set to train on"),
        *("INPUT ... --out DIR [options]", PREPARE),
    )
    made.add_argument("inputs", type=Path, nargs="*", metavar="INPUT", help=READS)
    made.add_argument("--out", type=Path, required=True, help="folder to write")
    for part in ("train", "val", "test"):
        made.add_argument(f"--{part}", type=Path, nargs="+", default=[], help=f"files for {part}")
    made.add_argument("--split", help="shares of train,val,test where no file says [0.8,0.1,0.1]")
    made.add_argument("--seed", type=int, default=0, help="of the split [0]")
    made.add_argument("--window", type=int, help="cut sequences into windows of so many steps")
    made.add_argument("--stride", type=int, help="steps between two windows [the window's]")
    made.add_argument("--overwrite", action="store_true", help="replace a data set in --out")
    _add_reading(made)
    made = command(
        *("describe", _describe, "show what a data set holds: lengths, classes, features", "DIR")
    )
    made.add_argument("path", type=Path, help="folder that seqclf prepare wrote")
    made.add_argument(
        "--verify", action="store_true", help="compare its contents with what was written"
    )
    made = command("runs", _runs, "list runs: state, step, metrics, age", "[DIR]")
    made.add_argument("dir", type=Path, nargs="?", default=Path("runs"), help="where [runs]")
    made = command(
        *("checkpoints", _checkpoints, "list a run's checkpoints and verify each", "RUN_DIR")
    )
    made.add_argument("run_dir", type=Path, help="directory of a run")
    made = command("init", _init, f"write {STARTER_FILE}, a commented config to edit", "[PATH]")
    made.add_argument("path", type=Path, nargs="?", default=Path(STARTER_FILE), help="the new file")
    doctor = command(
        *("doctor", _doctor, "check machine and set-up for a run of these settings"),
        "[--config PATH] [--SETTING VALUE ...]",
        "Launched: accelerate launch -m seqclf doctor, torchrun ... -m seqclf doctor.\n",
    )
    _add_settings(doctor, completing)
    made = command("completion", _completion, "print a shell's completion script", "SHELL")
    made.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return parser


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add what says how to read users' files."""
    for name, text in (
        ("id", "column whose value is the same for all steps of a sequence (one line a step)"),
        ("time", "column to sort the steps of a sequence by"),
        ("label", "column of the label"),
        ("group", "column of a group that must stay in one part"),
        ("split_column", "column that says train, val or test"),
    ):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=text)
    parser.add_argument("--labels", type=Path, help="file of labels beside an .npy: .npy or text")
    parser.add_argument("--format", help="csv, tsv, ts or jsonl, for standard input")
    parser.add_argument(
        "--fill_missing",
        action="store_true",
        help="fill missing values from their neighbours in time (in .ts files they always are)",
    )
    parser.add_argument(
        "--on_bad_row",
        choices=["error", "skip"],
        default="error",
        help="what to do with rows that cannot be used [error]",
    )


def _reading(known: argparse.Namespace) -> Reading:
    from seqclf.data.readers import Reading

    return Reading(
        id=known.id,
        time=known.time,
        label=known.label,
        group=known.group,
        split=known.split_column,
        labels=known.labels,
        fill_missing=known.fill_missing,
    )


def _add_settings(parser: argparse.ArgumentParser, completing: bool) -> None:
    parser.add_argument("--config", metavar="PATH", help="YAML file of settings")
    defaults = settings(Config())
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, annotation, description in fields():
        section = name.partition(".")[0] if "." in name else ""
        if section not in groups:
            about = f" ({SECTIONS[section]})" if section else ""
            groups[section] = parser.add_argument_group(f"{section or 'the run'}{about}")
        argument = groups[section].add_argument(
            f"--{name}",
            metavar=kind(annotation),
            help=f"{description} [{dump_value(defaults[name])}]".replace("%", "%%"),
            nargs="?" if is_switch(annotation) else None,
            const="true" if is_switch(annotation) else None,
        )
        if completing:  # values are checked by the config, which says more
            argument.choices = choices(annotation) or None


def _load(known: argparse.Namespace) -> tuple[Config, list[str]]:
    names = {name for name, _, _ in fields()}
    flags = {k: v for k, v in vars(known).items() if k in names and v is not None}
    return load_config(known.config, flags)


def _train(known: argparse.Namespace) -> int:
    config, flagged = _load(known)
    if known.print_config:
        print(commented_yaml(config), end="")
        return 0
    watch = Watch(owns_process=True)
    with watch.listening():
        _hear_of_the_launchers_death()
        from torch.distributed.elastic.multiprocessing.errors import record

        from seqclf.train import train

        return int(record(train)(config, known.config, flagged, watch) or 0)


def _hear_of_the_launchers_death() -> None:
    """Have the kernel send SIGTERM when the launcher is gone.

    `accelerate launch` with one process dies of a signal without passing it on, and would leave
    this process training. (Not for a plain shell, whose logout must not stop a nohup.)
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _run_dir(known: argparse.Namespace) -> Path:
    run_dir: Path = known.run_dir
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no run there (config.yaml is missing); see seqclf runs")
    return run_dir


def _load_run(known: argparse.Namespace) -> tuple[Config, Path]:
    run_dir = _run_dir(known)
    given = {name: getattr(known, name) for name in ("data.root", "data.path")}
    flags = {name: value for name, value in given.items() if value}
    return load_config(run_dir / "config.yaml", flags)[0], run_dir


def _report(known: argparse.Namespace) -> int:
    from seqclf.report import write_report

    given = {name: getattr(known, name) for name in ("data.root", "data.path")}
    flags = {name: value for name, value in given.items() if value}
    print(f"report      {write_report(known.run_dirs, known.out, flags)}")
    return 0


def _evaluate(known: argparse.Namespace) -> int:
    config, run_dir = _load_run(known)
    from seqclf.evaluate import evaluate_run

    for name, value in evaluate_run(config, run_dir).items():
        print(f"{name:<14} {value:.6f}")
    return 0


def _prepare(known: argparse.Namespace) -> int:
    given = {part: getattr(known, part) for part in ("train", "val", "test")}
    if known.inputs and any(given.values()) and not given["train"]:
        given["train"], known.inputs = known.inputs, []
    if bool(known.inputs) == any(given.values()):
        raise UserError("name INPUT files to split, or --train and --test, and maybe --val")
    if known.split and any(given.values()):
        raise UserError(f"--split {known.split}: the files say already which part they are")
    for name in ("window", "stride"):
        if getattr(known, name) is not None and getattr(known, name) < 1:
            raise UserError(f"--{name} {getattr(known, name)}: must be at least 1")
    if known.stride and not known.window:
        raise UserError(f"--stride {known.stride}: needs --window")
    fractions = _fractions(known.split or "0.8,0.1,0.1")
    from seqclf.data.prepare import Input, Preparation, describe, prepare

    how = Preparation(
        reading=_reading(known),
        format=known.format,
        fractions=fractions,
        seed=known.seed,
        window=known.window,
        stride=known.stride,
        skip_bad=known.on_bad_row == "skip",
        overwrite=known.overwrite,
    )
    inputs = [Input(path) for path in known.inputs]
    inputs += [Input(path, part) for part, paths in given.items() for path in paths]
    prepare(inputs, known.out, how, lambda text: print(text, flush=True))
    print(describe(known.out))
    print(f"\ntry next    seqclf train --data.path {known.out}")
    return 0


def _fractions(text: str) -> tuple[float, float, float]:
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"--split {text}: expected three shares, of train, val and test, such as 0.8,0.1,0.1"
        ) from None
    if min(train, val, test) < 0 or not train or not test or abs(train + val + test - 1) > 1e-6:
        raise UserError(f"--split {text}: train and test must be above 0, and the sum must be 1")
    return train, val, test


def _describe(known: argparse.Namespace) -> int:
    from seqclf.data.prepare import describe
    from seqclf.data.prepared import verify

    if known.verify:
        verify(known.path)
    print(describe(known.path))
    if known.verify:
        print("\nverified: all files are as they were written")
    return 0


def _predict(known: argparse.Namespace) -> int:
    if known.count < 1:
        raise UserError(f"--count {known.count}: must be at least 1")
    if known.input is not None:
        from seqclf.predict import predict_file

        skip = known.on_bad_row == "skip"
        return predict_file(
            _run_dir(known), known.input, known.out, _reading(known), known.format, skip=skip
        )
    config, run_dir = _load_run(known)
    from seqclf.data import sources
    from seqclf.predict import load_model, predictions_text
    from seqclf.reading import reading_text

    model, _ = load_model(run_dir)
    test = sources.load(config.data, seed=config.seed).test
    print(predictions_text(model, test, known.count))
    print(f"\n{reading_text(model, test, 0)}")
    return 0


def _runs(known: argparse.Namespace) -> int:
    from seqclf.runs import table

    print(table(known.dir))
    return 0


def _checkpoints(known: argparse.Namespace) -> int:
    from seqclf.runs import checkpoints

    print(checkpoints(_run_dir(known)))
    return 0


def _init(known: argparse.Namespace) -> int:
    path: Path = known.path
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("# Settings of a run: `seqclf train --config THIS_FILE`. Off is null.\n")
            file.write("# Take a # away to change what follows it.\n\n")
            file.write(commented_yaml(Config(), active=STARTER))
    except FileExistsError:
        raise UserError(f"{path} exists already; name another file: seqclf init PATH") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror}") from None
    print(f"wrote {path}; edit it, then: seqclf train --config {path}")
    return 0


def _doctor(known: argparse.Namespace) -> int:
    config, _ = _load(known)
    from seqclf.doctor import check

    return check(config)


def _completion(known: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser(completing=True), known.shell))
    return 0
