"""Files of one sequence each, which a manifest names or a folder holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from seqclf.data.readers.arrays import ArrayFile
from seqclf.data.readers.columns import Columns, decide
from seqclf.data.readers.forms import read_steps
from seqclf.data.readers.images import IMAGES, read_image
from seqclf.data.readers.lines import TextFile, refuse_endless
from seqclf.data.readers.roles import Table
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    printable,
    quote,
)
from seqclf.data.readers.survey import Survey, survey
from seqclf.data.readers.tables import find_header, text_table
from seqclf.data.readers.times import Times
from seqclf.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": " "}
AS_BEFORE = "as the training files were"
OWN_FILES = (".npy", *SEPARATORS, *IMAGES)  # what a file of one sequence may end in


def ending_of(path: Path) -> str:
    """Return what tells a file's format, in lower case: its suffix, without .gz after a table's."""
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower()
    return inner if suffix == ".gz" and inner in SEPARATORS else suffix


class OwnFiles:
    """Reads files of one sequence each. The first one decides the features of all."""

    def __init__(
        self, options: ReadOptions, journal: Journal, *, says: str, roles: Collection[str]
    ) -> None:
        if options.form == "wide" and "form" not in options.soft:
            raise UserError(f"--form wide: {says} names files of one sequence, a step a line")
        self._options = replace(options, needs_label=False, form=None)
        self._journal = journal
        journal.own_files = True
        self._says = says  # who says the `roles` of a sequence, such as its label
        self._roles = roles
        self._first_size: tuple[str, str] | None = None  # of a picture, and its name
        self._times = Times(journal)

    def read(self, path: Path) -> Row:
        """Read a file. Raises RowError."""
        name = printable(str(path))
        ending = ending_of(path)
        try:
            refuse_endless(path)
            if ending == ".npy":
                return self._read_array(path, name)
            if ending in IMAGES:
                return self._read_image(path, name)
            if ending in SEPARATORS:
                return self._read_table(path, name, SEPARATORS[ending])
        except OSError as error:
            raise RowError(f"{name}: {error.strerror or error}") from None
        except UserError as error:
            raise RowError(str(error)) from None
        raise RowError(f"{name}: expected {', '.join(OWN_FILES)}")

    def _read_array(self, path: Path, name: str) -> Row:
        with path.open("rb") as opened:
            values = ArrayFile(opened, path.stat().st_size, name).read_all()
        if self._options.channels_first and values.ndim == 2:
            values = values.T
        return self._finish(values, name, "step {step}, column {feature}")

    def _read_image(self, path: Path, name: str) -> Row:
        greys = read_image(path, name, self._journal)
        bits = 8 if greys.dtype == np.uint8 else 16
        height, width = greys.shape
        size = f"{width} x {height} pixels of {bits} bits"
        self._first_size = self._first_size or (name, size)
        first, first_size = self._first_size
        if size != first_size:
            raise RowError(
                f"{name}: {size}, where the first picture, {first}, has {first_size}; bring all "
                "pictures to one size"
            )
        return self._finish(greys, name, "row {step}, column {feature}")

    def _finish(self, values: np.ndarray, name: str, position: str) -> Row:
        try:
            return Row("", where=name, **finish_steps(values, self._options)._asdict())
        except RowError as error:
            place = position.format(step=error.step + 1, feature=error.feature)
            place = f"{name}, {place}" if error.has_position else name
            raise RowError(f"{place}: {error.problem}") from None

    def _read_table(self, path: Path, name: str, separator: str) -> Row:
        file = TextFile(path, name, self._options.encoding)
        journal = Journal()
        table = text_table(file, journal, separator=separator)
        found = find_header(table, self._options)
        if found is None:
            raise RowError(f"{name}: an empty file")
        where, names = found
        skip = 1 if names else 0
        nothing: Progress = lambda num_bytes: None  # noqa: E731
        seen = survey(names, islice(table.open(nothing), skip, None))
        if not seen.num_lines:
            raise RowError(f"{name}: no line below its header")
        options = self._options
        if not names:
            # Each column is a feature, in its place: the first is no label.
            options = replace(options, num_values=len(seen.columns))
            if options.wanted_by != "--features":
                options = replace(options, features=None)
        described = Table(where, names, seen, table.separator, is_one_sequence=True)
        columns = decide(described, options, journal)
        self._check(name, columns, seen)
        lines = islice(table.open(nothing), skip, None)
        row = read_steps("", lines, columns, options, self._times)
        if isinstance(row, BadRow):
            raise RowError(f"{row.where}, {row.problem}")
        self._keep(journal, columns, name)
        if not names:
            return row._replace(features=None)
        if columns.features and self._options.features is None:
            self._options = replace(self._options, features=columns.features, wanted_by=name)
        return row

    def _check(self, name: str, columns: Columns, seen: Survey) -> None:
        """Refuse a file that is no single sequence of steps. Raises RowError."""
        if columns.words and columns.words.kind == "text":
            raise RowError(f"{name}: --text reads a table of texts, not files of their own")
        if "id" in columns.special:
            column = seen.columns[columns.special["id"]]
            if column.num_runs > 1:
                raise RowError(
                    f"{name}: column '{quote(column.name)}' tells sequences apart, and a file "
                    f"holds one; read it alone, with --id {quote(column.name)}"
                )

    def _keep(self, journal: Journal, columns: Columns, name: str) -> None:
        """Keep what a file's table decides, but for what is said elsewhere."""
        for note in journal.notes:
            # Once for all files.
            self._journal.note(note.removeprefix(f"{name}: "))
        self._journal.left_aside |= journal.left_aside
        for role, column in journal.roles.items():
            if role in self._roles:
                self._journal.left_aside[column] = f"{self._says} says the {role}"
            else:
                self._journal.roles[role] = column
        wanted = self._options.wanted_by
        if self._options.features is not None and not columns.names and wanted != "--features":
            self._journal.note(
                f"files without a header line are read in the order of columns of {wanted}"
            )


def read_single(
    path: Path, options: ReadOptions, journal: Journal, *, why: str = ""
) -> Iterator[Row | BadRow]:
    """Yield the sequence of a file that holds one; the journal keeps `why` it is read so."""
    own_files = OwnFiles(options, journal, says=str(path), roles=())
    try:
        row = own_files.read(path)
    except RowError as error:
        yield bad_row_of(path, error)
        return
    if why:
        journal.note(f"{path}: read as one sequence, {why}")
    yield row._replace(id=printable(path.name), where=printable(str(path)))


def bad_row_of(path: Path, error: RowError) -> BadRow:
    """Return what is wrong with a file; most problems begin with its name and line."""
    name = printable(str(path))
    place, _, problem = error.problem.partition(": ")
    return BadRow(place, problem) if place.startswith(name) else BadRow(name, error.problem)
