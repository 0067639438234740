"""Examples a second of 1 process of 1 thread, 1 of 2, and 2 of 1, and what DDP costs.

Random images of MNIST's shape, LSTM(28, 64), the package's own step, CPU. Weak: a global batch of
BATCH for each process; strong: BATCH over all of them. Every measurement is a process group of its
own; rounds go through all of them in random order. `malloc` says whether glibc's allocator keeps
freed memory (`memory.keep_memory`), as training has it.

    python benchmarks/scaling.py --rounds 3
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from results import about, save

BATCHES = (64, 128, 256, 512, 1024, 2048)
LAYOUTS = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
WARM_UP, BLOCK = 5, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    jobs = [
        (processes, threads, batch, keeps)
        for processes, threads in LAYOUTS
        for batch in BATCHES
        for keeps in (True, False)
    ]
    found: dict[tuple[int, int, int, bool], list[dict[str, float]]] = {job: [] for job in jobs}
    draw = random.Random(0)
    for number in range(options.rounds):
        for job in draw.sample(jobs, len(jobs)):
            found[job].append(measure(*job))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for (processes, threads, batch, keeps), times in found.items():
        middle = {name: statistics.median(of[name] for of in times) for name in times[0]}
        row = {"processes": processes, "threads": threads, "batch": batch, "malloc": keeps}
        rows.append(row | middle)
    save("scaling", about(cpu_only=True) | {"rounds": options.rounds, "rows": rows})


def measure(processes: int, threads: int, batch: int, keeps: bool) -> dict[str, float]:
    """Start a process group that measures; return what its main process prints."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", str(processes)]
    if processes == 1:
        words = [sys.executable]
    words += [__file__, "--worker", str(batch), str(int(keeps))]
    done = subprocess.run(
        words,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    line: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return line


def worker(batch_size: int, keeps: bool) -> None:
    """Time steps of a global batch, with and without the reduction, and the reduction alone."""
    import torch
    import torch.distributed as dist

    from seqclf.config.load import load_config
    from seqclf.data.sequences import Batch
    from seqclf.model import LSTMClassifier
    from seqclf.optim import make_optimizer
    from seqclf.processes.start import start_runtime
    from seqclf.step import train_step

    if not keeps:
        patch("seqclf.processes.start.keep_memory").start()
    threads = int(os.environ["OMP_NUM_THREADS"])
    flags = {"device": "cpu", "train.threads": str(threads), "data.name": "mnist"}
    config = load_config(None, flags | {"train.batch_size": str(batch_size)})[0]
    runtime = start_runtime(config)
    torch.manual_seed(0)
    model = LSTMClassifier(28, 10, hidden_size=64, scale=255.0)
    optimizer = make_optimizer(model, config.optim)
    wrapped = runtime.prepare(model)
    share = batch_size // runtime.world_size
    values = torch.randint(0, 256, (share, 28, 28), dtype=torch.uint8)
    batch = Batch(values, torch.randint(0, 10, (share,)), 0, share * runtime.rank, batch_size)

    def seconds(net: torch.nn.Module) -> float:
        runtime.sum(torch.zeros(1))
        started = time.perf_counter()
        for _ in range(BLOCK):
            train_step(runtime, net, optimizer, batch, config, 1e-6)
        return (time.perf_counter() - started) / BLOCK

    blocks = max(5, min(40, 20_000 // batch_size))
    ways = {"step": wrapped, "alone": model}
    times: dict[str, list[float]] = {name: [] for name in (*ways, "reduction")}
    gradient = torch.zeros(sum(p.numel() for p in model.parameters()))
    for number in range(WARM_UP + blocks):
        for name, net in ways.items():
            spent = seconds(net)
            if number >= WARM_UP:
                times[name].append(spent)
        if dist.is_initialized():
            runtime.sum(torch.zeros(1))
            started = time.perf_counter()
            for _ in range(BLOCK):
                dist.all_reduce(gradient)
            if number >= WARM_UP:
                times["reduction"].append((time.perf_counter() - started) / BLOCK)
    middle = {name: 1000 * statistics.median(of) if of else 0.0 for name, of in times.items()}
    if runtime.is_main:
        rate = {"examples_per_s": 1000 * batch_size / middle["step"]}
        print(json.dumps({f"{name}_ms": ms for name, ms in middle.items()} | rate))
    runtime.close()


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--worker":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        worker(int(sys.argv[2]), bool(int(sys.argv[3])))
    else:
        main()
