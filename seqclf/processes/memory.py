"""How much memory there is, how much training needs at least, and how glibc keeps it."""

from __future__ import annotations

import ctypes
import os
import sys

import psutil
import torch

from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.model import Architecture
from seqclf.processes.cgroups import group_memory
from seqclf.rocket import NUM_KERNELS

MEMORY_REMEDY = (
    "lower train.micro_batch_size (changes nothing but memory) or eval.batch_size, then "
    "model.hidden_size, model.rocket or train.batch_size"
)


def keep_memory() -> None:
    """Have glibc keep freed memory for the next step, which needs as much again.

    By default glibc returns each large block to the kernel and gets it back page by page. That
    takes a third to a half of a step with a batch of 512 and more (benchmarks/scaling.py). Does
    nothing without glibc.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-4, 0)  # M_MMAP_MAX: a large block gets no mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take, of the GPU, the machine or the job."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    group = group_memory()
    return free if group is None else min(free, group.free)


def memory_text(device: torch.device) -> str:
    """Say how much memory is free, and of what limit if a limit leaves less than the machine."""
    text = f"{free_memory(device) / 2**30:,.1f} GiB"
    group = None if device.type == "cuda" else group_memory()
    if group is None or group.free > psutil.virtual_memory().available:
        return text
    return f"{text} (of the limit of {group.limit / 2**30:,.1f} GiB of this job or container)"


def least_memory(
    config: Config, architecture: Architecture, num_steps: int, world_size: int
) -> int:
    """Return a lower bound of the bytes that training takes in a process, without its data.

    It counts weights, gradients, two moments, and what is kept for the backward pass: eight numbers
    per step and unit of an LSTM; and what fixed convolutions find in one row, twice. Measured runs
    took 1.2 to 2.2 times as much.
    """
    share = -(-config.sizes()[0] // world_size)
    batch = min(config.train.micro_batch_size or share, share)
    if config.data.max_steps_per_batch:
        batch = min(batch, -(-config.data.max_steps_per_batch // (num_steps * world_size)))
    features = architecture.embedding_size if architecture.num_tokens else architecture.input_size
    units = architecture.hidden_size * (1 + architecture.bidirectional) * architecture.num_layers
    per_example = num_steps * features + -(-num_steps // architecture.stack) * 8 * units
    at_once = 2 * NUM_KERNELS * num_steps * bool(architecture.rocket)
    numbers = batch * per_example + at_once
    return 4 * (4 * architecture.num_parameters + numbers)


def refuse_too_large(needed: int, device: torch.device) -> None:
    """Raise UserError if training needs more memory than is free."""
    if device.type != "cuda":  # the processes of a host share its memory
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if needed > free_memory(device):
        raise UserError(
            f"this needs at least {needed / 2**30:,.1f} GiB of memory, and {memory_text(device)} "
            f"are free: {MEMORY_REMEDY}"
        )
