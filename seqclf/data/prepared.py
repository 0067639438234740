"""A prepared data set: what `seqclf prepare` writes, and training maps into memory.

data/mine/
  dataset.json          what is in it: DatasetInfo, below
  values.safetensors    values: all steps of all sequences, float32 [S, F]; tokens int32 [S]; the
                        bytes of texts uint8 [S]. Where this would be larger than about 256 MB
                        there are shards, values-00001-of-00009.safetensors and so on, which may
                        lie elsewhere
  index.safetensors     offsets int64 [N + 1]: where each sequence begins, and the last one ends;
                        labels int64 [N]; parts uint8 [N], the splits: 0 train, 1 val, 2 test,
                        3 left out; groups int64 [N], if some sequences must stay together;
                        rows int64 [N], first_steps int64 [N]: the row of the files that each
                        sequence comes from, and where in it the sequence begins; of the rows,
                        ids and places (the texts in UTF-8, and where each begins and ends), and
                        sources int32: the file, as a number in the list of dataset.json
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from mmap import PAGESIZE
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqclf.data.mapping import Piece, as_read_only_tensor, map_pieces
from seqclf.data.reading import Reading
from seqclf.data.sequences import Origins, Sequences, Texts
from seqclf.errors import UserError

INFO = "dataset.json"
VALUES = "values.safetensors"
SHARD = "values-{:05}-of-{:05}.safetensors"
INDEX = "index.safetensors"
LARGEST_INFO = 2**26  # bytes

SPLITS = ("train", "val", "test")
LEFT_OUT = len(SPLITS)  # what the index says of an example that is in no split

NUM_BYTE_VALUES = 256  # text is read byte by byte
REMEDY = "prepare the data set again"


class ValueType(NamedTuple):
    """The type of a data set's values, as each library calls it."""

    torch_dtype: torch.dtype
    numpy_dtype: str
    safetensors_dtype: str


Kind = Literal["vectors", "tokens", "text"]
VALUE_TYPES: dict[Kind, ValueType] = {
    "vectors": ValueType(torch.float32, "<f4", "F32"),
    "tokens": ValueType(torch.int32, "<i4", "I32"),
    "text": ValueType(torch.uint8, "u1", "U8"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SplitInfo(_Strict):
    """What is in a split of a data set."""

    examples: int
    steps: int
    shortest: int  # the steps of its shortest sequence
    longest: int
    classes: dict[str, int]  # the number of examples of each class


class FileInfo(_Strict):
    """A file as it was written."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileInfo:
        """Measure a file."""
        return cls(bytes=path.stat().st_size, sha256=_sha256(path))


class DatasetInfo(_Strict):
    """dataset.json."""

    format: Literal[1, 2]  # 2: the values are shards
    kind: Kind
    classes: tuple[str, ...]
    features: tuple[str, ...]  # the names of the features of vectors
    mean: tuple[float, ...]  # of each feature, over all steps of the training split
    std: tuple[float, ...]  # of each feature, over all steps of the training split
    tokens: tuple[str, ...]  # the names of token 1, 2 ...; 0 is a token that training never saw
    parts: dict[str, SplitInfo]  # by the names of SPLITS
    left_out: int  # the number of rows that are in no split
    files: dict[str, FileInfo]  # by their paths, absolute ones or from this folder on

    # For people, and to read new files alike; a model sees none of it:
    sources: tuple[str, ...] = ()  # the files that were prepared
    left_aside: dict[str, str] = {}  # columns that are no features, and why
    notes: tuple[str, ...] = ()
    roles: dict[str, str] = {}  # the columns of the id, the label and so on
    reading: Reading = Reading()

    @property
    def fingerprint(self) -> str:
        """A sha256 over all that a model sees of the data set, from the sums of its files."""
        unseen = {"sources", "left_aside", "notes", "roles", "reading"}
        # A file may lie elsewhere.
        files = {Path(path).name: file for path, file in self.files.items()}
        copy = self.model_copy(update={"features": (), "files": files})
        content = copy.model_dump_json(exclude=unseen)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def values_files(self) -> list[str]:
        """The paths of the files of the values, in their order; those that lack by name alone."""
        if self.format == 1:
            return [VALUES]
        by_name = {Path(path).name: path for path in self.files}
        count = len(by_name) - 1  # without the index
        names = [SHARD.format(number, count) for number in range(1, count + 1)]
        return [by_name.get(name, name) for name in names]

    @property
    def num_tokens(self) -> int:
        """The number of tokens, 0 if the data set holds vectors."""
        return {"vectors": 0, "tokens": len(self.tokens) + 1, "text": NUM_BYTE_VALUES}[self.kind]


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes in their natural order, numbers by size before words."""

    def key(name: str) -> tuple[bool, float, str]:
        try:
            value = float(name)
        except ValueError:
            value = math.nan
        return (False, value, name) if math.isfinite(value) else (True, 0.0, name)

    return tuple(sorted(names, key=key))


class Dataset(NamedTuple):
    """A prepared data set, mapped into memory."""

    info: DatasetInfo
    splits: dict[str, Sequences]  # those that have examples
    groups: dict[str, Tensor]  # the group of each example of a split; empty if there are none


def read_info(folder: Path) -> DatasetInfo:
    """Read dataset.json. Raises UserError if it is missing or damaged."""
    path = folder / INFO
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_INFO + 1)
    except OSError as error:
        raise UserError(
            f"{folder}: no prepared data set there ({INFO}: {error.strerror}); make one with "
            f"`seqclf prepare FILES --out {folder}`"
        ) from None
    if len(content) > LARGEST_INFO:
        raise UserError(f"{path}: larger than {LARGEST_INFO:,} bytes; {REMEDY}")
    try:
        return DatasetInfo.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key or 'damaged'}: {first['msg']}; {REMEDY}") from None


