""".arff files, the text format of Weka, in which the UCR and UEA archives are kept too.

scipy.io.arff is not used: it holds the whole file in memory, reads `1?` as a missing value, passes
over cells that are too many, names no line, and changes csv.field_size_limit for the whole process.
The tests compare with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.manifests import read_table
from seqclf.data.readers.numbers import parse_numbers
from seqclf.data.readers.roles import KNOWN, list_names
from seqclf.data.readers.rows import (
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    parse_name,
    quote,
)
from seqclf.data.readers.survey import Line
from seqclf.data.readers.tables import TableFile
from seqclf.errors import UserError

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_CELL = re.compile(rf"\s*({_QUOTED}|[^'\",\t]*)\s*")
_ATTRIBUTE = re.compile(rf"@attribute\s+({_QUOTED}|[^\s'\"]+)\s+(.+)", re.IGNORECASE)
_TYPE = re.compile(r"(numeric|real|integer|string|date|relational)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Attribute:
    """A column of an .arff file."""

    name: str
    kind: str  # such as numeric; nominal if its values are listed
    values: tuple[str, ...] = ()  # of a nominal attribute


@dataclass(frozen=True)
class _Header:
    """What stands above the data."""

    attributes: tuple[_Attribute, ...]
    num_lines: int  # up to @data

    def find(self, name: str | None) -> _Attribute | None:
        """Return the attribute of a name, None if there is none."""
        return next((attribute for attribute in self.attributes if attribute.name == name), None)


def read_arff(
    file: TextFile, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of an .arff file. `?` is a missing value, and at the end padding."""
    header = _read_header(file)
    label = _find_label(file, header, options, journal)
    if any(attribute.kind == "relational" for attribute in header.attributes):
        rows = _read_relations(file, header, label, options, journal, progress)
    else:
        table = TableFile(file.name, partial(_lines, file, header), has_header=True)
        options = replace(options, label=label.name if label else options.label)
        rows = read_table(table, options, journal, progress)
    try:
        classes = {parse_name(value, "label") for value in label.values} if label else set()
    except RowError as error:
        raise UserError(f"{file.name}, header: {error.problem}") from None
    for row in rows:
        if isinstance(row, Row) and row.label and classes and row.label not in classes:
            problem = f"label '{quote(row.label)}': not among the values in the header"
            yield BadRow(row.where, problem)
        else:
            yield row


def _read_header(file: TextFile) -> _Header:
    """Read the lines up to `@data`. Raises UserError."""
    attributes: list[_Attribute] = []
    relation = ""  # the attribute whose own attributes follow
    for number, line in enumerate(file.lines(), 1):
        text = line.strip()
        keyword = text.split(None, 1)[0].lower() if text else ""
        if keyword == "@data":
            break
        if not text or text.startswith("%") or keyword == "@relation":
            continue
        file.check_utf8(number, line)
        if keyword == "@end" and relation:
            relation = ""
        elif keyword == "@attribute":
            attribute = _parse_attribute(f"{file.name}:{number}", text)
            if not relation:
                attributes.append(attribute)
            if attribute.kind == "relational":
                relation = attribute.name
        else:
            raise UserError(
                f"{file.name}:{number}: expected a header line like @attribute x numeric, or @data"
            )
    else:
        raise UserError(f"{file.name}: no line @data; is it an .arff file?")
    if not attributes:
        raise UserError(f"{file.name}:{number}: no @attribute before @data")
    return _Header(tuple(attributes), number)


def _parse_attribute(where: str, text: str) -> _Attribute:
    match = _ATTRIBUTE.fullmatch(text)
    kind = match[2].strip() if match else ""
    if match and kind.startswith("{") and kind.endswith("}"):
        try:
            values = tuple(map(_unquote, _split(kind[1:-1])))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        return _Attribute(_unquote(match[1]), "nominal", values)
    if not match or not (known := _TYPE.match(kind)):
        raise UserError(
            f"{where}: expected a name and a type, such as @attribute x numeric or @attribute "
            "class {walk,run}"
        )
    return _Attribute(_unquote(match[1]), known[1].lower())


def _split(line: str) -> list[str]:
    """Split a line at its commas, or at tabs if it has none. Raises ValueError."""
    separator = "," if "," in line or "\t" not in line else "\t"
    if "'" not in line and '"' not in line:
        return [cell.strip() for cell in line.split(separator)]
    cells: list[str] = []
    position = 0
    while position <= len(line):
        match = _CELL.match(line, position)
        if not match or line[match.end() : match.end() + 1] not in ("", separator):
            raise ValueError(f"value {len(cells) + 1}: a quote that is left open, or stands inside")
        cells.append(match[1].strip())
        position = match.end() + 1
    return cells


