"""YAML of settings: read with the place of each key, written so that it reads back the same."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import yaml

from seqclf.config.settings import Config, Scalar, Value
from seqclf.errors import UserError

LONGEST_YAML = 2**16  # characters
DEEPEST_YAML = 10  # levels


class Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: 1e-3 is a number, `no` is a word.

    Refuses aliases (ten lines of them can stand for more values than memory holds) and nesting that
    no setting has.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build the node that comes next."""
        problem = None
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name); write out what it stands for"
        elif self.depth == DEEPEST_YAML:
            problem = f"nested deeper than {DEEPEST_YAML} levels"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, self.current_event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# Each tag with its pattern and the first characters by which PyYAML finds it; without SafeLoader's
# own, which are those of YAML 1.1: `no` would be false, and 1e-3 text.
Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes each text which YAML 1.2 or 1.1 would take for something else."""


# Loader reads YAML 1.2; other programs that read a config.yaml may read YAML 1.1.
Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Loader.yaml_implicit_resolvers}
}


class Tree(NamedTuple):
    """Settings as they stand in a file, section by section."""

    values: dict[str, Value]
    places: dict[str, str]
    """FILE:LINE:COLUMN of each key by its dotted name, in the order of the file."""


def read_yaml(text: str, file: str) -> Tree:
    """Parse one YAML mapping; `file` is its name in errors. Raises UserError."""
    if len(text) > LONGEST_YAML:
        raise UserError(f"{file}: {len(text):,} characters; settings take at most {LONGEST_YAML:,}")
    try:
        node = yaml.compose(io.StringIO(text), Loader=Loader)
        if node is None:  # an empty file
            return Tree({}, {})
        value, places = value_of(node), _places(node, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{file}{position}: not valid YAML: {error.problem}") from None
    except UserError:  # a ValueError, too
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file}:1:1: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}:1:1: expected settings (`train:` ...), found {value!r}")
    return Tree(value, places)


def _places(node: yaml.Node, file: str, section: str = "") -> dict[str, str]:
    """Return where each key of a node stands. Raises UserError for a key that stands twice."""
    places: dict[str, str] = {}
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            places |= _places(item, file, section)
    if isinstance(node, yaml.MappingNode):
        names = set()
        for key, value in node.value:
            mark = key.start_mark
            place = f"{file}:{mark.line + 1}:{mark.column + 1}"
            name = f"{section}.{key.value}" if section else str(key.value)
            if name in names:
                raise UserError(f"{place}: {name}: stands twice (first at {places[name]})")
            names.add(name)
            places |= {name: place} | _places(value, file, name)
    return places


def value_of(node: yaml.Node) -> Value:
    """Return the value that a YAML node stands for."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): value_of(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Scalar:
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
    raise yaml.constructor.ConstructorError(
        None, None, f"unknown tag {node.tag!r}", node.start_mark
    )


def dump(config: Config) -> str:
    """Write a config as YAML that reads back as the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)


def dump_value(value: Value) -> str:
    """Write one value as YAML on one line."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")
