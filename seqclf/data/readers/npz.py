"""The arrays of an .npz file: which of them are the steps, and what stands beside them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seqclf.data.readers.array_file import (
    ArrayFile,
    Layout,
    WholeNumbers,
    find_layout,
    read_whole_numbers,
)
from seqclf.data.readers.arrays import (
    ONE_EACH,
    Beside,
    read_array_rows,
    read_one_each,
    save_without_objects,
)
from seqclf.data.readers.roles import list_names
from seqclf.data.readers.rows import (
    SPLIT_WORDS,
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    RowError,
    parse_name,
    printable,
    quote,
    reason_of,
)
from seqclf.errors import UserError

# The names of arrays in any case, by what they hold. Of several the first is taken.
NAMES = {
    "steps": ("x", "data", "values"),
    "label": ("y", "labels", "label", "target", "targets", "class"),
    "group": ("groups", "group", "subjects", "subject", "subject_ids", "subject_id", "group_id"),
    "split": ("split", "splits", "parts"),
    "id": ("ids", "id"),
    "offsets": ("offsets",),
    "lengths": ("lengths", "length", "lens", "seq_lengths", "seq_lens", "seq_len"),
    "features": ("feature_names", "features"),
}
LONGEST_SEQUENCE = 2**28  # bytes in memory at once
LONGEST_FORTRAN = 2**30  # bytes of an array that must be read as a whole
# What zipfile raises; a UnicodeError is of a name.
BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
)
SPLITS = (None, "train", "val", "test")  # in this order; None: an array of no split of its own


class _Meaning(NamedTuple):
    """What the name of an array says."""

    role: str  # a key of NAMES
    rank: int  # of the name among those of its role
    split: str | None


# x_train, train_x and xtrain are all the steps of train.
_MEANINGS = {
    name: _Meaning(role, rank, None)
    for role, names in NAMES.items()
    for rank, name in enumerate(names)
}
_MEANINGS |= {
    spelling: _Meaning(role, rank, split)
    for name, (role, rank, _) in list(_MEANINGS.items())
    for (word, split), between in product(SPLIT_WORDS.items(), ("_", "-", ".", ""))
    for spelling in (f"{name}{between}{word}", f"{word}{between}{name}")
    if spelling not in SPLIT_WORDS  # valid is no id of val
}


def read_npz(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of x, data or values, with what the arrays beside it say of them.

    x_train, x_val and x_test, in any spelling, are the parts. An array that is not read is kept in
    the journal.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, path)
            parts = _find_parts(archive, journal)
            first_id = 0
            for split, names in parts.items():
                with archive.open(names["steps"], "steps") as values:
                    offsets = archive.whole_numbers(names, "offsets")
                    lengths = archive.whole_numbers(names, "lengths")
                    layout = find_layout(values, offsets, lengths, options, journal)
                    _check_size(values, layout)
                    beside = _read_beside(archive, names, values, layout, options, journal)
                    beside = beside._replace(split=split, first_id=first_id)
                    yield from read_array_rows(values, layout, beside, options, progress)
                first_id += layout.num_sequences
    except BAD_ZIP as error:
        raise UserError(f"{path}: not an .npz that can be read: {reason_of(error)}") from None


class _Archive:
    """The arrays of an .npz by their names. Raises UserError."""

    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self.path = path
        self._file = file
        # Of a name that comes twice zipfile gives the last one, as np.load does.
        self.members = {info.filename.removesuffix(".npy"): info for info in file.infolist()}

    @contextmanager
    def open(self, name: str, role: str) -> Iterator[ArrayFile]:
        info = self.members[name]
        meaning = _MEANINGS.get(name.lower())
        suffix = f"_{meaning.split}" if meaning and meaning.split else ""
        remedy = save_without_objects(role, name, suffix)
        where = f"{self.path}: {printable(name)}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{where}: compressed in a way that np.savez_compressed does not use")
        with self._file.open(info) as file:
            yield ArrayFile(file, info.file_size, where, name=printable(name), remedy=remedy)

    def describe(self, name: str) -> str:
        """Return an array's dtype and shape."""
        try:
            with self.open(name, "") as array:
                return f"{array.dtype} {array.shape}"
        except UserError:
            return "no array that can be read"

    def whole_numbers(self, names: Mapping[str, str], role: str) -> WholeNumbers | None:
        """Read the offsets or lengths, if they are there."""
        if role not in names:
            return None
        with self.open(names[role], role) as array:
            _refuse_larger(array, array.num_bytes, LONGEST_SEQUENCE)
            return read_whole_numbers(array)