def _unquote(cell: str) -> str:
    if cell[:1] not in ("'", '"'):
        return cell
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], cell[1:-1])


def _find_label(
    file: TextFile, header: _Header, options: ReadOptions, journal: Journal
) -> _Attribute | None:
    """Return the attribute of the label: as named or known, or the last one with classes."""
    if options.label is not None and "label" not in options.soft:
        if options.label == "none" or (label := header.find(options.label)):
            return None if options.label == "none" else label
        names = list_names([attribute.name for attribute in header.attributes])
        raise UserError(f"{file.name}, header: no attribute '{options.label}' among {names}")
    known = [a for a in header.attributes if a.name.lower() in KNOWN["label"]]
    if len(known) > 1 and not options.needs_label:
        return None
    if len(known) > 1:
        names = ", ".join(f"'{quote(attribute.name)}'" for attribute in known)
        raise UserError(f"{file.name}, header: {names} may all be the label; choose with --label")
    nominal = [attribute for attribute in header.attributes if attribute.kind == "nominal"]
    if known or not nominal:
        return known[0] if known else None
    journal.note(
        f"{file.name}: the label is '{quote(nominal[-1].name)}', the last attribute that lists its "
        "values"
    )
    return nominal[-1]


def _lines(file: TextFile, header: _Header, progress: Progress) -> Iterator[Line]:
    """Yield the names of the attributes, then the cells of each line of data."""
    names = [attribute.name for attribute in header.attributes]
    yield f"{file.name}, header", names
    for number, line in enumerate(file.lines(progress), 1):
        text = line.strip()
        if number <= header.num_lines or not text or text.startswith("%"):
            continue
        if text.startswith("{"):
            raise UserError(
                f"{file.name}:{number}: sparse data, which are not read; write all values, as "
                "Weka's filter SparseToNonSparse does"
            )
        try:
            cells = _split(text)
        except ValueError as error:
            raise UserError(f"{file.name}:{number}: {error}") from None
        if len(cells) != len(names):
            raise UserError(
                f"{file.name}:{number}: {len(cells)} values, where the header has {len(names)} "
                "attributes; is the file cut off?"
            )
        yield f"{file.name}:{number}", list(map(_unquote, cells))


def _read_relations(
    file: TextFile,
    header: _Header,
    label: _Attribute | None,
    options: ReadOptions,
    journal: Journal,
    progress: Progress,
) -> Iterator[Row | BadRow]:
    """Yield a sequence from each line of an archive's file of several features."""
    names = [attribute.name for attribute in header.attributes]
    relations = [n for n, a in enumerate(header.attributes) if a.kind == "relational"]
    if len(relations) > 1:
        raise UserError(
            f"{file.name}: {len(relations)} relational attributes; aeon has the archive's .ts files"
        )
    (relation,) = relations
    for role in ("id", "time", "group", "split", "tokens", "text"):
        if (name := getattr(options, role)) is not None and role not in options.soft:
            raise UserError(f"--{role} {name}: {file.name} has several features; it is not read so")
    journal.note(
        f"{file.name}: a line of '{quote(names[relation])}' is a feature, and its values are the "
        "steps, as in the UEA archive"
    )
    index = header.attributes.index(label) if label else None
    if label:
        journal.roles["label"] = label.name
    for number, name in enumerate(names):
        if number not in (relation, index):
            journal.left_aside[quote(name)] = f"the steps are in '{quote(names[relation])}'"
    lines = _lines(file, header, progress)
    next(lines)
    for number, (where, cells) in enumerate(lines):
        try:
            known = None if index is None else parse_name(cells[index], "label")
            finished = finish_steps(_parse_relation(cells[relation]), options)
        except RowError as error:
            position = f"feature {error.feature + 1}, value {error.step + 1}"
            yield BadRow(where, error.message(position))
        else:
            yield Row(str(number), where=where, label=known, **finished._asdict())


def _parse_relation(cell: str) -> np.ndarray:
    """Return numbers [T, F] of a cell in which each line is a feature."""
    features: list[list[float]] = []
    for number, line in enumerate(cell.split("\n")):
        try:
            features.append(parse_numbers(line.split(",")))
        except RowError as error:
            raise RowError(error.problem, error.step, number) from None
        if len(features[-1]) != len(features[0]):
            raise RowError(
                f"feature {number + 1}: {len(features[-1])} values, where feature 1 has "
                f"{len(features[0])}"
            )
    return np.array(features).T
