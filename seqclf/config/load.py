"""A YAML file and flags -> a Config, or every mistake with its place and its remedy.

Defaults < YAML < flags: values and flags are written into one tree, which is validated once.
"""

from __future__ import annotations

import difflib
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seqclf.config.recipes import find_recipe, recipe_names
from seqclf.config.settings import (
    Checkpoint,
    Config,
    Data,
    Value,
    choices,
    expand_path,
    fields,
    settings_by_name,
)
from seqclf.config.yaml import Loader, Tree, dump_value, read_yaml, value_of
from seqclf.errors import UserError

LENGTHS = ("train.steps", "train.epochs")
MOST_READ = 2**24  # characters; read_yaml takes fewer, and says so
RETIRED = {
    "model.conv": "seqclf has fixed convolutions now: --model.rocket auto, or 0 for none",
}
OPEN_FILES = ("/dev/fd/", "/dev/stdin", "/proc/")  # a shell writes to the pipe of <(...)


def load_config(
    path: str | Path | None = None, flags: Mapping[str, str] | None = None
) -> tuple[Config, list[str]]:
    """Read a YAML file and flags into a config; return it and the names that the flags set.

    `path` may be the name of a recipe that comes with seqclf, unless a file has that name.

    Raises UserError with one line per mistake, each with its place and the remedy.
    """
    flags = flags or {}
    values, places = _read_file(path) if path is not None else Tree({}, {})
    values = _without_other_length(values, flags)
    for name, text in flags.items():
        values = _with_value(values, name, _read_flag(name, text))
        places[name] = f"--{name}"
    return _validate(values, places), list(flags)


def config_from(settings: Mapping[str, object], recipe: str | Path | None, where: str) -> Config:
    """Return a recipe's config with the settings of a Python program, by their dotted names.

    `where` says in messages where the settings stand. Raises UserError as `load_config` does.
    """
    values, places = _read_file(recipe) if recipe is not None else Tree({}, {})
    names = [full for full, _, _ in fields()]
    if unknown := [name for name in settings if name not in names]:
        raise UserError(f"{where}: {unknown[0]}: {_unknown_key(unknown[0])}")
    named = {name: "null" if value is None else "set" for name, value in settings.items()}
    values = _without_other_length(values, named)
    for name, value in settings.items():
        values = _with_value(values, name, _plain_value(value))
        places[name] = where
    return _validate(values, places)


def _plain_value(value: object) -> Value:
    """Return a number of numpy, or a tuple, as a file of settings would hold it."""
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    to_python = getattr(value, "item", None)
    return to_python() if callable(to_python) else value  # type: ignore[return-value]


def _without_other_length(values: dict[str, Value], flags: Mapping[str, str]) -> dict[str, Value]:
    """Leave out a file's number of steps where a flag says how many epochs, and the reverse."""
    for name, other in (LENGTHS, LENGTHS[::-1]):
        if flags.get(name, "null") != "null" and other not in flags:
            values = _with_value(values, other, None)
    return values


def load_config_of_run(path: Path, flags: Mapping[str, str] | None = None) -> Config:
    """Read a run's config.yaml to use its data, with flags that say where these are now.

    Raises UserError as `load_config` does, and if the folder of its data is a relative path that
    leads nowhere from here.
    """
    config, _ = load_config(path, flags)
    data = config.data
    is_prepared = data.path is not None
    name, folder = ("data.path", str(data.path)) if is_prepared else ("data.root", data.root)
    is_read = is_prepared or data.name not in ("auto", "digits")
    is_of_run = is_read and name not in (flags or {})
    if is_of_run and not os.path.isabs(folder) and not os.path.isdir(folder):
        raise UserError(
            f"{path}: {name} is '{folder}', relative to where the run was started, and there is "
            f"none in {os.getcwd()}; say where it is now: --{name} FOLDER"
        )
    return config


