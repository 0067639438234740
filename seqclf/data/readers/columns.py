"""What each column of a table means: decided from its name, its cells and the options, and said."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal, NamedTuple

from seqclf.data.readers.dialects import find_dialects
from seqclf.data.readers.numbers import Dialect
from seqclf.data.readers.rows import SPECIAL, Form, Journal, Names, ReadOptions, parse_name, quote
from seqclf.data.readers.survey import Column, Survey
from seqclf.errors import UserError

# Names in any case that say what a column is. The first that a table has is taken.
KNOWN = {
    "id": ("id",),
    "time": ("time", "timestamp", "datetime"),
    "label": ("label", "class", "target"),
    "group": ("group", "subject"),
    "split": ("split",),
}
# A number for a label or a group, such as label_id, says the same once more.
_CODE = re.compile(r"(.+?)[ _.-]?(?:id|idx|index|code|num|no|nr|number|encoded)")
# What pandas calls an index that it writes without a name, and what people call it.
_INDEX = re.compile(r"|unnamed: \d+|__index_level_\d+__|level_\d+|index|idx|row|rownum|row_?number")
_NUMBERED = re.compile(r"(.*?)(\d+(?:\.\d+)?)(\D*)")
FEW_STEPS = 8  # so few numbered columns may also be the features of a step


class Words(NamedTuple):
    """A column of tokens, or of texts."""

    kind: Literal["tokens", "text"]
    column: int


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by index."""

    names: list[str]  # of all columns; empty if the table has no header line
    count: int  # of all columns; without a header line those of the longest line
    special: dict[str, int]  # the columns of SPECIAL that the table has
    form: Form
    values: list[int] = field(default_factory=list)  # the columns of numbers, in their order
    dialects: tuple[Dialect, ...] = ()  # of these columns; empty if all are plain
    words: Words | None = None  # a column of words, in place of numbers

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns of numbers."""
        return tuple(self.title(index) for index in self.values)

    def title(self, index: int) -> str:
        """Return what a message calls a column."""
        return self.names[index] if self.names else str(index)

    def parse(self, role: str, cells: Sequence[str]) -> str | None:
        """Return the name in a line's cell of a special column, None if there is none."""
        index = self.special.get(role)
        # A line may end before the column.
        if index is None or index >= len(cells):
            return None
        return parse_name(cells[index], role)

    def parse_names(self, cells: Sequence[str]) -> Names:
        """Return a line's label, split and group. Raises RowError."""
        return Names(*(self.parse(role, cells) for role in Names._fields))


@dataclass(frozen=True)
class Table:
    """What is known of a table before its lines are read as sequences."""

    where: str  # the header line, for messages
    names: list[str]  # empty if there is no header line
    survey: Survey
    separator: str = ","
    index_columns: frozenset[str] = frozenset()  # what a file says is pandas' index
    is_one_sequence: bool = False  # each line is a step of it


def decide(table: Table, options: ReadOptions, journal: Journal) -> Columns:
    """Decide what each column is, and keep the decisions in the journal. Raises UserError."""
    columns = table.survey.columns
    special = find_special(table, options)
    rest = [index for index in range(len(columns)) if index not in special.values()]
    aside: dict[int, str] = _leave_aside_by_name(table, special, rest, options)
    rest = [index for index in rest if index not in aside]
    words = _find_words(table, rest, options)
    values: list[int] = []
    if words:
        title = _title(table, words.column)
        aside |= dict.fromkeys(rest, f"the sequences are the {words.kind} of '{title}'")
        aside.pop(words.column, None)
        has_steps = words.kind == "tokens" and "id" in special and _repeats(table, special["id"])
        form: Form = options.form or ("long" if has_steps else "wide")
    else:
        form = _choose_form(table, special, rest, options)
        values, more = _choose_values(table, rest, form, options)
        aside |= more
    if form == "wide" and "time" in special:
        if options.time is not None:
            raise UserError(f"--time {options.time}: sorts steps that stand in lines of their own")
        aside[special.pop("time")] = "the time of a whole sequence is no step"
    if not table.names and "label" in special and options.label is None:
        journal.note(
            f"{table.where}: no header line, so column {special['label']}, the first, is the label; --label "
            "-1 takes the last one"
        )
    journal.form = form
    journal.roles |= {role: _title(table, index) for role, index in special.items()}
    journal.left_aside |= {_title(table, index): why for index, why in aside.items()}
    if "label" not in special and options.needs_label:
        raise UserError(_ask_for_label(table, special))
    chosen = Columns(table.names, len(columns), special, form, values, words=words)
    columns_of_numbers = [columns[index] for index in values]
    dialects = find_dialects(columns_of_numbers, table.separator, journal)
    if len(set(chosen.features)) < len(values):
        repeated = next(name for name in chosen.features if chosen.features.count(name) > 1)
        raise UserError(f"{table.where}: column '{quote(repeated)}' comes twice")
    if form == "wide" and table.names:
        journal.columns = chosen.features
    elif form == "wide":
        journal.num_values = len(values)
    return replace(chosen, dialects=dialects)


