"""Checkpoints: commit, verify, find, restore. A directory is whole and verified, or not chosen.

    step-00000938/
      model.safetensors      weights under the bare model's names
      optimizer.safetensors  exp_avg.NAME, exp_avg_sq.NAME, step.NAME of every weight
      state.json             State: the step and what else a run carries
      manifest.json          written last: format, step, and size and sha256 of the other files

Nothing is pickled. Bytes are written, synced and hashed by us, because safetensors' save_file does
not sync and leaves mode 0600.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from torch import Tensor, nn

from seqclf.config import UserError

FORMAT = 1
NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_JSON_BYTES = 2**20
STEP_NAME = re.compile("step-[0-9]{8,}")


class State(BaseModel):
    """What a run carries besides weights and moments. Everything else is f(config, step)."""

    # as constants: a model that diverged has metrics that are NaN, and must resume all the same
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    step: int = 0
    """Steps done."""
    judged: int = 0
    """Step of the last evaluation."""
    skipped: int = 0
    """Steps skipped so far because something was not finite ..."""
    skipped_in_a_row: int = 0
    """... and how many of them were the latest ones."""
    scaler: dict[str, float] = {}
    """The loss scale of fp16, as torch's GradScaler keeps it."""
    metrics_bytes: NonNegativeInt = 0
    """Length of metrics.jsonl when the checkpoint was made."""
    metrics: dict[str, float] = {}
    """The latest evaluation."""
    best: dict[str, float] = {}
    """The best evaluation so far that has a checkpoint, where weights are chosen ..."""
    best_step: int = 0
    """... and its step."""
    waited: int = 0
    """Latest evaluations in a row that were not better ..."""
    longest_wait: int = 0
    """... and the most that there ever were."""


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What makes a checkpoint whole."""

    format: int
    step: int
    world_size: int
    versions: dict[str, str]
    files: dict[str, FileEntry]


# ---- tensors <-> bytes


def encode(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file, the same bytes for the same tensors.

    Each is copied to memory of its own: on a GPU an LSTM's weights are views of one buffer, which
    safetensors refuses or saves in part.
    """
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    return safetensors.torch.save(own)


def decode(content: bytes, place: str) -> dict[str, Tensor]:
    """Read a safetensors file's bytes; raises UserError naming the file."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: not a safetensors file: {_first(error)}") from None


def put(content: bytes, target: dict[str, Tensor], place: str) -> None:
    """Copy a safetensors file's bytes into tensors of the same names, shapes and dtypes.

    Raises UserError naming the file, and changes nothing, if it is no such file.
    """
    copy(decode(content, place), target, place)


def copy(found: dict[str, Tensor], target: dict[str, Tensor], place: str) -> None:
    """Copy tensors into others as `put` does."""
    if found.keys() != target.keys():
        raise UserError(
            f"{place}: other tensors than this model has: "
            f"missing {sorted(target.keys() - found.keys())}, "
            f"unknown {str(sorted(found.keys() - target.keys()))[:200]}"
        )
    for name, ours in target.items():
        theirs = found[name]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise UserError(
                f"{place}: {name} is {tuple(theirs.shape)} {theirs.dtype}, "
                f"this model's is {tuple(ours.shape)} {ours.dtype}"
            )
    with torch.no_grad():
        for name, ours in target.items():
            ours.copy_(found[name])


def moment_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's own state tensors by weight name, made as zeros where there are none yet."""
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(parameter)
    return {
        f"{kind}.{name}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state[parameter].items()
    }


