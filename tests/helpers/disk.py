"""A disk that forgets: what code asked of the file system, and what a crash may leave of that.

The model is the weakest that POSIX allows, after ALICE (Pillai et al., OSDI'14) and CrashMonkey
(Mohan et al., OSDI'18): fsync of a file makes its data durable, fsync of a directory its entries,
and nothing else makes anything durable. What is not durable may be kept or lost, each by itself and
in any order, and data may be torn. One change of one directory (create, delete, rename) is atomic.
"""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

CALLS = {"fsync", "open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
Watch = Callable[[str, tuple[object, ...]], None]
Tree = dict[str, "bytes | Tree"]

watcher: Watch | None = None  # of the one hook, which cannot be taken away


def call(event: str, arguments: tuple[object, ...]) -> None:
    global watcher
    if watcher is not None and event in CALLS:
        watch, watcher = watcher, None  # what it does itself is not watched
        try:
            watch(event, arguments)
        finally:
            watcher = watch


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Call `watch` before each call that opens or changes a file, fsync included, by its audit
    event; what it raises is raised by that call. Nothing is synced."""
    global watcher
    if not getattr(call, "installed", False):
        sys.addaudithook(call)
        call.installed = True  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: call("fsync", (descriptor,)))
        watcher = watch
        try:
            yield
        finally:
            watcher = None


class Write(NamedTuple):
    file: int
    content: bytes  # all of it


class Change(NamedTuple):
    directory: int
    entries: dict[str, int | None]  # what names stand for from now on


class Sync(NamedTuple):
    what: int
    path: str


class Mark(NamedTuple):
    what: str
    step: int


@dataclass
class Recording:
    """All that happened below a directory, which is durable itself. Files and directories are
    numbers, as on a disk; the root is 0."""

    root: Path
    forgets: str = ""  # end of the path whose syncs do nothing
    log: list[Write | Change | Sync | Mark] = field(default_factory=list)
    directories: set[int] = field(default_factory=set)
    _inodes: dict[int, int] = field(default_factory=dict)
    _seen: dict[int, bytes | dict[str, int]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        """Log what has changed since the last call: one change of one directory at most."""
        paths, now = self._look()
        changes = []
        for number, content in now.items():
            if isinstance(content, dict):
                before = self._seen.get(number, {})
                assert isinstance(before, dict)
                names = [n for n in {**before, **content} if before.get(n) != content.get(n)]
                if names:
                    changes.append(Change(number, {name: content.get(name) for name in names}))
                    moved = {before.get(name) for name in names} & {*content.values()}
                    assert len(names) == 1 or (len(names) == 2 and len(moved - {None}) == 1)
        assert len(changes) <= 1, f"not one change: {changes}"
        self.log += changes
        for number, content in now.items():
            if isinstance(content, bytes) and content != self._seen.get(number, b""):
                self.log.append(Write(number, content))
        self._seen = now
        if event == "fsync":
            [descriptor] = arguments
            assert isinstance(descriptor, int)
            number = self._inodes.get(os.fstat(descriptor).st_ino, -1)
            if number >= 0 and not (self.forgets and paths[number].endswith(self.forgets)):
                self.log.append(Sync(number, paths[number]))

    def _look(self) -> tuple[dict[int, str], dict[int, bytes | dict[str, int]]]:
        paths: dict[int, str] = {}
        found: dict[int, bytes | dict[str, int]] = {}
        inodes: dict[int, int] = {}

        def visit(path: str) -> int:
            status = os.lstat(path)
            number = self._inodes.get(status.st_ino)
            number = inodes[status.st_ino] = next(self._numbers) if number is None else number
            paths[number] = path
            if stat.S_ISDIR(status.st_mode):
                self.directories.add(number)
                found[number] = {}  # before what is in it
                found[number] = {name: visit(f"{path}/{name}") for name in os.listdir(path)}
            else:
                found[number] = Path(path).read_bytes()
            return number

        visit(str(self.root))
        self._inodes = inodes
        return paths, found

    def mark(self, what: str, step: int) -> None:
        """Log that code was told of success."""
        call("open", ())
        self.log.append(Mark(what, step))

    def crash(
        self, length: int, lost: Callable[[], bool], torn: Callable[[list[bytes]], bytes]
    ) -> Tree:
        """Return what a crash after `length` operations leaves below the root.

        `lost` decides for each change of a directory that was not synced, `torn` for each file with
        its versions since it was.
        """
        versions: defaultdict[int, list[bytes]] = defaultdict(lambda: [b""])
        entries: defaultdict[int, dict[str, int | None]] = defaultdict(dict)
        pending: defaultdict[int, list[dict[str, int | None]]] = defaultdict(list)
        for operation in self.log[:length]:
            match operation:
                case Write(file, content):
                    versions[file].append(content)
                case Change(directory, changed):
                    pending[directory].append(changed)
                case Sync(what):
                    versions[what] = versions[what][-1:]
                    for changed in pending.pop(what, []):
                        entries[what] |= changed
        for directory, changes in pending.items():
            for changed in changes:
                if not lost():
                    entries[directory] |= changed

        def build(number: int) -> bytes | Tree:
            if number in self.directories:
                return {k: build(v) for k, v in entries[number].items() if v is not None}
            found = versions[number]
            return torn(found) if len(found) > 1 else found[0]

        tree = build(0)
        assert isinstance(tree, dict)
        return tree


@contextmanager
def recording(root: Path, forgets: str = "") -> Iterator[Recording]:
    """Record what the body does below an empty directory."""
    made = Recording(root, forgets)
    made.watch("", ())
    with watching(made.watch):
        yield made
    made.watch("", ())


def place(tree: Tree, path: Path) -> None:
    """Write a tree below a directory that does not exist yet."""
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            place(content, path / name)