def _find_words(table: Table, rest: Sequence[int], options: ReadOptions) -> Words | None:
    """Find a column of tokens or texts: one that options name, or by its name beside no numbers."""
    kinds: tuple[Literal["tokens", "text"], ...] = ("tokens", "text")
    for kind in kinds:
        if (name := getattr(options, kind)) is not None:
            return Words(kind, _index_of(table, name, f"--{kind}"))
    columns = table.survey.columns
    if options.features is None and not any(columns[index].has_numbers for index in rest):
        for kind in kinds:
            for index in rest:
                if columns[index].name.strip().lower() == kind and table.names:
                    return Words(kind, index)
    return None


def _title(table: Table, index: int) -> str:
    return table.names[index] if table.names else str(index)


def _index_of(table: Table, name: str, asked_by: str) -> int:
    """Return the index of a column that somebody names. Raises UserError."""
    if name in table.names:
        return table.names.index(name)
    num_columns = len(table.survey.columns)
    if not table.names:
        if re.fullmatch(r"-?\d+", name) and -num_columns <= int(name) < num_columns:
            return int(name) % num_columns
        raise UserError(
            f"{table.where}: no header line, so no column '{quote(name)}' ({asked_by}); say its "
            f"number, 0 to {num_columns - 1}, or -1 for the last"
        )
    near = get_close_matches(name.lower(), [known.lower() for known in table.names], 1)
    meant = next((known for known in table.names if near and known.lower() == near[0]), None)
    raise UserError(
        f"{table.where}: no column '{quote(name)}' ({asked_by}) among "
        f"{quote(', '.join(table.names))}"
        + (f"; did you mean '{quote(meant)}'?" if meant else "")
        + ("; cells are separated by " + repr(table.separator)) * (len(table.names) == 1)
    )


def find_special(table: Table, options: ReadOptions) -> dict[str, int]:
    """Find the columns with a meaning of their own: those that options name, or known names."""
    special: dict[str, int] = {}
    for role in SPECIAL:
        option = "--split-column" if role == "split" else f"--{role}"
        name = getattr(options, role)
        is_soft = role in options.soft and name not in table.names
        if name is not None and not is_soft and not _is_none(table, role, name):
            special[role] = _index_of(table, name, option)
    if not table.names:
        # The archives' tables have no header, and the label in the first column.
        if "label" not in special and 0 not in special.values() and _has_label(table, options):
            special["label"] = 0
        return special
    taken = {*(options.features or ()), *options.drop, options.tokens, options.text}
    for role, known in KNOWN.items():
        if role in special or (getattr(options, role) is not None and role not in options.soft):
            continue
        found = [
            index
            for name in known
            for index, title in enumerate(table.names)
            if title.lower() == name
            and title not in taken
            and index not in special.values()
            and (role != "time" or _is_time(table.survey.columns[index]))
        ]
        if role == "label" and len({table.names[index].lower() for index in found}) > 1:
            names = " and ".join(f"'{quote(table.names[index])}'" for index in found)
            raise UserError(f"{table.where}: both {names} may be the label; choose with --label")
        if found:
            special[role] = found[0]
    return special


def _is_none(table: Table, role: str, name: str) -> bool:
    """Whether `--label none` says that there is no label."""
    return role == "label" and name == "none" and name not in table.names


def _has_label(table: Table, options: ReadOptions) -> bool:
    """Whether the first column of a table without a header is the label. Raises UserError."""
    num_columns = len(table.survey.columns)
    if options.num_values is None:
        return True
    if num_columns not in (options.num_values, options.num_values + 1):
        raise UserError(
            f"{table.where}: no header line, and {num_columns} columns, where "
            f"{options.wanted_by} reads {options.num_values}; which is the label? say --label 0, "
            "or --label none"
        )
    return num_columns > options.num_values


