"""What `prepare` writes when all values are there: the index, and what dataset.json says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from seqclf.data.draft import Draft, as_tensor
from seqclf.data.notes import find_notes
from seqclf.data.passes import measure_features, number_tokens
from seqclf.data.prepared import (
    INDEX,
    LEFT_OUT,
    SPLITS,
    DatasetInfo,
    FileInfo,
    SplitInfo,
    sort_classes,
)
from seqclf.data.readers.rows import Journal
from seqclf.data.reading import Reading


def write_index(
    folder: Path, draft: Draft, splits: Tensor, journal: Journal, sources: Sequence[Path]
) -> DatasetInfo:
    """Write the index and number the tokens anew; return what dataset.json says."""
    labels, classes = _number_classes(draft, splits)
    offsets = as_tensor(draft.offsets)
    tokens = number_tokens(draft, splits)
    mean, std = measure_features(draft, splits)
    ids, id_offsets = draft.ids.tensors()
    places, place_offsets = draft.places.tensors()
    index = {
        "offsets": offsets,
        "labels": labels,
        "parts": splits.to(torch.uint8),
        "rows": as_tensor(draft.rows),
        "first_steps": as_tensor(draft.first_steps),
        "ids": ids,
        "id_offsets": id_offsets,
        "places": places,
        "place_offsets": place_offsets,
        "sources": as_tensor(draft.sources),
    }
    if len(draft.groups):
        index["groups"] = as_tensor(draft.groups)
    (folder / INDEX).write_bytes(save(index))
    paths = [*(piece.path for piece in draft.pieces), folder / INDEX]
    notes = [*journal.notes, *_counts(draft), *find_notes(draft, labels, classes, splits)]
    return DatasetInfo(
        format=1 if len(draft.pieces) == 1 else 2,
        kind=draft.kind,
        classes=classes,
        features=draft.feature_names if draft.kind == "vectors" else (),
        mean=mean,
        std=std,
        tokens=tokens,
        parts=_describe_splits(labels, offsets.diff(), splits, classes),
        left_out=len(draft.bad_rows) + int((splits == LEFT_OUT).sum()),
        files={path.name: FileInfo.of(path) for path in paths},
        sources=tuple(map(str, sources)),
        left_aside=journal.left_aside,
        notes=tuple(notes),
        roles=journal.roles,
        reading=_finish_reading(draft, journal),
    )


def _counts(draft: Draft) -> Iterator[str]:
    """Yield a line for all that was filled, or is in no example."""
    if draft.num_filled:
        yield f"{draft.num_filled:,} missing values are filled, from their neighbours in time"
    if draft.num_unmeasured:
        yield (
            f"{draft.num_unmeasured:,} missing values are filled with the feature's mean over "
            "train, as the feature has no value in their sequence"
        )
    if draft.num_padding:
        yield f"{draft.num_padding:,} steps of padding are left off, at the ends of sequences"
    if draft.num_undecided and draft.reading.on_label_change == "cut":
        yield f"{draft.num_undecided:,} stretches of sequences are left out: no label there"
    elif draft.num_undecided:
        yield f"{draft.num_undecided:,} windows are left out: too few of their steps have one label"
    yield from draft.cuts.notes(draft.reading)
    yield from draft.zero_sides.notes()


def _finish_reading(draft: Draft, journal: Journal) -> Reading:
    """Return how new files must be read, with all that the journal knows."""
    names = draft.feature_names
    adjustment = draft.adjustment
    found = {role: name for role, name in journal.roles.items() if role in Reading.model_fields}
    return draft.reading.model_copy(
        update={
            **found,
            "form": journal.form,
            "columns": journal.columns,
            "num_values": journal.num_values,
            "open_end": journal.open_end,
            "own_files": journal.own_files,
            "numbered": journal.numbered,
            "offset": adjustment.offset,
            "measured": tuple(names[index] for index in adjustment.measured),
        }
    )


def _number_classes(draft: Draft, splits: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels by the classes in their natural order, and these classes."""
    labels = as_tensor(draft.labels)
    learnable = set(labels[splits != LEFT_OUT].tolist())
    classes = sort_classes(name for name, label in draft.class_ids.items() if label in learnable)
    new_labels = torch.zeros(len(draft.class_ids), dtype=torch.int64)
    for number, name in enumerate(classes):
        new_labels[draft.class_ids[name]] = number
    return new_labels[labels], classes


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
