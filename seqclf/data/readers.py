"""Users' files -> sequences, one after the other: docs/datasets.md shows each format.

A reader yields a Row for what it can use and a Bad for what it cannot, in the order of the file.
What makes a whole file unreadable raises UserError. One sequence at a time is in memory; nothing
is unpickled.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
import unicodedata
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from seqclf.config import UserError

STDIN = Path("-")
LONGEST_LINE = 2**28
LONGEST_NAME = 200  # of a class
LONGEST_SHOWN = 40
MISSING = frozenset({"", "?", "nan", "na", "n/a", "null", "none"})
LOOKED_AT = 100  # lines of a table that decide which columns hold numbers
AT_ONCE = 2**22  # bytes of an array in memory
RECORD_KINDS = ("steps", "tokens", "text")
SPECIAL = ("id", "time", "label", "group", "split")  # columns that are no features

Progress = Callable[[int], object]


class Row(NamedTuple):
    """A sequence: float32 [T, F], or the uint8 [T] bytes of a text, or names of tokens."""

    id: str
    steps: np.ndarray | tuple[str, ...]
    label: str | None
    split: str | None
    group: str | None
    where: str
    features: tuple[str, ...] | None
    filled: int = 0  # missing values that were filled


class Bad(NamedTuple):
    """What cannot be used."""

    where: str
    problem: str


@dataclass(frozen=True)
class Reading:
    """How to read: names of columns, a file of labels beside an .npy, what to do with gaps."""

    id: str | None = None
    time: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    labels: Path | None = None
    fill_missing: bool = False


class _ProblemError(Exception):
    """What is wrong with a sequence, and at which of its steps and features."""

    def __init__(self, problem: str, step: int | None = None, feature: int = 0) -> None:
        super().__init__(problem)
        self.problem, self.somewhere = problem, step is not None
        self.step, self.feature = step or 0, feature

    def say(self, place: str | None = None) -> str:
        """Return the problem after its place, if it has one."""
        place = place or f"step {self.step + 1}, feature {self.feature + 1}"
        return f"{place}: {self.problem}" if self.somewhere else self.problem


def read(
    path: Path,
    reading: Reading,
    *,
    progress: Progress = lambda num_bytes: None,
    format: str | None = None,  # noqa: A002
) -> Iterator[Row | Bad]:
    """Yield the sequences of a file, or of standard input (`-`, with a format), in their order.

    `progress` is told the bytes read. Raises UserError if the file is missing or of another format.
    """
    kind = format or path.suffix.lower().removeprefix(".")
    if path == STDIN and format not in STREAMS:
        raise UserError(f"-: say what standard input holds, with --format {', '.join(STREAMS)}")
    if kind not in FORMATS:
        raise UserError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
    for option in SPECIAL if kind in COLUMNLESS else ():
        if (column := getattr(reading, option)) is not None:
            raise UserError(f"--{option} {column}: names a column, and {path} has none")
    if reading.time is not None and reading.id is None:
        raise UserError(f"--time {reading.time}: needs --id, the column that tells sequences apart")
    if reading.labels is not None and kind != "npy":
        raise UserError(f"--labels {reading.labels}: belongs to an .npy file, not to {path}")
    if path != STDIN and path.is_dir():
        raise UserError(f"{path}: a folder; name the files in it, or a manifest (a .csv of paths)")
    try:
        yield from FORMATS[kind](path, reading, progress)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror or error}") from None


# ---- numbers and names


def _finish(values_TF: np.ndarray, fill: bool) -> tuple[np.ndarray, int]:
    """Return float32 [T, F] without gaps, and how many there were. Raises _ProblemError.

    A gap is filled on the line between its neighbours in time, at the ends with the next value.
    """
    if values_TF.dtype.kind not in "fiub":
        raise _ProblemError(f"{values_TF.dtype}, where numbers are expected")
    if values_TF.ndim == 1:
        values_TF = values_TF[:, None]
    if values_TF.ndim != 2:
        raise _ProblemError(f"shape {values_TF.shape}, where steps x features are expected")
    if not values_TF.size:
        raise _ProblemError("an empty sequence")
    with np.errstate(over="ignore"):
        steps_TF = values_TF.astype(np.float32)
    wrong_TF = ~np.isfinite(steps_TF)
    if not wrong_TF.any():
        return steps_TF, 0
    gaps_TF = np.isnan(steps_TF)
    infinite = np.argwhere(wrong_TF & ~gaps_TF)
    if len(infinite):
        step, feature = infinite[0].tolist()
        value = values_TF[step, feature]
        limit = "is not finite" if np.isinf(value) else "is too large for float32"
        raise _ProblemError(f"{value} {limit}", step, feature)
    if not fill:
        step, feature = np.argwhere(gaps_TF)[0].tolist()
        raise _ProblemError("a missing value; --fill-missing fills such gaps", step, feature)
    steps_T = np.arange(len(steps_TF))
    for feature in np.flatnonzero(gaps_TF.any(0)).tolist():
        known = np.flatnonzero(~gaps_TF[:, feature])
        if not len(known):
            raise _ProblemError("all values are missing", 0, feature)
        steps_TF[:, feature] = np.interp(steps_T, known, steps_TF[known, feature])
    return steps_TF, int(gaps_TF.sum())


def _number(cell: str) -> float:
    """Return a cell's number, NaN if it is missing. Raises ValueError."""
    if cell.strip().lower() in MISSING:
        return float("nan")
    if "_" in cell:  # Python's, nobody else's
        raise ValueError
    return float(cell)


