"""A table of labels beside the sequences, which have an id in common: `--labels y.csv`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.roles import KNOWN, list_names
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Names,
    ReadOptions,
    Row,
    RowError,
    parse_name,
    quote,
)
from seqclf.data.readers.tables import find_header, text_table
from seqclf.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}

_Read = Callable[[ReadOptions], Iterator[Row | BadRow]]


def is_label_table(path: Path | None, *, beside_array: bool) -> bool:
    """Return whether a file of labels is a table, which has an id beside each label.

    Beside an array it may also be a text with a label in each line.
    """
    if path is None or _ending(path) not in SEPARATORS:
        return False
    try:
        line = next(TextFile.of(path).lines(), "") if beside_array else ","
    except OSError:
        return True  # Whoever reads it says that it is not there.
    return any(letter in line for letter in ",;\t")


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


class LabelTable:
    """The label of each id, and maybe its group and its split."""

    def __init__(self, path: Path, options: ReadOptions, journal: Journal) -> None:
        self.path = path
        self.names: dict[str, Names] = {}
        self.roles: dict[str, str] = {}  # id, label, and maybe group and split -> their columns
        self._found: dict[str, str] = {}  # an id -> the id of the sequence that has it
        try:
            self._read(options, journal)
        except OSError as error:
            raise UserError(f"--labels {path}: cannot read it: {error.strerror or error}") from None

    def _read(self, options: ReadOptions, journal: Journal) -> None:
        file = TextFile.of(self.path, options.encoding)
        table = text_table(file, journal, separator=SEPARATORS[_ending(self.path)])
        found = find_header(table, options)
        if found is None or not found[1]:
            raise UserError(f"--labels {self.path}: expected a first line like id,label")
        where, names = found
        self.roles = _find_roles(where, names, options)
        for name in names:
            if name not in self.roles.values():
                journal.left_aside[f"{self.path.name}: {name}"] = "not used"
        index = {role: names.index(name) for role, name in self.roles.items()}
        for place, cells in islice(table.open(lambda num_bytes: None), 1, None):
            cells = [*cells, *[""] * (len(names) - len(cells))]
            try:
                row_id = parse_name(cells[index["id"]], "id")
                if row_id is None:
                    raise RowError("no id")
                row_names = Names(
                    *(
                        parse_name(cells[index[role]], role) if role in index else None
                        for role in Names._fields
                    )
                )
            except RowError as error:
                raise UserError(f"{place}: {error.problem}") from None
            if self.names.setdefault(row_id, row_names) != row_names:
                raise UserError(f"{place}: id '{quote(row_id)}' comes again with other names")

    def name(self, row: Row, *, by_path: bool) -> Row | BadRow:
        """Return a sequence with its label, or that it has none here."""
        # A table often has a file's name alone, or the beginning of the name.
        path = Path(row.id)
        keys = (row.id, path.name, path.stem) if by_path else (row.id,)
        key = next((key for key in keys if key in self.names), None)
        if key is None or self.names[key].label is None:
            return BadRow(row.where, f"id '{quote(row.id)}': no label in {self.path}")
        if (other := self._found.setdefault(key, row.id)) != row.id:
            problem = f"'{quote(other)}' and '{quote(row.id)}' are both '{quote(key)}'"
            return BadRow(row.where, f"{problem} in {self.path}; write their paths there")
        found = {role: name for role, name in self.names[key]._asdict().items() if name is not None}
        return row._replace(**found, step_labels=None)

    @property
    def num_unused(self) -> int:
        """The number of ids that no sequence has."""
        return len(self.names) - len(self._found)


def _find_roles(where: str, names: Sequence[str], options: ReadOptions) -> dict[str, str]:
    """Find the columns of a table of labels. Raises UserError."""
    roles: dict[str, str] = {}
    for role in ("id", "group", "split", "label"):
        rest = [name for name in names if name not in roles.values()]
        asked = getattr(options, role)
        known = [name for word in KNOWN[role] for name in rest if name.lower() == word]
        if asked in rest:
            roles[role] = asked
        elif known and (role != "label" or asked is None):
            roles[role] = known[0]
        elif role == "label" and asked is None and len(rest) == 1:
            roles[role] = rest[0]
        elif role in ("id", "label"):
            problem = f"no column '{asked}'" if asked else f"which column is the {role}"
            raise UserError(f"{where}: {problem}? say --{role}; found {list_names(names)}")
    return roles


def read_with_labels(
    read: _Read, path: Path, options: ReadOptions, journal: Journal, *, has_columns: bool
) -> Iterator[Row | BadRow]:
    """Yield the sequences that `read` reads at a path, with the labels of a table.

    A file without columns may have ids of its own, and then --id is a column of the table alone.

    Raises UserError if the sequences have no ids of their own.
    """
    assert options.labels is not None
    table = LabelTable(options.labels, options, journal)
    # What the table says need not be in the file.
    asked = [role for role in ("label", "group", "split") if role in table.roles]
    inner = replace(options, labels=None, needs_label=False, **dict.fromkeys(asked))  # type: ignore[arg-type]
    if not has_columns:
        inner = replace(inner, id=None)
    if path.is_dir():
        inner = replace(inner, label="none")  # Its folders are not the classes.
    for role in ("id", "path"):
        journal.roles.pop(role, None)  # of a file before
    for row in read(inner):
        has_ids = "id" in journal.roles
        by_path = path.is_dir() or ("path" in journal.roles and not has_ids)
        if not has_ids and not by_path:
            remedy = "; say --id, the column of both" if has_columns else ""
            raise UserError(f"--labels {table.path}: {path} has no ids to find labels by{remedy}")
        yield table.name(row, by_path=by_path) if isinstance(row, Row) else row
    for role in asked:
        if (column := journal.roles.pop(role, None)) is not None:
            journal.left_aside[column] = f"{table.path} says the {role}"
    roles = ", ".join(f"{role} = {quote(name)}" for role, name in table.roles.items())
    journal.note(f"{table.path}: {roles}")
    if table.num_unused:
        journal.note(f"{path}: no sequence for {table.num_unused:,} of the ids in {table.path}")
