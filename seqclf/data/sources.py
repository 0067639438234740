"""A data set's name -> its train, validation and test splits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seqclf.config.settings import Data
from seqclf.data.idx import DIGITS, load_idx
from seqclf.data.orders import mix
from seqclf.data.prepared import open_dataset
from seqclf.data.readers.roles import list_names
from seqclf.data.sequences import Sequences
from seqclf.data.splits import deal_by_group, deal_into_folds, hold_out_by_class
from seqclf.errors import UserError

DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Splits:
    """The splits of a data set."""

    name: str
    train: Sequences
    validation: Sequences | None  # None: the data set has none, and data.val_fraction is 0
    test: Sequences  # may have no example, where a Python program trains without one
    stored_fingerprint: str | None = None  # of a prepared data set, whose values stay unread
    fingerprint_before: str | None = None  # that of images before folds or validation were taken
    notes: tuple[str, ...] = ()  # what a user should know of the folds

    @property
    def watched(self) -> tuple[str, Sequences]:
        """The split that training evaluates, and its name: validation, or test if there is none."""
        return ("test", self.test) if self.validation is None else ("val", self.validation)

    @property
    def measured(self) -> dict[str, Sequences]:
        """The splits that a result is measured on, by name: the watched one, and test."""
        splits = dict([self.watched]) | {"test": self.test}
        return {name: split for name, split in splits.items() if len(split)}

    def to(self, device: torch.device) -> Splits:
        """Return the splits in a device's memory."""
        validation = self.validation and self.validation.to(device)
        train = self.train.to(device)
        return replace(self, train=train, validation=validation, test=self.test.to(device))

    def fingerprint(self) -> str:
        """Return a sha256 over all splits."""
        if self.stored_fingerprint is not None:
            return self.stored_fingerprint
        if self.fingerprint_before is not None:
            return self.fingerprint_before
        splits = (self.train, self.validation, self.test)
        prints = [split.fingerprint() for split in splits if split is not None]
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    def fingerprint_of(self, split: Sequences) -> str:
        """Return a sha256 over one of the splits, to see whether two runs have the same examples.

        Prepared values stay unread: there the examples' places stand for them.
        """
        if self.stored_fingerprint is None or split.starts is None or split.lengths is None:
            return split.fingerprint()
        digest = hashlib.sha256(self.stored_fingerprint.encode())
        for places in (split.starts, split.lengths):
            digest.update(places.numpy().tobytes())
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """The bytes of all values."""
        splits = (self.train, self.validation, self.test)
        # The splits of prepared data share one tensor: count it once.
        values = {split.values.data_ptr(): split.values for split in splits if split is not None}
        return sum(value.nbytes for value in values.values())


def load(data: Data, *, seed: int) -> Splits:
    """Load the data set `data.name`, hold out validation examples, and cut long sequences.

    Raises UserError if its files are missing or are not what they should be.
    """
    splits = _load_prepared(data, seed) if data.name == "files" else _load_images(data, seed)
    length, keep = data.max_length, data.keep
    return replace(
        splits,
        train=splits.train.cut(length, keep),
        validation=splits.validation and splits.validation.cut(length, keep),
        test=splits.test.cut(length, keep),
    )


def _load_prepared(data: Data, seed: int) -> Splits:
    """Open what `seqclf prepare` wrote."""
    assert data.path is not None
    folder = Path(data.path)
    info, splits, groups = open_dataset(folder)
    train, validation, test = splits.get("train"), splits.get("val"), splits.get("test")
    groups_of_train = groups.get("train")
    notes: tuple[str, ...] = ()
    if train is None:
        raise UserError(
            f"{folder}: no example in train; prepare it again with --train, or with --split"
        )
    if data.folds is not None:
        train, test, groups_of_train, notes = _take_fold(data, train, groups_of_train, seed)
    if test is None:
        test = train.first(0)
    if data.val_fraction and validation is not None:
        raise UserError(
            f"data.val_fraction: {data.val_fraction}: {folder} has a validation part of its own, "
            f"of {len(validation):,} examples; leave it out"
        )
    if data.val_fraction:
        train, validation = _hold_out(data, train, groups_of_train, seed)
    return Splits(folder.absolute().name, train, validation, test, info.fingerprint, notes=notes)


def _take_fold(
    data: Data, train: Sequences, groups: Tensor | None, seed: int
) -> tuple[Sequences, Sequences, Tensor | None, tuple[str, ...]]:
    """Return all folds but one, that one as the test split, the others' groups, and notes."""
    assert data.folds is not None
    assert data.fold is not None
    num_groups = len(train) if groups is None else len(groups.unique())
    fold_of = deal_into_folds(train.labels, data.folds, seed=mix(seed, "folds"), groups=groups)
    if num_groups < data.folds or len(fold_of.unique()) < data.folds:
        what = "examples" if groups is None else "groups"
        raise UserError(
            f"data.folds: {data.folds} folds of {num_groups} {what}: one of them would be empty; "
            "take fewer folds"
        )
    is_held_out = fold_of == data.fold - 1
    kept = (~is_held_out).nonzero()[:, 0]
    counts = train.labels.bincount(minlength=len(train.classes)).tolist()
    few = [train.classes[label] for label, count in enumerate(counts) if count < data.folds]
    notes = [f"{list_names(tuple(few))}: fewer examples than folds, so some folds have none"]
    return (
        train.select(kept),
        train.select(is_held_out.nonzero()[:, 0]),
        None if groups is None else groups[kept],
        tuple(notes if few else ()),
    )


def _hold_out(
    data: Data, train: Sequences, groups: Tensor | None, seed: int
) -> tuple[Sequences, Sequences]:
    """Split `data.val_fraction` of every class off the training examples; groups stay whole."""
    seed = mix(seed, "validation")
    if groups is None:
        kept, held_out = hold_out_by_class(train.labels, data.val_fraction, seed=seed)
    else:
        fractions = (1 - data.val_fraction, data.val_fraction)
        splits = deal_by_group(train.labels, groups, fractions, seed=seed)
        kept, held_out = ((splits == number).nonzero()[:, 0] for number in (0, 1))
    if not len(held_out) or not len(kept):
        raise UserError(
            f"data.val_fraction: {data.val_fraction} of {len(train)} training examples leaves "
            "a part without any; choose a larger fraction, or 0 for none"
        )
    return train.select(kept), train.select(held_out)


def _load_images(data: Data, seed: int) -> Splits:
    train, test = _load_digits() if data.name == "digits" else load_idx(data)
    validation, before = None, None
    notes: tuple[str, ...] = ()
    if data.folds is not None or data.val_fraction:
        before = Splits(data.name, train, None, test).fingerprint()
    if data.folds is not None:
        train, test, _, notes = _take_fold(data, train, None, seed)
    if data.val_fraction:
        train, validation = _hold_out(data, train, None, seed)
    return Splits(data.name, train, validation, test, fingerprint_before=before, notes=notes)


def _load_digits() -> tuple[Sequences, Sequences]:
    """Load scikit-learn's handwritten digits (UCI, 1,797 images of 8x8), a fixed fifth as test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    everything = Sequences(
        values=torch.from_numpy(bunch.images).to(torch.uint8),
        labels=torch.from_numpy(bunch.target).to(torch.int64),
        classes=DIGITS,
        scale=16.0,
    )
    # The seed is a constant: every run has the same test split.
    train, test = hold_out_by_class(everything.labels, DIGITS_TEST_FRACTION, seed=mix("digits"))
    return everything.select(train), everything.select(test)
