"""Times that sort the steps of a sequence: numbers, dates or times of a clock."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from seqclf.data.readers.numbers import MISSING, Dialect, parse_number
from seqclf.data.readers.rows import Journal, RowError, quote

Moment = int | float  # whole numbers stay exact: nanoseconds since 1970 do not fit into a float

_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d(?:[.,]\d+)?))?")
_DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?:[ T](.*))?")
_GERMAN = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:[ T](.*))?")
_SLASHED = re.compile(r"\d{1,2}/\d{1,2}/\d{2}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Times:
    """The times of a file, which are all of one kind."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kind = ""  # of the first time
        self._where = ""  # where the first time is
        self._first = ""
        self._is_mixed = False  # dates with and without a clock, which is said

    def parse(self, cell: str, where: str, dialect: Dialect = "plain") -> Moment:
        """Return a time that sorts. Raises RowError if it is none, or of another kind."""
        kind, moment = parse_time(cell, dialect)
        if not self._kind:
            self._kind, self._where, self._first = kind, where, cell
        if kind != self._kind:
            raise RowError(
                f"time '{quote(cell)}' is {kind}, where the first time ({self._where}) is "
                f"{self._kind}; write all times alike"
            )
        if not self._is_mixed and has_clock(cell) != has_clock(self._first):
            self._is_mixed = True
            date = self._first if has_clock(cell) else cell
            self._journal.note(
                f"{where}: '{quote(cell)}' beside '{quote(self._first)}' ({self._where}): a date "
                f"without a clock, such as '{quote(date)}', is its midnight"
            )
        return moment


def has_clock(cell: str) -> bool:
    """Whether a date says the time of day, too."""
    return ":" in cell or "T" in cell


def count_equal(moments: Sequence[Moment]) -> int:
    """Return how many moments, in their order, are the one before them again."""
    return sum(map(operator.eq, moments[1:], moments))


def parse_time(cell: str, dialect: Dialect = "plain") -> tuple[str, Moment]:
    """Return the kind of a time, and a number that sorts it. Raises RowError."""
    text = cell.strip()
    if text.lower() in MISSING:
        raise RowError("no time")
    try:
        number = parse_number(text, dialect)
    except ValueError:
        pass
    else:
        if math.isinf(number):
            raise RowError(f"time '{quote(cell)}' is not finite")
        return "a number", int(text) if text.isdecimal() else number
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups(default="0")
        moment = int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
        return "a time of a clock", moment
    try:
        date = datetime.fromisoformat(_to_iso(text))
    except ValueError:
        slashed = "; with / the year stands first: 2025/01/31" if _SLASHED.match(text) else ""
        raise RowError(
            f"time '{quote(cell)}' is neither a number nor a date like 2025-01-31T12:00 or "
            f"31.01.2025 12:00 nor a time like 12:00:05{slashed}"
        ) from None
    # Without a zone, UTC: the order of steps must not depend on this machine's zone.
    since = (date if date.tzinfo else date.replace(tzinfo=UTC)) - _EPOCH
    nanoseconds = since // timedelta(microseconds=1) * 1000 + _nanoseconds(text)
    kind = "a date that begins with the day" if _GERMAN.fullmatch(text) else "a date"
    return kind + " with a time zone" * (date.tzinfo is not None), nanoseconds


def _nanoseconds(text: str) -> int:
    """Return what a time has beyond its microseconds, which datetime leaves out."""
    match = re.search(r":\d\d[.,]\d{6}(\d{1,3})", text)
    return int(match[1].ljust(3, "0")) if match else 0


def _to_iso(text: str) -> str:
    """Return a date such as 2025/1/31 9:05 or 31.1.2025 9:05 as ISO writes it."""
    if match := _DATE.fullmatch(text):
        year, _, month, day, clock = match.groups()
    elif match := _GERMAN.fullmatch(text):
        day, month, year, clock = match.groups()
    else:
        return text
    if clock is None:
        return f"{year}-{month:0>2}-{day:0>2}"
    clock = re.sub(r" ?UTC$", "Z", clock.strip()).replace(" ", "")
    hour, colon, rest = clock.partition(":")
    return f"{year}-{month:0>2}-{day:0>2}T{hour:0>2}{colon}{rest}"
