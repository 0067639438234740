"""Things that happen to a run at an exact point of its code; no clock decides."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name

import pytest

from seqclf.data.sequences import Batch
from seqclf.run.files import FileEntry, write_file
from seqclf.step import train_step


def watch_calls(
    patch: pytest.MonkeyPatch,
    name: str,
    before: Callable[..., object] = lambda *_, **__: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Call `before` with the same arguments before each call of a function, and `after` after it.

    The name is the one under which its caller looks the function up.
    """
    honest: Callable[..., object] = resolve_name(name)

    def watched(*args: object, **options: object) -> object:
        before(*args, **options)
        answer = honest(*args, **options)
        after()
        return answer

    patch.setattr(name, watched)


def watch_steps(
    patch: pytest.MonkeyPatch,
    before: Callable[[Batch], object],
    after: Callable[[], object] = lambda: None,
) -> None:
    """Call `before` with a step's batch before each step of a training, and `after` after it."""
    signature = inspect.signature(train_step)

    def look(*args: object, **options: object) -> None:
        before(signature.bind(*args, **options).arguments["batch"])

    watch_calls(patch, "seqclf.training.train_step", look, after)


def before_step(patch: pytest.MonkeyPatch, actions: Mapping[int, Callable[[], object]]) -> None:
    """Have training call the action of a step before that step."""
    watch_steps(patch, lambda batch: actions.get(batch.step, lambda: None)())


def die_at_write(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Kill the process instead of the next durable file after so many."""
    count = itertools.count()

    def dying(path: Path, content: bytes) -> FileEntry:
        if next(count) >= writes:
            raise KeyboardInterrupt
        return write_file(path, content)

    patch.setattr("seqclf.run.files.write_file", dying)
    patch.setattr("seqclf.run.checkpoint.write_file", dying)


def full_disk(*_: object, **__: object) -> None:
    """Stand for any call that writes."""
    raise OSError(28, "No space left on device")
