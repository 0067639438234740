"""The settings as people read them: flags, a commented YAML file, docs/settings.md.

`python -m seqclf.config.reference > docs/settings.md` writes that page anew.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Collection
from typing import Annotated, Literal, Union, get_args, get_origin

from seqclf.config.settings import Config, fields, settings_by_name
from seqclf.config.yaml import dump_value

# The settings that `seqclf init` leaves switched on.
STARTER = frozenset(
    {"seed", "data.name", "model.hidden_size", "optim.lr", "train.batch_size", "train.epochs"}
)
SECTIONS = {
    "data": "what is learnt from",
    "model": "steps, LSTM layers, pooling, one output per class",
    "loss": "what is minimised",
    "optim": "how the weights are moved",
    "train": "how long, and in what portions",
    "eval": "when it is measured",
    "checkpoint": "what is kept to go on from",
    "log": "how often it speaks",
    "tracking": "where metrics are mirrored; metrics.jsonl is always written",
    "distributed": "several processes",
}
KINDS: dict[object, str] = {
    int: "INT",
    float: "NUMBER",
    bool: "true|false",
    str: "TEXT",
    type(None): "null",
    ...: "...",
}


def kind(annotation: object) -> str:
    """Name the values that a setting takes, such as `auto|cpu|cuda` or `INT|null`.

    >>> kind(int | None)
    'INT|null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (types.UnionType, Union):
        return "|".join(map(kind, arguments))
    if origin is tuple:
        return f"[{','.join(map(kind, arguments))}]"
    return KINDS[annotation]


def commented_yaml(config: Config, active: Collection[str] | None = None) -> str:
    """Return a config as YAML with the meaning above each setting.

    Settings not in `active`, if it is given, are written switched off: `#lr: 0.01`.
    """
    values = settings_by_name(config)
    lines: list[str] = []
    open_sections: list[str] = []
    for name, annotation, description in fields():
        *sections, leaf = name.split(".")
        for depth, section in enumerate(sections):
            if open_sections[: depth + 1] != sections[: depth + 1]:
                if depth == 0:
                    lines += ["", f"# {section}: {SECTIONS[section]}"]
                lines.append(f"{'  ' * depth}{section}:")
        open_sections = sections
        indent = "  " * len(sections)
        words = kind(annotation)
        comment = f"{description} ({words})" if "|" in words else description
        margin = f"{indent}# "
        lines += textwrap.wrap(comment, 88, initial_indent=margin, subsequent_indent=margin)
        switch = "" if active is None or name in active else "#"
        lines.append(f"{indent}{switch}{leaf}: {dump_value(values[name])}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Return docs/settings.md."""
    defaults = settings_by_name(Config())
    lines = [
        "# Settings",
        "",
        "Read from the defaults, then the file of `--config`, then flags: `train.batch_size: 128`",
        "in YAML is `--train.batch-size 128` or `--train.batch_size=128` on the command line. Off",
        "is `null`. `seqclf train --print-config` prints what a command resolves to; `seqclf init`",
        "writes a file to start from. This page is generated from `seqclf/config/settings.py`.",
    ]
    open_section = None
    for name, annotation, description in fields():
        section = name.partition(".")[0] if "." in name else ""
        if section != open_section:
            open_section = section
            title = f"## `{section}`: {SECTIONS[section]}" if section else "## The run"
            lines += ["", title, ""]
            lines += ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
        words = kind(annotation).replace("|", " \\| ")
        lines.append(f"| `{name}` | {words} | `{dump_value(defaults[name])}` | {description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
