"""`seqclf advise`: whether more processes pay, by a small model of what a step costs.

A step of n processes takes `fixed + example * share + all-reduce(n)`, where the share is the batch
divided by n. docs/scaling.md says how far the model is off.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from seqclf.cli.doctor import time_calls
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.errors import printable_lines
from seqclf.optim import make_optimizer
from seqclf.processes.device import usable_cores
from seqclf.processes.memory import least_memory
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime
from seqclf.settle import Setup, find_data, make_plan, settle
from seqclf.step import train_step

WORTH = 0.7  # efficiency from which more processes are advised
MOST_TIMES = 2.2  # measured runs took up to so many times what `least_memory` says
# Microseconds of a message between two processes, with DDP's own work, and GB/s. gloo's follow
# benchmarks/results/scaling.json, where DDP made a step 1.1 to 2.9 ms longer. Nobody has measured
# the others.
LINKS: dict[str, tuple[float, float]] = {
    "gloo on one host": (700, 1.0),
    "NCCL between the GPUs of a host": (20, 50.0),
}
NETWORK = (50, 1.25)  # between hosts: what it adds to a message, and 10 Gbit/s


class Cost(NamedTuple):
    """What a step costs."""

    step_ms: float  # whatever its batch
    example_us: float  # for each example of a share
    latency_us: float  # of a message
    gb_per_s: float  # of the link between two processes
    num_bytes: int  # of the gradients
    shards: int | None = None  # train.shards: then each process receives the gradients of all

    def step_s(self, batch_size: int, n: int) -> float:
        """Return the seconds of a step of n processes."""
        share_s = self.example_us / 1e6 * math.ceil(batch_size / n)
        return self.step_ms / 1e3 + share_s + self.reduce_s(n)

    def reduce_s(self, n: int) -> float:
        """Return the seconds of the all-reduce: a ring sends all gradients twice, less a part."""
        sent = (self.shards or 2) * (n - 1) / n * self.num_bytes
        return 2 * math.log2(n) * self.latency_us / 1e6 + sent / (self.gb_per_s * 1e9)

    def efficiency(self, batch_size: int, n: int) -> float:
        """Return how many times as fast as one process n are, divided by n."""
        return self.step_s(batch_size, 1) / (n * self.step_s(batch_size, n))

    def worth_from(self, n: int) -> int:
        """Return the batch size from which n processes reach the efficiency WORTH."""
        fixed_s = self.step_ms / 1e3
        waits = WORTH * n * (fixed_s + self.reduce_s(n)) - fixed_s
        return math.ceil(max(0.0, waits) / ((1 - WORTH) * self.example_us / 1e6))


def fit(times: Mapping[int, float]) -> tuple[float, float, float]:
    """Return seconds a step and an example of `{batch size: seconds}`, and the largest misfit.

    The line has the least squares of relative errors; none of the seconds is below 0.
    """
    rows = torch.tensor([[1 / s, b / s] for b, s in times.items()], dtype=torch.float64)
    fixed, example = torch.linalg.lstsq(rows, rows.new_ones(len(rows), 1)).solution[:, 0].tolist()
    if fixed < 0 or example <= 0:
        fixed, example = 0.0, float(rows[:, 1].sum() / rows[:, 1].square().sum())
    return fixed, example, max(abs((fixed + example * b) / s - 1) for b, s in times.items())


def advise(config: Config, given: Mapping[str, float], *, gpus: int | None, hosts: int) -> int:
    """Print what is measured, what is assumed, a table, and the advice; return the exit code 0.

    `given` are figures of Cost to take, by name. Collective: launched, every process measures with
    the others, and the main one prints.
    """
    runtime = start_runtime(config)
    config, _ = find_data(config, runtime, print if runtime.is_main else lambda _: None)
    setup = settle(config, sources.load(config.data, seed=config.seed)).on_device(runtime.device)
    is_cuda = runtime.device.type == "cuda"
    here = torch.cuda.device_count() if is_cuda else usable_cores()[0]
    total = (gpus or max(here, runtime.world_size)) * hosts
    lines = [f"given       {name} {value:g}" for name, value in given.items()]
    figures: dict[str, float] = {}
    if not {"step_ms", "example_us"} <= given.keys():
        figures |= measure_compute(setup, runtime, total, lines)
    if not {"latency_us", "gb_per_s"} <= given.keys():
        figures |= find_link(setup, runtime, hosts, lines)
    save_s = measure_save(setup, lines)
    lines.append("assumed     each process has cores and a disk as fast as these")
    if not is_cuda:
        lines[-1] += "; a GPU is not known here: it computes faster, so that waiting weighs more "
        lines[-1] += "(--step-ms and --example-us give one)"
    num_bytes = 4 * setup.architecture.num_parameters
    cost = Cost(**figures | dict(given), num_bytes=num_bytes, shards=setup.config.train.shards)
    if runtime.is_main:
        lines += ["", *table(setup, cost, total, save_s), "", *advice(setup, cost, total)]
        print(printable_lines("\n".join(lines)))
    runtime.close()
    return 0


def measure_compute(
    setup: Setup, runtime: Runtime, total: int, lines: list[str]
) -> dict[str, float]:
    """Return the cost of a step and of an example, by batches from the whole one to a share."""
    most = min(setup.plan.batch_size, len(setup.splits.train))
    sizes = sorted({max(1, round(most / total**power)) for power in (0, 0.5, 1)} | {most // 4 or 1})
    fixed_s, example_s, misfit = fit(time_steps(setup, runtime, sizes))
    lines.append(
        f"measured    a step takes {1e3 * fixed_s:.3g} ms and {1e6 * example_s:.3g} µs an example, "
        f"read and trained; batches of {', '.join(map(str, sizes))} on {runtime.device.type}, "
        f"threads: {runtime.threads}, are off by {misfit:.0%} at most"
    )
    return {"step_ms": 1e3 * fixed_s, "example_us": 1e6 * example_s}


def time_steps(
    setup: Setup, runtime: Runtime, sizes: list[int], *, reduces: bool = False
) -> dict[int, float]:
    """Return the median seconds of reading and training batches of these sizes in this process.

    With `reduces` DDP averages their gradients with those of the other processes.
    """
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for size in [*times, *reversed(times)]:  # there and back, for a machine whose speed drifts
        step = make_step(setup, runtime, size, reduces=reduces)
        times[size] += time_calls(step, runtime.device)
    return {size: median(seconds) for size, seconds in times.items()}


def make_step(
    setup: Setup, runtime: Runtime, batch_size: int, *, reduces: bool
) -> Callable[[], object]:
    """Return a function that reads and trains the next batch of this size, with a new model."""
    update = {"batch_size": batch_size, "shards": None}
    train = setup.config.train.model_copy(update=update)
    config = setup.config.model_copy(update={"train": train})
    plan = make_plan(config, setup.splits.train)
    model = setup.build_model().to(runtime.device)
    optimizer = make_optimizer(model, config.optim)
    prepared = runtime.prepare(model, reduces=reduces)
    steps = count()

    def step() -> object:
        share = plan.share(next(steps), 0, 1)
        batch = setup.splits.train.__getitems__(share).to(runtime.device)
        return train_step(runtime, prepared, optimizer, batch, config, 1e-6, setup.class_weights)

    return step


def find_link(setup: Setup, runtime: Runtime, hosts: int, lines: list[str]) -> dict[str, float]:
    """Return the cost of an all-reduce, whose latency is measured where a launcher started this."""
    n = runtime.world_size
    local = (
        "NCCL between the GPUs of a host" if runtime.device.type == "cuda" else "gloo on one host"
    )
    name, (latency_us, gb_per_s) = local, LINKS[local]
    if hosts > 1:
        name = f"{local.split()[0]} over a network of 10 Gbit/s"
        latency_us, gb_per_s = latency_us + NETWORK[0], min(gb_per_s, NETWORK[1])
    text = f"assumed     {name}: {latency_us:g} µs a message, {gb_per_s:g} GB/s; torchrun ... -m "
    text += "seqclf advise measures the first"
    if n > 1:
        share = max(1, setup.plan.batch_size // n)
        with_ddp, alone = (
            time_steps(setup, runtime, [share], reduces=way) for way in (True, False)
        )
        sent_s = 2 * (n - 1) / n * 4 * setup.architecture.num_parameters / (gb_per_s * 1e9)
        waits_s = max(0.0, with_ddp[share] - alone[share] - sent_s)
        latency_us = 1e6 * waits_s / (2 * math.log2(n))
        text = (
            f"measured    {n} processes: {latency_us:.3g} µs a message; assumed: {gb_per_s:g} GB/s"
        )
    lines.append(text)
    return {"latency_us": latency_us, "gb_per_s": gb_per_s}


def measure_save(setup: Setup, lines: list[str]) -> float:
    """Return the seconds of writing a checkpoint's bytes where run directories will be."""
    folder = Path(setup.config.run_dir or "runs").absolute()
    while not folder.is_dir():
        folder = folder.parent
    content = bytes(3 * 4 * setup.architecture.num_parameters)  # weights and two moments
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        save_s = time.perf_counter() - started
    size = f"{len(content) / 1e6:.1f} MB"
    lines.append(f"measured    all wait {1e3 * save_s:.0f} ms for a checkpoint of {size} (one try)")
    return save_s


