"""What this machine can do: its device, threads, arithmetic and memory, each with a reason.

Nothing here talks to other processes; decisions are lines for people.
"""

from __future__ import annotations

import ctypes
import errno
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from seqclf.config import DISK_FULL, Config, Optim, UserError
from seqclf.model import Architecture, LSTMClassifier
from seqclf.optim import make_optimizer, update

EffectivePrecision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SLOWDOWN_ALLOWED = 1.2  # half precision on a CPU slower than this against fp32 is replaced
DISK_ERRORS = DISK_FULL | {errno.EROFS, errno.EACCES, errno.EIO}
SMALLER = (
    "lower train.micro_batch_size (changes nothing but memory) or eval.batch_size, then "
    "model.hidden_size or train.batch_size"
)
MPS_TOLERANCE = (
    1e-4  # mean difference of logits and updated weights against the CPU's; a weight moves by 1e-2
)


def choose_device(config: Config, decisions: list[str]) -> str:
    """Return cpu, cuda or mps; raises UserError for one that was asked for and is not there."""
    told_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    wanted: str = config.device
    device: str
    if wanted in ("cuda", "mps"):
        if told_cpu:
            raise UserError(
                f"device: {wanted} was asked for, but the launcher was told to use the CPU"
            )
        if not _available(wanted):
            raise UserError(
                f"device: {wanted} was asked for, but torch {torch.__version__} finds none here; "
                "use device: auto, or see `seqclf doctor`"
            )
        device, reason = wanted, f"device: {wanted}"
    elif wanted == "cpu" or told_cpu:
        device, reason = "cpu", "device: cpu" if wanted == "cpu" else "the launcher says so"
    elif _available("cuda"):
        device, reason = "cuda", "there is a GPU"
    elif not _available("mps"):
        device, reason = "cpu", "no GPU found"
    elif problem := disagreement("mps"):
        device, reason = "cpu", f"mps is there, but {problem}"
    else:
        device, reason = "mps", "there is one, and it computes what the CPU does"
    decisions.append(f"device      {device} ({reason})")
    return device


