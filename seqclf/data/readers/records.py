"""Records: sequences that are objects with keys, such as {"steps": [[1, 2]], "label": "a"}."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from seqclf.data.readers.roles import KNOWN, list_names, option_of
from seqclf.data.readers.rows import (
    SPECIAL,
    BadRow,
    Journal,
    Names,
    ReadOptions,
    Row,
    RowError,
    Steps,
    count_of,
    finish_steps,
    parse_name,
    printable,
    quote,
)
from seqclf.data.readers.times import Times, count_equal
from seqclf.errors import UserError

VALUE_KEYS: tuple[Literal["steps", "tokens", "text"], ...] = ("steps", "tokens", "text")

# What a key holds: a list of numbers, of lists, or of words; a text, nothing, or another value.
Held = Literal["numbers", "lists", "words", "text", "nothing", "value"]
LISTS: tuple[Held, ...] = ("numbers", "lists", "words")


class Keys(NamedTuple):
    """What the keys of a record mean."""

    kind: Literal["steps", "tokens", "text"]
    values: tuple[str, ...]  # where the sequence is; several keys each hold a feature
    roles: dict[str, str]  # a word of SPECIAL -> its key
    is_by_name: bool = True  # whether the key of the sequence is one of VALUE_KEYS or an option's


class _OptionError(RowError):
    """An option names what a record does not have."""


def what_is_held(value: object) -> Held:
    """Return what a key of a JSON object holds."""
    if isinstance(value, list):
        first = next((cell for cell in value if cell is not None), None)
        kinds: list[tuple[type, Held]] = [(str, "words"), (list, "lists")]
        return next((held for kind, held in kinds if isinstance(first, kind)), "numbers")
    return "nothing" if value is None else "text" if isinstance(value, str) else "value"


def decide_keys(
    held: Mapping[str, Held],
    options: ReadOptions,
    journal: Journal,
    index_columns: Collection[str] = (),
) -> Keys:
    """Decide what each key is, and keep the decisions in the journal. Raises RowError."""
    aside = {key: "--drop" for key in held if key in options.drop}
    roles = _find_roles([key for key in held if key not in aside], options)
    aside |= {
        key: "pandas' index"
        for key in held
        if key in index_columns and key not in {*roles.values(), *(options.features or ())}
    }
    rest = {
        key: what
        for key, what in held.items()
        if key not in aside and (key not in roles.values() or key == roles.get("time"))
    }
    time = roles.get("time")
    if "label" not in roles and options.needs_label and options.label is None:
        one_value = [key for key, what in rest.items() if what in ("value", "text")]
        meant = f" (perhaps {list_names(one_value)})" if one_value else ""
        raise _OptionError(f"no key is called label; say --label{meant}")
    keys = _find_values({key: what for key, what in rest.items() if key != time}, options, roles)
    if time and (keys.kind == "text" or rest[time] not in ("numbers", "words")):
        if options.time is not None and "time" not in options.soft:
            raise _OptionError(f"--time {options.time}: sorts steps, and its key must hold a list")
        del roles["time"]
        aside[time] = "the time of a whole sequence is no step"
    for key, what in rest.items():
        if key not in (*keys.values, *roles.values(), *aside):
            taken = f"not among the {keys.kind}, in {_titles(keys.values)}"
            aside[key] = taken if what in LISTS else "one value for a whole sequence"
    journal.roles |= roles
    journal.left_aside |= {quote(key): why for key, why in aside.items()}
    return keys


def _titles(keys: Iterable[str]) -> str:
    return ", ".join(f"'{quote(key)}'" for key in keys)


def _find_roles(keys: Sequence[str], options: ReadOptions) -> dict[str, str]:
    """Find the keys with a meaning of their own: those that options name, or known names."""
    roles: dict[str, str] = {}
    taken = {*VALUE_KEYS, *(options.features or ()), options.tokens, options.text}
    for role in SPECIAL:
        name = getattr(options, role)
        if name in keys:
            roles[role] = name
            continue
        if role == "label" and name == "none":
            continue
        if name is not None and role not in options.soft:
            raise _OptionError(
                f"no key '{name}' ({option_of(role)}) among {quote(', '.join(keys))}"
            )
        found = [
            key
            for known in KNOWN[role]
            for key in keys
            if key.lower() == known and key not in taken and key not in roles.values()
        ]
        if role == "label" and len(found) > 1:
            if not options.needs_label:
                continue
            raise _OptionError(f"{_titles(found)} may all be the label; choose with --label")
        if found:
            roles[role] = found[0]
    return roles


def _find_values(rest: Mapping[str, Held], options: ReadOptions, roles: dict[str, str]) -> Keys:
    """Find the keys that hold the sequence. Raises RowError."""
    kinds: tuple[Literal["tokens", "text"], ...] = ("tokens", "text")
    for kind in kinds:
        name = getattr(options, kind)
        if name is not None and (name in rest or kind not in options.soft):
            if name not in rest:
                raise _OptionError(f"no key '{name}' (--{kind}) among {list_names([*rest])}")
            return Keys(kind, (name,), roles)
    lists = [key for key, what in rest.items() if what in ("numbers", "lists")]
    is_chosen = options.features is not None and options.wanted_by == "--features"
    if not is_chosen:
        found = [key for key in VALUE_KEYS if rest.get(key, "nothing") != "nothing"]
        if len(found) == 1:
            return Keys(found[0], (found[0],), roles)
        if found:
            raise RowError(
                f"expected one of steps, tokens and text, found {' and '.join(found)}; --drop "
                "leaves a key out"
            )
        if not lists:
            words = [key for key, what in rest.items() if what == "words"]
            remedy = f"; --tokens {quote(words[0])} reads a list of words" if words else ""
            raise RowError(
                "expected one of steps, tokens and text, or a list of numbers; found "
                f"{list_names([*rest])}{remedy}"
            )
    # A list alone is the steps, whatever the model or another file calls its features; but a list
    # of numbers is not several features.
    are_features = len(lists) > 1 or (
        len(options.features or ()) > 1 and [rest[key] for key in lists] == ["numbers"]
    )
    if options.features is not None and (is_chosen or are_features):
        missing = [name for name in options.features if name not in lists]
        if missing:
            by = "--features names" if is_chosen else f"{options.wanted_by} reads"
            raise _OptionError(
                f"no list '{quote(missing[0])}', which {by}; found {list_names(lists)}"
            )
        lists = list(options.features)
    bad_name = next((key for key in lists if printable(key) != key), None)
    if bad_name is not None:
        raise RowError(f"key '{quote(bad_name)}': control characters, or not UTF-8")
    return Keys("steps", tuple(lists), roles, is_by_name=is_chosen)


class RecordReader:
    """Makes sequences of records. The keys of lists must be the same in all of them."""

    def __init__(self, options: ReadOptions, journal: Journal, keys: Keys | None = None) -> None:
        self._options = options
        self._journal = journal
        self._keys = keys  # of all records; None: each record decides
        self._lists: tuple[str, ...] = ()  # the keys of the first record's lists
        if keys:
            self._keep_lists(keys)
        self._last_id: str | None = None
        self._has_repeated = False
        self._is_first = True
        self._times = Times(journal)

    def read(self, record: object, number: int, where: str) -> Row | BadRow:
        """Return the sequence of a record; `number` is its place, from 0.

        Raises UserError if options name what the first record does not have.
        """
        try:
            if not isinstance(record, dict):
                raise RowError('expected an object like {"steps": [[1.0, 2.0]], "label": "a"}')
            keys = self._keys or self._decide(record, where)
            row_id, *others = (
                parse_name(record.get(keys.roles.get(role, "")), role)
                for role in ("id", *Names._fields)
            )
            values, num_equal = self._in_order(_parse_values(record, keys), record, keys, where)
            found = _finish(values, keys, self._options)
        except RowError as error:
            return BadRow(where, error.message())
        if row_id and row_id == self._last_id and not self._has_repeated:
            self._has_repeated = True
            self._journal.note(
                f"{where}: id '{quote(row_id)}' comes again; each record is a sequence of its own"
            )
        self._last_id = row_id
        # A single list may hold lists, whose numbers have no names.
        has_names = len(keys.values) > 1 or (keys.kind == "steps" and self._chooses(keys, found))
        return Row(
            row_id or str(number),
            where=where,
            **Names(*others)._asdict(),
            features=keys.values if has_names else None,
            **found._asdict(),
            num_equal_times=num_equal,
        )

    def _chooses(self, keys: Keys, found: Steps) -> bool:
        """Whether --features names the one feature that there is."""
        return self._options.features == keys.values and found.steps.shape[1:] == (1,)  # type: ignore[union-attr]

    def _decide(self, record: Mapping[str, object], where: str) -> Keys:
        held = {key: what_is_held(value) for key, value in record.items()}
        try:
            keys = decide_keys(held, self._options, self._journal)
        except _OptionError as error:
            if self._is_first:
                raise UserError(f"{where}: {error.problem}") from None
            raise
        finally:
            self._is_first = False
        if keys.is_by_name:
            return keys
        if not self._lists:
            self._keep_lists(keys)
        if set(keys.values) != set(self._lists):
            raise RowError(
                f"lists {_titles(keys.values)}, where the records before have "
                f"{_titles(self._lists)}"
            )
        return keys._replace(values=self._lists)

    def _keep_lists(self, keys: Keys) -> None:
        """Keep, and say, which lists of the first record hold the steps."""
        if keys.is_by_name:
            return
        self._lists = keys.values
        if len(keys.values) == 1:
            self._journal.note(f"the steps are in {_titles(keys.values)}, the only list of numbers")
        else:
            self._journal.note(f"the features of a step are in the lists {_titles(keys.values)}")

    def _in_order(
        self,
        values: np.ndarray | tuple[str, ...],
        record: Mapping[str, object],
        keys: Keys,
        where: str,
    ) -> tuple[np.ndarray | tuple[str, ...], int]:
        """Return steps in the order of their times, and how many times are the one before."""
        if "time" not in keys.roles:
            return values, 0
        key = keys.roles["time"]
        times = record.get(key)
        if not isinstance(times, list) or len(times) != len(values):
            count = f"{len(times)} times" if isinstance(times, list) else "no list"
            raise RowError(f"'{quote(key)}': {count}, where there are {len(values)} steps")
        cells = ["" if time is None else str(time) for time in times]
        moments = [self._times.parse(cell, where) for cell in cells]
        order = sorted(range(len(moments)), key=moments.__getitem__)
        num_equal = count_equal([moments[index] for index in order])
        if isinstance(values, np.ndarray):
            return values[order], num_equal
        return tuple(values[index] for index in order), num_equal


def _parse_values(record: Mapping[str, object], keys: Keys) -> np.ndarray | tuple[str, ...]:
    """Return a record's numbers [T, F], bytes [T] or tokens. Raises RowError."""
    value = record.get(keys.values[0])
    if keys.kind == "text":
        return _parse_text(value)
    if keys.kind == "tokens":
        return _parse_tokens(value)
    return _parse_steps(value) if len(keys.values) == 1 else _join_lists(record, keys.values)


