"""A table of sequences, or a manifest: a table that names files of one sequence each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from seqclf.data.readers.columns import Columns, decide
from seqclf.data.readers.fast import fast_table, read_fast
from seqclf.data.readers.fast_survey import fast_survey
from seqclf.data.readers.forms import read_long, read_wide
from seqclf.data.readers.own_files import AS_BEFORE, SEPARATORS, OwnFiles, ending_of, read_single
from seqclf.data.readers.roles import KNOWN, Table, find_special
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    printable,
    quote,
)
from seqclf.data.readers.survey import survey
from seqclf.data.readers.tables import PATH_COLUMNS, TableFile, find_header
from seqclf.errors import UserError

NO_LINES = "a header and no lines"


def read_table(
    file: TableFile, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of a table in wide or long form, or of the files that it names."""
    found = find_header(file, options)
    if found is None:
        raise UserError(f"{file.name}: is empty")
    where, names = found
    if any(name.lower() in PATH_COLUMNS for name in names):
        yield from _read_manifest(file, where, names, options, journal, progress)
        return
    if options.own_files and _is_single(file, names):
        yield from read_single(Path(file.name), options, journal, why=AS_BEFORE)
        return

    def half(num_bytes: float) -> None:
        progress(num_bytes / 2)  # There are two passes.

    skip = 1 if names else 0
    fast = fast_table(file, where, names)
    seen = fast_survey(fast, half) if fast else None
    if seen is None:
        fast = None
        seen = survey(names, islice(file.open(half), skip, None))
    if not seen.num_lines:
        journal.note(f"{where}: {NO_LINES}")
        return
    table = Table(where, names, seen, file.separator, file.index_columns)
    columns = decide(table, options, journal)
    lines = islice(file.open(half), skip, None)
    if columns.form == "long":
        rows = read_long(lines, columns, options, journal)
    else:
        rows = read_wide(lines, columns, options)
    yield from read_fast(fast, seen, columns, options, half, rows) if fast else rows


def _is_single(file: TableFile, names: list[str]) -> bool:
    """Whether a table, beside files of one sequence each, may be one of them: it has no ids."""
    is_own = file.text is not None and ending_of(Path(file.name)) in SEPARATORS
    return is_own and not any(name.lower() in KNOWN["id"] for name in names)


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
    seen = survey(names, islice(file.open(lambda num_bytes: None), 1, None))
    if seen.columns[index].num_runs < seen.num_lines:
        raise UserError(
            f"{where}: '{quote(names[index])}' is the column of a manifest, which names a file a "
            "line, and here lines repeat it; if a line is a step, call this column id"
        )
    # How to sort steps is said of the columns of the files.
    ours = replace(options, time=None, drop=())
    special = find_special(Table(where, names, seen, file.separator), ours)
    special.pop("time", None)
    columns = Columns(names, len(names), special, "wide")
    roles = {role: names[i] for role, i in special.items()}
    journal.roles |= roles | {"path": names[index]}
    for i, name in enumerate(names):
        if i != index and i not in special.values():
            journal.left_aside[name] = "a manifest's own column"
    theirs = replace(options, id=None, label=None, group=None, split=None)
    own_files = OwnFiles(theirs, journal, says="the manifest", roles=("id", *roles))
    folder = Path(file.name).parent
    for place, cells in islice(file.open(progress), 1, None):
        try:
            if len(cells) > len(names):
                raise RowError(f"{len(cells)} cells, where the header has {len(names)}")
            found = columns.parse_names(cells)
            path = cells[index].strip() if index < len(cells) else ""
            if not path:
                raise RowError("no path")
            row = own_files.read(folder / path)
            row_id = columns.parse("id", cells) or printable(path)
        except RowError as error:
            yield BadRow(place, error.problem)
        else:
            yield row._replace(
                id=row_id,
                where=place,
                label=found.label or row.label,
                split=found.split or row.split,
                group=found.group or row.group,
            )
