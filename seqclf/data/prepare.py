"""Users' files -> a prepared data set, at constant memory: `seqclf prepare`.

Steps are written to the data set as they are read. Classes, splits, token ids and means depend on
all sequences, so they are settled afterwards, over the written file. The folder appears when it
is whole.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from seqclf.data.batches import mix
from seqclf.data.draft import HEADER_BYTES, Draft, as_tensor, measure_features, number_tokens
from seqclf.data.prepared import (
    INDEX,
    INFO,
    LEFT_OUT,
    SPLITS,
    VALUES,
    DatasetInfo,
    FileInfo,
    SplitInfo,
)
from seqclf.data.readers import read_rows
from seqclf.data.readers.rows import BadRow, ReadOptions, Row
from seqclf.data.splits import deal_by_class, deal_by_group
from seqclf.errors import UserError

DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
SKIPPED = "skipped.txt"
LISTED = 10  # a message lists this many bad rows; SKIPPED lists all


class Input(NamedTuple):
    """A file, and the split that all of its rows belong to, if the user names one."""

    path: Path
    split: str | None = None


@dataclass(frozen=True)
class Preparation:
    """How to prepare a data set. Raises UserError for a window or stride that cannot be."""

    options: ReadOptions = field(default_factory=ReadOptions)
    format: str | None = None  # of every file; None: what the file's name ends in
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS  # of train, val and test
    seed: int = 0
    window: int | None = None  # the steps of a window; None: sequences stay whole
    stride: int | None = None  # the steps between two windows' beginnings; None: `window`
    skip_bad: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, steps in (("window", self.window), ("stride", self.stride)):
            if steps is not None and steps < 1:
                raise UserError(f"--{name} {steps}: must be at least 1")
        if self.stride and not self.window:
            raise UserError(f"--stride {self.stride}: needs --window")


def parse_fractions(text: str | None) -> tuple[float, float, float]:
    """Return the fractions of train, val and test in the text of --split. Raises UserError."""
    if not text:
        return DEFAULT_FRACTIONS
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        raise UserError(
            f"--split {text}: expected three shares, of train, val and test, such as 0.8,0.1,0.1"
        ) from None
    if min(train, val, test) < 0 or not train or not test or abs(train + val + test - 1) > 1e-6:
        raise UserError(f"--split {text}: train and test must be above 0, and the sum must be 1")
    return train, val, test


def prepare(
    inputs: Sequence[Input], out: Path, preparation: Preparation, say: Callable[[str], None]
) -> DatasetInfo:
    """Write inputs as a data set into the folder `out`, which appears when it is whole.

    Raises UserError for bad rows, unless they are to be skipped, and for what cannot be read,
    written or split; then nothing is left.
    """
    with _staged(out, overwrite=preparation.overwrite) as folder:
        with (folder / VALUES).open("wb") as file:
            draft = _write_rows(file, inputs, preparation)
        splits, bad_classes = _leave_out(draft, _choose_splits(draft, preparation))
        num_left_out = len(draft.bad_rows) + int((splits == LEFT_OUT).sum())
        bad_rows = [*draft.bad_rows, *bad_classes]
        if not preparation.skip_bad:
            _refuse(bad_rows)
        for number in (0, 2):
            if not (splits == number).any():
                raise UserError(
                    f"no example is left for {SPLITS[number]}: {len(splits)} examples, split "
                    f"{','.join(map(str, preparation.fractions))}; give more of them or other files"
                )
        info = _write_index(folder, draft, splits, num_left_out=num_left_out)
        (folder / INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if bad_rows:
            lines = "".join(f"{bad.where}: {bad.problem}\n" for bad in bad_rows)
            (folder / SKIPPED).write_text(lines, encoding="utf-8")
    if bad_rows:
        say(f"left out    {num_left_out:,} rows, all that is wrong is listed in {out / SKIPPED}:")
        say("\n".join(f"            {bad.where}: {bad.problem}" for bad in bad_rows[:LISTED]))
    if draft.num_filled:
        say(f"filled      {draft.num_filled:,} missing values, from their neighbours in time")
    return info


@contextmanager
def _staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that becomes `out` at the end; if the body raises, nothing is left of it."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name another folder, or add --overwrite")
    if out.exists() and overwrite and not (out / INFO).exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: holds something else than a data set; name another folder")
    staging = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    try:
        # A preparation that was killed may have left them.
        for stale in (staging, old):
            shutil.rmtree(stale, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            for path in staging.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            # A rename cannot replace a folder that has files in it.
            if out.exists():
                out.rename(old)
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None


def _write_rows(file: BinaryIO, inputs: Sequence[Input], preparation: Preparation) -> Draft:
    """Write all steps of all good rows after a header."""
    draft = Draft()
    # The header holds the number of steps, so it is written last, into this space.
    file.write(b"\0" * HEADER_BYTES)
    sizes = [path.stat().st_size for path, _ in inputs if path.is_file()]
    with tqdm(
        total=sum(sizes) if len(sizes) == len(inputs) else None,
        unit="B",
        unit_scale=True,
        desc="reading",
        leave=False,
        disable=None,  # only where there is no terminal
    ) as bar:
        for path, split in inputs:
            for row in read_rows(
                path, preparation.options, progress=bar.update, format=preparation.format
            ):
                if isinstance(row, Row) and (problem := draft.find_problem(row)):
                    row = BadRow(row.where, problem)
                if isinstance(row, Row):
                    _write_row(file, draft, row, split, preparation)
                    continue
                draft.bad_rows.append(row)
                # A wrong option makes every row bad: say so before the end of a large file.
                if not preparation.skip_bad and len(draft.bad_rows) >= LISTED:
                    _refuse(draft.bad_rows)
    if not draft.num_rows:
        _refuse(draft.bad_rows)
        raise UserError(f"{', '.join(str(path) for path, _ in inputs)}: no sequences there")
    file.seek(0)
    file.write(draft.header())
    return draft


def _write_row(
    file: BinaryIO, draft: Draft, row: Row, split: str | None, preparation: Preparation
) -> None:
    windows = list(_windows(len(row.steps), preparation))
    has_groups = preparation.window is not None or preparation.options.group is not None
    values = draft.add(row, split or row.split, windows=windows, has_groups=has_groups)
    for first, end in windows:
        file.write(values[first:end].tobytes())


def _windows(num_steps: int, preparation: Preparation) -> Iterator[tuple[int, int]]:
    """Yield where windows begin and end: all whole ones, or the sequence if it is shorter."""
    window = preparation.window
    if window is None or num_steps <= window:
        yield 0, num_steps
        return
    for first in range(0, num_steps - window + 1, preparation.stride or window):
        yield first, first + window


def _refuse(bad_rows: Sequence[BadRow]) -> None:
    """Raise UserError if there are bad rows."""
    if not bad_rows:
        return
    lines = "".join(f"\n  {bad.where}: {bad.problem}" for bad in bad_rows[:LISTED])
    count = len(bad_rows)
    raise UserError(
        f"{count if count < LISTED else f'{LISTED} or more'} bad row{'s' * (count > 1)}; mend "
        f"{'them' if count > 1 else 'it'}, or leave {'them' if count > 1 else 'it'} out with "
        f"--on-bad-row skip:{lines}"
    )


def _choose_splits(draft: Draft, preparation: Preparation) -> Tensor:
    """Return each example's split: as its row or file says, else dealt by group or by class."""
    splits = as_tensor(draft.splits).long()
    labels = as_tensor(draft.labels)
    if (splits >= 0).all():
        return splits
    if (splits >= 0).any():
        raise UserError(
            f"{int((splits < 0).sum()):,} sequences are of no part, while others are: fill the "
            "split column everywhere, or say --train, --val or --test for every file"
        )
    if len(draft.groups):
        seed = mix(preparation.seed, "prepare")
        return deal_by_group(labels, as_tensor(draft.groups), preparation.fractions, seed=seed)
    return deal_by_class(labels, preparation.fractions, seed=preparation.seed)