def _finish(values: np.ndarray | tuple[str, ...], keys: Keys, options: ReadOptions) -> Steps:
    """Return steps without padding and gaps. Raises RowError."""
    if not len(values):
        raise RowError("an empty sequence")
    if keys.kind != "steps":
        return Steps(values)
    try:
        return finish_steps(np.asarray(values), options)
    except RowError as error:
        if len(keys.values) == 1 or not error.has_position:
            raise
        raise RowError(error.message(_position(keys.values[error.feature], error.step))) from None


def _join_lists(record: Mapping[str, object], keys: Iterable[str]) -> np.ndarray:
    """Return lists of numbers as the features [T, F] of steps. Raises RowError."""
    columns: dict[str, np.ndarray] = {}
    for key in keys:
        try:
            column = _parse_steps(record.get(key))
        except RowError as error:
            message = error.message(_position(key, error.step))
            raise RowError(
                message if error.has_position else f"'{quote(key)}': {message}"
            ) from None
        if column.size and column.shape[1] != 1:
            raise RowError(
                f"'{quote(key)}': lists in a list, beside other lists; choose the list of the "
                "steps with --features"
            )
        columns[key] = column.reshape(-1, 1)
    (first, steps), *others = columns.items()
    for key, column in others:
        if len(column) != len(steps):
            raise RowError(
                f"{len(column)} values in '{quote(key)}', where '{quote(first)}' has {len(steps)}"
            )
    return np.hstack([*columns.values()])


