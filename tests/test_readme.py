"""The README's commands exist: their files, flags and values are read by the real parsers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from seqclf import cli
from seqclf.config import load_config

README = (ROOT / "README.md").read_text()
COMMANDS = [
    re.sub(r"\s+#.*", "", found).strip()
    for found in re.findall(
        r"(?:^|`)((?:accelerate|ACCELERATE_USE_CPU|seqclf) [^`\n]*|ACCELERATE_USE_CPU=[^`\n]*)",
        README,
        re.M,
    )
]
TRAINING = [command for command in COMMANDS if "launch/train.py" in command]


def test_the_commands_are_found() -> None:
    assert len(TRAINING) >= 9
    assert {"make train", "make test", "make slow", "make bench"} <= set(
        re.findall(r"make \w+", README)
    )


@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_is_one(command: str) -> None:
    launcher, _, flags = (
        command.replace("RECIPE", "digits").replace(" S", " 1").partition("launch/train.py")
    )
    words = shlex.split(launcher)
    for word in words:
        if word.endswith(".yaml"):
            yaml.safe_load((ROOT / word).read_text())
    known, unknown = cli.build_parser().parse_known_args(
        ["train", *cli._normalise(shlex.split(flags))]
    )
    assert not unknown
    settings = {k: v for k, v in vars(known).items() if v and k not in ("command", "config", "run")}
    path = ROOT / known.config if known.config else None
    assert path is None or path.is_file() or Path(known.config).parts[0] == "runs"
    load_config(path if path and path.is_file() else None, settings)


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert {found.split()[1] for found in re.findall(r"make \w+", README)} - {"train"} <= targets
