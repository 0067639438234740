"""Users' files -> a prepared data set, at constant memory: `seqclf prepare`.

Sequences are written as they come; what has to be known of all of them (classes, parts, tokens,
means) is settled on the written file. The folder appears when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from seqclf.config import UserError
from seqclf.data.batches import mix
from seqclf.data.prepared import (
    CARD,
    INDEX,
    LEFT_OUT,
    PARTS,
    VALUES,
    Card,
    FileCard,
    Kind,
    PartCard,
    open_parts,
)
from seqclf.data.readers import Bad, Reading, Row, read
from seqclf.data.splits import by_group, stratified

HEADER_BYTES = 256  # of values.safetensors, before its numbers
NUMBERS: dict[Kind, tuple[str, str]] = {  # of each kind: as numpy and as safetensors call them
    "vectors": ("<f4", "F32"),
    "tokens": ("<i4", "I32"),
    "text": ("u1", "U8"),
}
LISTED = 10  # bad rows in a message; all are in SKIPPED
SKIPPED = "skipped.txt"
CHUNK = 2**18  # steps that are looked at together
BARS, BAR_WIDTH = 12, 40


class Input(NamedTuple):
    """A file, and the part that all of it belongs to, if it is said."""

    path: Path
    part: str | None = None


@dataclass(frozen=True)
class Preparation:
    """What the command line says about how to prepare."""

    reading: Reading = field(default_factory=Reading)
    format: str | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    window: int | None = None
    stride: int | None = None
    skip_bad: bool = False
    overwrite: bool = False


@dataclass
class Written:
    """What is kept of the sequences written so far."""

    kind: Kind = "vectors"  # of the first row, as are its features
    features: tuple[str, ...] | None = None
    num_features: int = 0
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    labels: array[int] = field(default_factory=lambda: array("q"))
    parts: array[int] = field(default_factory=lambda: array("b"))
    groups: array[int] = field(default_factory=lambda: array("q"))
    names: dict[str, int] = field(default_factory=dict)  # of classes, as they came
    tokens: dict[str, int] = field(default_factory=dict)  # and of tokens, from 1
    group_names: dict[str, int] = field(default_factory=dict)
    first_seen: dict[int, str] = field(default_factory=dict)  # where each class was
    bad: list[Bad] = field(default_factory=list)
    filled: int = 0
    rows: int = 0


def prepare(
    inputs: Sequence[Input], out: Path, how: Preparation, say: Callable[[str], None]
) -> Card:
    """Write inputs as a data set into the folder `out`, which appears when it is whole.

    Raises UserError for bad rows, unless they are to be skipped, and for what cannot be read,
    written or split; then nothing is left.
    """
    with _staged(out, how.overwrite) as folder:
        with (folder / VALUES).open("wb") as file:
            written = _write_rows(file, inputs, how)
        parts = _choose_parts(written, how)
        parts, left_out = _leave_out(written, parts)
        _refuse_bad(written, how.skip_bad)
        labels, classes = _sort_classes(written, parts)
        for number in (0, 2):
            if not (parts == number).any():
                raise UserError(
                    f"no example is left for {PARTS[number]}: {len(labels)} examples, split "
                    f"{','.join(map(str, how.fractions))}; give more of them or other files"
                )
        offsets = _tensor(written.offsets)
        tokens = _settle_tokens(folder / VALUES, written, offsets, parts)
        mean, std = _means(folder / VALUES, written, offsets, parts)
        index = {"offsets": offsets, "labels": labels, "parts": parts.to(torch.uint8)}
        if len(written.groups):
            index["groups"] = _tensor(written.groups)
        (folder / INDEX).write_bytes(save(index))
        features = written.features or tuple(f"feature {i}" for i in range(written.num_features))
        card = Card(
            format=1,
            kind=written.kind,
            classes=classes,
            features=features,
            mean=mean,
            std=std,
            tokens=tokens,
            parts=_describe_parts(labels, offsets.diff(), parts, classes),
            left_out=left_out,
            files={name: _file_card(folder / name) for name in (VALUES, INDEX)},
        )
        (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if written.bad:
            lines = "".join(f"{bad.where}: {bad.problem}\n" for bad in written.bad)
            (folder / SKIPPED).write_text(lines, encoding="utf-8")
    if written.bad:
        say(f"left out    {left_out:,} rows, all that is wrong is listed in {out / SKIPPED}:")
        say("\n".join(f"            {bad.where}: {bad.problem}" for bad in written.bad[:LISTED]))
    if written.filled:
        say(f"filled      {written.filled:,} missing values, from their neighbours in time")
    return card


@contextmanager
def _staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder that becomes `out` at the end; if the body raises, nothing is left of it."""
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name another folder, or add --overwrite")
    if out.exists() and overwrite and not (out / CARD).exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: holds something else than a data set; name another folder")
    staging = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    try:
        for stale in (staging, old):
            shutil.rmtree(stale, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            for path in staging.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if out.exists():
                out.rename(old)
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None


# ---- writing rows


def _write_rows(file: BinaryIO, inputs: Sequence[Input], how: Preparation) -> Written:
    """Write all steps of all good rows after a header."""
    written = Written()
    file.write(b"\0" * HEADER_BYTES)
    sizes = [path.stat().st_size for path, _ in inputs if path.is_file()]
    with tqdm(
        total=sum(sizes) if len(sizes) == len(inputs) else None,
        unit="B",
        unit_scale=True,
        desc="reading",
        leave=False,
        disable=None,  # where there is no terminal
    ) as bar:
        for path, part in inputs:
            for row in read(path, how.reading, progress=bar.update, format=how.format):
                problem = row.problem if isinstance(row, Bad) else _misfit(written, row)
                if problem:
                    written.bad.append(Bad(row.where, problem))
                    if not how.skip_bad and len(written.bad) >= LISTED:
                        _refuse_bad(written, skip=False)
                elif isinstance(row, Row):
                    _write_row(file, written, row, part, how)
    if not len(written.labels):
        _refuse_bad(written, skip=False)
        raise UserError(f"{', '.join(str(path) for path, _ in inputs)}: no sequences there")
    steps = written.offsets[-1]
    shape = [steps, written.num_features] if written.kind == "vectors" else [steps]
    about = {
        "dtype": NUMBERS[written.kind][1],
        "shape": shape,
        "data_offsets": [0, file.tell() - HEADER_BYTES],
    }
    header = json.dumps({"values": about}).encode().ljust(HEADER_BYTES - 8)
    file.seek(0)
    file.write(len(header).to_bytes(8, "little") + header)
    return written


def _kind(row: Row) -> Kind:
    if isinstance(row.steps, tuple):
        return "tokens"
    return "text" if row.steps.ndim == 1 else "vectors"


def _misfit(written: Written, row: Row) -> str | None:
    """Say why a row cannot stand beside those before it."""
    kind = _kind(row)
    if not row.label:
        return "no label; give it one, or name its column with --label"
    if row.split is not None and row.split not in PARTS:
        return f"split '{row.split}': expected train, val or test"
    if not written.rows:
        return None
    if kind != written.kind:
        return f"{kind}, where the rows before are {written.kind}"
    if kind == "vectors" and isinstance(row.steps, np.ndarray):
        if row.steps.shape[1] != written.num_features:
            return f"{row.steps.shape[1]} features, where rows before have {written.num_features}"
        if row.features is not None and row.features != (written.features or row.features):
            return (
                f"features {', '.join(row.features)}, where rows before have "
                f"{', '.join(written.features or ())}"
            )
    return None


def _write_row(
    file: BinaryIO, written: Written, row: Row, part: str | None, how: Preparation
) -> None:
    if not written.rows:
        written.kind, written.features = _kind(row), row.features
        if written.kind == "vectors" and isinstance(row.steps, np.ndarray):
            written.num_features = row.steps.shape[1]
    if isinstance(row.steps, tuple):
        tokens = written.tokens
        ids = [tokens.setdefault(token, len(tokens) + 1) for token in row.steps]
        values = np.array(ids)
    else:
        values = row.steps
    values = np.ascontiguousarray(values, NUMBERS[written.kind][0])
    written.filled += row.filled
    part = part or row.split
    label = written.names.setdefault(row.label or "", len(written.names))
    written.first_seen.setdefault(label, row.where)
    group = _group(written, row, how)
    written.rows += 1
    for first, end in _windows(len(values), how):
        file.write(values[first:end].tobytes())
        written.offsets.append(written.offsets[-1] + end - first)
        written.labels.append(label)
        written.parts.append(PARTS.index(part) if part else -1)
        if group is not None:
            written.groups.append(group)


def _group(written: Written, row: Row, how: Preparation) -> int | None:
    """Return the number of those that a row's windows must stay with."""
    names = written.group_names
    if row.group is not None:
        return names.setdefault(row.group, len(names))
    if how.window is None and how.reading.group is None and not names:
        return None
    return names.setdefault(f"\0{written.rows}", len(names))  # a group of its own


def _windows(num_steps: int, how: Preparation) -> Iterator[tuple[int, int]]:
    """Yield where windows begin and end: all whole ones, or the sequence if it is shorter."""
    if how.window is None or num_steps <= how.window:
        yield 0, num_steps
        return
    for first in range(0, num_steps - how.window + 1, how.stride or how.window):
        yield first, first + how.window


def _refuse_bad(written: Written, skip: bool) -> None:
    if not written.bad or skip:
        return
    listed = "".join(f"\n  {bad.where}: {bad.problem}" for bad in written.bad[:LISTED])
    count = len(written.bad)
    raise UserError(
        f"{count if count < LISTED else f'{LISTED} or more'} bad row{'s' * (count > 1)}; mend "
        f"{'them' if count > 1 else 'it'}, or leave {'them' if count > 1 else 'it'} out with "
        f"--on-bad-row skip:{listed}"
    )


# ---- what is settled at the end


def _choose_parts(written: Written, how: Preparation) -> Tensor:
    """Return each example's part: as its row or file says, else dealt by class or by group."""
    parts, labels = _tensor(written.parts).long(), _tensor(written.labels)
    if (parts >= 0).all():
        return parts
    if (parts >= 0).any():
        raise UserError(
            f"{int((parts < 0).sum()):,} sequences are of no part, while others are: fill the "
            "split column everywhere, or say --train, --val or --test for every file"
        )
    if len(written.groups):
        groups = _tensor(written.groups)
        return by_group(labels, groups, how.fractions, seed=mix(how.seed, "prepare"))
    parts, rest, left = torch.zeros_like(labels), torch.arange(len(labels)), 1.0
    for part in (2, 1):
        if share := how.fractions[part]:
            seed = mix(how.seed, "prepare", part)
            kept, held_out = stratified(labels[rest], share / left, seed=seed)
            parts[rest[held_out]], rest = part, rest[kept]
            left -= share
    return parts


def _leave_out(written: Written, parts: Tensor) -> tuple[Tensor, int]:
    """Leave out examples whose class cannot be learnt; return parts, and how many rows are bad."""
    labels, left_out = _tensor(written.labels), len(written.bad)
    counts = torch.bincount(labels).tolist()
    trained = torch.bincount(labels[parts == 0], minlength=len(counts)).tolist()
    for name, number in written.names.items():
        if counts[number] == 1:
            problem = f"label '{name}': the only example of its class; give it more, or none"
        elif not trained[number]:
            problem = (
                f"label '{name}': unknown to training ({counts[number]} examples, none of them in "
                "train); is it misspelt?"
            )
        else:
            continue
        written.bad.append(Bad(written.first_seen[number], problem))
        parts = torch.where(labels == number, LEFT_OUT, parts)
        left_out += counts[number]
    return parts, left_out


def _sort_classes(written: Written, parts: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels by classes in their natural order, numbers by size before words."""

    def key(name: str) -> tuple[bool, float, str]:
        try:
            value = float(name)
        except ValueError:
            value = math.nan
        return (False, value, name) if math.isfinite(value) else (True, 0.0, name)

    labels = _tensor(written.labels)
    learnt = set(labels[parts != LEFT_OUT].tolist())
    classes = sorted((name for name, number in written.names.items() if number in learnt), key=key)
    place = torch.zeros(len(written.names), dtype=torch.int64)
    for new, name in enumerate(classes):
        place[written.names[name]] = new
    return place[labels], tuple(classes)


def _tensor(numbers: array[int]) -> Tensor:
    return torch.from_numpy(np.array(numbers))


def _numbers(path: Path, written: Written, mode: str) -> np.ndarray:
    shape = (written.offsets[-1], written.num_features)[: 2 if written.kind == "vectors" else 1]
    dtype = np.dtype(NUMBERS[written.kind][0])
    found: np.ndarray = np.memmap(path, dtype, mode, HEADER_BYTES, shape)  # type: ignore[call-overload]
    return found


def _trained_steps(
    values: np.ndarray, offsets: Tensor, parts: Tensor
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the place of some steps in the file, and those of them that are trained on."""
    for first in range(0, len(values), CHUNK):
        place = slice(first, min(first + CHUNK, len(values)))
        example = torch.searchsorted(offsets, torch.arange(place.start, place.stop), right=True) - 1
        yield place, np.asarray(values[place])[(parts[example] == 0).numpy()]


def _settle_tokens(path: Path, written: Written, offsets: Tensor, parts: Tensor) -> tuple[str, ...]:
    """Number the tokens that occur in training anew, by name; the others become 0."""
    if written.kind != "tokens":
        return ()
    values = _numbers(path, written, "r+")
    known = np.zeros(len(written.tokens) + 1, bool)
    for _, steps in _trained_steps(values, offsets, parts):
        known[steps] = True
    names = tuple(sorted(name for name, number in written.tokens.items() if known[number]))
    new = np.zeros(len(known), values.dtype)
    for number, name in enumerate(names, 1):
        new[written.tokens[name]] = number
    for place, _ in _trained_steps(values, offsets, parts):
        values[place] = new[values[place]]
    values.flush()  # type: ignore[attr-defined]
    return names


def _means(
    path: Path, written: Written, offsets: Tensor, parts: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each feature over the training part's steps."""
    if written.kind != "vectors":
        return (), ()
    values, count = _numbers(path, written, "r"), 0
    total = np.zeros(written.num_features)
    for _, steps in _trained_steps(values, offsets, parts):
        total += steps.sum(0, dtype=np.float64)
        count += len(steps)
    mean = total / max(count, 1)
    squares = np.zeros(written.num_features)
    for _, steps in _trained_steps(values, offsets, parts):
        squares += ((steps - mean) ** 2).sum(0)
    std = np.sqrt(squares / max(count, 1))
    std[std <= 1e-7 * np.abs(mean)] = 1.0  # a constant tells nothing, whatever divides it
    return tuple(mean.tolist()), tuple(std.tolist())


def _describe_parts(
    labels: Tensor, lengths: Tensor, parts: Tensor, classes: tuple[str, ...]
) -> dict[str, PartCard]:
    found = {}
    for number, name in enumerate(PARTS):
        mine = parts == number
        if mine.any():
            counts = torch.bincount(labels[mine], minlength=len(classes)).tolist()
            found[name] = PartCard(
                examples=int(mine.sum()),
                steps=int(lengths[mine].sum()),
                shortest=int(lengths[mine].min()),
                longest=int(lengths[mine].max()),
                classes=dict(zip(classes, counts, strict=True)),
            )
    return found


def _file_card(path: Path) -> FileCard:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileCard(bytes=path.stat().st_size, sha256=digest)


# ---- looking at it


def describe(folder: Path) -> str:
    """Return what a prepared data set holds: sizes, lengths, classes, features."""
    card, parts, groups = open_parts(folder)
    what = {
        "vectors": f"{len(card.features)} feature{'s' * (len(card.features) != 1)} a step",
        "tokens": f"{len(card.tokens):,} tokens",
        "text": "text, read byte by byte",
    }[card.kind]
    lines = [f"data        {folder}: {what}, {len(card.classes)} classes"]
    for name, part in card.parts.items():
        grouped = f", {len(groups[name].unique()):,} groups" if name in groups else ""
        lines.append(
            f"{name:<11} {part.examples:,} sequences, {part.steps:,} steps, {part.shortest} to "
            f"{part.longest} steps each{grouped}"
        )
    if card.left_out:
        lines.append(f"left out    {card.left_out:,} bad rows")
    lengths = torch.cat([found.lengths for found in parts.values() if found.lengths is not None])
    lines += ["", "lengths (steps, all parts)", *_histogram(lengths), "", *_class_lines(card)]
    if card.features:
        width = max(map(len, card.features))
        lines += ["", f"{'feature':<{max(width, 7)}} {'mean':>12} {'std':>12}  (training part)"]
        for name, mean, std in zip(card.features, card.mean, card.std, strict=True):
            lines.append(f"{name:<{max(width, 7)}} {mean:>12.5g} {std:>12.5g}")
    return "\n".join(lines)


def _histogram(lengths: Tensor) -> list[str]:
    low, high = int(lengths.min()), int(lengths.max())
    edges = np.linspace(low, high + 1, min(BARS, high - low + 1) + 1).round().astype(int)
    counts, _ = np.histogram(lengths.numpy(), edges)
    width = len(str(high))
    return [
        f"{first:>{width}} to {end - 1:<{width}} {count:>9,} "
        f"{'█' * round(BAR_WIDTH * count / counts.max())}".rstrip()
        for (first, end), count in zip(pairwise(edges), counts, strict=True)
    ]


def _class_lines(card: Card) -> list[str]:
    width = max(5, *(len(name) for name in card.classes))
    lines = [f"{'class':<{width}} " + "".join(f"{name:>9}" for name in card.parts)]
    totals: Counter[str] = Counter()
    for part in card.parts.values():
        totals.update(part.classes)
    for name in card.classes:
        counts = "".join(f"{part.classes[name]:>9,}" for part in card.parts.values())
        share = totals[name] / max(1, totals.total())
        lines.append(f"{name:<{width}} {counts}  {share:6.1%}")
    return lines