def _position(key: str, step: int) -> str:
    return f"'{quote(key)}', step {step + 1}"


def _type_of(value: object) -> str:
    return "no value" if value is None else f"a {type(value).__name__}"


def _parse_text(value: object) -> np.ndarray:
    if not isinstance(value, str):
        raise RowError(f"text: {_type_of(value)}, expected a text")
    try:
        return np.frombuffer(value.encode(), np.uint8)
    except UnicodeEncodeError:
        raise RowError("text: not UTF-8") from None


def _parse_tokens(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RowError(f"tokens: {_type_of(value)}, expected a list")
    for number, token in enumerate(value, 1):
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise RowError(f"token {number}: expected a text or a whole number")
        # JSON can escape half of a surrogate pair, which no file in UTF-8 can hold.
        if isinstance(token, str) and any("\ud800" <= letter <= "\udfff" for letter in token):
            raise RowError(f"token {number}: not UTF-8")
    return tuple(map(str, value))


def _parse_steps(value: object) -> np.ndarray:
    """Return numbers in lists as float64 [T, F]; null is a missing value."""
    if not isinstance(value, list):
        raise RowError(f"{_type_of(value)}, expected a list of steps")
    if value and isinstance(value[0], dict):
        keys = list_names(list(map(str, value[0])))
        raise RowError(
            f"a step is an object with {keys}; write a list of its numbers, such as [0.1, 9.8]"
        )
    rows = [step if isinstance(step, list) else [step] for step in value]
    # Exact types, because bool is a subclass of int.
    allowed = {int, float, type(None)}
    for step, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise RowError(
                f"{count_of(len(row), 'feature')}, where the steps before have {len(rows[0])}", step
            )
        if not allowed.issuperset(map(type, row)):
            feature = next(i for i, cell in enumerate(row) if type(cell) not in allowed)
            raise RowError(f"{quote(repr(row[feature]))} is not a number", step, feature)
    try:
        return np.array(rows, np.float64)
    except OverflowError:
        raise RowError("a number too large for float32") from None
