"""Users' files -> a prepared data set, at constant memory: `seqclf prepare`.

Steps are written to the data set as they are read. Classes, splits, token ids and means depend on
all sequences, so they are settled afterwards, over the written file. The folder appears when it
is whole.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from seqclf.data.draft import Adjustment, Draft, as_tensor
from seqclf.data.index import write_index
from seqclf.data.notes import num_classes_of
from seqclf.data.orders import mix
from seqclf.data.prepared import INFO, LEFT_OUT, SPLITS, DatasetInfo
from seqclf.data.readers import read_rows
from seqclf.data.readers.manifests import NO_LINES
from seqclf.data.readers.rows import BadRow, Journal, ReadOptions, Row, quote
from seqclf.data.reading import LabelChange, Reading
from seqclf.data.splits import deal_by_class, deal_by_group
from seqclf.data.staging import staged
from seqclf.data.values_file import ValuesFile
from seqclf.errors import UserError

DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
OTHER_FRACTIONS = (
    (0.7, 0.15, 0.15),
    (0.6, 0.2, 0.2),
    (0.5, 0.25, 0.25),
    (0.7, 0, 0.3),
    (0.5, 0, 0.5),
)
SKIPPED = "skipped.txt"
LISTED = 10  # a message lists this many bad rows; SKIPPED lists all
MOST_CLASSES = 10_000  # an evaluation counts all pairs of them


class Input(NamedTuple):
    """A file, and the split that all of its rows belong to, if the user names one."""

    path: Path
    split: str | None = None


@dataclass(frozen=True)
class Preparation:
    """How to prepare a data set. Raises UserError for settings that cannot be."""

    options: ReadOptions = field(default_factory=ReadOptions)
    format: str | None = None  # of every file; None: what the file's name ends in
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS  # of train, val and test
    seed: int = 0
    window: int | None = None  # the steps of a window; None: sequences stay whole
    stride: int | None = None  # the steps between two windows' beginnings; None: `window`
    on_label_change: LabelChange | None = None  # None: majority in windows, else an error
    min_share: float | None = None  # of a window's steps that must have its label; None: any
    adds_measured: bool = False  # a 0/1 feature beside each feature that has gaps
    skip_bad: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, steps in (("window", self.window), ("stride", self.stride)):
            if steps is not None and steps < 1:
                raise UserError(f"--{name} {steps}: must be at least 1")
        if self.stride and not self.window:
            raise UserError(f"--stride {self.stride}: needs --window")
        if self.on_label_change == "majority" and not self.window:
            raise UserError("--on-label-change majority: needs --window")
        if self.min_share is not None and not 0 < self.min_share <= 1:
            raise UserError(f"--min-share {self.min_share}: must be above 0 and at most 1")
        if self.min_share is not None and self.label_change != "majority":
            raise UserError(f"--min-share {self.min_share}: needs --window, and labels of steps")
        if self.adds_measured and not self.options.fill_missing:
            raise UserError("--measured: needs --fill-missing, which allows gaps")

    @property
    def label_change(self) -> LabelChange:
        """What happens where the label changes within a sequence."""
        return self.on_label_change or ("majority" if self.window else "error")

    @property
    def reading(self) -> Reading:
        """What is known of the reading before any file is read."""
        options = self.options
        return Reading(
            id=options.id,
            time=options.time,
            label=options.label,
            group=options.group,
            tokens=options.tokens,
            text=options.text,
            form=options.form,
            header=options.header,
            fill_missing=options.fill_missing,
            pad_value=options.pad_value,
            channels_first=options.channels_first,
            window=self.window,
            stride=self.stride,
            on_label_change=self.label_change,
            min_share=self.min_share or 0.0,
        )


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
    are_shares = train > 0 and val >= 0 and test > 0 and abs(train + val + test - 1) <= 1e-6
    if not are_shares:
        raise UserError(f"--split {text}: train and test must be above 0, and the sum must be 1")
    return train, val, test


def prepare(
    inputs: Sequence[Input], out: Path, preparation: Preparation, say: Callable[[str], None]
) -> DatasetInfo:
    """Write inputs as a data set into the folder `out`, which appears when it is whole.

    Raises UserError for bad rows, unless they are to be skipped, and for what cannot be read,
    written or split; then nothing is left.
    """
    with staged(_with_name(out), overwrite=preparation.overwrite, info=INFO) as folder:
        draft, journal = _read_inputs(folder, inputs, preparation, say)
        _check_classes(draft, preparation)
        splits, bad_classes = _leave_out(draft, _choose_splits(draft, preparation))
        bad_rows = [*draft.bad_rows, *bad_classes]
        if not preparation.skip_bad:
            _refuse(bad_rows)
        _check_splits(draft, splits, preparation)
        sources = [path for path, _ in inputs]
        info = write_index(folder, draft, splits, journal, sources)
        (folder / INFO).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if bad_rows:
            lines = "".join(f"{bad.where}: {bad.problem}\n" for bad in bad_rows)
            (folder / SKIPPED).write_text(lines, encoding="utf-8")
    if bad_rows:
        say(f"left out    {info.left_out:,} rows, all that is wrong is listed in {out / SKIPPED}:")
        say("\n".join(f"            {bad.where}: {bad.problem}" for bad in bad_rows[:LISTED]))
    return info


def _read_inputs(
    folder: Path, inputs: Sequence[Input], preparation: Preparation, say: Callable[[str], None]
) -> tuple[Draft, Journal]:
    """Write the values of all inputs; read them again if the first reading finds a reason."""
    with closing(ValuesFile(folder)) as file:
        draft, journal = _write_rows(file, inputs, preparation, Adjustment())
    adjustment = draft.find_adjustment(adds_measured=preparation.adds_measured)
    if preparation.adds_measured and not adjustment.measured:
        journal.note("--measured: no feature has a gap, so no feature is added")
    if adjustment == Adjustment():
        return draft, journal
    if adjustment.offset:
        far = [
            f"{name} ({offset:.10g})"
            for name, offset in zip(draft.feature_names, adjustment.offset, strict=True)
            if offset
        ]
        journal.note(
            f"numbers far from zero lose an offset, so that float32 keeps them: {', '.join(far)}"
        )
    say("second pass the files are read again, for offsets or measured features")
    with closing(ValuesFile(folder)) as file:
        draft, _ = _write_rows(file, inputs, preparation, adjustment)
    return draft, journal


def _check_classes(draft: Draft, preparation: Preparation) -> None:
    """Refuse labels that look like numbers to predict, or like ids. Raises UserError."""
    if not len(draft.labels):
        raise UserError(
            f"no window is left: {draft.num_undecided:,} have no label that enough of their steps "
            "have; choose a smaller --window or --min-share"
        )
    counts = torch.bincount(as_tensor(draft.labels))
    num_single = int((counts == 1).sum())
    are_mostly_single = num_single > LISTED and 2 * num_single > len(counts)
    if len(counts) > MOST_CLASSES or (are_mostly_single and not preparation.skip_bad):
        first = ", ".join(f"'{quote(name)}'" for name in islice(draft.class_ids, 3))
        raise UserError(
            f"{len(counts):,} different labels, such as {first}, of which {num_single:,} have one "
            "example: are they numbers to predict, or ids? seqclf tells classes apart, of which it "
            f"takes at most {MOST_CLASSES:,}; name the column of the class with --label"
        )


def _check_splits(draft: Draft, splits: Tensor, preparation: Preparation) -> None:
    """Refuse a data set that nothing can be learnt from. Raises UserError with the remedy."""
    labels = as_tensor(draft.labels)
    kept = labels[splits != LEFT_OUT].unique().tolist()
    if not kept:
        _refuse(draft.bad_rows)
        raise UserError("no class has two examples, so none is left; give more of them")
    if len(kept) == 1:
        name = next(name for name, label in draft.class_ids.items() if label == kept[0])
        raise UserError(
            f"one class alone, '{quote(name)}': there is nothing to tell apart; add another"
        )
    for number in (0, 2):
        if (splits == number).any():
            continue
        message = f"no example is left for {SPLITS[number]}: {len(splits):,} examples"
        if (as_tensor(draft.splits) >= 0).all():
            raise UserError(
                f"{message}, and none of them says {SPLITS[number]}; add files with "
                f"--{SPLITS[number]}, or leave out --split-column, --train, --val and --test"
            )
        if len(draft.groups):
            num_groups = len(as_tensor(draft.groups).unique())
            message += f" of {num_groups:,} recordings or groups, each of which stays in one split"
        message += f", split {_join(preparation.fractions)}"
        for fractions in OTHER_FRACTIONS:
            if _can_split(draft, replace(preparation, fractions=fractions)):
                raise UserError(
                    f"{message}; --split {_join(fractions)} works, or give more of them"
                )
        raise UserError(f"{message}; give more of them")


def _join(fractions: Sequence[float]) -> str:
    return ",".join(f"{fraction:g}" for fraction in fractions)


def _can_split(draft: Draft, preparation: Preparation) -> bool:
    """Return whether a preparation of the same rows would succeed."""
    splits, bad_classes = _leave_out(draft, _deal(draft, preparation))
    if bad_classes and not preparation.skip_bad:
        return False
    has_examples = [bool((splits == number).any()) for number in range(len(SPLITS))]
    return num_classes_of(as_tensor(draft.labels), splits) > 1 and all(
        has or not share for has, share in zip(has_examples, preparation.fractions, strict=True)
    )


def _with_name(out: Path) -> Path:
    """Return a folder by a path that ends in its name, as . and .. do not. Raises UserError."""
    absolute = Path(os.path.abspath(out))
    if absolute == Path.cwd() or not absolute.name:
        raise UserError(f"--out {out}: is the folder you are in, or the root; name another folder")
    return out if out.name == absolute.name else absolute


def _write_rows(
    file: ValuesFile, inputs: Sequence[Input], preparation: Preparation, adjustment: Adjustment
) -> tuple[Draft, Journal]:
    """Write all steps of all good rows."""
    reading = preparation.reading
    keeps_groups = reading.has_parts or preparation.options.group is not None
    draft = Draft(file, reading, adjustment, keeps_groups=keeps_groups)
    journal = Journal()
    for path, count in Counter(path for path, _ in inputs).items():
        if count > 1:
            splits = " and ".join(split for other, split in inputs if other == path and split)
            journal.note(f"{path} is named {count} times" + f", for {splits}" * bool(splits))
    options = replace(
        preparation.options,
        keep_step_labels=reading.on_label_change != "error",
        needs_label=preparation.options.labels is None,
    )
    sizes = [os.path.getsize(path) for path, _ in inputs if os.path.isfile(path)]
    with tqdm(
        total=sum(sizes) if len(sizes) == len(inputs) else None,
        unit="B",
        unit_scale=True,
        desc="reading",
        leave=False,
        disable=None,  # only where there is no terminal
    ) as bar:
        for number, (path, split) in enumerate(inputs):
            for row in read_rows(
                path, options, journal, progress=bar.update, format=preparation.format
            ):
                problem = draft.find_problem(row, split) if isinstance(row, Row) else None
                if isinstance(row, Row) and not problem:
                    draft.add(row, split or row.split, source=number, file_name=str(path))
                    continue
                draft.bad_rows.append(BadRow(row.where, problem) if problem else row)  # type: ignore[arg-type]
                # A wrong option makes every row bad: say so before the end of a large file.
                if not preparation.skip_bad and len(draft.bad_rows) >= LISTED:
                    _refuse(draft.bad_rows, are_all=not draft.num_rows)
            names = journal.columns or draft.features
            if options.features is None and names:
                # Columns of further files are found by the names of the first one's.
                options = replace(
                    options, features=names, wanted_by=str(path), open_end=journal.open_end
                )
    if not draft.num_rows:
        _refuse(draft.bad_rows, are_all=True)
        why = [note for note in journal.notes if note.endswith(NO_LINES)]
        paths = ", ".join(str(path) for path, _ in inputs)
        raise UserError(f"{paths}: no sequences there" + f" ({', '.join(why)})" * bool(why))
    draft.finish()
    return draft, journal


def _refuse(bad_rows: Sequence[BadRow], *, are_all: bool = False) -> None:
    """Raise UserError if there are bad rows; a fault that all rows have so far is said once."""
    if not bad_rows:
        return
    count = len(bad_rows)
    first = bad_rows[0]
    if are_all and count > 1 and all(bad.problem == first.problem for bad in bad_rows):
        rows = f"{count} rows" if count < LISTED else f"the first {count} rows"
        raise UserError(
            f"none of {rows} can be used, all for one reason; {first.where}: {first.problem}"
        )
    lines = "".join(f"\n  {bad.where}: {bad.problem}" for bad in bad_rows[:LISTED])
    raise UserError(
        f"{count if count < LISTED else f'{LISTED} or more'} bad row{'s' * (count > 1)}; mend "
        f"{'them' if count > 1 else 'it'}, or leave {'them' if count > 1 else 'it'} out with "
        f"--on-bad-row skip:{lines}"
    )


def _choose_splits(draft: Draft, preparation: Preparation) -> Tensor:
    """Return each example's split: as its row or file says, else dealt by group or by class."""
    splits = as_tensor(draft.splits).long()
    if (splits >= 0).all():
        return splits
    if (splits >= 0).any():
        raise UserError(
            f"{int((splits < 0).sum()):,} sequences are of no part, while others are: fill the "
            "split column everywhere, or say --train, --val or --test for every file"
        )
    return _deal(draft, preparation)


