"""Sequences in files of their own: named by a manifest, or in a folder for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from seqclf.data.readers.arrays import ArrayFile
from seqclf.data.readers.columns import Columns, Table, decide, find_special
from seqclf.data.readers.forms import read_long, read_steps, read_wide
from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    parse_name,
    printable,
    quote,
)
from seqclf.data.readers.survey import survey
from seqclf.data.readers.tables import (
    PATH_COLUMNS,
    TableFile,
    find_header,
    text_table,
)
from seqclf.data.readers.times import Times
from seqclf.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": " "}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


class OwnFiles:
    """Reads files of one sequence each. The first one decides the features of all."""

    def __init__(self, options: ReadOptions, journal: Journal) -> None:
        # Only what says how to read steps; labels and ids are the manifest's or the folder's.
        self._options = replace(
            options,
            **dict.fromkeys(("id", "label", "group", "split")),  # type: ignore[arg-type]
            needs_label=False,
        )
        self._journal = journal

    def read(self, path: Path) -> Row:
        """Read a file. Raises RowError."""
        name = printable(str(path))
        kind = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
        try:
            if kind.lower() == ".npy":
                return self._read_array(path, name)
            if kind.lower() in SEPARATORS:
                return self._read_table(path, name, SEPARATORS[kind.lower()])
        except OSError as error:
            raise RowError(f"{name}: {error.strerror or error}") from None
        except UserError as error:
            raise RowError(str(error)) from None
        raise RowError(f"{name}: expected .npy, {', '.join(SEPARATORS)}")

    def _read_array(self, path: Path, name: str) -> Row:
        with path.open("rb") as opened:
            values = ArrayFile(opened, path.stat().st_size, name).read_all()
        try:
            return Row("", where=name, **finish_steps(values, self._options)._asdict())
        except RowError as error:
            place = f"{name}, step {error.step + 1}, column {error.feature}"
            raise RowError(f"{place if error.has_position else name}: {error.problem}") from None

    def _read_table(self, path: Path, name: str, separator: str) -> Row:
        file = TextFile(path, name, self._options.encoding)
        table = text_table(file, self._journal, separator=separator)
        found = find_header(table, self._options)
        if found is None:
            raise RowError(f"{name}: an empty file")
        where, names = found
        skip = 1 if names else 0
        nothing: Progress = lambda num_bytes: None  # noqa: E731
        seen = survey(names, islice(table.open(nothing), skip, None))
        described = Table(where, names, seen, table.separator, is_one_sequence=True)
        columns = decide(described, self._options, self._journal)
        lines = islice(table.open(nothing), skip, None)
        row = read_steps("", lines, columns, self._options, Times())
        if isinstance(row, BadRow):
            raise RowError(f"{row.where}, {row.problem}")
        if names and columns.features and self._options.features is None:
            self._options = replace(self._options, features=columns.features, wanted_by=name)
        return row if names else row._replace(features=None)


def read_table(
    file: TableFile, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a table in wide or long form, or of the files that it names."""
    found = find_header(file, options)
    if found is None:
        return
    where, names = found
    if any(name.lower() in PATH_COLUMNS for name in names):
        yield from _read_manifest(file, where, names, options, journal, progress)
        return

    def half(num_bytes: float) -> None:
        progress(num_bytes / 2)  # There are two passes.

    skip = 1 if names else 0
    seen = survey(names, islice(file.open(half), skip, None))
    if not seen.num_lines:
        return
    table = Table(where, names, seen, file.separator, file.index_columns)
    columns = decide(table, options, journal)
    read = read_long if columns.form == "long" else read_wide
    yield from read(islice(file.open(half), skip, None), columns, options)


def _read_manifest(
    file: TableFile,
    where: str,
    names: list[str],
    options: ReadOptions,
    journal: Journal,
    progress: Progress,
) -> Iterator[Row | BadRow]:
    """Yield the sequence in each file that a manifest names, beside it or by absolute path."""
    index = next(i for i, name in enumerate(names) if name.lower() in PATH_COLUMNS)
    lines = islice(file.open(lambda num_bytes: None), 1, None)
    special = find_special(Table(where, names, survey(names, lines), file.separator), options)
    special.pop("time", None)
    columns = Columns(names, len(names), special, "wide")
    journal.roles |= {role: names[i] for role, i in special.items()} | {"path": names[index]}
    for i, name in enumerate(names):
        if i != index and i not in special.values():
            journal.left_aside[name] = "a manifest's own column"
    own_files = OwnFiles(options, journal)
    folder = Path(file.name).parent
    for place, cells in islice(file.open(progress), 1, None):
        try:
            found = columns.parse_names(cells)
            path = cells[index].strip() if index < len(cells) else ""
            if not path:
                raise RowError("no path")
            row = own_files.read(folder / path)
            row_id = columns.parse("id", cells) or quote(path)
        except RowError as error:
            yield BadRow(place, error.problem)
        else:
            yield row._replace(
                id=row_id,
                where=place,
                label=found.label or row.label,
                split=found.split,
                group=found.group,
            )


def read_folder(
    folder: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequence in each file of a folder, whose subfolders are the classes.

    Above the classes there may be folders train, val and test. The files of a folder without
    subfolders have no label. Raises UserError.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    known = [path for path in files if _is_readable(path)]
    if not known:
        raise UserError(f"{folder}: a folder without {', '.join(['.npy', *SEPARATORS])} files")
    others = Counter(path.suffix or path.name for path in files if not _is_readable(path))
    for suffix, count in others.items():
        journal.left_aside[f"{count} {suffix}"] = f"not sequences, in {folder}"
    tops = {path.relative_to(folder).parts[0].lower() for path in known}
    has_splits = tops <= SPLIT_FOLDERS.keys()
    journal.roles |= {"label": "the folder"} | ({"split": "the folder above"} if has_splits else {})
    own_files = OwnFiles(options, journal)
    for path in known:
        progress(path.stat().st_size)
        parts = path.relative_to(folder).parts
        split = SPLIT_FOLDERS[parts[0].lower()] if has_splits else None
        folders = parts[1:-1] if has_splits else parts[:-1]
        try:
            if len(folders) > 1:
                raise RowError(f"in {'/'.join(folders)}: expected a folder for each class")
            row = own_files.read(path)
            label = parse_name(folders[0], "label") if folders else row.label
        except RowError as error:
            yield BadRow(str(path), error.problem)
        else:
            yield row._replace(id=quote("/".join(parts)), where=str(path), label=label, split=split)


def _is_readable(path: Path) -> bool:
    suffixes: Sequence[str] = [suffix.lower() for suffix in path.suffixes if suffix != ".gz"]
    return bool(suffixes) and suffixes[-1] in {".npy", *SEPARATORS}
