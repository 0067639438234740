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
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from seqclf.config.settings import Config, Data, choices
from seqclf.data import idx, sources
from seqclf.errors import UserError, printable_lines
from seqclf.model import LSTMClassifier
from seqclf.processes.memory import free_memory, memory_text
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime
from seqclf.run.records import versions
from seqclf.tracking.mirrors import choose_wandb

LITTLE_SPACE = 2**30  # bytes free on the disk of the run directory; less is a warning
LITTLE_MEMORY = 2 * 2**30


class Finding(NamedTuple):
    """What a check found, with a remedy if something is wrong."""

    subject: str
    text: str
    remedy: str | None = None


def check(config: Config) -> int:
    """Print one line per finding, `ok` or `warning` with its remedy; return the exit code 0.

    Collective: under a launcher every process takes part, and the main one prints. Raises UserError
    where a run of these settings could not even start.
    """
    runtime = start_runtime(config)
    findings = chain(
        check_versions(),
        check_decisions(runtime),
        check_processes(runtime),
        check_speed(config, runtime),
        check_disk(config, runtime),
        check_data(config),
        check_wandb(config),
    )
    warnings = 0
    for subject, text, remedy in findings:
        warnings += remedy is not None
        if runtime.is_main:
            line = f"{'warning' if remedy else 'ok':<8}{subject:<12}{text}"
            print(printable_lines(line), flush=True)
            if remedy:
                print(printable_lines(f"{'':<20}-> {remedy}"), flush=True)
    if runtime.is_main:
        print(f"\n{warnings or 'no'} warning{'s' * (warnings != 1)}")
    runtime.close()
    return 0


def check_versions() -> Iterator[Finding]:
    """Yield what the results depend on besides settings and data."""
    yield Finding("versions", ", ".join(f"{name} {text}" for name, text in versions().items()))
    yield Finding("system", f"{platform.platform()}, {socket.gethostname()}")


def check_decisions(runtime: Runtime) -> Iterator[Finding]:
    """Yield what a run of these settings would decide, and what it would warn about."""
    for decision in runtime.decisions:
        subject = "launch" if decision.subject == "note" else decision.subject
        yield Finding(subject, decision.text, decision.remedy)
    build = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("torch", f"built {build}; {capability} on the CPU")


def check_processes(runtime: Runtime) -> Iterator[Finding]:
    """Yield a line per process: its host, its device and the memory that is free there."""
    device = runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    is_enough = free_memory(device) > LITTLE_MEMORY
    remedy = None if is_enough else "close other programs or ask for more memory"
    texts = runtime.from_all(f"{socket.gethostname()}, {name}, memory free: {memory_text(device)}")
    remedies = runtime.from_all(remedy)
    for rank, (text, remedy_there) in enumerate(zip(texts, remedies, strict=True)):
        yield Finding(f"process {rank}", str(text), str(remedy_there) if remedy_there else None)


def check_speed(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield how fast this process trains on sequences of 28 steps of 28 features."""
    batch_size, hidden_size = config.sizes()
    share = max(1, batch_size // runtime.world_size)
    model = LSTMClassifier(28, 10, hidden_size=hidden_size).to(runtime.device)
    values = torch.zeros(share, 28, 28, device=runtime.device)
    seconds = time_calls(lambda: model(values).sum().backward(), runtime.device)
    median = statistics.median(seconds)
    remedy = None
    if max(seconds) > 5 * median:
        remedy = "other programs compete for the cores: stop them, or lower train.threads"
    yield Finding("speed", f"{share / median:,.0f} examples/s forward and backward", remedy)


def time_calls(function: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of each of ten calls, to their end on the device, after two to warm up."""
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def check_disk(config: Config, runtime: Runtime) -> Iterator[Finding]:
    """Yield the space where run directories will be. On the main process, which writes them."""
    if not runtime.is_main:
        return
    folder = Path(config.run_dir or "runs").absolute()
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"some bytes")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "choose a --run-dir that can be written to"
        yield Finding("disk", f"{folder}: cannot write there: {error.strerror}", remedy)
        return
    free = shutil.disk_usage(folder).free
    remedy = "make room, or choose another --run-dir"
    yield Finding(
        "disk",
        f"{folder}: {free / 2**30:,.1f} GiB free",
        remedy if free <= LITTLE_SPACE else None,
    )


def check_data(config: Config) -> Iterator[Finding]:
    """Yield the data sets under `data.root`, and read the one that a run would take."""
    sets = {
        name: config.data.model_copy(update={"name": name})
        for name in choices(Data.model_fields["name"].annotation)
        if name != "auto"
    }
    complete = [name for name, data in sets.items() if not idx.missing(data)]
    yield Finding("data sets", ", ".join(complete).replace("digits", "digits (embedded)", 1))
    name = config.data.name
    if name == "auto" and config.data.path is not None:
        name = "files"
    elif name == "auto":
        name = "mnist" if "mnist" in complete else "digits"
    data = sets[name]
    if lacking := idx.missing(data):
        folder = idx.idx_folder(data)
        remedy = f"put them into {folder.absolute()}, or let the run download them"
        yield Finding("data", f"'{name}' lacks {', '.join(lacking)} in {folder}", remedy)
        return
    try:
        splits = sources.load(data, seed=config.seed)
    except UserError as error:
        yield Finding("data", str(error), "see above")
        return
    sizes = f"{len(splits.train):,} train, {len(splits.test):,} test"
    yield Finding("data", f"{name}: {sizes}, read whole")


def check_wandb(config: Config) -> Iterator[Finding]:
    """Yield where W&B would keep the metrics."""
    mode, reason = choose_wandb(config.tracking.wandb)
    yield Finding("wandb", f"{mode} ({reason})")