# ---- files


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory, and make its entries durable at once.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each durable; leave what is there."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> FileEntry:
    """Write and sync a file; return its size and sha256."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def replace_file(path: Path, content: bytes) -> FileEntry:
    """Write a file so that at any instant the old or the new one stands there whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        entry = write_file(temporary, content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
    return entry


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object to a file, whole or not at all."""
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _size(path: Path) -> int:
    """Return a file's size; raises OSError for a link, a pipe or a directory of that name."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    return status.st_size


def read_small(path: Path) -> bytes:
    """Read a JSON file; raises ValueError if it is larger than any of ours."""
    if (size := _size(path)) > MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes, of which at most {MAX_JSON_BYTES:,} are read")
    return path.read_bytes()


def read_file(path: Path, size: int | None = None) -> bytes:
    """Read a regular file, or its first `size` bytes; raises UserError naming it."""
    try:
        whole = _size(path)
        with path.open("rb") as file:
            return file.read(whole if size is None else min(size, whole))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({_first(error)})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises UserError naming it."""
    try:
        content = json.loads(read_small(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: missing or damaged ({_first(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged (not a JSON object)")
    return content


def directory_name(step: int) -> str:
    """Return the name of a step's checkpoint directory."""
    return f"step-{step:08d}"


def commit(
    root: Path,
    step: int,
    files: dict[str, bytes],
    *,
    world_size: int,
    versions: dict[str, str],
) -> Path:
    """Write a checkpoint so that it is whole or absent, whatever happens. Raises OSError."""
    final, staging = root / directory_name(step), root / f".tmp-{directory_name(step)}"
    make_directory(root)
    _delete(staging)
    staging.mkdir()
    try:
        entries = {name: write_file(staging / name, content) for name, content in files.items()}
        manifest = Manifest(
            format=FORMAT, step=step, world_size=world_size, versions=versions, files=entries
        )
        write_file(staging / "manifest.json", manifest.model_dump_json(indent=1).encode())
        sync_directory(staging)
        discard(final)  # if there is one, it did not verify, or this would not be saved again
        os.rename(staging, final)
        sync_directory(root)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def discard(path: Path) -> None:
    """Delete a checkpoint, its manifest first, so that what a crash leaves is not chosen."""
    if path.is_dir() and not path.is_symlink():
        _delete(path / "manifest.json")
    _delete(path)


def _delete(path: Path) -> None:
    """Delete what is there: a directory, or a file or link, and never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Read and verify a checkpoint; raises UserError naming the file that is missing or damaged."""
    if path.is_symlink():
        raise UserError(f"{path}: a symbolic link; move the directory itself here")
    try:
        manifest = Manifest.model_validate_json(read_small(path / "manifest.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'manifest.json'}: missing or damaged ({_first(error)})") from None
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
    if STEP_NAME.fullmatch(path.name) and path.name != directory_name(manifest.step):
        raise UserError(f"{path}: a directory of another step's name: it holds {manifest.step}")
    if manifest.files.keys() != set(NAMES):
        names = ", ".join(sorted(manifest.files))[:200]
        raise UserError(f"{path / 'manifest.json'}: lists {names!r}, expected {', '.join(NAMES)}")
    files = {}
    for name, entry in manifest.files.items():
        file = path / name
        try:
            content = file.read_bytes() if _size(file) == entry.size else None
        except OSError as error:
            raise UserError(f"{file}: cannot read it ({_first(error)})") from None
        if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise UserError(f"{file}: damaged (its size or sha256 is not the manifest's)")
        files[name] = content
    return manifest, files


def read_state(files: dict[str, bytes], path: Path) -> State:
    """Parse a checkpoint's state.json."""
    content = files["state.json"]
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"{len(content):,} bytes")
        return State.model_validate_json(content)
    except ValueError as error:
        raise UserError(f"{path / 'state.json'}: missing or damaged ({_first(error)})") from None


def _first(error: Exception) -> str:
    """Say an error's reason in one line, without the path that its reader names."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return (getattr(error, "strerror", None) or str(error)).partition("\n")[0]


def directories(root: Path) -> list[Path]:
    """Return what is named like a checkpoint, newest first, whole or not.

    Raises UserError where that cannot be known: a run must not begin anew for it.
    """
    try:
        names = [name for name in os.listdir(root) if STEP_NAME.fullmatch(name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{root}: cannot list the checkpoints: {error.strerror}") from None
    return sorted((root / name for name in names), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint directory is named after."""
    return int(path.name.removeprefix("step-"))


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies; return it and why newer ones do not."""
    rejected = []
    for path in directories(root):
        try:
            read(path)
        except UserError as error:
            rejected.append(str(error))
        else:
            return path, rejected
    return None, rejected


def sweep(root: Path) -> None:
    """Delete what killed saves left."""
    for leftover in root.glob(".tmp-*"):
        _delete(leftover)


def prune(root: Path, *, keep_last: int, keep: Collection[int] = ()) -> None:
    """Delete what is older than the newest `keep_last` that verify, but for the steps in `keep`.

    Called after a commit, which made the newest durable. Leftovers go, too.
    """
    sweep(root)
    kept = 0
    for path in directories(root):
        if kept < keep_last:
            kept += verifies(path)
        elif step_of(path) not in keep:
            discard(path)


def verifies(path: Path) -> bool:
    """Say whether a checkpoint is whole."""
    try:
        read(path)
    except UserError:
        return False
    return True