def _check_size(values: ArrayFile, layout: Layout) -> None:
    """Refuse what would fill the memory: zeros of gigabytes make a small .npz. Raises UserError."""
    each = values.num_bytes // layout.num_sequences
    if layout.is_joined and layout.lengths is not None:
        each = int(layout.lengths.max()) * layout.num_features * values.dtype.itemsize
    _refuse_larger(values, each, LONGEST_SEQUENCE, "a sequence of ")
    if values.is_fortran:
        _refuse_larger(values, values.num_bytes, LONGEST_FORTRAN, "in Fortran order, ")


def _refuse_larger(array: ArrayFile, num_bytes: int, limit: int, what: str = "") -> None:
    if num_bytes > limit:
        raise UserError(
            f"{array.where}: {what}{num_bytes:,} bytes once it is unpacked, of which at most "
            f"{limit:,} are read; cut it into shorter sequences, or save it in C order with "
            "np.ascontiguousarray"
        )


def _find_parts(archive: _Archive, journal: Journal) -> dict[str | None, dict[str, str]]:
    """Return the array of each role in each part: train, val and test, or all in one, None.

    The journal gets those that are not read. Raises UserError if it is not clear which are.
    """
    found: dict[str | None, dict[str, list[tuple[int, str]]]] = {
        split: {role: [] for role in NAMES} for split in SPLITS
    }
    for name in archive.members:
        if meaning := _MEANINGS.get(name.lower()):
            found[meaning.split][meaning.role].append((meaning.rank, name))
    parts = {split: roles for split, roles in found.items() if roles["steps"]}
    if not parts:
        raise UserError(
            f"{archive.path}: expected x and y, or values, offsets and labels, or x_train, "
            f"y_train, x_test and y_test; found {list_names(list(archive.members)) or 'nothing'}; "
            'np.savez("x.npz", x=..., y=...) names them'
        )
    if None in parts and len(parts) > 1:
        names = [roles["steps"][0][1] for roles in parts.values()]
        raise UserError(
            f"{archive.path}: {' and '.join(names[:2])}: is {names[0]} a part of its own, or all? "
            "save parts as x_train, x_val and x_test, or x alone"
        )
    aside = dict.fromkeys(archive.members, "an array that is not read")
    chosen = {split: _choose_names(archive, split, roles, aside) for split, roles in parts.items()}
    for names_by_role in chosen.values():
        if found[None]["features"]:
            names_by_role.setdefault("features", found[None]["features"][0][1])
        for name in names_by_role.values():
            aside.pop(name, None)
    for name, reason in aside.items():
        journal.left_aside[printable(name)] = f"{reason}: {archive.describe(name)}"
    for role in ONE_EACH:
        if names := [roles[role] for roles in chosen.values() if role in roles]:
            # No column of a table is called so, should a model that is trained here read one.
            journal.roles[role] = (
                f"array{'s' * (len(names) > 1)} {', '.join(map(printable, names))}"
            )
    return chosen


def _choose_names(
    archive: _Archive,
    split: str | None,
    roles: Mapping[str, list[tuple[int, str]]],
    aside: dict[str, str],
) -> dict[str, str]:
    """Return the array of each role in a part; say in `aside` why another is not read."""
    chosen = {}
    for role, candidates in roles.items():
        if not candidates:
            continue
        if role == "steps" and roles["offsets"]:
            # Offsets go with values, and x may be the same sequences, padded.
            candidates = [(-rank, name) for rank, name in candidates]
        (rank, name), *others = sorted(candidates)
        if others and others[0][0] == rank:
            raise UserError(
                f"{archive.path}: {printable(name)} and {printable(others[0][1])}: which of them "
                f"holds the {role}{f' of {split}' if split else ''}? leave the other out"
            )
        chosen[role] = name
        for _, other in others:
            aside[other] = f"not read, as {printable(name)} holds the {role}"
    if split is not None and "split" in chosen:
        aside[chosen.pop("split")] = f"not read, as {printable(chosen['steps'])} says the split"
    return chosen