def _available(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available()
    # DDP has no backend for mps: several processes train on the CPU
    return torch.backends.mps.is_available() and os.environ.get("WORLD_SIZE", "1") == "1"


def disagreement(device: str) -> str | None:
    """Update a small model on a device and on the CPU; return how they differ, if they do.

    One update, then one with a NaN, which the optimizer must skip: what training relies on.
    """

    def outcome(on: str) -> Tensor:
        torch.default_generator.manual_seed(0)
        model = LSTMClassifier(28, 10, hidden_size=32)
        values = torch.rand(16, 28, 28).to(on)
        optimizer = make_optimizer(model.to(on), Optim())
        for factor in (1.0, float("nan")):
            logits = model(values)
            (logits.logsumexp(1).mean() * factor).backward()
            update(optimizer, 0.01, 1.0)
        return torch.cat([x.detach().flatten().cpu() for x in (logits, *model.parameters())])

    try:
        difference = float((outcome(device) - outcome("cpu")).abs().mean())
    except (RuntimeError, NotImplementedError) as error:
        return f"it cannot train an LSTM: {str(error).partition(chr(10))[0]}"
    if difference < MPS_TOLERANCE:  # not if it is NaN
        return None
    return f"its numbers are not the CPU's (mean difference {difference:.1e})"


def set_threads(config: Config, decisions: list[str]) -> int:
    """Set the CPU threads; launchers export OMP_NUM_THREADS=1 unasked, so it is not a request."""
    cores = (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()) or 1
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # With shards the threads must not depend on the number of processes: they change bits.
    parts = config.train.shards or local_processes
    threads = config.train.threads or max(1, cores // parts)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    here = f"{cores} core{'s' * (cores > 1)}"
    if config.train.threads:
        reason = "train.threads"
    elif config.train.shards:
        reason = f"{here}, {parts} shards"
    else:
        reason = f"{here}, {parts} process{'es here' * (parts > 1)}"
    decisions.append(f"threads     {threads} ({reason})")
    return threads


def requested_precision(config: Config) -> EffectivePrecision:
    """Return what config and launcher ask for; the launcher's `no` is said always, no request."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {told} is not supported; use bf16, fp16 or no")
    if config.precision == "auto":
        return "fp32" if told == "no" else told  # type: ignore[return-value]
    if told not in ("no", config.precision):
        raise UserError(
            f"precision: {config.precision} was asked for, but the launcher was told "
            f"--mixed_precision {told}; leave one of them out"
        )
    return config.precision


def precision_problem(
    requested: EffectivePrecision, config: Config, device: torch.device
) -> str | None:
    """Try an LSTM in half precision, forward and backward; say why not, or None.

    Raises UserError for what no device of this kind can do.
    """
    if requested == "fp16" and device.type == "cpu":
        raise UserError(
            "precision: fp16 does not exist on the CPU (it would silently be fp32); "
            "use precision: fp32, or bf16 where the CPU has it"
        )
    if device.type == "mps":
        return "half precision is not tried on mps"
    if device.type == "cuda" and requested == "bf16" and not torch.cuda.is_bf16_supported(False):
        return "this GPU only emulates bf16"
    batch_size, hidden_size = config.sizes()
    both = config.model.bidirectional
    lstm = nn.LSTM(28, hidden_size, batch_first=True, bidirectional=both).to(device)
    values = torch.zeros(batch_size, 28, 28, device=device)

    def seconds(dtype: torch.dtype | None) -> float:
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            output, _ = lstm(values)
        output.sum().backward()
        return time.perf_counter() - started

    try:
        seconds(AUTOCAST[requested])
    except RuntimeError as error:
        return str(error).partition(".")[0].partition("\n")[0]
    if device.type == "cuda":
        return None
    seconds(None)
    pairs = [(seconds(AUTOCAST[requested]), seconds(None)) for _ in range(7)]
    ratio = statistics.median(half / full for half, full in pairs)
    if ratio > SLOWDOWN_ALLOWED:
        return f"this CPU runs it {ratio:.1f} times slower than fp32"
    return None


def flush_denormals() -> None:
    """Take denormal numbers for zero: oneDNN's LSTM is up to 20 times slower on them."""
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # is kept; first asked for afterwards, numpy below 2.4 warns of it
    torch.set_flush_denormal(True)


# ---- memory


def keep_memory() -> None:
    """Have glibc keep the memory that is freed, which the next step takes again.

    Else each large block goes back to the kernel and comes again page by page, which costs more
    than it holds at batches of 512 and more. Does nothing where there is no glibc.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large one
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process may still take: of the GPU's, the machine's, or the job's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # a container's or Slurm job's limit
    for limit, used in (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return max(free, 0)


def least_memory(config: Config, card: Architecture, steps: int, world_size: int) -> int:
    """Estimate from below the bytes that training takes in a process, the data apart.

    Weights, gradients and two moments, and what an LSTM keeps for its backward pass: eight numbers
    per unit and step. Measured runs took 1.2 to 2.2 times as much.
    """
    share = -(-config.sizes()[0] // world_size)
    batch = min(config.train.micro_batch_size or share, share)
    if config.data.max_steps_per_batch:
        batch = min(batch, -(-config.data.max_steps_per_batch // (steps * world_size)))
    features = card.embedding_size if card.num_tokens else card.input_size
    units = card.hidden_size * (1 + card.bidirectional) * card.num_layers
    kept = steps * features + -(-steps // card.stack) * 8 * units
    return 4 * (4 * card.num_parameters + batch * kept)


def refuse_too_large(needed: int, device: torch.device) -> None:
    """Raise UserError if what training takes at least is more than there is."""
    if device.type != "cuda":  # a host's processes share its memory
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"this needs at least {needed / 2**30:,.1f} GiB of memory, and {free / 2**30:,.1f} GiB "
            f"are free: {SMALLER}"
        )


def advice(error: BaseException, path: Path) -> UserError | None:
    """Say what the user can do where memory or a run directory's disk gave out."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return UserError(f"out of memory ({text.partition(chr(10))[0]}): {SMALLER}")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return UserError(
            f"{path}: {error.strerror}; make room there or mend it: the same command goes on"
        )
    return None