def _leave_out(draft: Draft, splits: Tensor) -> tuple[Tensor, list[BadRow]]:
    """Leave out examples whose class cannot be learnt; return the splits, and these classes."""
    labels = as_tensor(draft.labels)
    counts = torch.bincount(labels).tolist()
    train_counts = torch.bincount(labels[splits == 0], minlength=len(counts)).tolist()
    bad_classes = []
    for name, label in draft.class_ids.items():
        if counts[label] == 1:
            problem = f"label '{name}': the only example of its class; give it more, or none"
        elif not train_counts[label]:
            problem = (
                f"label '{name}': unknown to training ({counts[label]} examples, none of them in "
                "train); is it misspelt?"
            )
        else:
            continue
        bad_classes.append(BadRow(draft.first_seen[label], problem))
        splits = torch.where(labels == label, LEFT_OUT, splits)
    return splits, bad_classes


def _write_index(folder: Path, draft: Draft, splits: Tensor, *, num_left_out: int) -> DatasetInfo:
    """Write the index and number the tokens anew; return what dataset.json says."""
    labels, classes = _sort_classes(draft, splits)
    offsets = as_tensor(draft.offsets)
    tokens = number_tokens(folder / VALUES, draft, splits)
    mean, std = measure_features(folder / VALUES, draft, splits)
    index = {"offsets": offsets, "labels": labels, "parts": splits.to(torch.uint8)}
    if len(draft.groups):
        index["groups"] = as_tensor(draft.groups)
    (folder / INDEX).write_bytes(save(index))
    return DatasetInfo(
        format=1,
        kind=draft.kind,
        classes=classes,
        features=draft.features or tuple(f"feature {i}" for i in range(draft.num_features)),
        mean=mean,
        std=std,
        tokens=tokens,
        parts=_describe_splits(labels, offsets.diff(), splits, classes),
        left_out=num_left_out,
        files={name: FileInfo.of(folder / name) for name in (VALUES, INDEX)},
    )


def _sort_classes(draft: Draft, splits: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels by classes in their natural order, numbers by size before words."""

    def key(name: str) -> tuple[bool, float, str]:
        try:
            value = float(name)
        except ValueError:
            value = math.nan
        return (False, value, name) if math.isfinite(value) else (True, 0.0, name)

    labels = as_tensor(draft.labels)
    learnable = set(labels[splits != LEFT_OUT].tolist())
    classes = sorted(
        (name for name, label in draft.class_ids.items() if label in learnable), key=key
    )
    new_labels = torch.zeros(len(draft.class_ids), dtype=torch.int64)
    for number, name in enumerate(classes):
        new_labels[draft.class_ids[name]] = number
    return new_labels[labels], tuple(classes)


def _describe_splits(
    labels: Tensor, lengths: Tensor, splits: Tensor, classes: tuple[str, ...]
) -> dict[str, SplitInfo]:
    infos = {}
    for number, name in enumerate(SPLITS):
        members = splits == number
        if members.any():
            counts = torch.bincount(labels[members], minlength=len(classes)).tolist()
            infos[name] = SplitInfo(
                examples=int(members.sum()),
                steps=int(lengths[members].sum()),
                shortest=int(lengths[members].min()),
                longest=int(lengths[members].max()),
                classes=dict(zip(classes, counts, strict=True)),
            )
    return infos
