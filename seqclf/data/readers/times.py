"""Times that sort the steps of a sequence: numbers, dates or times of a clock."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from seqclf.data.readers.numbers import MISSING, parse_number
from seqclf.data.readers.rows import RowError, quote

_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")
_DATE = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(.*)")


class Times:
    """The times of a file, which are all of one kind."""

    def __init__(self) -> None:
        self._kind = ""  # of the first time
        self._where = ""  # where the first time is

    def parse(self, cell: str, where: str) -> float:
        """Return a time that sorts. Raises RowError if it is none, or of another kind."""
        kind, moment = _parse_time(cell)
        if not self._kind:
            self._kind, self._where = kind, where
        if kind != self._kind:
            raise RowError(
                f"time '{quote(cell)}' is {kind}, where the first time ({self._where}) is "
                f"{self._kind}; write all times alike"
            )
        return moment


def _parse_time(cell: str) -> tuple[str, float]:
    """Return the kind of a time, and a number that sorts it. Raises RowError."""
    text = cell.strip()
    if text.lower() in MISSING:
        raise RowError("no time")
    try:
        number = parse_number(text)
    except ValueError:
        pass
    else:
        if math.isinf(number):
            raise RowError(f"time '{quote(cell)}' is not finite")
        return "a number", number
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups(default="0")
        return "a time of a clock", int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    try:
        date = datetime.fromisoformat(_to_iso(text))
    except ValueError:
        raise RowError(
            f"time '{quote(cell)}' is neither a number nor a date like 2025-01-31T12:00 nor a "
            "time like 12:00:05"
        ) from None
    # Without a zone, UTC: the order of steps must not depend on this machine's zone.
    moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    return ("a date with a time zone" if date.tzinfo else "a date"), moment


def _to_iso(text: str) -> str:
    """Return a date that begins with its year, such as 2025/1/31 9:05, as ISO writes it."""
    if not (match := _DATE.fullmatch(text)):
        return text
    year, month, day, rest = match.groups()
    hours = re.sub(r"^([ T])(\d):", r"\g<1>0\2:", rest)
    return f"{year}-{month:0>2}-{day:0>2}{hours}"
