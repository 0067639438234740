"""Times that sort steps: equal ones, dates without a clock, and dates of two forms."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from helpers.reading import problems, write

from seqclf.data.readers import fast, read_rows
from seqclf.data.readers.rows import Journal, ReadOptions, Row

HEADER = "rec,when,x,activity\n"
OPTIONS = ReadOptions(id="rec", time="when", label="activity")
TWICE = (
    "{}: {} twice within a sequence, such as in 'b': does the file have lines twice, or is another "
    "column the time?"
)
START = datetime(2024, 3, 1, 8)


def table(*times: str) -> str:
    """Return a sequence `a`, one time a line, and a sequence `b` of these times."""
    lines = [f"a,{index},{index},walk" for index in range(len(times))]
    if not times[0].isdecimal():
        lines = [f"a,{START + timedelta(days=index)},{index},walk" for index in range(len(times))]
    return HEADER + "\n".join([*lines, *(f"b,{time},1,run" for time in times)]) + "\n"


def notes_on(path: Path) -> tuple[list[str], list[Row]]:
    journal = Journal()
    rows = [row for row in read_rows(path, OPTIONS, journal) if isinstance(row, Row)]
    return journal.notes, rows


@pytest.mark.parametrize("large", [2**20, 0], ids=["plain", "fast"])
@pytest.mark.parametrize(
    ("times", "said"),
    [
        (("1", "2", "3"), None),
        (("2", "1", "2"), "1 time comes"),
        (("5", "5", "5"), "2 times come"),
        (("2024-03-01 08:00:00", "2024-03-01 08:00:01", "2024-03-01 08:00:00"), "1 time comes"),
    ],
)
def test_equal_times_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: tuple[str, ...],
    said: str | None,
    large: int,
) -> None:
    monkeypatch.setattr(fast, "LARGE", large)
    path = write(tmp_path, "x.csv", table(*times))
    notes, rows = notes_on(path)
    assert notes == ([TWICE.format(path, said)] if said else [])
    assert len(rows) == 2
    nanoseconds = write(tmp_path, "n.csv", table("1700000000000000001", "1700000000000000002"))
    assert notes_on(nanoseconds)[0] == []


def test_equal_times_of_records_are_counted(tmp_path: Path) -> None:
    one = {"id": "b", "when": [3, 1, 3], "steps": [1, 2, 3], "activity": "run"}
    path = write(tmp_path, "x.jsonl", json.dumps(one | {"rec": "b"}))
    assert TWICE.format(path, "1 time comes") in notes_on(path)[0]


@pytest.mark.parametrize("large", [2**20, 0], ids=["plain", "fast"])
def test_a_date_without_a_clock_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(fast, "LARGE", large)
    path = write(tmp_path, "x.csv", table("2024-03-02", "2024-03-01 08:00:01"))
    note = (
        f"{path}:4: '2024-03-02' beside '2024-03-01 08:00:00' ({path}:2): a date without a clock, "
        "such as '2024-03-02', is its midnight"
    )
    notes, rows = notes_on(path)
    assert notes == [note]
    assert [row.id for row in rows] == ["a", "b"]
    # All alike is nothing to say.
    days = "".join(f"a,2024-03-{day:02},1,walk\n" for day in range(1, 9))
    assert notes_on(write(tmp_path, "days.csv", HEADER + days))[0] == []
    midnight = table("2024-03-02 00:00:00", "2024-03-02 01:00:00")
    assert notes_on(write(tmp_path, "midnight.csv", midnight))[0] == []


def test_dates_of_two_forms_are_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", table("2024-03-02 08:00:00", "01.03.2024 09:00:00"))
    assert problems(path, id="rec", time="when") == [
        "x.csv:5: time '01.03.2024 09:00:00' is a date that begins with the day, where the first "
        "time (x.csv:2) is a date; write all times alike"
    ]
    german = HEADER + "a,01.03.2024,1,walk\na,29.02.2024 08:00,2,walk\n"
    (row,) = notes_on(write(tmp_path, "g.csv", german))[1]
    assert row.steps.tolist() == [[2], [1]]  # type: ignore[union-attr]
    slashed = HEADER + "a,30/01/2024,1,walk\n"
    (problem,) = problems(write(tmp_path, "s.csv", slashed), id="rec", time="when")
    assert "31.01.2025 12:00 nor a time like 12:00:05; with / the year stands first" in problem
