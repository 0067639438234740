"""The arrays of an .npz file: which of them are the steps, and what stands beside them."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from seqclf.data.readers.arrays import ArrayFile, Beside, read_sequences
from seqclf.data.readers.rows import (
    SPLIT_WORDS,
    BadRow,
    Journal,
    Progress,
    ReadOptions,
    Row,
    quote,
    reason_of,
)
from seqclf.errors import UserError

# What an array of each name is, in any case. Of several such names the first is taken.
STEPS = "x"
NAMES = {
    STEPS: ("x", "values", "data"),
    "labels": ("y", "labels", "label", "target", "targets", "class", "classes"),
    "offsets": ("offsets",),
    "lengths": ("lengths", "length"),
    "groups": ("groups", "group", "subjects", "subject"),
    "split": ("split", "splits"),
    "ids": ("ids", "id"),
    "features": ("features", "feature_names"),
}

Arrays = dict[str | None, dict[str, zipfile.ZipInfo]]  # by split, then by the keys of NAMES


def read_npz(
    path: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequences of x and y, or values, offsets and labels; or of x_train, y_train ..."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _find_arrays(path, archive, journal)
            for split, members in arrays.items():
                beside = Beside(
                    **{
                        role: _read_member(archive, info)
                        for role, info in members.items()
                        if role != STEPS
                    }
                )
                with _open_member(archive, members[STEPS]) as values:
                    for row in read_sequences(values, beside, options, progress):
                        if split is not None and isinstance(row, Row):
                            yield row._replace(split=split)
                        else:
                            yield row
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not an .npz that can be read: {reason_of(error)}") from None


def _find_arrays(path: Path, archive: zipfile.ZipFile, journal: Journal) -> Arrays:
    """Find the arrays of each split; keep in the journal which are not read. Raises UserError."""
    candidates: defaultdict[tuple[str | None, str], list[zipfile.ZipInfo]] = defaultdict(list)
    unused = []
    for info in archive.infolist():
        meaning = _meaning_of(info.filename.removesuffix(".npy"))
        if meaning is None:
            unused.append(info)
        else:
            candidates[meaning].append(info)
    arrays: Arrays = defaultdict(dict)
    for (split, role), infos in candidates.items():
        infos.sort(key=lambda info: _rank(info, role))
        arrays[split][role] = infos[0]
        unused += infos[1:]
    for split in [split for split, members in arrays.items() if STEPS not in members]:
        # Names of features may stand for all splits.
        members = arrays.pop(split)
        for role, info in members.items():
            if split is None and role == "features" and arrays:
                for others in arrays.values():
                    others.setdefault(role, info)
            else:
                unused.append(info)
    if not arrays:
        names = ", ".join(info.filename.removesuffix(".npy") for info in archive.infolist())
        raise UserError(
            f"{path}: expected x and y, or values, offsets and labels, or x_train, y_train, "
            f"x_test and y_test; found {quote(names)}"
        )
    for info in unused:
        journal.left_aside[info.filename.removesuffix(".npy")] = _describe(archive, info)
    return dict(arrays)


def _meaning_of(name: str) -> tuple[str | None, str] | None:
    """Return the split and the role of an array by its name, such as X_train or dev_y."""
    lower = name.lower()
    roles = {known: role for role, names in NAMES.items() for known in names}
    if lower in roles:
        return None, roles[lower]
    for word, split in SPLIT_WORDS.items():
        for rest in (
            lower.removesuffix(word).rstrip("_.-") if lower.endswith(word) else "",
            lower.removeprefix(word).lstrip("_.-") if lower.startswith(word) else "",
        ):
            if rest in roles:
                return split, roles[rest]
    return None


def _rank(info: zipfile.ZipInfo, role: str) -> int:
    """Return the place of an array among those that may have its role."""
    lower = info.filename.removesuffix(".npy").lower()
    return next(
        (rank for rank, name in enumerate(NAMES[role]) if name in re.split(r"[_.-]", lower)),
        len(NAMES[role]),
    )


def _describe(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Return what an array that is not read holds."""
    try:
        with _open_member(archive, info) as array:
            return f"an array that is not read: {array.dtype} {array.shape}"
    except UserError:
        return "not read, and no array"


@contextmanager
def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[ArrayFile]:
    with archive.open(info) as file:
        yield ArrayFile(file, info.file_size, f"{archive.filename}: {info.filename}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with _open_member(archive, info) as array:
        return array.read_all()