def _read_file(path: str | Path) -> Tree:
    try:
        path = str(expand_path(str(path)))
        if not os.path.lexists(path) and (recipe := find_recipe(path)):
            path = str(recipe)
        if stat.S_ISFIFO(os.stat(path).st_mode) and not path.startswith(OPEN_FILES):
            raise ValueError("a pipe, to which nobody may ever write; name a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_READ)
    except UnicodeDecodeError:
        raise UserError(f"--config {path}: cannot read it: not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        recipes = ""
        if isinstance(error, FileNotFoundError) and os.sep not in str(path):
            recipes = f"; recipes that come with seqclf: {', '.join(recipe_names())}"
        raise UserError(f"--config {path}: cannot read it: {reason}{recipes}") from None
    values, places = read_yaml(text, str(path))
    values = _drop_empty_sections(values, Config)
    train, model = values.get("train"), values.get("model")
    is_of_run = Path(path).with_name("run.json").exists()
    if is_of_run and isinstance(model, dict) and model.get("conv") == 0:
        # An older run may say that it has none of the convolutions that seqclf had then.
        values["model"] = {name: value for name, value in model.items() if name != "conv"}
    if is_of_run and isinstance(train, dict) and train.get("steps") is not None:
        # An older run may name both lengths, of which the steps counted.
        values = _with_value(values, "train.epochs", None)
    return Tree(values, places)


def _drop_empty_sections(values: Mapping[str, Value], model: type[BaseModel]) -> dict[str, Value]:
    """Leave out sections with nothing below them, which YAML takes for null: defaults apply."""
    filled: dict[str, Value] = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        section = field.annotation if field else None
        if isinstance(section, type) and issubclass(section, BaseModel):
            if isinstance(value, dict):
                filled[name] = _drop_empty_sections(value, section)
            elif value is not None:
                filled[name] = value
        else:
            filled[name] = value
    return filled


def _with_value(values: Mapping[str, Value], name: str, value: Value) -> dict[str, Value]:
    """Return the values with the one of a dotted name replaced."""
    head, _, rest = name.partition(".")
    if rest:
        section = values.get(head)
        value = _with_value(section if isinstance(section, dict) else {}, rest, value)
    return {**values, head: value}


def _read_flag(name: str, text: str) -> Value:
    """Read a flag's value as YAML would, except that text stays text, whatever it looks like."""
    annotation = _annotation(name)
    if annotation is str or str in get_args(annotation):
        return None if text == "null" and annotation is not str else text
    try:
        node = yaml.compose(io.StringIO(text), Loader=Loader)
        if isinstance(node, yaml.ScalarNode | yaml.SequenceNode):
            return value_of(node)
    except (yaml.YAMLError, ValueError):  # not YAML, or a number of thousands of digits
        pass
    return text


def _annotation(name: str) -> object:
    """Return the type of the setting of this name; None if there is no such setting."""
    return next((annotation for full, annotation, _ in fields() if full == name), None)


def _validate(tree: Mapping[str, Value], places: Mapping[str, str]) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_mistakes(error, places))) from None
    values = settings_by_name(config)
    contradictions = [
        f"{_label(name, places)}: {dump_value(values[name])} contradicts "
        f"{other}: {dump_value(values[other])} ({places.get(other, 'the default')}): {remedy}"
        for name, other, remedy in _contradictions(config)
    ]
    if contradictions:
        raise UserError("\n".join(contradictions))
    return config