def open_dataset(folder: Path) -> Dataset:
    """Map a data set into memory.

    Raises UserError naming the file that is missing, damaged or of another size than dataset.json
    says. Only `verify` compares contents: at a start it would read the whole data set.
    """
    info = read_info(folder)
    for name in (*info.values_files, INDEX):
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if name not in info.files or size != info.files[name].bytes:
            raise UserError(
                f"{folder / name}: {'missing' if size is None else f'{size:,} bytes'}, where "
                f"{INFO} says {info.files[name].bytes if name in info.files else 0:,}; "
                + "write where it lies into files there, or " * (info.format == 2 and size is None)
                + REMEDY
            )
    index = _map_tensors(folder / INDEX)
    values = _map_values(folder, info)
    _check_index(folder, info, index, num_steps=len(values))
    starts = index["offsets"][:-1]
    lengths = index["offsets"].diff()
    origins = _origins(info, index)
    splits: dict[str, Sequences] = {}
    groups: dict[str, Tensor] = {}
    for number, name in enumerate(SPLITS):
        ids = _as_range((index["parts"] == number).nonzero()[:, 0])
        if isinstance(ids, slice) or len(ids):
            splits[name] = Sequences(
                values,
                index["labels"][ids],
                info.classes,
                mean=info.mean,
                std=info.std,
                num_tokens=info.num_tokens,
                tokens=info.tokens,
                features=info.features,
                reading=info.reading,
                starts=starts[ids],
                lengths=lengths[ids],
                origins=origins and origins.select(ids),
            )
            if "groups" in index:
                groups[name] = index["groups"][ids]
    return Dataset(info, splits, groups)


def _as_range(ids: Tensor) -> Tensor | slice:
    """Return rising positions as a slice, which copies nothing, if they follow each other."""
    if len(ids) and int(ids[-1]) - int(ids[0]) == len(ids) - 1:
        return slice(int(ids[0]), int(ids[-1]) + 1)
    return ids


def _origins(info: DatasetInfo, index: dict[str, Tensor]) -> Origins | None:
    """Return where all examples come from; None if an older version prepared them."""
    if "rows" not in index:
        return None
    return Origins(
        ids=Texts(index["ids"], index["id_offsets"]),
        places=Texts(index["places"], index["place_offsets"]),
        files=info.sources,
        sources=index["sources"],
        rows=index["rows"],
        first_steps=index["first_steps"],
        has_parts=info.reading.has_parts,
    )


def _map_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:  # maps the file and reads nothing yet
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}; {REMEDY}") from None


