"""A run that is killed, starved and damaged at every turn ends as the one that was left alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.disk import watching
from helpers.mounts import find_memory

from seqclf.errors import UserError
from seqclf.run.checkpoint import (
    FILES,
    checkpoint_directories,
    commit_checkpoint,
    delete_leftovers,
    newest_checkpoint,
    prune_checkpoints,
    step_of,
    verifies,
)
from seqclf.run.files import make_directory, replace_file
from seqclf.run.records import State

STEPS, EVERY = 8, 2
MADE_WITH = {"torch": "1"}


class Killed(BaseException):
    """The process is no more: nothing catches this."""


@dataclass
class Faults:
    """What goes wrong in one session, counted in calls that change a file."""

    chance: random.Random
    kind: str  # "kill", "full disk", "lost" or ""
    first: int
    last: int
    calls: int = 0
    opened: str = ""
    happened: bool = False
    confirmed: int = 0  # the last step that the session was told is safe

    def watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            name, _, flags = arguments
            assert isinstance(flags, int)
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
            self.opened = str(name)
        self.calls += 1
        if self.kind == "kill" and self.calls >= self.first:
            self.tear(event, arguments)
            self.happened = True
            raise Killed
        full = self.kind == "full disk" and self.first <= self.calls <= self.last
        if full and event in ("open", "os.mkdir", "fsync"):
            self.tear(event, arguments)
            self.happened = True
            raise OSError(28, "No space left on device")

    def tear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Lose part of a file that is being made, and has not been synced yet."""
        if event == "fsync" and "/.tmp-" in self.opened and Path(self.opened).exists():
            [descriptor] = arguments
            assert isinstance(descriptor, int)
            status = os.fstat(descriptor)
            if os.path.samestat(status, os.stat(self.opened)):
                os.ftruncate(descriptor, self.chance.randrange(status.st_size + 1))
                if self.chance.random() < 0.5:
                    os.ftruncate(descriptor, status.st_size)  # the rest is zeros


def session(run: Path, faults: Faults, keep_last: int) -> None:
    """Train as a run does, the weights being a hash of all steps; raises what stops it."""
    root = run / "checkpoints"
    make_directory(run)
    delete_leftovers(root)
    checkpoint, rejected = newest_checkpoint(root)
    state, weights = State(), b"first weights"
    if checkpoint is not None:
        state, weights = checkpoint.state, checkpoint.files["model.safetensors"]
    elif rejected:
        raise UserError("no checkpoint is whole")
    dies_at = faults.chance.randrange(STEPS) if faults.kind == "lost" else -1
    start, failures = state.step, 0
    with (run / "metrics.jsonl").open("a+b", buffering=0) as metrics:
        metrics.truncate(min(state.metrics_bytes, metrics.seek(0, os.SEEK_END)))
        for step in range(start, STEPS + 1):
            if step % EVERY == 0 and step > start:
                state.step = step
                try:
                    os.fsync(metrics.fileno())
                    state.metrics_bytes = metrics.seek(0, os.SEEK_END)
                    content = (weights, weights[::-1], state.model_dump_json().encode())
                    files = dict(zip(FILES, content, strict=True))
                    commit_checkpoint(root, step, files, world_size=1, made_with=MADE_WITH)
                    faults.confirmed = step
                    prune_checkpoints(root, keep_last=keep_last, keep={EVERY})
                    failures = 0
                except OSError:
                    failures += 1
                    if failures == 3:
                        raise
            if step in (dies_at, STEPS):
                break
            weights = hashlib.sha256(weights + bytes([step])).digest()
            metrics.write(json.dumps({"step": step, "loss": weights[0]}).encode() + b"\n")
    if step < STEPS:
        raise Killed
    replace_file(run / "weights", weights)


def damage(path: Path, chance: random.Random) -> None:
    """Flip a bit of one of a checkpoint's files, cut it, or delete it."""
    file = path / chance.choice((*FILES, "manifest.json"))
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    kind = chance.choice(("flip", "cut", "delete"))
    if kind == "flip" and file.name != "manifest.json":  # its spaces may change
        content[place] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    elif kind == "delete":
        file.unlink()
    else:
        file.write_bytes(content[:place])


def survive(run: Path, seed: int, seen: Counter[str]) -> None:
    """Start a run again and again, with faults drawn from the seed, until it has finished."""
    chance = random.Random(seed)
    root, keep_last = run / "checkpoints", chance.randint(1, 3)
    for number in range(chance.randint(2, 3)):
        kind = chance.choice(("kill", "kill", "full disk", "lost"))
        first = chance.randrange(1, 90)
        faults = Faults(chance, kind, first, first + chance.randrange(20))
        try:
            with watching(faults.watch):
                session(run, faults, keep_last)
        except (Killed, OSError) as error:
            seen[type(error).__name__] += 1
        seen[kind] += faults.happened
        good = [path for path in checkpoint_directories(root) if verifies(path)]
        assert max(map(step_of, good), default=0) >= faults.confirmed, f"seed {seed}"
        all_bad = number == 1 and chance.random() < 0.2
        for path in chance.sample(good, len(good) if all_bad else max(0, len(good) - 1)):
            if all_bad or chance.random() < 0.5:
                damage(path, chance)
                seen["damaged"] += 1
        if good and all_bad:
            before = sorted(run.rglob("step-*/*"))
            with pytest.raises(UserError, match="no checkpoint is whole"):
                session(run, Faults(chance, "", 0, 0), keep_last)
            assert sorted(run.rglob("step-*/*")) == before
            shutil.rmtree(run)
            seen["begun anew"] += 1
    with watching(lambda event, arguments: None):  # nothing goes wrong, nothing waits for a disk
        session(run, Faults(chance, "", 0, 0), keep_last)


def test_a_thousand_fault_schedules_end_alike() -> None:
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=find_memory()) as folder:

        def end(name: str) -> tuple[bytes, ...]:
            run = Path(folder) / name
            checkpoint, rejected = newest_checkpoint(run / "checkpoints")
            assert checkpoint is not None
            assert (checkpoint.path, rejected) == (run / "checkpoints" / "step-00000008", [])
            assert not list(run.rglob(".tmp-*"))
            return tuple((run / name).read_bytes() for name in ("weights", "metrics.jsonl"))

        with watching(lambda event, arguments: None):
            session(Path(folder) / "straight", Faults(random.Random(), "", 0, 0), 1)
        straight = end("straight")
        for seed in range(1000):
            survive(Path(folder) / str(seed), seed, seen)
            assert end(str(seed)) == straight, f"seed {seed}"
            shutil.rmtree(Path(folder) / str(seed))
    assert len(straight[1].splitlines()) == STEPS
    # killed by a call, between calls, by three full disks in a row, and what else befell them
    assert all(seen[what] > 300 for what in ("kill", "Killed", "full disk", "damaged")), seen
    assert all(seen[what] > 50 for what in ("OSError", "begun anew")), seen
