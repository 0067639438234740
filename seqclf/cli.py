"""The command line: `seqclf train | evaluate | predict`, one function each."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from seqclf.config import Config, UserError, closest, fields, is_switch, load_config, settings

USAGE_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours, so that several processes print them once."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, 143 when preempted."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(2)  # let rank 0 speak first: torchrun stops everyone at the first exit
        return USAGE_ERROR


def _run(arguments: list[str]) -> int:
    parser = _build_parser()
    known, unknown = parser.parse_known_args(_normalise(arguments))
    if unknown:
        names = {
            "train": [name for name, _, _ in fields()] + ["config"],
            "evaluate": ["data.root"],
            "predict": ["data.root", "count"],
        }[known.command]
        flag = unknown[0].partition("=")[0]
        meant = closest(flag.removeprefix("--"), names) if flag.startswith("--") else None
        hint = f"; did you mean --{meant}?" if meant else ""
        raise UserError(f"unknown argument {flag}{hint}")
    if known.command == "train":
        return _train(known)
    return _evaluate(known) if known.command == "evaluate" else _predict(known)


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


def _build_parser() -> _Parser:
    parser = _Parser("seqclf", description="Train sequence classifiers.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="train a classifier; the same command resumes",
        description="Defaults < --config YAML < flags. Off is null.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", metavar="PATH", help="YAML file of settings")
    defaults = settings(Config())
    groups = {"": train.add_argument_group("run")}
    for name, annotation, description in fields():
        section = name.rpartition(".")[0].partition(".")[0]
        if section not in groups:
            groups[section] = train.add_argument_group(section)
        default = defaults[name]
        shown = "null" if default is None else str(default).lower()
        group, text = groups[section], f"{description} [{shown}]".replace("%", "%%")
        if is_switch(annotation):  # may stand alone, meaning true
            group.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL", help=text)
        else:
            group.add_argument(f"--{name}", metavar=_metavar(annotation), help=text)
    for name, summary in (
        ("evaluate", "measure a trained model again on its data"),
        ("predict", "print a trained model's predictions beside the truth"),
    ):
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("run_dir", type=Path, help="directory of a finished run")
        command.add_argument("--data.root", dest="root", help="folder of the data files")
        if name == "predict":
            command.add_argument("--count", type=int, default=10, help="test examples to show [10]")
    return parser


def _metavar(annotation: object) -> str:
    choices = [arg for arg in get_args(annotation) if isinstance(arg, str)]
    return "|".join(choices) if choices else "VALUE"


def _train(known: argparse.Namespace) -> int:
    flags = {
        k: v for k, v in vars(known).items() if k not in ("command", "config") and v is not None
    }
    config, flagged = load_config(known.config, flags)
    from torch.distributed.elastic.multiprocessing.errors import record

    from seqclf.train import train

    return int(record(train)(config, known.config, flagged) or 0)


def _load(known: argparse.Namespace) -> tuple[Config, Path]:
    run_dir: Path = known.run_dir
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no run there (config.yaml is missing)")
    flags = {"data.root": known.root} if known.root else {}
    return load_config(run_dir / "config.yaml", flags)[0], run_dir


def _evaluate(known: argparse.Namespace) -> int:
    config, run_dir = _load(known)
    from seqclf.evaluate import evaluate_run

    for name, value in evaluate_run(config, run_dir).items():
        print(f"{name:<14} {value:.6f}")
    return 0


def _predict(known: argparse.Namespace) -> int:
    if known.count < 1:
        raise UserError(f"--count {known.count}: must be at least 1")
    config, run_dir = _load(known)
    from seqclf.data import sources
    from seqclf.predict import load_model, predictions_text, reading_text

    model, _ = load_model(run_dir)
    test = sources.load(config.data, seed=config.seed).test
    print(predictions_text(model, test, known.count))
    print(f"\nreading test example 0 (truth: {test.classes[int(test.labels[0])]}):")
    print(reading_text(model, test, 0))
    return 0