def _numbers(cells: Sequence[str]) -> list[float]:
    """Return the numbers of cells. Raises _ProblemError with the place of what is none."""
    try:
        if "_" not in "".join(cells):
            return list(map(float, cells))
    except ValueError:
        pass
    found = []
    for place, cell in enumerate(cells):
        try:
            found.append(_number(cell))
        except ValueError:
            raise _ProblemError(f"'{_shown(cell)}' is not a number", place) from None
    return found


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """Return text that can be printed, cut to LONGEST_SHOWN."""
    return _printable(text[:LONGEST_SHOWN] + "…" * (len(text) > LONGEST_SHOWN))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _name(value: object, what: str) -> str | None:
    """Return what a label, split, group or id is called, None if there is none.

    Raises _ProblemError for what cannot be a name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        value = "" if value != value else int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | int | float):
        name = "" if value is None else str(value).strip()
    else:
        raise _ProblemError(f"{what}: a {type(value).__name__}, expected a text or a number")
    if len(name) > LONGEST_NAME:
        raise _ProblemError(f"{what} '{_shown(name)}': {len(name):,} characters long")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise _ProblemError(f"{what} '{_shown(name)}': control characters, or not UTF-8")
    return name or None


# ---- text


def _lines(path: Path, progress: Progress) -> Iterator[str]:
    """Yield the lines of a text file; bytes that are not UTF-8 become surrogates."""
    opened = nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb")
    with opened as file:
        for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of {LONGEST_LINE:,} bytes; is it a text?")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path}: UTF-16; save it as UTF-8")
            progress(len(line))
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield text.decode("utf-8", "surrogateescape")


Cells = tuple[str, list[str]]  # where a line is, and what is in it


def _read_table(
    path: Path, reading: Reading, progress: Progress, delimiter: str
) -> Iterator[Row | Bad]:
    return _from_cells(path, _split_lines(path, progress, delimiter), reading)


def _split_lines(path: Path, progress: Progress, delimiter: str) -> Iterator[Cells]:
    lines = _lines(path, progress)
    first = next(lines, "")
    if delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    reader = csv.reader(chain([first], lines), delimiter=delimiter)
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; is a quote left open?") from None


class _Columns(NamedTuple):
    """The columns of a table: names, where the special ones are, and which are values."""

    names: list[str]
    special: dict[str, int]  # of SPECIAL
    values: list[int]
    width: int = 0  # of the header, if there is one


def _from_cells(path: Path, rows: Iterator[Cells], reading: Reading) -> Iterator[Row | Bad]:
    """Yield the sequences of a table: a manifest's, or one a line, or one step a line."""
    first = next(rows, None)
    if first is None:
        return
    where, cells = first
    names = [cell.strip() for cell in cells]
    asked = {name: column for name in SPECIAL if (column := getattr(reading, name)) is not None}
    if not _is_header(names, {*SPECIAL, "path", *asked.values()}):
        if asked:
            option, column = next(iter(asked.items()))
            raise UserError(f"{where}: no header line, so no column '{column}' (--{option})")
        columns = _Columns([], {"label": 0}, [])
        yield from _read_wide(chain([first], rows), columns, reading)
        return
    for option, column in asked.items():
        if column not in names:
            there = _shown(", ".join(names))
            raise UserError(f"{where}: no column '{_shown(column)}' (--{option}) among {there}")
    special = {
        name: names.index(asked.get(name, name))
        for name in SPECIAL
        if asked.get(name, name) in names
    }
    if reading.time is None:
        special.pop("time", None)
    values = [place for place in range(len(names)) if place not in special.values()]
    columns = _Columns(names, special, values, len(names))
    if "path" in names:
        yield from _read_manifest(path, rows, columns, reading)
    elif reading.id is not None:
        yield from _read_long(where, rows, columns, reading)
    else:
        yield from _read_wide(rows, columns, reading)