def _is_time(column: Column) -> bool:
    """Whether a column that is called time can sort the steps."""
    kinds = column.first.keys()
    return bool(kinds) and (kinds <= {"whole", "point"} or kinds <= {"time"})


def _leave_aside_by_name(
    table: Table, special: Mapping[str, int], rest: Sequence[int], options: ReadOptions
) -> dict[int, str]:
    """Find columns that are no features, whatever they hold; return why not."""
    aside: dict[int, str] = {}
    known_as = {name: role for role, names in KNOWN.items() for name in names}
    for index in rest:
        name = table.names[index] if table.names else str(index)
        column = table.survey.columns[index]
        lower = name.strip().lower()
        if name in options.drop:
            aside[index] = "--drop"
        elif options.features is not None:
            if name not in options.features:
                aside[index] = f"not among {options.wanted_by}"
        elif not table.names:
            continue
        elif not name:
            aside[index] = "counts the rows" if column.counts_rows else "has no name"
        elif name in table.index_columns or (_INDEX.fullmatch(lower) and column.counts_rows):
            aside[index] = "counts the rows" if column.counts_rows else "pandas' index"
        else:
            code = _CODE.fullmatch(lower)
            role = known_as.get(lower) or (code and known_as.get(code[1]))
            if role in ("id", "label", "group"):
                taken = f", which is {table.names[special[role]]}" if role in special else ""
                aside[index] = f"by its name another {role}{taken}"
    missing = [name for name in options.drop if name not in table.names]
    if missing:
        _index_of(table, missing[0], "--drop")
    return aside


def _choose_form(
    table: Table, special: Mapping[str, int], rest: Sequence[int], options: ReadOptions
) -> Form:
    """Decide whether a line is a step (long) or a sequence (wide)."""
    if table.is_one_sequence:
        return "long"
    if options.form is not None:
        if options.form == "long" and "id" not in special:
            raise UserError(_ask_for_id(table, special, rest))
        return options.form
    if not table.names:
        return "long" if "id" in special and _repeats(table, special["id"]) else "wide"
    numbered = _numbered(table.names, rest)
    if "id" in special:
        if options.time is not None or _repeats(table, special["id"]):
            if options.id is None and options.time is None and len(numbered) > 1:
                first, last = table.names[numbered[0]], table.names[numbered[-1]]
                raise UserError(
                    f"{table.where}: '{table.names[special['id']]}' has lines of the same id, and "
                    f"'{first}' to '{last}' count as steps do; say --form long (a line is a step) "
                    "or --form wide (a line is a sequence)"
                )
            return "long"
        return "long" if options.id is not None and len(numbered) < 3 else "wide"
    if options.time is not None:
        raise UserError(_ask_for_id(table, special, rest, f"--time {options.time}"))
    others = [index for index in rest if index not in numbered]
    if len(numbered) < FEW_STEPS and _id_candidates(table, others):
        raise UserError(_ask_for_id(table, special, rest))
    return "wide"


def _repeats(table: Table, index: int) -> bool:
    """Whether lines that follow each other have the same id."""
    return table.survey.columns[index].num_runs < table.survey.num_lines


def _numbered(names: Sequence[str], indices: Sequence[int]) -> list[int]:
    """Return the columns that count, such as t0, t1, t2, in this order; none if few do."""
    groups: defaultdict[tuple[str, str], dict[float, int]] = defaultdict(dict)
    for index in indices:
        if match := _NUMBERED.fullmatch(names[index].strip()):
            groups[match[1], match[3]].setdefault(float(match[2]), index)
    largest = max(groups.values(), key=len, default={})
    if len(largest) < 2 or 2 * len(largest) < len(indices):
        return []
    return [largest[number] for number in sorted(largest)]


def _id_candidates(table: Table, indices: Sequence[int]) -> list[str]:
    """Return the columns that may be the id: their cells stay the same for some lines."""
    lines = table.survey.num_lines
    return [
        table.names[index]
        for index in indices
        if 2 <= (column := table.survey.columns[index]).num_runs <= lines // 2
        and column.first.keys() - {"missing"} <= {"word", "whole"}
    ]


