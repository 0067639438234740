"""The lines of a text file: compressed or not, in any encoding, or from standard input."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, BinaryIO

from seqclf.config.load import OPEN_FILES
from seqclf.data.readers.rows import STDIN, Progress, reason_of
from seqclf.errors import UserError

LONGEST_LINE = 2**28  # characters
START = 512  # bytes that show whether a file is a text
# What other files begin with.
KINDS = {
    b"PK\x03\x04": "a zip archive, as .npz and .xlsx are",
    b"PAR1": "parquet; let its name end in .parquet",
    b"\x93NUMPY": "an array of NumPy; let its name end in .npy",
    b"\x89HDF": "HDF5",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"RIFF": "a sound or a film",
    b"MATLAB 5.0": "a .mat of MATLAB",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x80\x04\x95": "a pickle, which seqclf does not read",
}
CONTROL = bytes({*range(32)} - {*b"\t\n\r\f\x1b"})  # what stands in no text
MOST_CONTROL = 0.02  # of the letters of a text
FEW_CONTROL = 4  # may be slips
WRITER_S = 20  # seconds within which somebody must begin to write to a named pipe
LINES_AT_ONCE = 256  # lines between two reports of progress


@dataclass(frozen=True)
class TextFile:
    """A text file that may be read several times."""

    path: Path  # where the text is
    name: str  # for messages
    encoding: str | None = None  # None: UTF-8

    @classmethod
    def of(cls, path: Path, encoding: str | None = None) -> TextFile:
        """Return the text file at a path."""
        return cls(path, str(path), encoding)

    def lines(self, progress: Progress = lambda num_bytes: None) -> Iterator[str]:
        """Yield the lines with their ends; bytes that are not UTF-8 become surrogates.

        `progress` gets the number of bytes of the file, compressed ones if it is compressed.
        Raises UserError that names what is wrong, and OSError.
        """
        with self.path.open("rb") as file:
            is_gz = self.path.suffix.lower() == ".gz"
            content = gzip.GzipFile(fileobj=file) if is_gz else file
            number = 0
            try:
                self._check_start(content.peek(START)[:START])
                errors = "strict" if self.encoding else "surrogateescape"
                text = io.TextIOWrapper(content, self.encoding or "utf-8", errors, newline="")
                done = 0
                for number, line in enumerate(iter(partial(text.readline, LONGEST_LINE), ""), 1):
                    if len(line) == LONGEST_LINE:
                        raise UserError(
                            f"{self.name}:{number}: a line of {LONGEST_LINE:,} characters; "
                            "is it a text?"
                        )
                    if number % LINES_AT_ONCE == 0:
                        position = file.tell()
                        progress(position - done)
                        done = position
                    # A byte order mark, which Windows writes, is no letter of the first line.
                    yield line.removeprefix("\ufeff") if number == 1 else line
                progress(file.tell() - done)
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise UserError(f"{self.name}: not a .gz that can be read: {error}") from None
            except UnicodeError as error:
                place = f" after line {number}" if number else ""
                raise UserError(
                    f"{self.name}: not {self.encoding}{place} ({reason_of(error)}); say its "
                    "--encoding"
                ) from None

    def _check_start(self, start: bytes) -> None:
        if self.encoding is not None:
            return
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{self.name}: UTF-16; read it with --encoding utf-16")
        if start[:2] == b"\x1f\x8b":
            raise UserError(f"{self.name}: compressed by gzip; let its name end in .gz")
        kind = next((kind for begin, kind in KINDS.items() if start.startswith(begin)), None)
        if kind is not None:
            raise UserError(
                f"{self.name}: no text but {kind}; docs/data.md shows how to convert it"
            )
        num_control = len(start) - len(start.translate(None, CONTROL))
        # UTF-16 without a mark has a zero in most letters.
        is_wide = start.count(0) > len(start) / 4
        if num_control > max(FEW_CONTROL, MOST_CONTROL * len(start)) and not is_wide:
            raise UserError(f"{self.name}: a binary file, not a text")
        if b"\0" in start[:8]:
            raise UserError(
                f"{self.name}: not a text, or UTF-16; if so, read it with --encoding utf-16"
            )

    def check_utf8(self, number: int, line: str) -> None:
        """Raise UserError if a line, which must be right, holds bytes that are not UTF-8."""
        if any("\udc80" <= letter <= "\udcff" for letter in line):
            raise UserError(
                f"{self.name}:{number}: not UTF-8; say its --encoding, such as latin-1, cp1252 "
                "or utf-16"
            )


@contextmanager
def text_file(path: Path, encoding: str | None) -> Iterator[TextFile]:
    """Give the text file at a path; standard input (`-`) goes into a temporary file first."""
    if encoding is not None:
        try:
            b"a".decode(encoding)  # Some encodings are none of a text, such as hex.
        except UnicodeError:
            pass  # such as UTF-16, where one byte is no letter
        except LookupError:
            raise UserError(
                f"--encoding {encoding}: unknown; such as latin-1, cp1252 or utf-16"
            ) from None
    refuse_endless(path, takes_pipe=True)
    if path == STDIN:
        yield TextFile(Path(_copy_of(sys.stdin.buffer).name), str(path), encoding)
    elif path.exists() and not path.is_file():
        # A pipe can be read once, and a table is read twice.
        yield TextFile(Path(_copy_of(path).name), str(path), encoding)
    else:
        yield TextFile.of(path, encoding)


def refuse_endless(path: Path, *, takes_pipe: bool = False) -> None:
    """Refuse what is there and is no file, such as a device or a pipe. Raises UserError.

    A shell has a pipe's other end open for <(...); a text may come through any pipe.
    """
    if path == STDIN or str(path).startswith(OPEN_FILES) or not path.exists() or path.is_file():
        return
    if path.is_dir() or (takes_pipe and path.is_fifo()):
        return
    raise UserError(f"{path}: a pipe or a device, where a file is expected; save it to a file")


def _copied_from_pipe(pipe: Path, copy: IO[bytes]) -> bool:
    """Copy what comes through a named pipe; return whether it is one.

    Raises UserError if nobody writes to it for a while: to open it would wait for ever.
    """
    if str(pipe).startswith(OPEN_FILES) or not pipe.is_fifo():
        return False
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        end = time.monotonic() + WRITER_S
        while time.monotonic() < end:
            try:
                content = os.read(descriptor, 2**16)
            except BlockingIOError:  # a writer is there, and has written nothing yet
                content = None
            if content != b"":
                os.set_blocking(descriptor, True)
                copy.write(content or b"")
                with os.fdopen(os.dup(descriptor), "rb") as stream:
                    shutil.copyfileobj(stream, copy)
                return True
            time.sleep(0.05)
    finally:
        os.close(descriptor)
    raise UserError(
        f"{pipe}: a pipe, to which nobody writes for {WRITER_S} s; start its writer first"
    )


@lru_cache(maxsize=8)
def _copy_of(source: Path | BinaryIO) -> IO[bytes]:
    """Copy a stream, or what comes through a pipe, into a temporary file, once."""
    copy = tempfile.NamedTemporaryFile()  # noqa: SIM115  # it lives as long as the process
    if isinstance(source, Path) and _copied_from_pipe(source, copy):
        copy.flush()
        return copy
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
        shutil.copyfileobj(stream, copy)
    copy.flush()
    return copy