def _is_header(names: Sequence[str], known: set[str]) -> bool:
    """Say whether a first line names columns: a known one, or mostly words after the first cell."""
    words = sum(not _is_number(name) for name in names[1:])
    return any(name in known for name in names) or 2 * words > len(names) - 1


def _specials(columns: _Columns, cells: Sequence[str]) -> dict[str, str | None]:
    """Return a line's label, split and group. Raises _ProblemError."""
    return {
        name: _name(cells[place], name) if place is not None and place < len(cells) else None
        for name in ("label", "split", "group")
        for place in [columns.special.get(name)]
    }


def _read_wide(rows: Iterable[Cells], columns: _Columns, reading: Reading) -> Iterator[Row | Bad]:
    """Yield a sequence of one feature from each line; gaps at its end are no steps."""
    for number, (where, cells) in enumerate(rows, 1):
        places = columns.values or range(1, len(cells))
        values = [cells[place] for place in places if place < len(cells)]
        while values and values[-1].strip().lower() in MISSING:
            values.pop()
        try:
            if columns.width and len(cells) > columns.width:
                raise _ProblemError(f"{len(cells)} cells, where the header has {columns.width}")
            known = _specials(columns, cells)
            place = columns.special.get("id")
            name = _name(cells[place], "id") if place is not None and place < len(cells) else None
            try:
                steps, filled = _finish(np.array(_numbers(values)), reading.fill_missing)
            except _ProblemError as error:
                place = places[error.step] if values else 0
                title = columns.names[place] if columns.names else str(place + 1)
                raise _ProblemError(error.say(f"column {_shown(title)}")) from None
        except _ProblemError as error:
            yield Bad(where, error.problem)
        else:
            yield Row(
                name or str(number), steps, **known, where=where, features=None, filled=filled
            )


