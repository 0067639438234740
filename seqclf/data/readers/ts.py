""".ts files, the text format of the UCR and UEA archives and of aeon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from seqclf.data.readers.lines import TextFile
from seqclf.data.readers.numbers import parse_numbers
from seqclf.data.readers.rows import (
    BadRow,
    Progress,
    ReadOptions,
    Row,
    RowError,
    finish_steps,
    parse_name,
)
from seqclf.errors import UserError


class _Header(NamedTuple):
    has_labels: bool
    classes: frozenset[str]  # casefolded; empty if the header lists none


def read_ts(file: TextFile, options: ReadOptions, progress: Progress) -> Iterator[Row | BadRow]:
    """Yield the sequences of a .ts file. `?` is a missing value, which is always filled."""
    lines = enumerate(file.lines(progress), 1)
    header = _read_header(file.name, lines)
    options = replace(options, fill_missing=True)
    row_number = -1
    for line_number, line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        row_number += 1
        where = f"{file.name}:{line_number}"
        try:
            yield _parse_row(text, header, row_number, where, options)
        except RowError as error:
            yield BadRow(where, error.problem)


def _read_header(path: str, lines: Iterator[tuple[int, str]]) -> _Header:
    """Read the lines up to `@data`. Raises UserError for what a classifier cannot learn from."""
    fields: dict[str, list[str]] = {}
    for number, line in lines:
        text = line.strip()
        if text.lower() == "@data":
            break
        if text.startswith("@") and (words := text[1:].split()):
            # The archives' files write a keyword in any case, and may leave out its value.
            fields[words[0].lower()] = words[1:] or ["false"]
        elif text and not text.startswith("#"):
            raise UserError(f"{path}:{number}: expected a header line like @classLabel, or @data")
    else:
        raise UserError(f"{path}: no line @data; is it a .ts file?")
    for key, remedy in (
        ("timestamps", "time stamps are not read; give the values alone"),
        ("targetlabel", "a number to be predicted is no class; a classifier cannot learn it"),
    ):
        if fields.get(key, ["false"])[0].lower() == "true":
            raise UserError(f"{path}: @{key} true: {remedy}")
    has_labels, *classes = fields.get("classlabel", ["false"])
    try:
        # As the labels of the lines: 1.0 is 1.
        names = [parse_name(name, "label") or "" for name in classes]
    except RowError as error:
        raise UserError(f"{path}: @classLabel: {error.problem}") from None
    return _Header(has_labels.lower() == "true", frozenset(name.casefold() for name in names))


def _parse_row(
    text: str, header: _Header, row_number: int, where: str, options: ReadOptions
) -> Row:
    """Parse a line: the dimensions, each a list of values, then the label. Raises RowError."""
    dimensions = text.split(":")
    label = parse_name(dimensions.pop(), "label") if header.has_labels else None
    # A header separates classes by spaces, so it cannot list a label with a space in it.
    if (
        label
        and header.classes
        and len(label.split()) == 1
        and label.casefold() not in header.classes
    ):
        raise RowError(f"label '{label}': not in the header's @classLabel")
    values = [_parse_dimension(dimension, cells) for dimension, cells in enumerate(dimensions, 1)]
    for dimension, channel in enumerate(values, 1):
        if len(channel) != len(values[0]):
            raise RowError(
                f"dimension {dimension}: {len(channel)} values, where dimension 1 has "
                f"{len(values[0])}"
            )
    try:
        finished = finish_steps(np.array(values).T, options)
    except RowError as error:
        position = f"dimension {error.feature + 1}, value {error.step + 1}"
        raise RowError(error.message(position)) from None
    return Row(str(row_number), where=where, label=label, **finished._asdict())


def _parse_dimension(dimension: int, text: str) -> list[float]:
    if not text.strip():
        return []
    try:
        return parse_numbers(text.split(","))
    except RowError as error:
        raise RowError(error.message(f"dimension {dimension}, value {error.step + 1}")) from None
