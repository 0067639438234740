"""What several commands make of their arguments."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from seqclf.config.load import load_config
from seqclf.config.recipes import FOR_PREPARED_DATA
from seqclf.config.settings import Config, fields
from seqclf.errors import UserError
from seqclf.run.records import CONFIG

if TYPE_CHECKING:
    from seqclf.data.readers.rows import ReadOptions


def load_settings(arguments: Namespace) -> tuple[Config, list[str]]:
    """Return the config of --config and the flags, and the names of the settings in flags."""
    named = arguments.config
    flags = given_settings(arguments)
    config, flagged = load_config(arguments.config, flags)
    is_main = os.environ.get("RANK", "0") in ("", "0")
    is_silent = getattr(arguments, "print_config", False) or config.quiet
    if arguments.config != named and is_main and not is_silent:
        print(f"config      {arguments.config} (for prepared data; --config names another)")
    return config, flagged


def given_settings(arguments: Namespace) -> dict[str, str]:
    """Return the settings that flags give, as text.

    Prepared data have a recipe of their own, which becomes `arguments.config`, unless --config
    names another.
    """
    flags = {name: getattr(arguments, name) for name, _, _ in fields()}
    flags = {name: text for name, text in flags.items() if text is not None}
    is_prepared = flags.get("data.name", "files") == "files" and "data.path" in flags
    if arguments.config is None and is_prepared:
        arguments.config = FOR_PREPARED_DATA
    return flags


def add_read_options(parser: ArgumentParser) -> None:
    """Add what says how to read users' files."""
    columns = {
        "id": "column whose value is the same for all steps of a sequence (one line a step)",
        "time": "column to sort the steps of a sequence by",
        "label": "column of the label; without a header line a number, such as -1 for the last",
        "group": "column of a group that must stay in one part",
        "split_column": "column that says train, val or test",
        "tokens": "column of words: one a step, or separated by blanks",
        "text": "column of texts, which are read byte by byte",
    }
    for name, text in columns.items():
        parser.add_argument(f"--{name}", metavar="COLUMN", help=text)
    parser.add_argument(
        "--features", metavar="A,B", help="columns that are features, in this order"
    )
    parser.add_argument("--drop", metavar="A,B", help="columns that are no features")
    parser.add_argument(
        "--form", choices=["long", "wide"], help="a line is a step (long), or a sequence (wide)"
    )
    parser.add_argument(
        "--header", choices=["first", "none"], help="whether the first line names the columns"
    )
    parser.add_argument("--encoding", help="of text files, such as latin-1 or utf-16 [utf-8]")
    parser.add_argument(
        "--labels", type=Path, help="file of labels beside INPUT, by id or in order"
    )
    parser.add_argument(
        "--format", help="csv, tsv, txt, ts, jsonl, json or arff, for standard input"
    )
    parser.add_argument(
        "--channels_first", action="store_true", help="arrays are cases x channels x time"
    )
    parser.add_argument(
        "--pad_value", type=float, help="steps at the end that hold this alone are padding [NaN]"
    )
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


def read_options(arguments: Namespace) -> ReadOptions:
    """Return how to read users' files."""
    from seqclf.data.readers.rows import ReadOptions

    return ReadOptions(
        id=arguments.id,
        time=arguments.time,
        label=arguments.label,
        group=arguments.group,
        split=arguments.split_column,
        tokens=arguments.tokens,
        text=arguments.text,
        features=split_names(arguments.features),
        drop=split_names(arguments.drop) or (),
        form=arguments.form,
        header=None if arguments.header is None else arguments.header == "first",
        encoding=arguments.encoding,
        labels=arguments.labels,
        pad_value=arguments.pad_value,
        channels_first=arguments.channels_first,
        fill_missing=arguments.fill_missing,
    )


def split_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a list that commas separate."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def check_run(run_dir: Path) -> Path:
    """Return the directory of a run. Raises UserError if it is none."""
    # os.path, as a name that cannot be is no file either.
    if os.path.isfile(run_dir / CONFIG):
        return run_dir
    from seqclf.run.checkpoint import MODEL_FILE

    if os.path.isfile(run_dir / MODEL_FILE):
        remedy = "name the directory of its run; predict and evaluate take a file, too"
        raise UserError(f"{run_dir}: a model without its run, and so without its data; {remedy}")
    raise UserError(f"{run_dir}: no run there (config.yaml is missing); see seqclf runs")


def config_of_run(arguments: Namespace, run_dir: Path) -> Config:
    """Return a run's config, with the data folders that the flags name."""
    return load_config(check_run(run_dir) / CONFIG, data_folders(arguments))[0]


def data_folders(arguments: Namespace) -> dict[str, str]:
    """Return the settings that say where the data of a run are now."""
    folders = {name: getattr(arguments, name) for name in ("data.root", "data.path")}
    return {name: folder for name, folder in folders.items() if folder}