def _read_long(
    header: str, rows: Iterator[Cells], columns: _Columns, reading: Reading
) -> Iterator[Row | Bad]:
    """Yield a sequence from all lines with the same id, which must follow each other."""
    start = list(islice(rows, LOOKED_AT))
    values = [
        place
        for place in columns.values
        if any(place < len(cells) and _is_number(cells[place]) for _, cells in start)
    ]
    names = tuple(columns.names[place] for place in values)
    if not values:
        raise UserError(f"{header}: no column of numbers beside {', '.join(columns.special)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{header}: column '{_shown(twice)}' comes twice")
    place, current = columns.special["id"], ""

    def identity(row: Cells) -> str:
        nonlocal current  # a line that is cut off belongs to the one before
        current = row[1][place].strip() if place < len(row[1]) else current
        return current

    seen: set[str] = set()
    columns = columns._replace(names=list(names), values=values)
    for name, steps in groupby(chain(start, rows), key=identity):
        found = _read_steps(name, steps, columns, reading)
        if name in seen:
            raise UserError(
                f"{found.where}: id '{_shown(name)}' comes again after others; sort the lines by "
                "their id"
            )
        seen.add(name)
        yield found


def _read_steps(name: str, rows: Iterator[Cells], columns: _Columns, reading: Reading) -> Row | Bad:
    """Make a sequence of lines, each of which is a step."""
    pick = itemgetter(*columns.values, columns.values[0])  # of two at least, which makes a tuple
    time = columns.special.get("time")
    values, times, lines = array("d"), array("d"), []
    known: dict[str, str | None] = {}
    bad = None
    for where, cells in rows:
        lines.append(where)
        try:
            if bad:
                continue
            if len(cells) != columns.width:
                raise _ProblemError(f"{len(cells)} cells, where the header has {columns.width}")
            try:
                values.extend(_numbers(pick(cells)[:-1]))
            except _ProblemError as error:
                column = _shown(columns.names[error.step])
                raise _ProblemError(f"column {column}: {error.problem}") from None
            if time is not None:
                times.append(_moment(cells[time]))
            for what, found in _specials(columns, cells).items():
                if found is not None and known.setdefault(what, found) != found:
                    raise _ProblemError(
                        f"{what} '{found}', where the sequence began with '{known[what]}'"
                    )
        except _ProblemError as error:
            bad = Bad(where, error.problem)
    if bad:
        return bad
    values_TF = np.frombuffer(values).reshape(len(lines), -1)
    order = np.argsort(np.frombuffer(times), kind="stable") if times else np.arange(len(lines))
    try:
        steps, filled = _finish(values_TF[order], reading.fill_missing)
        shown = _name(name, "id") or ""
    except _ProblemError as error:
        column = _shown(columns.names[error.feature])
        return Bad(lines[order[error.step]], error.say(f"column {column}"))
    return Row(
        shown,
        steps,
        known.get("label"),
        known.get("split"),
        known.get("group"),
        lines[0],
        tuple(columns.names),
        filled,
    )


def _moment(cell: str) -> float:
    """Return a time that sorts: a number, or an ISO date in seconds. Raises _ProblemError."""
    try:
        found = _number(cell)
    except ValueError:
        try:
            moment = datetime.fromisoformat(cell.strip())
        except ValueError:
            moment = None
        if moment is None:
            raise _ProblemError(
                f"time '{_shown(cell)}' is neither a number nor a date like 2025-01-31T12:00"
            ) from None
        found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if found != found:
        raise _ProblemError("no time")
    return found


def _read_manifest(
    path: Path, rows: Iterable[Cells], columns: _Columns, reading: Reading
) -> Iterator[Row | Bad]:
    """Yield the sequence in each file that a manifest names, beside it or by absolute path."""
    place, folder = columns.names.index("path"), path.parent
    for where, cells in rows:
        try:
            known = _specials(columns, cells)
            name = cells[place].strip() if place < len(cells) else ""
            if not name:
                raise _ProblemError("no path")
            steps, filled, features = _read_one(folder / name, reading.fill_missing)
            own = columns.special.get("id")
            shown = _name(cells[own], "id") if own is not None and own < len(cells) else None
        except _ProblemError as error:
            yield Bad(where, error.problem)
        else:
            yield Row(
                shown or _shown(name), steps, **known, where=where, features=features, filled=filled
            )


