"""Checkpoints: commit, verify, find. A checkpoint is whole and verified, or it is not chosen.

    step-00000938/
      model.safetensors      weights under the bare model's names
      optimizer.safetensors  exp_avg.NAME, exp_avg_sq.NAME, step.NAME of every weight
      state.json             State: the step and what else a run carries
      manifest.json          written last: format, step, and size and sha256 of the other files

Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from seqclf.errors import UserError
from seqclf.run.files import (
    MAX_JSON_BYTES,
    FileEntry,
    delete,
    first_reason,
    make_directory,
    read_small,
    regular_size,
    sync_directory,
    write_file,
)
from seqclf.run.records import State, versions

FORMAT = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
MANIFEST_FILE = "manifest.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP_NAME = re.compile("step-[0-9]{8,}")


class Manifest(BaseModel):
    """manifest.json: what makes a checkpoint whole."""

    format: int
    step: int
    world_size: int
    versions: dict[str, str]
    files: dict[str, FileEntry]


class Checkpoint(NamedTuple):
    """A verified checkpoint, in memory."""

    path: Path
    manifest: Manifest
    files: dict[str, bytes]

    @property
    def state(self) -> State:
        """What the run carried. Raises UserError if state.json is damaged."""
        content = self.files[STATE_FILE]
        try:
            if len(content) > MAX_JSON_BYTES:
                raise ValueError(f"{len(content):,} bytes")
            return State.model_validate_json(content)
        except ValueError as error:
            reason = first_reason(error)
            raise UserError(f"{self.path / STATE_FILE}: missing or damaged ({reason})") from None

    def load_into(self, name: str, target: dict[str, Tensor]) -> None:
        """Copy one of its files into tensors as `load_tensors` does."""
        load_tensors(self.files[name], target, where=f"{self.path}/{name}")


# ---- tensors and bytes


def encode_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file, the same bytes for the same tensors."""
    # Each is copied to memory of its own: on a GPU an LSTM's weights are views of one buffer, which
    # safetensors refuses or saves in part.
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    return safetensors.torch.save(own)


def decode_tensors(content: bytes, *, where: str) -> dict[str, Tensor]:
    """Read a safetensors file's bytes; raises UserError naming the file."""
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a safetensors file: {first_reason(error)}") from None


def load_tensors(content: bytes, target: dict[str, Tensor], *, where: str) -> None:
    """Copy a safetensors file's bytes into tensors of the same names, shapes and dtypes.

    Raises UserError naming the file, and changes nothing, if they do not fit.
    """
    copy_tensors(decode_tensors(content, where=where), target, where=where)


def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into others as `load_tensors` does."""
    if source.keys() != target.keys():
        raise UserError(
            f"{where}: other tensors than this model has: "
            f"missing {sorted(target.keys() - source.keys())}, "
            f"unknown {str(sorted(source.keys() - target.keys()))[:200]}"
        )
    for name, ours in target.items():
        theirs = source[name]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise UserError(
                f"{where}: {name} is {tuple(theirs.shape)} {theirs.dtype}, "
                f"this model's is {tuple(ours.shape)} {ours.dtype}"
            )
    with torch.no_grad():
        for name, ours in target.items():
            ours.copy_(source[name])


def moment_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's own state tensors by weight name; where there are none yet, make zeros."""
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


# ---- writing


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint directory."""
    return f"step-{step:08d}"


def commit_checkpoint(
    root: Path,
    step: int,
    files: dict[str, bytes],
    *,
    world_size: int,
    made_with: dict[str, str] | None = None,
) -> Path:
    """Write a checkpoint so that it is whole or absent, whatever happens. Raises OSError.

    `made_with` are the versions that made its tensors, if these are not the running ones.
    """
    final = root / checkpoint_name(step)
    staging = root / f".tmp-{final.name}"
    make_directory(root)
    delete(staging)
    staging.mkdir()
    try:
        manifest = Manifest(
            format=FORMAT,
            step=step,
            world_size=world_size,
            versions=made_with or versions(),
            files={name: write_file(staging / name, content) for name, content in files.items()},
        )
        write_file(staging / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode())
        sync_directory(staging)
        # A directory of that name did not verify; otherwise this step would not be saved again.
        discard_checkpoint(final)
        os.rename(staging, final)
        sync_directory(root)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def discard_checkpoint(path: Path) -> None:
    """Delete a checkpoint, its manifest first: what a crash leaves of it is not chosen."""
    if path.is_dir() and not path.is_symlink():
        delete(path / MANIFEST_FILE)
    delete(path)


def delete_leftovers(root: Path) -> None:
    """Delete what killed saves left."""
    for leftover in root.glob(".tmp-*"):
        delete(leftover)


def prune_checkpoints(root: Path, *, keep_last: int, keep: Collection[int] = ()) -> None:
    """Delete what is older than the newest `keep_last` that verify, but for the steps in `keep`.

    Called after a commit, which made the newest checkpoint durable. Leftovers go, too.
    """
    delete_leftovers(root)
    num_kept = 0
    for path in checkpoint_directories(root):
        if num_kept < keep_last:
            num_kept += verifies(path)
        elif step_of(path) not in keep:
            discard_checkpoint(path)


# ---- finding and reading


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; raises UserError naming the file that is missing or damaged."""
    if path.is_symlink():
        raise UserError(f"{path}: a symbolic link; move the directory itself here")
    try:
        manifest = Manifest.model_validate_json(read_small(path / MANIFEST_FILE))
    except (OSError, ValueError) as error:
        reason = first_reason(error)
        raise UserError(f"{path / MANIFEST_FILE}: missing or damaged ({reason})") from None
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
    if STEP_NAME.fullmatch(path.name) and path.name != checkpoint_name(manifest.step):
        raise UserError(f"{path}: a directory of another step's name: it holds {manifest.step}")
    if manifest.files.keys() != set(FILES):
        names = ", ".join(sorted(manifest.files))[:200]
        expected = ", ".join(FILES)
        raise UserError(f"{path}/manifest.json: lists {names!r}, expected {expected}")
    files = {name: _read_verified(path / name, entry) for name, entry in manifest.files.items()}
    return Checkpoint(path, manifest, files)


def _read_verified(file: Path, entry: FileEntry) -> bytes:
    """Read one file of a checkpoint; raises UserError unless it is the one of its manifest."""
    try:
        content = file.read_bytes() if regular_size(file) == entry.size else None
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({first_reason(error)})") from None
    if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise UserError(f"{file}: damaged (its size or sha256 is not the manifest's)")
    return content


def checkpoint_directories(root: Path) -> list[Path]:
    """Return the directories named like a checkpoint, newest first, whole or not.

    Raises UserError where they cannot be listed: a run must not begin anew for that reason.
    """
    try:
        names = [name for name in os.listdir(root) if STEP_NAME.fullmatch(name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        if not os.path.lexists(root):  # a file is where a folder above should be
            return []
        raise UserError(f"{root}: cannot list the checkpoints: {error.strerror}") from None
    return sorted((root / name for name in names), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the step that a checkpoint directory is named after."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint that verifies; return it and why newer ones do not."""
    rejected: list[str] = []
    for path in checkpoint_directories(root):
        try:
            return read_checkpoint(path), rejected
        except UserError as error:
            rejected.append(str(error))
    return None, rejected


def verifies(path: Path) -> bool:
    """Return whether a checkpoint is whole."""
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True
