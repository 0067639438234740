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

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from seqclf.config import UserError

FORMAT = 1
NAMES = ("model.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("exp_avg", "exp_avg_sq")


class State(BaseModel):
    """What a run carries besides weights and moments. Everything else is f(config, step)."""

    model_config = ConfigDict(extra="forbid")

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
    metrics_bytes: int = 0
    """Length of metrics.jsonl when the checkpoint was made."""
    metrics: dict[str, float] = {}
    """The latest evaluation."""


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


def put(content: bytes, target: dict[str, Tensor], place: str) -> None:
    """Copy a safetensors file's bytes into tensors of the same names, shapes and dtypes.

    Raises UserError naming the file, and changes nothing, if it is no such file.
    """
    try:
        found = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{place}: not a safetensors file: {error}") from None
    if found.keys() != target.keys():
        raise UserError(
            f"{place}: other tensors than this model has: "
            f"missing {sorted(target.keys() - found.keys())}, "
            f"unknown {sorted(found.keys() - target.keys())}"
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
    finally:
        os.close(descriptor)


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
    entry = write_file(temporary, content)
    os.replace(temporary, path)
    sync_directory(path.parent)
    return entry


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises UserError naming it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        entries = {name: write_file(staging / name, content) for name, content in files.items()}
        manifest = Manifest(
            format=FORMAT, step=step, world_size=world_size, versions=versions, files=entries
        )
        write_file(staging / "manifest.json", manifest.model_dump_json(indent=1).encode())
        sync_directory(staging)
        if final.exists():  # one that did not verify, or this would not be saved again
            discard(final)
        os.rename(staging, final)
        sync_directory(root)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def discard(path: Path) -> None:
    """Delete a checkpoint, its manifest first, so that what a crash leaves is not chosen."""
    (path / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(path)


def read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Read and verify a checkpoint; raises UserError naming the file that is missing or damaged."""
    try:
        manifest = Manifest.model_validate_json((path / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path / 'manifest.json'}: missing or damaged ({_first(error)})") from None
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
    files = {}
    if manifest.files.keys() != set(NAMES):
        names = ", ".join(sorted(manifest.files))[:200]
        raise UserError(f"{path / 'manifest.json'}: lists {names!r}, expected {', '.join(NAMES)}")
    for name, entry in manifest.files.items():
        file = path / name
        try:
            if file.is_symlink():
                raise OSError("a symbolic link")
            content = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot read it ({_first(error)})") from None
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise UserError(f"{file}: damaged (its size or sha256 is not the manifest's)")
        files[name] = content
    return manifest, files


def read_state(files: dict[str, bytes], path: Path) -> State:
    """Parse a checkpoint's state.json."""
    try:
        return State.model_validate_json(files["state.json"])
    except ValidationError as error:
        raise UserError(f"{path / 'state.json'}: missing or damaged ({_first(error)})") from None


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]


def directories(root: Path) -> list[Path]:
    """Return the checkpoint directories, newest first, verified or not."""
    return sorted((p for p in root.glob("step-*") if p.is_dir()), reverse=True)


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


def prune(root: Path, *, keep_last: int) -> None:
    """Delete what is older than the newest `keep_last` that verify, and what killed saves left."""
    for leftover in root.glob(".tmp-*"):
        shutil.rmtree(leftover)
    kept = 0
    for path in directories(root):
        if kept == keep_last:
            discard(path)
        else:
            kept += verifies(path)


def verifies(path: Path) -> bool:
    """Say whether a checkpoint is whole."""
    try:
        read(path)
    except UserError:
        return False
    return True