def _contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield the names of two settings that cannot both be, and the remedy."""
    data, values, defaults = config.data, settings_by_name(config), settings_by_name(Config())
    if config.precision == "fp16" and config.device == "cpu":
        remedy = "fp16 exists on a GPU only; use fp32, or bf16 if the CPU has it"
        yield "precision", "device", remedy
    if data.path is None and data.name == "files":
        yield "data.name", "data.path", "name the folder that `seqclf prepare` wrote"
    if data.path is not None and data.name not in ("auto", "files"):
        yield "data.path", "data.name", "leave it out, or set data.name to files"
    if data.path is not None:
        for name in ("data.augment.shift", "data.augment.flip", "data.read"):
            if values[name] != defaults[name]:
                yield name, "data.path", "it is for images; leave it out"
    else:
        for name in ("data.augment.noise", "data.augment.crop"):
            if values[name] != defaults[name]:
                yield name, "data.path", "it is for prepared data; leave it out"
    if config.train.epochs is not None and config.train.steps is not None:
        yield "train.epochs", "train.steps", "either says how long to train; leave one out"
    if config.checkpoint.metric != Checkpoint().metric and not config.chooses_best:
        yield "checkpoint.metric", "checkpoint.keep_best", "set that to true; nothing is chosen yet"
    if data.folds is not None and data.fold is None:
        yield "data.folds", "data.fold", f"say which fold is measured, from 1 to {data.folds}"
    if data.fold is not None and (data.folds is None or data.fold > data.folds):
        yield "data.fold", "data.folds", "give the number of folds, of which this is one from 1 on"
    if data.max_steps_per_batch and not data.bucket:
        yield "data.max_steps_per_batch", "data.bucket", "set data.bucket to true"
    if data.max_steps_per_batch and data.shuffle_buffer:
        remedy = "not every epoch would have as many batches; leave one of both out"
        yield "data.max_steps_per_batch", "data.shuffle_buffer", remedy
    if data.emnist_split != Data().emnist_split and data.name != "emnist":
        yield "data.emnist_split", "data.name", "leave it out, or set data.name to emnist"
    # A prepared data set may have a validation part of its own: settle.py looks when it is open.
    if not data.val_fraction and data.path is None:
        remedy = "hold out a part to choose by, such as 0.1: nothing is chosen by the test split"
        for name in ("train.patience", "checkpoint.keep_best"):
            if values[name]:
                yield name, "data.val_fraction", remedy


def _mistakes(error: ValidationError, places: Mapping[str, str]) -> list[str]:
    """Return one line per setting that pydantic complains of, in the order of file and flags."""
    problems: dict[str, list[str]] = {}
    for item in error.errors():
        name = ".".join(part for part in item["loc"] if isinstance(part, str))
        while name and name not in places:  # pydantic appends the types of a union that it tried
            name = name.rpartition(".")[0]
        # A union complains once per branch.
        problems.setdefault(name, []).append(_explain(item, name))
    order = {name: number for number, name in enumerate(places)}
    return [
        f"{_label(name, places)}: {_join(problems[name])}"
        for name in sorted(problems, key=lambda name: order.get(name, 0))
    ]


def _explain(item: ErrorDetails, name: str) -> str:
    """Return what is wrong with a setting's value, and the remedy."""
    if item["type"] == "extra_forbidden":
        return _unknown_key(name)
    annotation, word, hint = _annotation(name), str(item["input"]), None
    match item["type"]:
        case "int_type" | "int_from_float" | "int_parsing_size":
            problem = "expected a whole number"
        case "float_type":
            problem = "expected a number"
        case "bool_type":
            problem = "expected true or false"
            hint = {"no": "false", "off": "false", "yes": "true", "on": "true"}.get(word)
        case "string_type":
            problem = "expected text"
        case "model_type":
            problem = "expected settings below it"
        case "tuple_type" | "missing" | "too_long":
            problem = f"expected a list like {settings_by_name(Config())[name] or [1.0, 2.0]}"
        case "value_error":  # of a path
            return f"{item['ctx']['error']} (found {ascii(item['input'])[1:-1]})"
        case "literal_error":
            problem = "expected " + item["ctx"]["expected"].replace("'", "")
            hint = closest_word(word.lower(), choices(annotation))
        case _:  # out of bounds
            problem = item["msg"].replace("Input should be", "must be")
    if type(None) in get_args(annotation):
        problem += ", or null"
    problem += f" (found {dump_value(item['input'])})"
    return f"{problem}; did you mean '{hint}'?" if hint else problem


def _label(name: str, places: Mapping[str, str]) -> str:
    """Return how a message begins: with the flag, or with the place in the file and the name."""
    place = places.get(name, "config")
    return place if place == f"--{name}" else f"{place}: {name}"


def _join(problems: Sequence[str]) -> str:
    """Say the complaints of a union's branches as one: expected A, B or C (found x)."""
    if len(problems) == 1:
        return problems[0]
    heads = [problem.rpartition(" (found ")[0].removesuffix(", or null") for problem in problems]
    joined = ", ".join([*heads[:-1], problems[-1].removeprefix("expected ")])
    return joined.replace("must be a multiple", "a multiple").replace("must be", "a number")


def _unknown_key(name: str) -> str:
    names = [full for full, _, _ in fields()]
    section, _, leaf = name.rpartition(".")
    if name in names:  # one key with a dot in it
        return f"unknown key; write '{section}:' and below it '{leaf}:'"
    sections = sorted({full.rpartition(".")[0] for full in names} - {""})
    if name in RETIRED:
        return f"unknown key; {RETIRED[name]}"
    near = closest(name, names + sections)
    if not near:
        return "unknown key; `seqclf train --help` lists all"
    near_section, _, near_leaf = near.rpartition(".")
    return f"unknown key; did you mean '{near_leaf if near_section == section else near}'?"


def closest(name: str, names: Sequence[str]) -> str | None:
    """Return the dotted name that was probably meant: a sibling, a namesake, or one alike."""
    section, _, leaf = name.rpartition(".")
    parts = {full: full.rpartition(".") for full in names}
    siblings = {end: full for full, (start, _, end) in parts.items() if start == section}
    if sibling := closest_word(leaf, list(siblings)):
        return siblings[sibling]
    namesakes = [full for full, (_, _, end) in parts.items() if end == leaf]
    return namesakes[0] if namesakes else closest_word(name, names)


def closest_word(word: str, words: Sequence[str]) -> str | None:
    """Return the most similar word, if one is similar."""
    return next(iter(difflib.get_close_matches(word, words, 1)), None)