def _read_one(file: Path, fill: bool) -> tuple[np.ndarray, int, tuple[str, ...] | None]:
    """Read a sequence's own file: steps, filled gaps, features. Raises _ProblemError."""
    shown, kind = _printable(str(file)), file.suffix.lower()
    names: tuple[str, ...] | None = None
    lines: list[str] = []
    try:
        if kind == ".npy":
            with file.open("rb") as opened:
                values = _Array(opened, file.stat().st_size, shown).whole()
        elif kind in (".csv", ".tsv"):
            names, lines, values = _read_own_table(file, "," if kind == ".csv" else "\t")
        else:
            raise _ProblemError(f"{shown}: expected .npy, .csv or .tsv")
    except OSError as error:
        raise _ProblemError(f"{shown}: {error.strerror or error}") from None
    except UserError as error:
        raise _ProblemError(str(error)) from None
    try:
        return *_finish(values, fill), names
    except _ProblemError as error:
        place = lines[error.step] if lines else f"{shown}, step {error.step + 1}"
        title = names[error.feature] if names else error.feature + 1
        place = f"{place}, column {title}" if error.somewhere else shown
        raise _ProblemError(f"{place}: {error.problem}") from None


def _read_own_table(
    file: Path, delimiter: str
) -> tuple[tuple[str, ...] | None, list[str], np.ndarray]:
    """Read a table of one sequence: columns' names, where each step is, and [T, F]."""
    names = None
    lines, values = [], array("d")
    width = 0
    for where, cells in _split_lines(file, lambda num_bytes: None, delimiter):
        if not width:
            width = len(cells)
            if not any(map(_is_number, cells)):
                names = tuple(_shown(cell.strip()) for cell in cells)
                continue
        if len(cells) != width:
            raise _ProblemError(f"{where}: {len(cells)} cells, where the first line has {width}")
        try:
            values.extend(_numbers(cells))
        except _ProblemError as error:
            title = names[error.step] if names else error.step + 1
            raise _ProblemError(error.say(f"{where}, column {title}")) from None
        lines.append(where)
    return names, lines, np.frombuffer(values).reshape(len(lines), width)


# ---- .ts


def _read_ts(path: Path, reading: Reading, progress: Progress) -> Iterator[Row | Bad]:
    """Yield the sequences of a .ts file (UCR, UEA, aeon); its `?` are filled."""
    lines = enumerate(_lines(path, progress), 1)
    header: dict[str, list[str]] = {}
    for number, line in lines:
        text = line.strip()
        if text.lower() == "@data":
            break
        if text.startswith("@") and (words := text[1:].split()):
            header[words[0].lower()] = words[1:] or ["false"]
        elif text and not text.startswith("#"):
            raise UserError(f"{path}:{number}: expected a header line like @classLabel, or @data")
    else:
        raise UserError(f"{path}: no line @data; is it a .ts file?")
    for key, remedy in (
        ("timestamps", "time stamps are not read; give the values alone"),
        ("targetlabel", "a number to be predicted is no class; a classifier cannot learn it"),
    ):
        if header.get(key, ["false"])[0].lower() == "true":
            raise UserError(f"{path}: @{key} true: {remedy}")
    labelled, *classes = header.get("classlabel", ["false"])
    known = {name.casefold() for name in classes}
    row_number = 0
    for number, line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        row_number += 1
        where = f"{path}:{number}"
        channels = text.split(":")
        try:
            label = _name(channels.pop(), "label") if labelled.lower() == "true" else None
            label = None if label == "?" else label
            if label and known and label.casefold() not in known and len(label.split()) == 1:
                raise _ProblemError(f"label '{label}': not in the header's @classLabel")
            values = [_channel(dim, channel) for dim, channel in enumerate(channels, 1)]
            for dim, channel in enumerate(values, 1):
                if len(channel) != len(values[0]):
                    raise _ProblemError(
                        f"dimension {dim}: {len(channel)} values, where dimension 1 has "
                        f"{len(values[0])}"
                    )
            try:
                steps, filled = _finish(np.array(values).T, True)
            except _ProblemError as error:
                place = f"dimension {error.feature + 1}, value {error.step + 1}"
                raise _ProblemError(error.say(place)) from None
        except _ProblemError as error:
            yield Bad(where, error.problem)
        else:
            yield Row(str(row_number), steps, label, None, None, where, None, filled)


