"""Files that lie one after the other in memory, of which the kernel reads what is used.

torch and safetensors map a file so that it could be written to privately, and Linux then refuses a
file larger than the memory. A mapping that is read only, or shared with the file, has no limit.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAP_FIXED = 0x10  # Linux and macOS: exactly at this address, instead of what is there
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # an address range takes no memory

ASKED_AT_ONCE = 2**17  # bytes; Linux leaves the rest of a longer request unread

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Piece(NamedTuple):
    """Where bytes lie in a file."""

    path: Path
    first: int
    size: int


def map_pieces(
    pieces: Sequence[Piece], dtype: str, shape: tuple[int, ...], *, writable: bool = False
) -> np.ndarray:
    """Map pieces of files as one array, which lives as long as the mapping.

    Each piece but the first begins where a page of memory may, and each but the last one ends so.
    Raises OSError.
    """
    # np.memmap would keep the descriptor of a file open as long as the array lives.
    skipped = pieces[0].first % mmap.PAGESIZE
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    region = mmap.mmap(
        -1,
        skipped + sum(piece.size for piece in pieces),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE,
        prot=protection,
    )
    address = np.frombuffer(region, np.uint8).ctypes.data
    for number, (path, first, size) in enumerate(pieces):
        before = 0 if number else skipped
        _map_at(address, Piece(path, first - before, before + size), protection)
        address += before + size
    return np.ndarray(shape, dtype, region, skipped)


def _map_at(address: int, piece: Piece, protection: int) -> None:
    descriptor = os.open(piece.path, os.O_RDWR if protection & mmap.PROT_WRITE else os.O_RDONLY)
    try:
        flags = mmap.MAP_SHARED | MAP_FIXED
        found = libc.mmap(address, piece.size, protection, flags, descriptor, piece.first)
    finally:
        os.close(descriptor)
    if found != address:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(piece.path))


def as_read_only_tensor(values: np.ndarray) -> Tensor:
    """Return mapped values as a tensor. Nobody may write to it: the process would be killed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def will_need(values: Tensor, first: int, end: int) -> None:
    """Have the kernel read rows `first` to `end` of mapped values before they are used."""
    low, high = _addresses(values, first, end)
    # A kernel that refuses reads each page when it is used.
    for place in range(low, high, ASKED_AT_ONCE):
        libc.madvise(place, min(ASKED_AT_ONCE, high - place), mmap.MADV_WILLNEED)


def drop(values: Tensor, ranges: Sequence[tuple[int, int]]) -> None:
    """Have the kernel forget what it has read of these rows, but for what others have mapped.

    Else it keeps rows that were used, and forgets others that it has read ahead for them.
    """
    if sys.platform != "linux":
        return
    files = _mapped_files(*_addresses(values, 0, len(values)))
    for first, end in ranges:
        low, high = _addresses(values, first, end)
        # Rows beside these may be in use, and lie in the same first and last page.
        low, high = low + mmap.PAGESIZE, high - high % mmap.PAGESIZE
        for start, stop, offset, path in files:
            part_low, part_high = max(low, start), min(high, stop)
            if part_low >= part_high:
                continue
            libc.madvise(part_low, part_high - part_low, mmap.MADV_DONTNEED)  # else it keeps them
            with suppress(OSError), open(path, "rb") as file:  # a file that was moved stays there
                place, size = offset + part_low - start, part_high - part_low
                os.posix_fadvise(file.fileno(), place, size, os.POSIX_FADV_DONTNEED)


def _addresses(values: Tensor, first: int, end: int) -> tuple[int, int]:
    """Return where the pages of rows `first` to `end` begin and end."""
    step = values[0].nbytes
    low = values.data_ptr() + first * step
    return low - low % mmap.PAGESIZE, values.data_ptr() + end * step


def _mapped_files(low: int, high: int) -> list[tuple[int, int, int, str]]:
    """Return the files in a range of addresses: first address, last, offset in the file, path.

    Not those that are mapped as a private copy: the kernel would forget what was written to it.
    """
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, offset, _, _, *path = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in span.split("-"))
        if path and permissions.endswith("s") and start < high and low < stop:
            found.append((start, stop, int(offset, 16), path[0]))
    return found