def numbers_up_to(total: int, shards: int | None) -> list[int]:
    """Return 1, 2, 4 ... and the total, but only what train.shards can be divided by."""
    numbers = {2**power for power in range(total.bit_length())} | {total}
    return sorted(n for n in numbers if not (shards or n) % n)


def table(setup: Setup, cost: Cost, total: int, save_s: float) -> list[str]:
    """Return a line for each number of processes."""
    plan, config = setup.plan, setup.config
    lines = ["processes  batch of each   MiB of each  s an epoch  as fast  efficiency"]
    saves_s = save_s * plan.steps_per_epoch / (config.checkpoint.every or setup.usual_every)
    for n in numbers_up_to(total, config.train.shards):
        least = least_memory(config, setup.architecture, setup.longest, n) / 2**20
        memory = f"{least:,.1f}-{MOST_TIMES * least:,.1f}"
        epoch_s = plan.steps_per_epoch * cost.step_s(plan.batch_size, n) + saves_s
        efficiency = cost.efficiency(plan.batch_size, n)
        cells = f"{n:>9}{math.ceil(plan.batch_size / n):>15,}{memory:>14}{epoch_s:>12,.1f}"
        lines.append(f"{cells}{n * efficiency:>8.2f}x{efficiency:>12.0%}")
    data = setup.splits.num_bytes / 2**20
    return [*lines, f"MiB: of model and batch; Python, torch and {data:,.0f} MiB of data are extra"]


def advice(setup: Setup, cost: Cost, total: int) -> list[str]:
    """Return the advice in words."""
    batch_size, numbers = setup.plan.batch_size, numbers_up_to(total, setup.config.train.shards)
    gains = {n: n * cost.efficiency(batch_size, n) for n in numbers}
    best = max(n for n, gain in gains.items() if gain >= WORTH * n)
    text = (
        f"use {best} processes, {gains[best]:.1f} times as fast as one" if best > 1 else "use one"
    )
    most = max(numbers)
    if best == most:
        return [f"advice      {text}"]
    return [
        f"advice      do not spread these {setup.architecture.num_parameters:,} parameters over "
        f"{most} processes: {gains[most]:.1f} times as fast as one, for {most} times the machine",
        f"            {text}; or train {most} seeds or settings at once: seqclf sweep",
        f"            {most} pay ({WORTH:.0%} efficiency) from train.batch_size "
        f"{cost.worth_from(most):,} on; but another batch size is another training",
    ]
