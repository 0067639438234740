"""Users' files -> sequences, one after the other: docs/data.md shows each format.

A reader yields a Row for each sequence, or a BadRow for one that cannot be used, in the order of
the file. What it decides goes into a Journal. A file that is unreadable as a whole raises
UserError. Readers hold one sequence at a time in memory, and unpickle nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from seqclf.data.readers.arrays import read_npy, read_npz
from seqclf.data.readers.lines import TextFile, text_file
from seqclf.data.readers.manifests import read_folder, read_table
from seqclf.data.readers.records import read_jsonl, read_parquet
from seqclf.data.readers.rows import STDIN, BadRow, Journal, Progress, ReadOptions, Row
from seqclf.data.readers.tables import text_table
from seqclf.data.readers.ts import read_ts
from seqclf.errors import UserError

SEPARATORS = {"csv": ",", "tsv": "\t", "txt": " "}
TEXTS = (*SEPARATORS, "ts", "jsonl")  # may be compressed, or come from standard input
BINARIES = {"npy": read_npy, "npz": read_npz, "parquet": read_parquet}
FORMATS = (*TEXTS, *BINARIES)
COLUMNLESS = ("ts", "npy", "npz")


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
    try:
        if path != STDIN and path.is_dir():
            yield from read_folder(path, options, journal, progress)
            return
        if name not in FORMATS or (name in BINARIES and suffixes[-1:] == ["gz"]):
            raise UserError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
        _check_options(path, options, name)
        if name in BINARIES:
            yield from BINARIES[name](path, options, journal, progress)
            return
        with text_file(path, options.encoding) as file:
            yield from _read_text(file, name, options, journal, progress)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from None


def _read_text(
    file: TextFile, name: str, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    if name == "ts":
        yield from read_ts(file, options, progress)
    elif name == "jsonl":
        yield from read_jsonl(file, options, progress)
    else:
        table = text_table(file, journal, separator=SEPARATORS[name])
        yield from read_table(table, options, journal, progress)


def _check_options(path: Path, options: ReadOptions, format_name: str) -> None:
    """Refuse options that a file of this format cannot have."""
    names = ("id", "time", "label", "group", "split", "tokens", "text")
    for option in names if format_name in COLUMNLESS else ():
        if (column := getattr(options, option)) is not None:
            raise UserError(f"--{option} {column}: names a column, and {path} has none")
    if options.labels is not None and format_name != "npy":
        raise UserError(f"--labels {options.labels}: belongs to an .npy file, not to {path}")
