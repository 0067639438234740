"""`seqclf doctor`: what a bug report needs, and a check of machine and set-up before a run."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from seqclf import runtime as runtimes
from seqclf.config import Config, Data, UserError, choices
from seqclf.data import sources
from seqclf.hardware import free_memory
from seqclf.model import LSTMClassifier
from seqclf.run import versions
from seqclf.runtime import Runtime
from seqclf.tracking import wandb_mode

MIB = 2**20
DECISION_COLUMN = 12  # where the text of a decision begins
DISK_BYTES = 64 * MIB
LITTLE_SPACE = 1024 * MIB  # free space at the run directory that is warned about
LITTLE_MEMORY = 2048 * MIB

Finding = tuple[str, str, str | None]  # subject, what was found, the remedy if something is wrong


def check(config: Config) -> int:
    """Print one line per finding, `ok` or `warning` with its remedy; return the exit code 0.

    Collective: under a launcher every process takes part, and the main one prints. Raises UserError
    where a run of these settings could not even start.
    """
    runtime = runtimes.start(config)
    checks: tuple[Callable[[Config, Runtime], Iterator[Finding]], ...] = (
        *(_versions, _decisions, _machines, _step_time, _all_reduce, _disk, _data, _wandb),
    )
    warnings = 0
    for look in checks:
        for subject, found, remedy in look(config, runtime):
            warnings += remedy is not None
            if runtime.is_main:
                print(f"{'warning' if remedy else 'ok':<8}{subject:<12}{found}", flush=True)
                if remedy:
                    print(f"{'':<20}-> {remedy}", flush=True)
    if runtime.is_main:
        print(f"\n{warnings or 'no'} warning{'s' * (warnings != 1)}")
    runtime.close()
    return 0


def _versions(_config: Config, _runtime: Runtime) -> Iterator[Finding]:
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    yield "versions", found, None
    yield "system", f"{platform.platform()}, {socket.gethostname()}", None


def _decisions(_config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield what a run of these settings would decide, and what it would grumble about."""
    for line in runtime.decisions:
        subject, found = line[:DECISION_COLUMN].strip(), line[DECISION_COLUMN:]
        replaced = "NOT" in found
        if subject == "note":
            yield "launch", found.partition(";")[0], found.partition(";")[2].strip() or found
        else:
            yield subject, found, "leave precision at auto or fp32" if replaced else None
    build = "with CUDA " + torch.version.cuda if torch.version.cuda else "without CUDA"
    yield "torch", f"built {build}; {torch.backends.cpu.get_cpu_capability()} on the CPU", None


def _machines(_config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield a line per process: where it is, on what, with how much memory."""
    free, device = free_memory(runtime.device), runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    for rank, row in enumerate(runtime.from_all([socket.gethostname(), name, free])):
        assert isinstance(row, list)
        host, where, memory = row
        assert isinstance(memory, int)
        remedy = None if memory > LITTLE_MEMORY else "close other programs or ask for more memory"
        yield f"process {rank}", f"{host}, {where}, {memory / 2**30:,.1f} GiB memory free", remedy


def _step_time(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield how long a training pass over 28 steps of 28 features takes."""
    batch_size, hidden_size = config.sizes()
    size = max(1, batch_size // runtime.world_size)
    model = LSTMClassifier(28, 10, hidden_size=hidden_size).to(runtime.device)
    values = torch.zeros(size, 28, 28, device=runtime.device)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        model(values).sum().backward()
        _wait(runtime)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[2:])
    slow = max(seconds[2:]) > 5 * median
    remedy = "other programs compete for the cores: stop them, or lower train.threads"
    yield "speed", f"{size / median:,.0f} examples/s forward and backward", remedy if slow else None


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def _all_reduce(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield time and bandwidth of a sum over all processes."""
    if runtime.world_size == 1:
        return
    model = LSTMClassifier(28, 10, hidden_size=config.sizes()[1])
    gradients = torch.zeros(sum(p.numel() for p in model.parameters()), device=runtime.device)
    large = torch.zeros(4 * MIB, device=runtime.device)  # 16 MiB

    def median(values: torch.Tensor, times: int) -> float:
        seconds = []
        for _ in range(times + 1):
            started = time.perf_counter()
            runtime.sum(values)
            _wait(runtime)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    kib, short, long = gradients.nbytes / 1024, median(gradients, 20), median(large, 5)
    found = f"{kib:,.0f} KiB of gradients in {short * 1e3:.2f} ms; {16 / long:,.0f} MiB/s"
    remedy = (
        "the network is slow: NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names a faster interface"
    )
    yield "all-reduce", found, remedy if short > 0.05 else None


def _disk(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield space and speed where run directories will be; on the main process, which writes."""
    if not runtime.is_main:
        return
    folder = Path(config.run_dir or "runs").absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            file.write(bytes(min(DISK_BYTES, free // 2)))
            file.flush()
            os.fsync(file.fileno())
            speed = min(DISK_BYTES, free // 2) / (time.perf_counter() - started)
    except OSError as error:
        remedy = "choose a --run-dir that can be written to"
        yield "disk", f"{folder}: cannot write there: {error.strerror}", remedy
        return
    found = f"{folder}: {free / 2**30:,.1f} GiB free, {speed / MIB:,.0f} MiB/s"
    yield "disk", found, None if free > LITTLE_SPACE else "make room, or choose another --run-dir"


def _data(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield the data sets under `data.root`, and read the one that a run would take."""
    sets = {
        name: config.data.model_copy(update={"name": name})
        for name in choices(Data.model_fields["name"].annotation)
        if name != "auto"
    }
    found = [name for name, data in sets.items() if not sources.missing(data)]
    yield "data sets", ", ".join(found).replace("digits", "digits (embedded)", 1), None
    name = config.data.name
    if name == "auto":
        name = "mnist" if "mnist" in found else "digits"
    data = sets[name]
    if lacking := sources.missing(data):
        folder = sources.idx_folder(data)
        remedy = f"put them into {folder.absolute()}, or let the run download them"
        yield "data", f"'{name}' lacks {', '.join(lacking)} in {folder}", remedy
        return
    try:
        splits = sources.load(data, seed=config.seed)
    except UserError as error:
        yield "data", str(error), "see above"
        return
    yield (
        "data",
        f"{name}: {len(splits.train):,} train, {len(splits.test):,} test, read whole",
        None,
    )


def _wandb(config: Config, _runtime: Runtime) -> Iterator[Finding]:
    mode = wandb_mode(config.tracking.wandb)
    why = {"offline": ": no API key, or asked for", "online": ": there is an API key, or asked for"}
    yield "wandb", mode + why.get(mode, ""), None
