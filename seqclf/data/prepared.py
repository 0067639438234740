"""A prepared data set: what `seqclf prepare` writes, and training maps into memory.

data/mine/
  dataset.json          what is in it: Card, below
  values.safetensors    values: all steps of all sequences, float32 [S, F]; tokens int32, bytes
                        uint8 [S]
  index.safetensors     offsets int64 [N + 1]: where each sequence begins, and the last one ends;
                        labels int64 [N]; parts uint8 [N]: 0 train, 1 val, 2 test, 3 left out;
                        groups int64 [N], if some sequences must stay together
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqclf.config import UserError
from seqclf.data.sequences import Sequences

Kind = Literal["vectors", "tokens", "text"]
PARTS = ("train", "val", "test")
LEFT_OUT = len(PARTS)
CARD, VALUES, INDEX = "dataset.json", "values.safetensors", "index.safetensors"
LARGEST_CARD = 2**26
TEXT_TOKENS = 256  # text is read byte by byte
DTYPES = {"vectors": torch.float32, "tokens": torch.int32, "text": torch.uint8}
AGAIN = "prepare the data set again"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PartCard(_Strict):
    """What is in a part of a data set."""

    examples: int
    steps: int
    shortest: int
    longest: int
    classes: dict[str, int]  # examples of each class


class FileCard(_Strict):
    """A file as it was written."""

    bytes: int
    sha256: str


class Card(_Strict):
    """dataset.json."""

    format: Literal[1]
    kind: Kind
    classes: tuple[str, ...]
    features: tuple[str, ...]  # names, of vectors
    mean: tuple[float, ...]  # of each feature over all steps of the training part
    std: tuple[float, ...]
    tokens: tuple[str, ...]  # the name of token 1, 2 ...; 0 is one that training does not know
    parts: dict[str, PartCard]
    left_out: int
    files: dict[str, FileCard]

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that a model sees of it, without reading it again."""
        content = self.model_copy(update={"features": ()}).model_dump_json()
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """How many tokens there are, 0 if it holds vectors."""
        return {"vectors": 0, "tokens": len(self.tokens) + 1, "text": TEXT_TOKENS}[self.kind]


def read_card(folder: Path) -> Card:
    """Read dataset.json. Raises UserError if it is missing or damaged."""
    path = folder / CARD
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_CARD + 1)
    except OSError as error:
        raise UserError(
            f"{folder}: no prepared data set there ({CARD}: {error.strerror}); make one with "
            f"`seqclf prepare FILES --out {folder}`"
        ) from None
    if len(content) > LARGEST_CARD:
        raise UserError(f"{path}: larger than {LARGEST_CARD:,} bytes; {AGAIN}")
    try:
        return Card.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place or 'damaged'}: {first['msg']}; {AGAIN}") from None


def open_parts(folder: Path) -> tuple[Card, dict[str, Sequences], dict[str, Tensor]]:
    """Map a data set into memory; return its card, its parts and their groups, if it has any.

    Raises UserError naming the file that is missing, damaged or of another size than its card says;
    contents are compared by `verify` only.
    """
    card = read_card(folder)
    for name in (VALUES, INDEX):
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if name not in card.files or size != card.files[name].bytes:
            raise UserError(
                f"{folder / name}: {'missing' if size is None else f'{size:,} bytes'}, where "
                f"{CARD} says {card.files[name].bytes if name in card.files else 0:,}; {AGAIN}"
            )
    index, tensors = _read(folder / INDEX), _read(folder / VALUES)
    if tensors.keys() != {"values"}:
        raise UserError(f"{folder / VALUES}: other tensors than the format's; {AGAIN}")
    values = tensors["values"]
    _check(folder, card, values, index)
    offsets, labels, parts = (index[name] for name in ("offsets", "labels", "parts"))
    groups = index.get("groups")
    starts, lengths = offsets[:-1], offsets.diff()
    found, their_groups = {}, {}
    for number, name in enumerate(PARTS):
        ids = (parts == number).nonzero()[:, 0]
        if len(ids):
            found[name] = Sequences(
                values,
                labels[ids],
                card.classes,
                mean=card.mean,
                std=card.std,
                num_tokens=card.num_tokens,
                tokens=card.tokens,
                features=card.features,
                starts=starts[ids],
                lengths=lengths[ids],
            )
            if groups is not None:
                their_groups[name] = groups[ids]
    return card, found, their_groups


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:  # mapped: nothing is read yet
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}; {AGAIN}") from None


def _check(folder: Path, card: Card, values: Tensor, index: dict[str, Tensor]) -> None:
    """Refuse what the files cannot mean."""
    ndim = 2 if card.kind == "vectors" else 1
    if values.dtype != DTYPES[card.kind] or values.ndim != ndim:
        raise UserError(
            f"{folder / VALUES}: {card.kind} should be {DTYPES[card.kind]} of {ndim} dimensions, "
            f"found {values.dtype} {tuple(values.shape)}; {AGAIN}"
        )
    num_features = values.shape[1] if ndim == 2 else 0
    if not len(card.mean) == len(card.std) == num_features or len(card.features) != num_features:
        raise UserError(
            f"{folder / CARD}: mean, std or features are not of {num_features} features; {AGAIN}"
        )
    num_examples = len(index.get("labels", ()))
    expected = {
        "offsets": (torch.int64, num_examples + 1),
        "labels": (torch.int64, num_examples),
        "parts": (torch.uint8, num_examples),
    }
    if "groups" in index:
        expected["groups"] = (torch.int64, num_examples)
    if {name: (tensor.dtype, tensor.numel()) for name, tensor in index.items()} != expected:
        raise UserError(f"{folder / INDEX}: other tensors than the format's; {AGAIN}")
    offsets, labels, parts = index["offsets"], index["labels"], index["parts"]
    if int(offsets[0]) or int(offsets[-1]) != len(values) or bool((offsets.diff() < 1).any()):
        raise UserError(f"{folder / INDEX}: offsets do not cut {len(values):,} steps; {AGAIN}")
    if num_examples and (int(labels.min()) < 0 or int(labels.max()) >= len(card.classes)):
        raise UserError(f"{folder / INDEX}: a label is none of the classes; {AGAIN}")
    for number, name in enumerate(PARTS):
        said = card.parts[name].examples if name in card.parts else 0
        if int((parts == number).sum()) != said:
            raise UserError(f"{folder / INDEX}: not the {said:,} examples of {name}; {AGAIN}")


def verify(folder: Path) -> None:
    """Compare the contents of all files with what was written. Raises UserError if they differ."""
    for name, file in read_card(folder).files.items():
        with (folder / name).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                raise UserError(f"{folder / name}: damaged (another sha256); {AGAIN}")
