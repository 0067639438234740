"""The settings as people read them: flags, a commented YAML file, docs/settings.md.

`python -m seqclf.reference > docs/settings.md` writes that page anew.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Collection
from typing import Annotated, Literal, Union, get_args, get_origin

from seqclf.config import Config, dump_value, fields, settings

STARTER = frozenset(  # what `seqclf init` leaves switched on
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
    names: dict[object, str] = {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT"}
    names[...] = "..."
    return names.get(annotation, "null")


def commented_yaml(config: Config, active: Collection[str] | None = None) -> str:
    """Write a config as YAML with the meaning above each setting.

    Settings not in `active`, if it is given, are written switched off: `#lr: 0.01`.
    """
    values = settings(config)
    lines: list[str] = []
    opened: list[str] = []
    for name, annotation, description in fields():
        *parents, leaf = name.split(".")
        for depth, parent in enumerate(parents):
            if opened[: depth + 1] != parents[: depth + 1]:
                if depth == 0:
                    lines += ["", f"# {parent}: {SECTIONS[parent]}"]
                lines.append(f"{'  ' * depth}{parent}:")
        opened = parents
        indent = "  " * len(parents)
        values_taken = kind(annotation)
        about = f"{description} ({values_taken})" if "|" in values_taken else description
        lines += textwrap.wrap(
            about, 88, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        off = "" if active is None or name in active else "#"
        lines.append(f"{indent}{off}{leaf}: {dump_value(values[name])}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Write docs/settings.md."""
    defaults = settings(Config())
    lines = [
        "# Settings",
        "",
        "Read from the defaults, then the file of `--config`, then flags: `train.batch_size: 128`",
        "in YAML is `--train.batch-size 128` or `--train.batch_size=128` on the command line. Off",
        "is `null`. `seqclf train --print-config` prints what a command resolves to; `seqclf init`",
        "writes a file to start from. This page is generated from `seqclf/config.py`.",
    ]
    section = None
    for name, annotation, description in fields():
        head = name.partition(".")[0] if "." in name else ""
        if head != section:
            section = head
            lines += ["", f"## `{head}`: {SECTIONS[head]}" if head else "## The run", ""]
            lines += ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
        values = kind(annotation).replace("|", " \\| ")
        default = dump_value(defaults[name])
        lines.append(f"| `{name}` | {values} | `{default}` | {description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