def _channel(place: int, text: str) -> list[float]:
    if not text.strip():
        return []
    try:
        return _numbers(text.split(","))
    except _ProblemError as error:
        raise _ProblemError(error.say(f"dimension {place}, value {error.step + 1}")) from None


# ---- records


def _read_jsonl(path: Path, reading: Reading, progress: Progress) -> Iterator[Row | Bad]:
    """Yield a sequence from each line's JSON object."""
    row_number = 0
    for number, line in enumerate(_lines(path, progress), 1):
        if not line.strip():
            continue
        row_number += 1
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield Bad(f"{path}:{number}", f"column {error.colno}: not JSON: {error.msg}")
        except (RecursionError, ValueError):  # nested too deep; a number of too many digits
            yield Bad(f"{path}:{number}", "JSON that cannot be read")
        else:
            yield _from_record(record, row_number, f"{path}:{number}", reading)


def _from_record(record: object, number: int, where: str, reading: Reading) -> Row | Bad:
    """Make a sequence of {"steps": [[...], ...]}, {"tokens": [...]} or {"text": "..."}."""
    try:
        if not isinstance(record, dict):
            raise _ProblemError('expected an object like {"steps": [[1.0, 2.0]], "label": "a"}')
        kinds = [kind for kind in RECORD_KINDS if record.get(kind) is not None]
        if len(kinds) != 1:
            raise _ProblemError(
                f"expected one of steps, tokens and text, found {_shown(', '.join(record))}"
            )
        known = {
            name: _name(record.get(getattr(reading, name) or name), name)
            for name in ("id", "label", "split", "group")
        }
        values, filled = record[kinds[0]], 0
        steps: np.ndarray | tuple[str, ...]
        if kinds == ["text"]:
            steps = _text(values)
        elif kinds == ["tokens"]:
            steps = _tokens(values)
        else:
            steps, filled = _finish(_nested(values), reading.fill_missing)
        if not len(steps):
            raise _ProblemError("an empty sequence")
    except _ProblemError as error:
        return Bad(where, error.say())
    return Row(
        known["id"] or str(number),
        steps,
        known["label"],
        known["split"],
        known["group"],
        where,
        None,
        filled,
    )


def _text(value: object) -> np.ndarray:
    if not isinstance(value, str):
        raise _ProblemError(f"text: a {type(value).__name__}, expected a text")
    try:
        return np.frombuffer(value.encode(), np.uint8)
    except UnicodeEncodeError:
        raise _ProblemError("text: not UTF-8") from None


