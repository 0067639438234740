"""What this process computes on: its device, threads and precision, each with the reason."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from seqclf.config.settings import Config, Optim
from seqclf.errors import UserError
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer, update
from seqclf.processes.cgroups import cpu_quota
from seqclf.processes.launcher import is_set

EffectivePrecision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[EffectivePrecision, ...] = get_args(EffectivePrecision)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
BUSY = 1.5  # times slower than one thread: then several are too many
MAX_SLOWDOWN = 1.2  # on a CPU: half precision that takes more times fp32's time is replaced
# Mean difference of logits and updated weights against the CPU's; an update moves a weight by 1e-2.
MPS_TOLERANCE = 1e-4


class Decision(NamedTuple):
    """What was decided about a subject and why, with a remedy if the user may want another."""

    subject: str
    value: str
    reason: str = ""
    remedy: str | None = None

    @property
    def text(self) -> str:
        """The value, with its reason in brackets."""
        return f"{self.value} ({self.reason})" if self.reason else self.value

    def line(self) -> str:
        """Return the decision as the console prints it."""
        return f"{self.subject:<12}{self.text}" + (f"; {self.remedy}" if self.remedy else "")


def choose_device(config: Config) -> tuple[str, Decision]:
    """Choose cpu, cuda or mps. Raises UserError for one that was asked for and is not there."""
    launcher_says_cpu = is_set("ACCELERATE_USE_CPU")
    device: str = config.device
    reason = f"device: {device}"
    if device in ("cuda", "mps"):
        _refuse_device(device, launcher_says_cpu)
    elif device == "auto":
        device, reason = ("cpu", "the launcher says so") if launcher_says_cpu else _find_device()
    return device, Decision("device", device, reason)


def _refuse_device(device: str, launcher_says_cpu: bool) -> None:
    if launcher_says_cpu:
        raise UserError(f"device: {device} was asked for, but the launcher was told to use the CPU")
    if not _available(device):
        raise UserError(
            f"device: {device} was asked for, but torch {torch.__version__} finds none here; "
            "use device: auto, or see `seqclf doctor`"
        )


def _find_device() -> tuple[str, str]:
    if _available("cuda"):
        return "cuda", "there is a GPU"
    if not _available("mps"):
        return "cpu", "no GPU found"
    if problem := disagreement("mps"):
        return "cpu", f"mps is there, but {problem}"
    return "mps", "there is one, and it computes what the CPU does"


def _available(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available()
    # DDP has no backend for mps: several processes train on the CPU
    return torch.backends.mps.is_available() and os.environ.get("WORLD_SIZE", "1") == "1"


def disagreement(device: str) -> str | None:
    """Train a small model on a device and on the CPU; return how the results differ, if they do."""
    try:
        difference = float((_train_small_model(device) - _train_small_model("cpu")).abs().mean())
    except (RuntimeError, NotImplementedError) as error:
        return f"it cannot train an LSTM: {str(error).partition(chr(10))[0]}"
    if difference < MPS_TOLERANCE:  # false for NaN, too
        return None
    return f"its numbers are not the CPU's (mean difference {difference:.1e})"


def _train_small_model(device: str) -> Tensor:
    """Return logits and weights, flat, after one update and one that the optimizer must skip."""
    torch.default_generator.manual_seed(0)
    model = LSTMClassifier(28, 10, hidden_size=32)
    values = torch.rand(16, 28, 28).to(device)
    optimizer = make_optimizer(model.to(device), Optim())
    for factor in (1.0, float("nan")):
        logits = model(values)
        (logits.logsumexp(1).mean() * factor).backward()
        update(optimizer, 0.01, 1.0)
    return torch.cat([x.detach().flatten().cpu() for x in (logits, *model.parameters())])


def set_threads(config: Config) -> tuple[int, Decision]:
    """Set the number of CPU threads and return it.

    OMP_NUM_THREADS is not a request: launchers export it as 1 unasked.
    """
    cores, here = usable_cores()
    # With shards the number of processes must not decide the threads, because those change bits.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or "1")
    parts = config.train.shards or processes
    threads = config.train.threads or max(1, cores // parts)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if config.train.threads:
        reason = "train.threads"
        if threads > max(1, cores // processes):
            reason += f"; the limit here: {here}"
    elif config.train.shards:
        reason = f"{here}, {parts} shards"
    else:
        reason = f"{here}, {parts} process{'es here' * (parts > 1)}"
    return threads, Decision("threads", str(threads), reason, _busy_remedy(threads))


def _busy_remedy(threads: int) -> str | None:
    """Return what to do if other programs take the cores that these threads need.

    Threads that share a core wait for each other at every operation. Nothing is measured on a
    machine whose load leaves enough cores.
    """
    free_cores = (os.cpu_count() or 1) - os.getloadavg()[0]
    if threads == 1 or free_cores >= threads / 2:
        return None
    slower = threads_slowdown(threads)
    if slower < BUSY:
        return None
    return (
        f"other programs take the cores: {threads} threads are {slower:.0f} times slower than one "
        "now; stop those, or set train.threads to 1"
    )


def threads_slowdown(threads: int) -> float:
    """Measure how many times longer a small LSTM takes with these threads than with one."""
    with torch.random.fork_rng(devices=[]):
        lstm = nn.LSTM(28, 64, batch_first=True)
    values = torch.zeros(64, 28, 28)
    seconds: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(12):  # in turn, so that another program that comes and goes slows both
        for number, found in seconds.items():
            torch.set_num_threads(number)
            found.append(_time_lstm(lstm, values, None))
    torch.set_num_threads(threads)
    alone, together = (sum(found[2:]) for found in seconds.values())  # the first two warm up
    return together / alone


def usable_cores() -> tuple[int, str]:
    """Return how many cores this process may use, and the cores and the quota that say so.

    A quota of processor time stops all threads of a group for the rest of each period. So more
    threads than the quota has cores mostly wait for one another.
    """
    cores = (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()) or 1
    here = f"{cores} core{'s' * (cores > 1)}"
    quota = cpu_quota()
    if quota is None or quota >= cores:
        return cores, here
    return max(1, math.ceil(quota)), f"{here}, a CPU quota of {round(quota, 2)}"


def keep_to_quota() -> None:
    """Take no more threads than `usable_cores`: torch itself knows of no quota."""
    cores, _ = usable_cores()
    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def requested_precision(config: Config) -> EffectivePrecision:
    """Return the precision that config or launcher ask for.

    The launcher's `no` is not a request: accelerate exports it whenever nobody asks for another.
    """
    launched = (os.environ.get("ACCELERATE_MIXED_PRECISION") or "no").lower()
    if launched not in ("no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {launched} is not supported; use bf16, fp16 or no")
    if config.precision == "auto":
        return "fp32" if launched == "no" else launched  # type: ignore[return-value]
    if launched not in ("no", config.precision):
        raise UserError(
            f"precision: {config.precision} was asked for, but the launcher was told "
            f"--mixed_precision {launched}; leave one of them out"
        )
    return config.precision


def precision_problem(
    requested: EffectivePrecision, config: Config, device: torch.device
) -> str | None:
    """Try an LSTM in half precision, forward and backward; return what is wrong with it, or None.

    A CPU that runs it slower than fp32 is something wrong, too. Raises UserError for what no device
    of this kind can do.
    """
    if requested == "fp16" and device.type == "cpu":
        raise UserError(
            "precision: fp16 does not exist on the CPU (it would silently be fp32); "
            "use precision: fp32, or bf16 where the CPU has it"
            + "; it was the launcher that asked: --mixed_precision fp16"
            * (config.precision == "auto")
        )
    if (problem := cannot_run(requested, config, device)) is not None:
        return problem
    ratio = slowdown(requested, config, device)
    if ratio > MAX_SLOWDOWN:
        return f"this CPU runs it {ratio:.1f} times slower than fp32"
    return None


def cannot_run(precision: EffectivePrecision, config: Config, device: torch.device) -> str | None:
    """Return why a device cannot train an LSTM in half precision, or None. No clock decides."""
    if precision == "fp16" and device.type == "cpu":
        return "fp16 does not exist on the CPU"
    if device.type == "mps":
        return "half precision is not tried on mps"
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(False):
        return "this GPU only emulates bf16"
    try:
        _time_lstm(*_make_lstm(config, device), AUTOCAST[precision])
    except RuntimeError as error:
        return str(error).partition(".")[0].partition("\n")[0]
    return None


def _make_lstm(config: Config, device: torch.device) -> tuple[nn.LSTM, Tensor]:
    """Return an LSTM of about the size that the config asks for, and a batch of zeros."""
    batch_size, hidden_size = config.sizes()
    lstm = nn.LSTM(28, hidden_size, batch_first=True, bidirectional=config.model.bidirectional)
    return lstm.to(device), torch.zeros(batch_size, 28, 28, device=device)


def slowdown(precision: EffectivePrecision, config: Config, device: torch.device) -> float:
    """Measure how many times slower than fp32 an LSTM is in half precision; 0 on a GPU.

    A GPU has units for half precision. A CPU without them emulates it, far slower than fp32.
    """
    if device.type == "cuda":
        return 0.0
    lstm, values = _make_lstm(config, device)
    dtype = AUTOCAST[precision]
    for warmup in (dtype, None):  # the first pass of each is slow
        _time_lstm(lstm, values, warmup)
    # Pairs, so that another program that takes the cores for a while slows both of a pair.
    pairs = [(_time_lstm(lstm, values, dtype), _time_lstm(lstm, values, None)) for _ in range(7)]
    return statistics.median(half_s / full_s for half_s, full_s in pairs)


def _time_lstm(lstm: nn.LSTM, values: Tensor, dtype: torch.dtype | None) -> float:
    """Return the seconds of a forward and a backward pass, in fp32 if `dtype` is None."""
    start = time.perf_counter()
    with torch.autocast(values.device.type, dtype=dtype, enabled=dtype is not None):
        output, _ = lstm(values)
    output.sum().backward()
    return time.perf_counter() - start


def flush_denormals() -> None:
    """Treat denormal numbers as zero: oneDNN's LSTM is up to 20 times slower on them."""
    # numpy below 2.4 warns if it computes these facts, which it caches, after the flush is set.
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)
    torch.set_flush_denormal(True)
