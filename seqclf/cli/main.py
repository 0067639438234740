"""The command line: `seqclf train`, `evaluate`, `predict` ..."""

from __future__ import annotations

import argparse
import codecs
import errno
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from seqclf.cli.commands import COMMANDS
from seqclf.cli.parser import build_parser
from seqclf.config.load import RETIRED, closest, closest_word
from seqclf.config.settings import expand_path
from seqclf.errors import (
    DISK_ERRORS,
    DISK_FULL,
    FAILED,
    PREEMPTED,
    USAGE_ERROR,
    UserError,
    not_installed,
    printable_lines,
)
from seqclf.processes.launcher import forget_empty_variables, join_pods

PLAIN_LETTERS = {"±": "+-", **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True))}
# Words that people type for a command, by habit of other tools.
MEANT = {
    "run": ("train", "runs"),
    "fit": ("train",),
    "test": ("evaluate",),
    "eval": ("evaluate",),
    "infer": ("predict",),
    "list": ("runs",),
    "ls": ("runs",),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, 143 when preempted."""
    forget_empty_variables()
    _shorten_openmp_waits()
    _open_closed_streams()
    _replace_letters_that_an_encoding_lacks()
    try:
        try:
            arguments = parse(sys.argv[1:] if words is None else words)
            if arguments.command in ("train", "doctor", "advise"):  # what runs in all pods at once
                join_pods()
            return COMMANDS[arguments.command](arguments)
        finally:
            sys.stdout.flush()  # here, where a failure can be reported
    except UserError as error:
        _print_error(str(error))
        return USAGE_ERROR
    except ModuleNotFoundError as error:
        if (error.name or "seqclf").startswith("seqclf"):
            raise
        _print_error(not_installed(error))
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("stopped before training began; nothing was changed", file=sys.stderr)
        return PREEMPTED
    except OSError as error:
        if error.filename is not None and error.errno in DISK_ERRORS:
            _print_error(f"{error.filename}: {error.strerror}")
            return USAGE_ERROR
        if error.errno not in DISK_FULL | {errno.EPIPE}:
            raise
        # The output's end is gone (`seqclf runs | head`), or its disk is full. Python flushes
        # stdout again when it exits: what is left goes to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return FAILED
        print(f"error: cannot write the output: {error.strerror}; make room", file=sys.stderr)
        return USAGE_ERROR


def _print_error(text: str) -> None:
    rank = int(os.environ.get("RANK") or 0)
    if rank:
        # Most mistakes meet every rank: rank 0 reports them, and the launcher stops the others
        # before they can repeat it. What only this rank has met is reported after the wait.
        time.sleep(2)
    text = printable_lines(text)  # it may quote a name out of a file, and thus escape sequences
    print(f"error: {f'rank {rank}: ' if rank else ''}{text}", file=sys.stderr, flush=True)


def _shorten_openmp_waits() -> None:
    """Let OpenMP's threads spin for a fifteenth of the usual time at a barrier.

    Else two runs on the same cores get nowhere (docs/design.md). OpenMP reads the variable when
    torch is imported, which comes after this.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _open_closed_streams() -> None:
    """Put the null device in place of standard streams that were closed, as by `>&-`.

    Python has None for these. And the next file that is opened would get the stream's number: what
    is meant for the console would be written into a checkpoint.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _replace_letters_that_an_encoding_lacks() -> None:
    """Write plain letters where the output's encoding lacks one, such as a bar in ASCII."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAIN_LETTERS.get(letter, "?") for letter in missing), error.end


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return a command line's arguments, of which `command` is the name of its command.

    Raises UserError that names every unknown argument and the one that was probably meant. No
    words at all ask for help.
    """
    words = words or ["--help"]
    if words[0].startswith("--") and words[0] not in ("--help", "--version"):
        raise UserError(f"{words[0]}: stands before the command; write seqclf train {words[0]} ...")
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UserError(_unknown_command(words[0]))
    arguments, unknown = build_parser().parse_known_args(_normalise(words))
    if not unknown:
        _expand_paths(arguments)
        return arguments
    names = [name for name in vars(arguments) if name != "command"]
    mistakes = []
    follows_flag = False
    for word, next_word in zip(unknown, [*unknown[1:], "-"], strict=True):
        flag, equals, value = word.partition("=")
        is_value = follows_flag and not word.startswith("-")
        if not is_value:
            if not equals:
                value = "" if next_word.startswith("-") else next_word
            hint = f"see seqclf {arguments.command} --help"
            if near := _meant_setting(flag.lstrip("-"), value, names):
                hint = f"did you mean --{near}?"
            mistakes.append(f"unknown argument {flag}; {RETIRED.get(flag.lstrip('-'), hint)}")
        follows_flag = word.startswith("--") and not equals
    raise UserError("\n".join(mistakes))


def _unknown_command(word: str) -> str:
    near = closest_word(word, [*COMMANDS])
    meant = MEANT.get(word, () if near is None else (near,))
    hint = f"did you mean {' or '.join(meant)}? See seqclf --help" if meant else "see seqclf --help"
    return f"unknown command '{word}'; {hint}"


def _meant_setting(flag: str, value: str, names: Sequence[str]) -> str | None:
    """Return the argument that was probably meant, and its value where the flag is a section."""
    if f"{flag}.name" in names and value:
        is_folder = os.sep in value or os.path.isdir(value)
        setting = "path" if is_folder and f"{flag}.path" in names else "name"
        return f"{flag}.{setting} {value}"
    section = [name for name in names if name.startswith(f"{flag}.")]
    return ", --".join(section) if section else closest(flag, names)


def _expand_paths(arguments: argparse.Namespace) -> None:
    """Put the home directory for ~, and values for $VARIABLES; the settings do it for their own.

    Raises UserError that names the argument.
    """
    for name, value in vars(arguments).items():
        paths = value if isinstance(value, list) else [value]
        if not any(isinstance(path, Path) for path in paths):
            continue
        try:
            expanded = [Path(str(expand_path(str(path)))) for path in paths]
        except ValueError as error:
            raise UserError(f"{name.replace('_', '-')}: {error}") from None
        setattr(arguments, name, expanded if isinstance(value, list) else expanded[0])


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
