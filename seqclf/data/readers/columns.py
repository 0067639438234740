"""What each column of a table means: decided from its name, its cells and the options, and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from seqclf.data.readers.dialects import find_dialects
from seqclf.data.readers.numbers import NUMBERS, CellKind, Dialect, kind_of
from seqclf.data.readers.roles import (
    Table,
    find_special,
    index_of,
    list_names,
    option_of,
    reasons_by_name,
)
from seqclf.data.readers.rows import (
    NO_LABEL,
    Form,
    Journal,
    Names,
    ReadOptions,
    parse_name,
    quote,
)
from seqclf.data.readers.survey import Column
from seqclf.data.readers.wide import choose_steps, numbered_groups, steps_of_model
from seqclf.errors import UserError

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
    time_dialect: Dialect = "plain"
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


def decide(table: Table, options: ReadOptions, journal: Journal) -> Columns:
    """Decide what each column is, and keep the decisions in the journal. Raises UserError."""
    special = find_special(table, options)
    aside = dict.fromkeys(_dropped(table, special, options), "--drop")
    beside = {*special.values(), *aside}
    rest = [index for index in range(len(table.survey.columns)) if index not in beside]
    words = _find_words(table, rest, options)
    values: list[int] = []
    if words:
        form = _form_of_words(table, special, rest, words, options)
        reason = f"the sequences are the {words.kind} of '{quote(table.title(words.column))}'"
        aside |= dict.fromkeys((index for index in rest if index != words.column), reason)
    else:
        reasons = reasons_by_name(table, special, rest)
        named = [index for index in rest if index not in reasons]
        form = _choose_form(table, special, named, options)
        if options.features is not None:
            values = _wanted(table, rest, named, form, options, journal)
            reason = f"not in {options.wanted_by}"
            if options.wanted_by != "--features":
                reason = f"no feature of {options.wanted_by}"
            aside |= dict.fromkeys(set(rest).difference(values), reason)
        else:
            aside |= reasons
            values = _choose_values(table, named, form, aside, journal)
    if form == "wide" and "time" in special:
        if options.time is not None and "time" not in options.soft:
            raise UserError(f"--time {options.time}: sorts steps that stand in lines of their own")
        aside[special.pop("time")] = "the time of a whole sequence is no step"
    _write_journal(table, special, aside, form, options, journal)
    if "label" not in special and options.needs_label:
        raise UserError(_ask_for_label(table, special, options))
    if "label" in special and options.needs_label:
        _check_labels(table, special["label"])
    chosen = Columns(table.names, len(table.survey.columns), special, form, values, words=words)
    if form == "wide" and table.names:
        # Of files that end earlier or later, the longest tells all names.
        journal.columns = max(chosen.features, journal.columns, key=len)
        if options.features is None:
            journal.open_end = not options.drop
    elif form == "wide":
        journal.num_values = len(values)
    journal.numbered = not table.names and not table.is_one_sequence
    num_values = len(options.features) if options.features else options.num_values
    if form == "wide" and values and num_values not in (None, len(values)):
        journal.note(
            f"{table.where}: {len(values):,} columns are steps, where {options.wanted_by} has "
            f"{num_values:,}"
        )
    return _with_dialects(table, chosen, journal)


def _dropped(table: Table, special: Mapping[str, int], options: ReadOptions) -> list[int]:
    """Return the columns that --drop names. Raises UserError if they are asked for, too."""
    dropped = [index_of(table, name, "--drop") for name in options.drop]
    for name, index in zip(options.drop, dropped, strict=True):
        for role, column in special.items():
            if column == index:
                raise UserError(
                    f"--drop {name}: this column is the {role}; {option_of(role)} names another"
                )
        if options.features is not None and table.title(index) in options.features:
            raise UserError(f"--drop {name}: {options.wanted_by} reads this column")
    return dropped


def _write_journal(
    table: Table,
    special: Mapping[str, int],
    aside: Mapping[int, str],
    form: Form,
    options: ReadOptions,
    journal: Journal,
) -> None:
    if not table.names and not table.is_one_sequence:
        note = f"{table.where}: no header line"
        if "label" in special and (options.label is None or "label" in options.soft):
            note += f", so column {special['label']} is the label (--label -1 takes the last one)"
        journal.note(note + "; --header first takes names from the first line")
    if form == "long" and "time" in options.soft and "time" not in special:
        journal.note(
            f"{table.where}: no column '{quote(options.time or '')}', by which the steps of the "
            "training files are sorted; the lines keep their order"
        )
    if form == "wide" and "id" in options.soft and "id" not in special and table.names:
        journal.note(
            f"{table.where}: no column '{quote(options.id or '')}', so ids count lines from 0"
        )
    journal.form = form
    journal.roles |= {role: table.title(index) for role, index in special.items()}
    num_columns = Counter(table.names)
    for index in sorted(aside):
        title = table.title(index)
        if num_columns[title] > 1:
            title = f"{title} (column {index + 1})".strip()
        journal.left_aside[title] = aside[index]


def _with_dialects(table: Table, chosen: Columns, journal: Journal) -> Columns:
    """Find out how the columns write their numbers. Raises UserError if they do not."""
    columns = table.survey.columns
    indices = [*chosen.values, *([chosen.special["time"]] if "time" in chosen.special else [])]
    read = [columns[index] for index in indices]
    dialects = find_dialects(read, table.separator, journal)
    num_values = len(chosen.values)
    for column, dialect in zip(read[:num_values], dialects, strict=False):
        if dialect != "boolean" and 2 * column.num_words > table.survey.num_lines:
            raise UserError(_refuse_words(table, column))
    is_plain = all(dialect == "plain" for dialect in dialects[:num_values])
    return replace(
        chosen,
        dialects=() if is_plain else dialects[:num_values],
        time_dialect=dialects[-1] if "time" in chosen.special else "plain",
    )


def _refuse_words(table: Table, column: Column) -> str:
    no_numbers = (kind for kind in column.first if kind not in NUMBERS and kind != "missing")
    where, cell = column.first[next(no_numbers)]
    name = quote(column.name)
    remedy = f"--drop {name} leaves the column out"
    if "word" in column.first:
        remedy += f", --tokens {name} reads its words"
        if not table.names:
            remedy += f", --label {name} takes it for the label"
    return (
        f"{where}, column {name}: '{quote(cell.strip())}' is not a number, nor are most cells of "
        f"the column; {remedy}"
    )


def _find_words(table: Table, rest: Sequence[int], options: ReadOptions) -> Words | None:
    """Find a column of tokens or texts: one that options name, or by its name beside no numbers."""
    kinds: tuple[Literal["tokens", "text"], ...] = ("tokens", "text")
    for kind in kinds:
        if (name := getattr(options, kind)) is not None:
            return Words(kind, index_of(table, name, f"--{kind}"))
    columns = table.survey.columns
    if options.features is None and not any(columns[index].has_numbers for index in rest):
        for kind in kinds:
            for index in rest:
                if columns[index].name.lower() == kind and table.names:
                    return Words(kind, index)
    return None


def _form_of_words(
    table: Table,
    special: Mapping[str, int],
    rest: Sequence[int],
    words: Words,
    options: ReadOptions,
) -> Form:
    """Decide whether a line holds a token or all tokens of a sequence. Raises UserError."""
    others = [index for index in rest if index != words.column]
    if options.form == "long" and words.kind == "text":
        raise UserError(f"--form long: a text ('{table.title(words.column)}') is a sequence")
    if options.form == "long" and "id" not in special:
        raise UserError(_ask_for_id(table, others, _lacks_id(options)))
    if options.form is not None or words.kind == "text":
        return options.form or "wide"
    if "id" in special:
        return "long" if _repeats(table, special["id"]) else "wide"
    one_each = not any(" " in cell.strip() for cell in table.survey.columns[words.column].values)
    if one_each and _id_candidates(table, others):
        raise UserError(_ask_for_id(table, others))
    return "wide"


def _choose_form(
    table: Table, special: Mapping[str, int], rest: Sequence[int], options: ReadOptions
) -> Form:
    """Decide whether a line is a step (long) or a sequence (wide). Raises UserError."""
    if table.is_one_sequence:
        return "long"
    if options.form is not None:
        if options.form == "long" and "id" not in special:
            raise UserError(_ask_for_id(table, rest, _lacks_id(options)))
        return options.form
    asked = "id" in special and options.id is not None and "id" not in options.soft
    if not table.names:
        return "long" if "id" in special and _repeats(table, special["id"]) else "wide"
    numbered = next(iter(numbered_groups(table.names, rest)), [])
    if len(numbered) < 2 or 2 * len(numbered) < len(rest):
        numbered = []
    if "id" in special:
        if options.time is not None or _repeats(table, special["id"]):
            if not asked and options.time is None and numbered:
                first, last = table.names[numbered[0]], table.names[numbered[-1]]
                raise UserError(
                    f"{table.where}: '{table.names[special['id']]}' has lines of the same id, and "
                    f"'{quote(first)}' to '{quote(last)}' count as steps do; say --form long (a "
                    "line is a step) or --form wide (a line is a sequence)"
                )
            return "long"
        return "long" if asked and len(numbered) < 3 else "wide"
    if options.time is not None and "time" not in options.soft:
        raise UserError(_ask_for_id(table, rest, f"--time {options.time}"))
    others = sorted(set(rest).difference(numbered))
    if "group" in special and not numbered:
        others.append(special["group"])
    if len(numbered) < FEW_STEPS and _id_candidates(table, others):
        raise UserError(_ask_for_id(table, others))
    return "wide"


def _repeats(table: Table, index: int) -> bool:
    """Whether lines that follow each other have the same id."""
    return table.survey.columns[index].num_runs < table.survey.num_lines


def _id_candidates(table: Table, indices: Sequence[int]) -> list[str]:
    """Return the columns that may be the id: their cells stay the same for some lines."""
    lines = table.survey.num_lines
    return [
        table.title(index)
        for index in indices
        if 2 <= (column := table.survey.columns[index]).num_runs <= lines // 2
        and column.first.keys() - {"missing"} <= {"word", "whole"}
    ]


def _lacks_id(options: ReadOptions) -> str:
    """Return what a message says of an id that the training files had; nothing if they had none."""
    return f"no column '{quote(options.id or '')}'" if "id" in options.soft else ""


def _ask_for_id(table: Table, rest: Sequence[int], reason: str = "") -> str:
    named = ", ".join(f"'{quote(name)}'" for name in _id_candidates(table, rest))
    choice = f" (perhaps {named})" if named else ""
    return (
        f"{table.where}: {reason}{': ' * bool(reason)}if a line is a step, say --id, the column "
        f"that tells sequences apart{choice}; if a line is a sequence, say --form wide"
    )


def _check_labels(table: Table, index: int) -> None:
    """Refuse a column of labels that is empty. Raises UserError."""
    column = table.survey.columns[index]
    if all(cell.strip().lower() in NO_LABEL for cell in column.values):
        raise UserError(
            f"{table.where}: no sequence has a label: column '{quote(table.title(index))}' is "
            "empty; --label names another"
        )


def _ask_for_label(table: Table, special: Mapping[str, int], options: ReadOptions) -> str:
    candidates = [
        f"'{quote(column.name)}' ({', '.join(map(quote, list(column.values)[:3]))}"
        + ", …" * (len(column.values) > 3)
        + ")"
        for index, column in enumerate(table.survey.columns)
        if index not in special.values() and column.is_choice
    ]
    may_be = f"; it may be {' or '.join(candidates[:6])}" if candidates else ""
    if "label" in options.soft and table.names and not options.numbered:
        return (
            f"{table.where}: no column '{quote(options.label or '')}', the label of the training "
            f"files; found {list_names(table.names)}; --label names another{may_be}"
        )
    message = f"{table.where}: no column is called label; say --label{may_be}"
    if table.names and sum(kind_of(name) != "word" for name in table.names) > 2:
        message += "; or --header none, if the first line is no header"
    return message


def _choose_values(
    table: Table, rest: Sequence[int], form: Form, aside: dict[int, str], journal: Journal
) -> list[int]:
    """Return the columns of numbers; say in `aside` why others are none. Raises UserError."""
    values = []
    for index in rest:
        column = table.survey.columns[index]
        is_boolean = column.first.keys() <= {"missing", "boolean"}
        # In a wide table, a column without a value stands where no sequence is as long.
        is_empty = form == "long" and not column.has_value
        is_step = form == "wide" and not table.names  # whatever it holds
        if is_step or column.has_numbers or (is_boolean and not is_empty):
            values.append(index)
        elif is_empty:
            aside[index] = "no value in any line"
        elif "word" not in column.first and "boolean" not in column.first:
            aside[index] = f"times: {column.words}; --time sorts the steps by it"
        else:
            aside[index] = f"words: {column.words}"
    if form == "wide" and table.names:
        values = choose_steps(table.where, table.names, values, aside, journal)
    if not values:
        columns = [table.survey.columns[index] for index in rest]
        words = [column.name for column in columns if "word" in column.first]
        remedy = f"; --tokens {quote(words[0])} reads its words" if words else ""
        beside = f"among {list_names(table.names) or 'none'}"
        if not table.names and table.survey.columns:
            beside = f"beside '{quote(next(iter(table.survey.columns[0].values), ''))}'"
        raise UserError(f"{table.where}: no column of numbers {beside}{remedy}")
    for title, count in Counter(map(table.title, values)).items():
        if count > 1:
            raise UserError(
                f"{table.where}: column '{quote(title)}' comes twice; rename one, or choose others "
                "with --features"
            )
    if form == "long":
        _note_counters(table, values, journal)
    return values


def _note_counters(table: Table, values: Sequence[int], journal: Journal) -> None:
    kinds: set[CellKind] = {"whole"}
    for index in values:
        column = table.survey.columns[index]
        if column.counts_rows and column.first.keys() == kinds and table.survey.num_lines > 2:
            title = quote(table.title(index))
            journal.note(f"{title}: counts the rows of the file; --drop {title} leaves it out")


def _wanted(
    table: Table,
    rest: Sequence[int],
    named: Sequence[int],
    form: Form,
    options: ReadOptions,
    journal: Journal,
) -> list[int]:
    """Return the columns that options, a model or a file before names, in that order."""
    features = options.features or ()
    num_columns = Counter(table.names)
    for name, count in Counter(features).items():
        if count > 1 or num_columns[name] > 1:
            raise UserError(f"{table.where}: column '{quote(name)}' comes twice; rename one")
    if options.wanted_by == "--features":
        return [index_of(table, name, "--features") for name in features]
    indices = {table.title(index): index for index in rest}
    missing = [name for name in features if name not in indices]
    if form == "wide" and (steps := steps_of_model(table.names, rest, options)):
        return steps
    if form == "wide" and table.names and len(features) > 1 and options.form is None:
        # Of several features a line in wide form has one.
        raise UserError(
            f"{table.where}: {options.wanted_by} reads {list_names(features)} at each step, and "
            "nothing tells sequences apart; if the file is one sequence, put it into a folder and "
            "name the folder; if a line is a step of one of several sequences, say --id"
        )
    if not missing:
        return [indices[name] for name in features]
    # pandas numbers columns without names: they say no more than their places.
    places = [str(number) for number in range(len(features))]
    has_places = not table.names or [table.names[index] for index in named] == places
    if form == "wide" and has_places and len(named) == len(features):
        journal.note(
            f"{table.where}: the columns have no names, so they are '{quote(features[0])}' to "
            f"'{quote(features[-1])}' by their places"
        )
        return list(named)
    more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    raise UserError(
        f"{table.where}: no column '{quote(missing[0])}'{more}, which {options.wanted_by} reads; "
        f"found {list_names([table.title(index) for index in rest])}"
    )
