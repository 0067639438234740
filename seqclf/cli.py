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
from typing import NoReturn

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
    for name, run, summary in (
        ("evaluate", _evaluate, "measure a trained model again on its data"),
        ("predict", _predict, "print a trained model's predictions beside the truth"),
    ):
        made = command(name, run, summary, "RUN_DIR [options]")
        made.add_argument("run_dir", type=Path, help="directory of a finished run")
        made.add_argument("--data.root", help="folder of the data files [the run's]")
        if name == "predict":
            made.add_argument("--count", type=int, default=10, help="test examples to show [10]")
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
    root = getattr(known, "data.root")
    flags = {"data.root": root} if root else {}
    return load_config(run_dir / "config.yaml", flags)[0], run_dir


def _evaluate(known: argparse.Namespace) -> int:
    config, run_dir = _load_run(known)
    from seqclf.evaluate import evaluate_run

    for name, value in evaluate_run(config, run_dir).items():
        print(f"{name:<14} {value:.6f}")
    return 0


def _predict(known: argparse.Namespace) -> int:
    if known.count < 1:
        raise UserError(f"--count {known.count}: must be at least 1")
    config, run_dir = _load_run(known)
    from seqclf.data import sources
    from seqclf.predict import load_model, predictions_text, reading_text

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