def _map_values(folder: Path, info: DatasetInfo) -> Tensor:
    """Map the values of all files. Raises UserError if they are not what dataset.json says."""
    kind = VALUE_TYPES[info.kind]
    pieces: list[Piece] = []
    num_steps = 0
    for path in (folder / name for name in info.values_files):
        dtype, shape, header_bytes = _read_header(path)
        ndim = 2 if info.kind == "vectors" else 1
        if dtype != kind.safetensors_dtype or len(shape) != ndim:
            raise UserError(
                f"{path}: {info.kind} should be {kind.safetensors_dtype} of {ndim} dimensions, "
                f"found {dtype} {shape}; {REMEDY}"
            )
        num_features = shape[1] if ndim == 2 else 0
        if {len(info.mean), len(info.std), len(info.features)} != {num_features}:
            raise UserError(
                f"{folder / INFO}: mean, std or features are not of the {num_features} features "
                f"of {path.name}; {REMEDY}"
            )
        is_shard = header_bytes % PAGESIZE == 0 and (not pieces or pieces[-1].size % PAGESIZE == 0)
        if info.format == 2 and not is_shard:
            raise UserError(f"{path}: not a shard that `prepare` wrote; {REMEDY}")
        pieces.append(Piece(path, header_bytes, path.stat().st_size - header_bytes))
        num_steps += shape[0]
    shape = (num_steps, *shape[1:])
    return as_read_only_tensor(map_pieces(pieces, kind.numpy_dtype, shape))


def _read_header(path: Path) -> tuple[str, tuple[int, ...], int]:
    """Return type and shape of the values in a file, and the bytes before them."""
    try:
        with safe_open(path, framework="np") as file:  # maps the file and reads its header alone
            names = list(file.keys())
            values = file.get_slice("values") if names == ["values"] else None
        with path.open("rb") as content:
            header_bytes = 8 + int.from_bytes(content.read(8), "little")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}; {REMEDY}") from None
    if values is None:
        raise UserError(f"{path}: other tensors than the format's; {REMEDY}")
    return values.get_dtype(), tuple(values.get_shape()), header_bytes


def _check_index(
    folder: Path, info: DatasetInfo, index: dict[str, Tensor], *, num_steps: int
) -> None:
    """Refuse an index that does not fit dataset.json and the values."""
    path = folder / INDEX
    num_examples = len(index.get("labels", ()))
    num_rows = max(0, len(index.get("id_offsets", ())) - 1)
    expected = {
        "offsets": (torch.int64, num_examples + 1),
        "labels": (torch.int64, num_examples),
        "parts": (torch.uint8, num_examples),
    }
    if "groups" in index:
        expected["groups"] = (torch.int64, num_examples)
    if "rows" in index:
        expected |= dict.fromkeys(("rows", "first_steps"), (torch.int64, num_examples))
        expected |= dict.fromkeys(("id_offsets", "place_offsets"), (torch.int64, num_rows + 1))
        expected["sources"] = (torch.int32, num_rows)
        for texts, ends in (("ids", "id_offsets"), ("places", "place_offsets")):
            num_bytes = int(index[ends][-1]) if ends in index else 0
            expected[texts] = (torch.uint8, num_bytes)
    if {name: (tensor.dtype, tensor.numel()) for name, tensor in index.items()} != expected:
        raise UserError(f"{path}: other tensors than the format's; {REMEDY}")
    if "rows" in index and num_examples:
        rows = index["rows"]
        if int(rows.min()) < 0 or int(rows.max()) >= num_rows:
            raise UserError(f"{path}: a row that is not there; {REMEDY}")
    if num_rows > 0 and int(index["sources"].max()) >= len(info.sources):
        raise UserError(f"{path}: a file that is not in {INFO}; {REMEDY}")
    offsets, labels = index["offsets"], index["labels"]
    if int(offsets[0]) or int(offsets[-1]) != num_steps or bool((offsets.diff() < 1).any()):
        raise UserError(f"{path}: offsets do not cut {num_steps:,} steps; {REMEDY}")
    if num_examples and (int(labels.min()) < 0 or int(labels.max()) >= len(info.classes)):
        raise UserError(f"{path}: a label is none of the classes; {REMEDY}")
    for number, name in enumerate(SPLITS):
        expected_count = info.parts[name].examples if name in info.parts else 0
        if int((index["parts"] == number).sum()) != expected_count:
            raise UserError(f"{path}: not the {expected_count:,} examples of {name}; {REMEDY}")


def verify(folder: Path) -> None:
    """Compare the contents of all files with what was written. Raises UserError if they differ."""
    for name, file in read_info(folder).files.items():
        if _sha256(folder / name) != file.sha256:
            raise UserError(f"{folder / name}: damaged (another sha256); {REMEDY}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