def _deal(draft: Draft, preparation: Preparation) -> Tensor:
    """Return the split of each example, dealt by group if there are groups, else by class."""
    labels = as_tensor(draft.labels)
    if len(draft.groups):
        seed = mix(preparation.seed, "prepare")
        return deal_by_group(labels, as_tensor(draft.groups), preparation.fractions, seed=seed)
    return deal_by_class(labels, preparation.fractions, seed=preparation.seed)


def _leave_out(draft: Draft, splits: Tensor) -> tuple[Tensor, list[BadRow]]:
    """Leave out examples whose class cannot be learnt; return the splits, and these classes."""
    labels = as_tensor(draft.labels)
    counts = torch.bincount(labels)
    train_counts = torch.bincount(labels[splits == 0], minlength=len(counts))
    cannot_be_learnt = (counts == 1) | (train_counts == 0)
    names = list(draft.class_ids)
    bad_classes = []
    for label in cannot_be_learnt.nonzero()[:, 0].tolist():
        problem = f"label '{quote(names[label])}': "
        if counts[label] == 1:
            problem += "the only example of its class; give it more, or none"
        else:
            problem += (
                f"unknown to training ({counts[label]} examples, none of them in train); is it "
                "misspelt?"
            )
        bad_classes.append(BadRow(draft.first_seen[label], problem))
    return torch.where(cannot_be_learnt[labels], LEFT_OUT, splits), bad_classes