def _read_beside(
    archive: _Archive,
    names: Mapping[str, str],
    steps: ArrayFile,
    layout: Layout,
    options: ReadOptions,
    journal: Journal,
) -> Beside:
    """Read the arrays beside those of the steps. Raises UserError."""
    if "label" not in names and options.needs_label:
        split = _MEANINGS[names["steps"].lower()].split
        raise UserError(
            f"{steps.where}: no labels; save {f'y_{split}' if split else 'y'} beside it; found "
            f"{list_names(list(archive.members))}"
        )
    values = {}
    for role in ONE_EACH:
        if role in names:
            with archive.open(names[role], role) as array:
                values[role] = read_one_each(array, role, steps, layout.num_sequences)
                if role == "split":
                    _check_splits(array, values[role])
                if role == "id":
                    _note_repeats(array, values[role], journal)
    features = None
    if "features" in names:
        with archive.open(names["features"], "features") as array:
            features = _read_features(array, layout.num_features, journal)
    order = None
    wanted = options.features
    if features and wanted and features != wanted and set(wanted) <= set(features):
        order = tuple(features.index(name) for name in wanted)
        for name in features:
            if name not in wanted:
                journal.left_aside[name] = f"no feature of {options.wanted_by}"
        features = wanted
    elif wanted and not features and len(wanted) == layout.num_features > 1:
        journal.note(
            f"{steps.where}: its features have no names, so they are read in the order of "
            f"{options.wanted_by}"
        )
    return Beside(values, features=features, order=order)


def _check_splits(array: ArrayFile, values: np.ndarray) -> None:
    """Refuse values that are no names of splits. Raises UserError."""
    name = array.name
    for index, value in enumerate(values):
        try:
            split = parse_name(value, "split")
        except RowError as error:
            raise UserError(f"{array.where}[{index}]: {error.problem}") from None
        if split is not None and split not in SPLITS:
            remedy = f"np.where({name} == '{quote(split)}', 'val', {name}), if it is val"
            if array.dtype.kind == "b":
                remedy = f"np.where({name}, 'train', 'test'), if true is train"
            elif array.dtype.kind in "iuf":
                remedy = f"np.array(['train', 'val', 'test'])[{name}], if 0 is train"
            raise UserError(
                f"{array.where}[{index}]: '{quote(split)}': expected train, val or test; save "
                f"{remedy}"
            )


def _note_repeats(array: ArrayFile, values: np.ndarray, journal: Journal) -> None:
    seen: set[str] = set()
    for index, value in enumerate(values):
        with suppress(RowError):  # which the row itself says
            if name := parse_name(value, "id"):
                if name in seen:
                    journal.note(
                        f"{array.where}[{index}]: '{quote(name)}' comes again; each is a sequence "
                        "of its own"
                    )
                    return
                seen.add(name)


def _read_features(array: ArrayFile, count: int, journal: Journal) -> tuple[str, ...] | None:
    """Return the names of the features; None if the array holds something else, which is said."""
    if array.shape == (count,):
        array.check_objects()
    reason = f"{array.dtype}, shape {array.shape}, where names of {count:,} features are expected"
    if array.shape == (count,) and array.dtype.kind in "SU":
        try:
            names = tuple(parse_name(name, "feature") or "" for name in array.read_all())
        except RowError as error:
            reason = error.problem
        else:
            if "" not in names and len(set(names)) == count:
                return names
            reason = f"names that are empty or come twice: {list_names(names)}"
    journal.left_aside[array.name] = reason
    return None
