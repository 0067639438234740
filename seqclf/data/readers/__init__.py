"""Users' files -> sequences, one after the other: docs/data.md shows each format.

A reader yields a Row for each sequence, or a BadRow for one that cannot be used, in the order of
the file. A file that is unreadable as a whole raises UserError. Readers hold one sequence at a
time in memory, and unpickle nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from seqclf.data.readers.arrays import read_npy, read_npz
from seqclf.data.readers.records import read_jsonl, read_parquet
from seqclf.data.readers.rows import SPECIAL, STDIN, BadRow, Progress, ReadOptions, Row
from seqclf.data.readers.tables import read_table
from seqclf.data.readers.ts import read_ts
from seqclf.errors import UserError

Reader = Callable[[Path, ReadOptions, Progress], Iterator[Row | BadRow]]
FORMATS: dict[str, Reader] = {
    "csv": partial(read_table, delimiter=","),
    "tsv": partial(read_table, delimiter="\t"),
    "ts": read_ts,
    "jsonl": read_jsonl,
    "npy": read_npy,
    "npz": read_npz,
    "parquet": read_parquet,
}
COLUMNLESS = ("ts", "npy", "npz")
STREAMS = ("csv", "tsv", "ts", "jsonl")  # formats that standard input may have


def read_rows(
    path: Path,
    options: ReadOptions,
    *,
    progress: Progress = lambda num_bytes: None,
    format: str | None = None,  # noqa: A002
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a file, or of standard input (`-`, with a format), in their order.

    `progress` is called with the number of bytes after each read. Raises UserError if the file is
    missing or of another format.
    """
    name = format or path.suffix.lower().removeprefix(".")
    if path == STDIN and format not in STREAMS:
        raise UserError(f"-: say what standard input holds, with --format {', '.join(STREAMS)}")
    if name not in FORMATS:
        raise UserError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
    _check_options(path, options, name)
    if path != STDIN and path.is_dir():
        raise UserError(f"{path}: a folder; name the files in it, or a manifest (a .csv of paths)")
    try:
        yield from FORMATS[name](path, options, progress)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from None


def _check_options(path: Path, options: ReadOptions, format_name: str) -> None:
    """Refuse options that a file of this format cannot have."""
    for option in SPECIAL if format_name in COLUMNLESS else ():
        if (column := getattr(options, option)) is not None:
            raise UserError(f"--{option} {column}: names a column, and {path} has none")
    if options.time is not None and options.id is None:
        raise UserError(f"--time {options.time}: needs --id, the column that tells sequences apart")
    if options.labels is not None and format_name != "npy":
        raise UserError(f"--labels {options.labels}: belongs to an .npy file, not to {path}")
