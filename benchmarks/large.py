"""Memory, rate and bytes read of fetching batches from 1, 10 or 100 million short sequences.

Sequences of 4 steps of 2 features, made by this script; batches of 64, one process of one thread.
Of the orders, `stored` is a permutation in memory, `computed` is what more than 2**24 examples
have, and `blocks` is data.shuffle_buffer. With --limit-mb the process is in a control group of so
much memory, its cache of the files included (version 1 of control groups; needs root).

    python benchmarks/large.py --folder /tmp/large --rows 10000000
    python benchmarks/large.py --folder /tmp/large --rows 2000000 --steps 256 --limit-mb 1500
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from seqclf.data import orders
from seqclf.data.batches import BatchPlan
from seqclf.data.blocks import Blocks
from seqclf.data.prepared import INDEX, INFO, DatasetInfo, FileInfo, SplitInfo, open_dataset
from seqclf.data.read_ahead import ask_ahead
from seqclf.data.values_file import ValuesFile

FEATURES, BATCH = 2, 64
AT_ONCE = 2**20  # steps that are written at once
GROUPS = Path("/sys/fs/cgroup/memory")
ORDERS = ("stored", "computed", "blocks")


def make(folder: Path, rows: int, steps: int) -> None:
    """Write a data set as `prepare` does, all of it train but for the last hundred sequences."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    values = ValuesFile(folder)
    for first in range(0, rows * steps, AT_ONCE):
        count = min(AT_ONCE, rows * steps - first)
        values.write(generator.standard_normal((count, FEATURES), np.float32))
    pieces = values.finish("F32", (FEATURES,), 4)
    parts = np.zeros(rows, np.uint8)
    parts[-100:] = 2
    labels = np.arange(rows) % 2
    index: dict[str, np.ndarray] = {
        "offsets": np.arange(rows + 1) * steps,
        "labels": labels,
        "parts": parts,
    }
    save_file(index, folder / INDEX)
    paths = [*(piece.path for piece in pieces), folder / INDEX]
    counts = {"train": rows - 100, "test": 100}
    info = DatasetInfo(
        format=1 if len(pieces) == 1 else 2,
        kind="vectors",
        classes=("a", "b"),
        features=("x", "y"),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        tokens=(),
        parts={
            name: SplitInfo(examples=n, steps=n * steps, shortest=steps, longest=steps, classes={})
            for name, n in counts.items()
        },
        left_out=0,
        files={path.name: FileInfo(bytes=path.stat().st_size, sha256="") for path in paths},
    )
    (folder / INFO).write_text(info.model_dump_json())


def memory() -> float:
    """Return the memory of this process that is no file's, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if "RssAnon" in line)) / 1024


def bytes_read() -> int:
    """Return what this process has had read from disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def forget(folder: Path) -> None:
    """Take the files out of the kernel's cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(
    folder: Path, order: str, buffer: int, num_batches: int, *, drops: bool
) -> dict[str, float | str]:
    """Fetch batches in an order; return what it took."""
    torch.set_num_threads(1)
    forget(folder)
    if order == "stored":
        orders.LARGEST_STORED = 2**62
    elif order == "computed":
        orders.LARGEST_STORED = 0
    before = memory()
    started = time.perf_counter()
    train = open_dataset(folder).splits["train"]
    opened, opened_s = memory(), time.perf_counter() - started
    blocks = Blocks(len(train), BATCH, 0, buffer) if order == "blocks" else None
    plan = BatchPlan(len(train), BATCH, seed=0, num_steps=num_batches, blocks=blocks)
    started = time.perf_counter()
    plan.batch(0)
    first_s = time.perf_counter() - started
    shares = plan.shares(0, 0, 1)
    if blocks is not None:
        shares = ask_ahead(train, plan, shares, drops=drops)
    before_io, peak, num_bytes = bytes_read(), 0.0, 0
    started = time.perf_counter()
    for number, share in enumerate(shares):
        num_bytes += train.__getitems__(share).values.nbytes
        if number % 1000 == 0:
            peak = max(peak, memory())
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(min(5000, num_batches)):
        plan.batch(step)
    plan_us = (time.perf_counter() - started) / min(5000, num_batches) * 1e6
    return {
        "order": order,
        "rows": len(train) + 100,
        "batches": num_batches,
        "open_s": round(opened_s, 1),
        "open_mb": round(opened - before),
        "order_mb": round(peak - opened),
        "first_batch_s": round(first_s, 2),
        "plan_us": round(plan_us, 1),
        "examples_per_s": round(num_batches * BATCH / seconds),
        "bytes_read_per_byte": round((bytes_read() - before_io) / num_bytes, 2),
    }


@contextmanager
def limited(megabytes: int | None) -> Iterator[Path | None]:
    """Make a control group with so much memory, for processes to enter."""
    if megabytes is None:
        yield None
        return
    group = GROUPS / f"seqclf-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes * 2**20))
        yield group
    finally:
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="is made, and deleted again")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--buffer", type=int, default=2**20)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-mb", type=int)
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--inside", choices=ORDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    num_batches = min(options.batches, options.rows // BATCH)
    if options.inside:
        numbers = (options.buffer, num_batches)
        found = measure(
            options.folder, options.inside, *numbers, drops=options.limit_mb is not None
        )
        print(json.dumps(found))
        return
    make(options.folder, options.rows, options.steps)
    try:
        with limited(options.limit_mb) as group:
            for _ in range(options.rounds):
                for order in options.orders:
                    words = [sys.executable, *sys.argv, "--inside", order]
                    enter = f"echo $$ > {group}/cgroup.procs; " if group else ""
                    subprocess.run(["sh", "-c", enter + 'exec "$@"', "sh", *words], check=True)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
