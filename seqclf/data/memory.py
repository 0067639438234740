"""Rows of a Python program -> a prepared data set, as `prepare` makes one of files.

The same draft writes both, so the same numbers are the same data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from seqclf.data.draft import Adjustment, Draft, as_tensor
from seqclf.data.index import write_index
from seqclf.data.prepared import INFO, DatasetInfo
from seqclf.data.readers.rows import Journal, Row
from seqclf.data.reading import Reading
from seqclf.data.values_file import ValuesFile
from seqclf.errors import UserError

Rows = Callable[[], Iterator[Row]]


def write_dataset(folder: Path, splits: Mapping[str, Rows], reading: Reading) -> DatasetInfo:
    """Write the labelled rows of each split as a data set into an empty folder.

    `reading` says what becomes of the numbers. The rows are read twice if numbers far from zero
    need an offset. Raises UserError for a row that cannot stand beside those before it.
    """
    with closing(ValuesFile(folder)) as file:
        draft = _write_rows(file, splits, reading, Adjustment())
    adjustment = draft.find_adjustment(adds_measured=False)
    if adjustment != Adjustment():
        with closing(ValuesFile(folder)) as file:
            draft = _write_rows(file, splits, reading, adjustment)
    sources = [Path(_source(split)) for split in splits]
    info = write_index(folder, draft, as_tensor(draft.splits).long(), Journal(), sources)
    (folder / INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return info


def _source(split: str) -> str:
    """Return what stands in place of a file's name: whose examples they are."""
    return f"{split} X"


def _write_rows(
    file: ValuesFile, splits: Mapping[str, Rows], reading: Reading, adjustment: Adjustment
) -> Draft:
    """Write all steps of all rows."""
    draft = Draft(file, reading, adjustment, keeps_groups=reading.has_parts)
    for number, (split, rows) in enumerate(splits.items()):
        for row in rows():
            if (problem := draft.find_problem(row, split)) is not None:
                raise UserError(f"{row.where}: {problem}")
            draft.add(row, split, source=number, file_name=_source(split))
    draft.finish()
    return draft