def _tokens(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _ProblemError(f"tokens: a {type(value).__name__}, expected a list")
    for place, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise _ProblemError(f"token {place + 1}: expected a text or a whole number")
        if isinstance(token, str) and any("\ud800" <= letter <= "\udfff" for letter in token):
            raise _ProblemError(f"token {place + 1}: not UTF-8")
    return tuple(map(str, value))


def _nested(value: object) -> np.ndarray:
    """Return numbers in lists as float64 [T, F]; null is a gap."""
    if not isinstance(value, list):
        raise _ProblemError(f"a {type(value).__name__}, expected a list of steps")
    rows = [step if isinstance(step, list) else [step] for step in value]
    allowed = {int, float, type(None)}
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise _ProblemError(
                f"{len(row)} features, where the steps before have {len(rows[0])}", number
            )
        if not allowed.issuperset(map(type, row)):
            place = next(i for i, cell in enumerate(row) if type(cell) not in allowed)
            raise _ProblemError(f"{_shown(repr(row[place]))} is not a number", number, place)
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        raise _ProblemError("a number too large for float32") from None


def _read_parquet(path: Path, reading: Reading, progress: Progress) -> Iterator[Row | Bad]:
    """Yield the sequences of a parquet file: records, or a table in long or wide form."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path}: reading parquet needs pyarrow: pip install 'seqclf[parquet]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            batches = file.iter_batches(batch_size=1024)
            records = (record for batch in batches for record in batch.to_pylist())
            if set(names) & set(RECORD_KINDS) and reading.id is None:
                for number, record in enumerate(records, 1):
                    yield _from_record(record, number, f"{path}, row {number}", reading)
            else:
                cells = (
                    (f"{path}, row {number}", [_cell(record[name]) for name in names])
                    for number, record in enumerate(records, 1)
                )
                yield from _from_cells(path, chain([(f"{path}, header", names)], cells), reading)
            progress(path.stat().st_size)
    except (pyarrow.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a parquet file that can be read: {_why(error)}") from None


def _cell(value: object) -> str:
    return (
        ""
        if value is None
        else value.decode("utf-8", "surrogateescape")
        if isinstance(value, bytes)
        else str(value)
    )


# ---- arrays


def _read_npy(path: Path, reading: Reading, progress: Progress) -> Iterator[Row | Bad]:
    """Yield the sequences of an array N x T x F or N x T."""
    with path.open("rb") as file:
        labels = None if reading.labels is None else _read_labels(reading.labels)
        yield from _from_array(
            _Array(file, path.stat().st_size, str(path)), labels, None, reading, progress
        )


def _read_npz(path: Path, reading: Reading, progress: Progress) -> Iterator[Row | Bad]:
    """Yield the sequences of x and y, or values, offsets and labels; or of x_train, y_train ..."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {
                info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()
            }
            found = False
            for split in (None, "train", "val", "test"):
                end = f"_{split}" if split else ""
                main = next((key for key in (f"x{end}", f"values{end}") if key in names), None)
                if main is None:
                    continue
                found = True

                def whole(key: str, end: str = end) -> np.ndarray | None:
                    if (info := names.get(key + end)) is None:
                        return None
                    with archive.open(info) as file:
                        return _Array(file, info.file_size, f"{path}: {info.filename}").whole()

                labels = whole("y") if "y" + end in names else whole("labels")
                offsets = whole("offsets") if main.startswith("values") else None
                info = names[main]
                with archive.open(info) as file:
                    values = _Array(file, info.file_size, f"{path}: {info.filename}")
                    for row in _from_array(values, labels, offsets, reading, progress):
                        yield row._replace(split=split) if isinstance(row, Row) else row
            if not found:
                raise UserError(
                    f"{path}: expected x and y, or values, offsets and labels, or x_train, "
                    f"y_train, x_test and y_test; found {_shown(', '.join(names))}"
                )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not an .npz that can be read: {_why(error)}") from None


class _Array:
    """An array in an .npy, read front to back a part at a time. Raises UserError."""

    def __init__(self, file: IO[bytes], num_bytes: int, where: str) -> None:
        self.file, self.where = file, where
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what Python 2 wrote
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                self.shape, self.fortran, self.dtype = read_header(file)
        except Exception as error:  # numpy's parser lets many kinds through
            raise UserError(f"{where}: not an .npy that can be read: {_why(error)}") from None
        if self.dtype.hasobject:
            raise UserError(
                f"{where}: holds Python objects, which only pickle could read; save numbers: "
                "values, offsets and labels for sequences of unequal length (docs/data.md)"
            )
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        if not all(length >= 0 for length in self.shape) or size > num_bytes:
            raise UserError(f"{where}: {num_bytes:,} bytes, where its header asks for {size:,}")
        self.taken = 0
        self.loaded: np.ndarray | None = None

    def take(self, count: int) -> np.ndarray:
        """Return the next entries along the first axis."""
        if self.fortran:
            self.loaded = self.whole() if self.loaded is None else self.loaded
            self.taken += count
            return self.loaded[self.taken - count : self.taken]
        return self._read((count, *self.shape[1:]))

    def whole(self) -> np.ndarray:
        """Return all of it."""
        return self._read(self.shape[::-1]).T if self.fortran else self._read(self.shape)

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape, dtype=object))
        content = self.file.read(count * self.dtype.itemsize)
        if len(content) != count * self.dtype.itemsize:
            raise UserError(f"{self.where}: cut off")
        return np.frombuffer(content, self.dtype, count).reshape(shape)


