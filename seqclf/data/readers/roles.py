"""What columns of a table mean by their names: the id, the time, the label, an index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from seqclf.data.readers.numbers import NUMBERS
from seqclf.data.readers.rows import SPECIAL, ReadOptions, RowError, quote
from seqclf.data.readers.survey import Column, Survey
from seqclf.data.readers.times import parse_time
from seqclf.errors import UserError

# Names in any case that say what a column is. The first that a table has is taken.
KNOWN = {
    "id": ("id",),
    "time": ("time", "timestamp", "datetime", "date"),
    "label": ("label", "class", "target"),
    "group": ("group", "subject", "group_id", "subject_id", "subjectid", "subject id"),
    "split": ("split",),
}
MOST_LISTED = 20  # names in a message
# A number for a label or a group, such as label_id, says the same once more.
_CODE = re.compile(r"(.+?)[ _.-]?(?:id|idx|index|code|num|no|nr|number|encoded)")
_UNNAMED = re.compile(r"|unnamed: \d+(?:\.\d+)?")  # pandas names what has no name
_INDEX = re.compile(r"index|level_\d+")  # what pandas calls an index as a column
_COUNTER = re.compile(r"idx|#|no|nr|rowid|(?:row|line|obs)[ _.]?(?:id|idx|index|num|number|no|nr)?")


@dataclass(frozen=True)
class Table:
    """What is known of a table before its lines are read as sequences."""

    where: str  # the header line, for messages
    names: list[str]  # empty if there is no header line
    survey: Survey
    separator: str = ","
    index_columns: frozenset[str] = frozenset()  # what a file says is pandas' index
    is_one_sequence: bool = False  # each line is a step of it

    def title(self, index: int) -> str:
        """Return what messages call a column: its name, or its number."""
        return self.names[index] if self.names else str(index)


def list_names(names: Sequence[str]) -> str:
    """Return names for a message: the first ones, and how many more there are."""
    rest = len(names) - MOST_LISTED
    shown = ", ".join(quote(name) or "''" for name in names[:MOST_LISTED])
    return shown + (f" and {rest:,} more" if rest > 0 else "")


def index_of(table: Table, name: str, asked_by: str) -> int:
    """Return the index of a column that somebody names. Raises UserError."""
    num_columns = len(table.survey.columns)
    if not table.names:
        if re.fullmatch(r"-?\d+", name) and -num_columns <= int(name) < num_columns:
            return int(name) % num_columns
        raise UserError(
            f"{table.where}: no header line, so no column '{quote(name)}' ({asked_by}); say its "
            f"number, 0 to {num_columns - 1}, or -1 for the last; or say --header first"
        )
    if table.names.count(name) > 1:
        raise UserError(
            f"{table.where}: column '{quote(name)}' comes twice ({asked_by}); rename one"
        )
    if name in table.names:
        return table.names.index(name)
    near = get_close_matches(name.lower(), [known.lower() for known in table.names], 1)
    meant = next((known for known in table.names if near and known.lower() == near[0]), None)
    raise UserError(
        f"{table.where}: no column '{quote(name)}' ({asked_by}) among {list_names(table.names)}"
        + (f"; did you mean '{quote(meant)}'?" if meant else "")
        + ("; cells are separated by " + repr(table.separator)) * (len(table.names) == 1)
    )


def option_of(role: str) -> str:
    """Return the option that names the column of a role."""
    return "--split-column" if role == "split" else f"--{role}"


def find_special(table: Table, options: ReadOptions) -> dict[str, int]:
    """Find the columns with a meaning of their own: those that options name, or known names.

    Raises UserError if a column is missing, or if several may be meant.
    """
    special: dict[str, int] = {}
    for role in SPECIAL:
        name = getattr(options, role)
        is_optional = role in options.soft and (options.numbered or name not in table.names)
        if name is not None and not is_optional and not _is_none(table, role, name):
            special[role] = index_of(table, name, option_of(role))
    # pandas numbers columns without names: such a header says no more than none.
    are_numbers = options.numbered and table.names == [str(i) for i in range(len(table.names))]
    if not table.names or are_numbers:
        return special if table.is_one_sequence else special | _by_number(table, special, options)
    taken = {*(options.features or ()), *options.drop, options.tokens, options.text}
    for role, known in KNOWN.items():
        if role in special or (getattr(options, role) is not None and role not in options.soft):
            continue
        found = [
            index
            for name in known
            for index, title in enumerate(table.names)
            if title.lower() == name and title not in taken and index not in special.values()
        ]
        if role == "time":
            found = found if len(found) == 1 and not _why_not_time(table, found[0]) else []
        elif role in ("id", "label") and len(found) > 1:
            if role == "label" and not options.needs_label:
                continue
            names = " and ".join(f"'{quote(table.names[index])}'" for index in found)
            raise UserError(
                f"{table.where}: {names} may all be the {role}; choose with --{role}, or rename "
                "those of the same name"
            )
        if found:
            special[role] = found[0]
    return special


def _is_none(table: Table, role: str, name: str | None) -> bool:
    """Whether `--label none` says that there is no label."""
    return role == "label" and name == "none" and name not in table.names


def _by_number(table: Table, special: Mapping[str, int], options: ReadOptions) -> dict[str, int]:
    """Find special columns of a table without a header, beside those that are asked for.

    The archives' tables have the label in the first column. A model knows where the columns of its
    training files were; the label may be missing. Raises UserError if the number of columns tells
    nothing.
    """
    count = len(table.survey.columns)
    known = {
        role: int(name)
        for role in options.soft - special.keys()
        if options.numbered
        and (name := getattr(options, role))
        and name.isdecimal()
        and int(name) < count
    }
    if _is_none(table, "label", options.label) or "label" in special:
        return {role: index for role, index in known.items() if role != "label"}
    first = {} if 0 in special.values() or "0" in (options.features or ()) else {"label": 0}
    num_values = options.num_values
    if options.features is not None and options.wanted_by != "--features":
        num_values = len(options.features)
    if num_values is None:
        return known or first
    known = known or first
    num_free = count - num_values - len(special)
    without = {role: index for role, index in known.items() if role != "label"}
    if num_free == len(known):
        return known
    if num_free == len(without) and all(index < known["label"] for index in without.values()):
        return without
    raise UserError(
        f"{table.where}: no header line, and {count} columns, where {options.wanted_by} reads "
        f"{num_values}; which is the label? say --label 0, or --label none"
    )


def _why_not_time(table: Table, index: int) -> str:
    """Return why a column cannot sort the steps; nothing if it can."""
    first = table.survey.columns[index].first
    if "missing" in first:
        return f"{first['missing'][0]} has none"
    if first.keys() <= NUMBERS:
        return ""
    for kind, (where, cell) in first.items():
        if kind not in NUMBERS and (kind != "time" or not _is_time(cell)):
            return f"'{quote(cell.strip())}' ({where}) is no time that is read"
    if first.keys() == {"time"}:
        return ""
    cells = [cell.strip() for _, cell in first.values()]
    return f"'{quote(cells[0])}' and '{quote(cells[1])}' are of two kinds"


def _is_time(cell: str) -> bool:
    try:
        parse_time(cell)
    except RowError:
        return False
    return True


def reasons_by_name(
    table: Table, special: Mapping[str, int], indices: Sequence[int]
) -> dict[int, str]:
    """Find columns that are no features by their names, whatever they hold; return why not."""
    roles = {name: role for role, names in KNOWN.items() for name in names}
    reasons = {}
    for index in indices if table.names else ():
        name = table.names[index]
        lower = name.lower()
        column = table.survey.columns[index]
        code = _CODE.fullmatch(lower)
        role = roles.get(lower) or (roles.get(code[1]) if code else None)
        if not name or _UNNAMED.fullmatch(lower):
            reasons[index] = _counts(column) or "has no name"
        elif name in table.index_columns or re.fullmatch(r"__index_level_\d+__", lower):
            reasons[index] = _counts(column) or "pandas' index"
        elif _COUNTER.fullmatch(lower) and column.counts_rows:
            reasons[index] = _counts(column)
        elif _INDEX.fullmatch(lower) and _is_index(column, table.survey):
            reasons[index] = _counts(column) or "by its name an index"
        elif role is not None:
            reasons[index] = _why_no_feature(table, special, role, index)
    return {index: reason for index, reason in reasons.items() if reason}


def _counts(column: Column) -> str:
    return "counts the rows" if column.counts_rows and column.has_value else ""


def _is_index(column: Column, survey: Survey) -> bool:
    """Whether a column may be an index: whole numbers, of which no neighbours are equal."""
    return column.first.keys() == {"whole"} and column.num_runs == survey.num_lines


def _why_no_feature(table: Table, special: Mapping[str, int], role: str, index: int) -> str:
    """Return why a column that is called as a role is no feature."""
    if role in special:
        return f"by its name another {role}, beside '{quote(table.title(special[role]))}'"
    if role == "time":
        names = [name for name in table.names if name.lower() in KNOWN["time"]]
        if table.names[index].lower() not in KNOWN["time"]:
            return ""  # such as time_no
        if len(names) > 1:
            return f"{' and '.join(map(quote, names))} may all be the time; --time takes one"
        why = _why_not_time(table, index)
        return f"by its name the time, but {why}; the lines keep their order"
    return f"by its name a {role}; {option_of(role)} takes it"
