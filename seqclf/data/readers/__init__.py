"""Users' files -> sequences, one after the other: docs/data.md shows each format.

A reader yields a Row for each sequence, or a BadRow for one that cannot be used, in the order of
the file. What it decides goes into a Journal. A file that is unreadable as a whole raises
UserError. Readers hold one sequence at a time in memory, and unpickle nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from seqclf.data.readers.arff import read_arff
from seqclf.data.readers.arrays import ArrayFile, read_npy
from seqclf.data.readers.folders import read_folder
from seqclf.data.readers.images import IMAGES
from seqclf.data.readers.json_records import read_json, read_jsonl
from seqclf.data.readers.labels import is_label_table, read_with_labels
from seqclf.data.readers.lines import refuse_endless, text_file
from seqclf.data.readers.manifests import read_table
from seqclf.data.readers.npz import read_npz
from seqclf.data.readers.own_files import AS_BEFORE, read_single
from seqclf.data.readers.parquet import read_parquet
from seqclf.data.readers.rows import (
    STDIN,
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    quote,
)
from seqclf.data.readers.tables import text_table
from seqclf.data.readers.ts import read_ts
from seqclf.errors import UserError

SEPARATORS = {"csv": ",", "tsv": "\t", "txt": " "}
TEXTS = (*SEPARATORS, "ts", "jsonl", "json", "arff")  # may be compressed, or standard input
BINARIES = {"npy": read_npy, "npz": read_npz, "parquet": read_parquet}
RECORDS = {"jsonl": read_jsonl, "json": read_json, "arff": read_arff}
PICTURES = tuple(suffix.removeprefix(".") for suffix in IMAGES)
FORMATS = (*TEXTS, *BINARIES, *PICTURES)
COLUMNLESS = ("ts", "npy", "npz", *PICTURES)


def read_rows(
    path: Path,
    options: ReadOptions,
    journal: Journal | None = None,
    *,
    progress: Progress = lambda num_bytes: None,
    format: str | None = None,  # noqa: A002
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a file, or of standard input (`-`, with a format), in their order.

    `progress` is called with the number of bytes after each read; `journal` keeps what is decided.
    Raises UserError if the file is missing or of another format.
    """
    journal = Journal() if journal is None else journal
    suffixes = [suffix.lower().removeprefix(".") for suffix in path.suffixes]
    name = format or next((suffix for suffix in reversed(suffixes) if suffix != "gz"), "")
    if path == STDIN and format not in TEXTS:
        raise UserError(f"-: say what standard input holds, with --format {', '.join(TEXTS)}")
    is_folder = path != STDIN and os.path.isdir(path)  # a name that is too long is none
    if not is_folder and (name not in FORMATS or (name not in TEXTS and suffixes[-1:] == ["gz"])):
        raise UserError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")

    def read(options: ReadOptions) -> Iterator[Row | BadRow]:
        if is_folder:
            return read_folder(path, options, journal, progress)
        _check_options(path, options, name)
        if path != STDIN and path.is_file() and not path.stat().st_size:
            raise UserError(f"{path}: is empty")
        if options.channels_first and name not in ("npy", "npz"):
            journal.note(f"--channels-first is of arrays; the steps of {path} stay as they are")
        if name not in TEXTS:
            refuse_endless(path)
        if name in PICTURES:
            return read_single(path, options, journal)
        if name == "npy" and options.own_files and _is_single_array(path):
            return read_single(path, options, journal, why=AS_BEFORE)
        if name in BINARIES:
            return BINARIES[name](path, options, journal, progress)
        return _read_text(path, name, options, journal, progress)

    try:
        if is_label_table(options.labels, beside_array=name == "npy"):
            has_columns = not is_folder and name not in COLUMNLESS
            rows = read_with_labels(read, path, options, journal, has_columns=has_columns)
        else:
            rows = read(options)
        yield from _with_equal_times(rows, path, journal)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from None


def _with_equal_times(
    rows: Iterator[Row | BadRow], path: Path, journal: Journal
) -> Iterator[Row | BadRow]:
    """Yield rows, and then say how many times come twice within one."""
    num_equal = 0
    first = ""
    for row in rows:
        if isinstance(row, Row) and row.num_equal_times:
            num_equal += row.num_equal_times
            first = first or row.id or row.where
        yield row
    if num_equal:
        times = "1 time comes" if num_equal == 1 else f"{num_equal:,} times come"
        journal.note(
            f"{path}: {times} twice within a sequence, such as in '{quote(first)}': does the file "
            "have lines twice, or is another column the time?"
        )


def _read_text(
    path: Path, name: str, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    with text_file(path, options.encoding) as file:
        if name == "ts":
            yield from read_ts(file, options, progress)
        elif name in RECORDS:
            yield from RECORDS[name](file, options, journal, progress)
        else:
            table = text_table(file, journal, separator=SEPARATORS[name])
            yield from read_table(table, options, journal, progress)


def _is_single_array(path: Path) -> bool:
    """Whether an .npy holds the steps of one sequence, as the files of a folder do."""
    with path.open("rb") as file:
        return len(ArrayFile(file, path.stat().st_size, str(path)).shape) == 2


def _check_options(path: Path, options: ReadOptions, format_name: str) -> None:
    """Refuse options that a file of this format cannot have."""
    given = {
        f"--{role}": getattr(options, role)
        for role in ("id", "time", "label", "group", "split", "tokens", "text")
        if role not in options.soft
    }
    if options.wanted_by == "--features":
        given["--features"] = ",".join(options.features or ())
    given["--drop"] = ",".join(options.drop)
    for option, column in given.items() if format_name in COLUMNLESS else ():
        if column:
            raise UserError(f"{option} {column}: names a column, and {path} has none")
    if options.header is not None and format_name not in SEPARATORS:
        raise UserError(f"--header: {path} has no lines of which the first may be a header")
    if options.encoding is not None and format_name not in TEXTS:
        raise UserError(f"--encoding {options.encoding}: {path} is no text file")
    if options.labels is not None and format_name != "npy":
        raise UserError(
            f"--labels {options.labels}: beside {path} it must be a .csv or .tsv with a column for "
            "the id and one for the label"
        )