def _from_array(
    values: _Array,
    labels: np.ndarray | None,
    offsets: np.ndarray | None,
    reading: Reading,
    progress: Progress,
) -> Iterator[Row | Bad]:
    """Yield the entries of an array along its first axis, or what offsets cut of it."""
    where, shape = values.where, values.shape
    if values.dtype.kind not in "fiub":
        raise UserError(f"{where}: {values.dtype}, where numbers are expected")
    if offsets is None and len(shape) not in (2, 3):
        raise UserError(
            f"{where}: shape {shape}, where sequences x steps x features, or sequences x steps, "
            "are expected"
        )
    if offsets is not None:
        offsets = offsets.ravel()
        if len(shape) not in (1, 2):
            raise UserError(f"{where}: shape {shape}, where steps x features are expected")
        if offsets.dtype.kind not in "iu" or len(offsets) < 1:
            raise UserError(f"{where}: its offsets are {offsets.dtype}, expected whole numbers")
        offsets = offsets.astype(np.int64)
        if offsets[0] or offsets[-1] != shape[0] or (np.diff(offsets) < 0).any():
            raise UserError(
                f"{where}: offsets must rise from 0 to its {shape[0]:,} steps, found "
                f"{offsets[0]:,} to {offsets[-1]:,}"
            )
    num = shape[0] if offsets is None else len(offsets) - 1
    if labels is not None and labels.size != num:
        raise UserError(f"{where}: {num:,} sequences, but {labels.size:,} labels")
    names = None if labels is None else labels.ravel()
    width = values.dtype.itemsize * int(np.prod(shape[1:], dtype=object))
    at_once = max(1, AT_ONCE // max(1, width)) if offsets is None else 1
    for first in range(0, num, at_once):
        if offsets is None:
            sequences = values.take(min(at_once, num - first))
        else:
            sequences = values.take(int(offsets[first + 1] - offsets[first]))[None]
        progress(sequences.nbytes)
        for number, sequence in enumerate(sequences, first):
            place = f"{where}[{number}]"
            try:
                label = None if names is None else _name(names[number], "label")
                steps, filled = _finish(sequence, reading.fill_missing)
            except _ProblemError as error:
                yield Bad(place, error.say())
            else:
                yield Row(str(number + 1), steps, label, None, None, place, None, filled)


def _read_labels(path: Path) -> np.ndarray:
    """Read the labels beside an .npy: another .npy, or a text of one a line."""
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _Array(file, path.stat().st_size, str(path)).whole()
        return np.array([line.strip() for line in _lines(path, lambda num_bytes: None)])
    except OSError as error:
        raise UserError(f"--labels {path}: cannot read it: {error.strerror or error}") from None


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


Reader = Callable[[Path, Reading, Progress], Iterator[Row | Bad]]
FORMATS: dict[str, Reader] = {
    "csv": partial(_read_table, delimiter=","),
    "tsv": partial(_read_table, delimiter="\t"),
    "ts": _read_ts,
    "jsonl": _read_jsonl,
    "npy": _read_npy,
    "npz": _read_npz,
    "parquet": _read_parquet,
}
COLUMNLESS = ("ts", "npy", "npz")
STREAMS = ("csv", "tsv", "ts", "jsonl")
