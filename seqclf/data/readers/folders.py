"""A folder of files of one sequence each, whose subfolders are the classes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from seqclf.data.readers.own_files import OWN_FILES, OwnFiles, bad_row_of, ending_of
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
)
from seqclf.errors import UserError


def read_folder(
    folder: Path, options: ReadOptions, journal: Journal, progress: Progress
) -> Iterator[Row | BadRow]:
    """Yield the sequence in each file of a folder, whose subfolders are the classes.

    Above the classes there may be folders train, val and test. The files of a folder without
    subfolders have no label, unless a column of theirs says it. Raises UserError and OSError.
    """
    files = [path.relative_to(folder) for path in _find_files(folder, journal)]
    known = [path for path in files if ending_of(path) in OWN_FILES]
    if not known:
        raise UserError(f"{folder}: a folder without {', '.join(OWN_FILES)} files")
    others = [path for path in files if ending_of(path) not in OWN_FILES]
    _leave_aside(others, "not a sequence", journal)
    num_above = 1 if _has_splits(folder, known) else 0
    # --label may name a column of the files, or a file beside them has the labels.
    says_label = options.label is None or "label" in options.soft
    has_classes = says_label and any(len(path.parts) > num_above + 1 for path in known)
    depth = num_above + has_classes
    beside = [path for path in known if len(path.parts) <= depth]
    _leave_aside(beside, "beside the folders", journal)
    if num_above:
        journal.note(f"{folder}: the folders above say the split")
    roles = {"id": True, "label": has_classes, "split": num_above}
    said = [role for role, is_said in roles.items() if is_said]
    if has_classes:
        journal.note(f"{folder}: the label is the name of a file's folder")
    own_files = OwnFiles(options, journal, says="the folder", roles=said)
    for path in known:
        if len(path.parts) <= depth:
            continue
        folders = path.parts[num_above:-1]
        try:
            if has_classes and len(folders) > 1:
                raise RowError(f"in {'/'.join(folders)}: expected a folder for each class")
            row = own_files.read(folder / path)
            progress((folder / path).stat().st_size)
            label = parse_name(folders[0], "label") if has_classes else row.label
        except RowError as error:
            yield bad_row_of(folder / path, error)
        else:
            yield row._replace(
                id=printable(path.as_posix()),
                where=printable(str(folder / path)),
                label=label,
                split=SPLIT_WORDS[path.parts[0].lower()] if num_above else row.split,
            )


def _find_files(folder: Path, journal: Journal) -> list[Path]:
    """Return all files below a folder that are not hidden, in their order. Raises OSError."""

    def fail(error: OSError) -> NoReturn:
        raise error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [Path(place, name) for name in folders if Path(place, name).is_symlink()]
        _leave_aside(
            [path.relative_to(folder) for path in links],
            "a link to a folder, which is not followed",
            journal,
        )
        files += [Path(place, name) for name in names if not name.startswith(".")]
    # Of a link to nothing the reader says that it is not there. A pipe would never end.
    return sorted(path for path in files if path.is_file() or not path.exists())


def _leave_aside(paths: Iterable[Path], reason: str, journal: Journal) -> None:
    """Name files that are not read; many of one kind together."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        kinds[path.suffix or path.name].append(printable(path.as_posix()))
    for kind, names in kinds.items():
        title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more {kind}"
        journal.left_aside[title] = reason


def _has_splits(folder: Path, known: Iterable[Path]) -> bool:
    """Return whether folders train, val and test are above the classes. Raises UserError."""
    tops = {path.parts[0] for path in known if len(path.parts) > 1}
    others = sorted(top for top in tops if top.lower() not in SPLIT_WORDS)
    splits = sorted(tops.difference(others))
    if splits and others and any(len(path.parts) > 2 for path in known):
        raise UserError(
            f"{folder}: '{printable(others[0])}' beside '{printable(splits[0])}'; expected folders "
            "train, val and test alone, or a folder for each class"
        )
    return bool(splits) and not others