def _ask_for_id(
    table: Table, special: Mapping[str, int], rest: Sequence[int], reason: str = ""
) -> str:
    candidates = _id_candidates(table, rest)
    named = ", ".join(f"'{quote(name)}'" for name in candidates)
    choice = f" (perhaps {named})" if named else ""
    return (
        f"{table.where}: {reason}{': ' * bool(reason)}if a line is a step, say --id, the column "
        f"that tells sequences apart{choice}; if a line is a sequence, say --form wide"
    )


def _ask_for_label(table: Table, special: Mapping[str, int]) -> str:
    candidates = [
        f"'{quote(column.name)}' ({', '.join(map(quote, list(column.values)[:3]))}"
        + ", …" * (len(column.values) > 3)
        + ")"
        for index, column in enumerate(table.survey.columns)
        if index not in special.values() and column.is_choice
    ]
    meant = f"; it may be {' or '.join(candidates[:6])}" if candidates else ""
    return f"{table.where}: no column is called label; say --label{meant}"


def _choose_values(
    table: Table, rest: Sequence[int], form: Form, options: ReadOptions
) -> tuple[list[int], dict[int, str]]:
    """Return the columns of numbers, and why the others are none."""
    if options.features is not None and table.names:
        return _wanted(table, form, options), {}
    if options.features is not None and options.wanted_by == "--features":
        return [_index_of(table, name, "--features") for name in options.features], {}
    aside: dict[int, str] = {}
    values = []
    for index in rest:
        column = table.survey.columns[index]
        if column.has_numbers or (form == "wide" and not table.names):
            values.append(index)
        elif column.first.keys() <= {"missing"}:
            if form == "wide":
                values.append(index)  # where no sequence of the file is as long
            else:
                aside[index] = "no value in any line"
        elif column.first.keys() <= {"missing", "boolean"}:
            values.append(index)
        elif "word" not in column.first:
            aside[index] = f"times: {column.words}; --time sorts the steps by it"
        else:
            aside[index] = f"words: {column.words}"
    if form == "wide" and table.names:
        values = _steps_of(table, values, aside)
    if not values:
        words = [name for i, why in aside.items() if "words" in why and (name := table.names[i])]
        remedy = f"; --tokens {words[0]} reads its words" if words else ""
        beside = ", ".join(quote(name) for name in table.names)
        raise UserError(f"{table.where}: no column of numbers among {beside}{remedy}")
    return values, aside


def _wanted(table: Table, form: Form, options: ReadOptions) -> list[int]:
    """Return the columns that the options or a model name, in that order."""
    assert options.features is not None
    missing = [name for name in options.features if name not in table.names]
    # pandas numbers columns without names: they say no more than their places.
    positions = [str(number) for number in range(len(table.names))]
    if missing and form == "wide" and table.names == positions[: len(options.features)]:
        return list(range(len(table.names)))
    if missing and options.wanted_by != "--features":
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{table.where}: no column '{quote(missing[0])}'{more}, which {options.wanted_by} "
            f"reads; found {quote(', '.join(table.names))}"
        )
    return [_index_of(table, name, "--features") for name in options.features]


def _steps_of(table: Table, values: list[int], aside: dict[int, str]) -> list[int]:
    """Return the columns of a wide table that are steps: those that count, if most do."""
    groups = defaultdict(list)
    for index in values:
        if match := _NUMBERED.fullmatch(table.names[index].strip()):
            groups[match[1], match[3]].append(index)
    sizes = sorted((len(group) for group in groups.values()), reverse=True)
    if len(sizes) > 1 and sizes[0] == sizes[1] > 2:
        first, second = [group for group in groups.values() if len(group) == sizes[0]][:2]
        names = [f"'{quote(table.names[i])}'" for i in (first[0], first[1], second[0], second[1])]
        raise UserError(
            f"{table.where}: {names[0]}, {names[1]} ... and {names[2]}, {names[3]} ... look like "
            "several features of a step; a line holds one feature: choose the columns with "
            "--features, or write a line a step"
        )
    numbered = _numbered(table.names, values)
    if not numbered:
        return values
    first_name, last_name = table.names[numbered[0]], table.names[numbered[-1]]
    for index in values:
        if index not in numbered:
            aside[index] = f"not one of the steps {first_name} ... {last_name}"
    return numbered
