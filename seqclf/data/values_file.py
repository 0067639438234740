"""The values of a data set while they are written: one file, or shards where that grows large.

A shard holds whole steps, and its values begin and end where a page of memory may, on every
machine. So training maps all shards as one tensor (mapping.py), and a sequence may begin in one
shard and end in the next.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np

from seqclf.data.mapping import Piece
from seqclf.data.prepared import SHARD, VALUES

SHARD_BYTES = 2**28  # the values of a shard, about
HEADER_BYTES = 256  # of a single file, before its values
PAGE = 2**16  # bytes; the largest page of memory, and the header of a shard


class ValuesFile:
    """Steps that are written one after the other into a folder; the headers come last."""

    def __init__(self, folder: Path) -> None:
        for path in folder.glob("values*.safetensors"):  # of a reading before
            path.unlink()
        self._folder = folder
        self._paths = [folder / VALUES]
        self._counts = [0]  # the steps of each file
        self._steps_of_a_shard = 0
        self._file: BinaryIO = self._paths[0].open("wb")
        self._file.write(b"\0" * HEADER_BYTES)

    def close(self) -> None:
        """Close the last file."""
        self._file.close()

    def write(self, values: np.ndarray) -> None:
        """Write steps, [S, F] or [S], always of the same type."""
        if not self._steps_of_a_shard:
            step_bytes = values[:1].nbytes
            unit = PAGE // math.gcd(PAGE, step_bytes)  # steps that fill whole pages
            self._steps_of_a_shard = unit * max(1, SHARD_BYTES // (unit * step_bytes))
        while len(values):
            if self._counts[-1] == self._steps_of_a_shard:
                self._begin_shard()
            part = values[: self._steps_of_a_shard - self._counts[-1]]
            self._file.write(part.tobytes())
            self._counts[-1] += len(part)
            values = values[len(part) :]

    def _begin_shard(self) -> None:
        self._file.close()
        if len(self._paths) == 1:
            self._paths = [self._folder / SHARD.format(1, 0)]
            with (self._folder / VALUES).open("rb") as old, self._paths[0].open("wb") as first:
                old.seek(HEADER_BYTES)
                first.write(b"\0" * PAGE)
                shutil.copyfileobj(old, first, SHARD_BYTES)
            (self._folder / VALUES).unlink()
        self._paths.append(self._folder / SHARD.format(len(self._paths) + 1, 0))
        self._counts.append(0)
        self._file = self._paths[-1].open("wb")
        self._file.write(b"\0" * PAGE)

    def finish(self, dtype: str, step_shape: tuple[int, ...], itemsize: int) -> list[Piece]:
        """Write the headers, and name the shards by their number; return where the values lie."""
        self._file.close()
        is_single = len(self._paths) == 1
        header_bytes = HEADER_BYTES if is_single else PAGE
        pieces = []
        for number, (path, count) in enumerate(zip(self._paths, self._counts, strict=True), 1):
            num_bytes = count * math.prod(step_shape) * itemsize
            tensor = {"dtype": dtype, "shape": (count, *step_shape), "data_offsets": [0, num_bytes]}
            text = json.dumps({"values": tensor}).encode().ljust(header_bytes - 8)
            with path.open("r+b") as file:
                file.write(len(text).to_bytes(8, "little") + text)
            name = VALUES if is_single else SHARD.format(number, len(self._paths))
            pieces.append(Piece(path.rename(self._folder / name), header_bytes, num_bytes))
        return pieces
