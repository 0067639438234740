"""Show that training is exact: killed, moved or damaged, a run ends with the same bits.

Trains scikit-learn's digits (embedded) at the chaotic rate of 0.01, with dropout and augmentation,
again and again; kills the processes with SIGKILL at random moments; compares weights, moments and
metrics at the end. Ends with 1 if anything differs.

    python benchmarks/prove.py --seed 1

With `--device cuda` it trains on GPUs, deterministically: on one, and where there are more, on two
and on all of them.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.metrics import CLOCK_METRICS
from seqclf.processes.start import start_runtime

FLAGS = {  # main changes them; every process that it starts gets them
    "device": "cpu",
    "data.name": "digits",
    "data.augment.shift": "1",
    "model.dropout": "0.2",
    "optim.lr": "0.01",
    "train.shards": "4",
    "train.threads": "1",
    "checkpoint.every": "20",
    "eval.every": "100",
    "tracking.wandb": "disabled",
    "report": "false",
}
STRAIGHT = "1 process, straight"
LIMIT_S = 900  # whatever has not ended by then hangs
CONTEXT = multiprocessing.get_context("forkserver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="of the moments of the kills [random]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, help="at most [4, or the number of GPUs]")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    print(f"--seed {seed} repeats the draws of this call. Starting torch ...", flush=True)
    start_on(options.device)
    most = options.processes
    if most is None:
        most = 4 if options.device == "cpu" else max(1, torch.cuda.device_count())
    sizes = sorted({2, most}) if most > 1 else []
    FLAGS["train.shards"] = str(math.lcm(4, *sizes))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        draw = random.Random(seed)
        runs = prove(Path(folder), draw, steps=options.steps, kills=options.kills, sizes=sizes)
        counted = count(runs[STRAIGHT], most)
        same = compare(runs)
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(0 if same and counted else 1)


def start_on(device: str) -> None:
    """Have the processes that this one starts train on a device."""
    FLAGS["device"] = device
    if device == "cuda":  # there the kernels' own order of summation is not fixed
        FLAGS["deterministic"] = "true"
    else:  # a process that has met a GPU must not be forked
        preload = ["seqclf.training", "sklearn.datasets", "torch._inductor.config"]
        CONTEXT.set_forkserver_preload(preload)


def prove(
    folder: Path, draw: random.Random, *, steps: int, kills: int, sizes: Sequence[int]
) -> dict[str, Path]:
    """Make the same run straight, by several processes, killed, moved, and damaged."""
    seconds = {}
    runs = {}
    for size in (1, *sizes):
        run = runs[f"{size} process{'es' * (size > 1)}, straight"] = folder / f"straight-{size}"
        seconds[size] = train(run, size, steps)
    moved = [*reversed(sizes), 1]
    ways = [
        (f"1 process, killed {kills} times", "killed", [1] * (kills + 1), False),
        (f"killed and moved: {', '.join(map(str, moved))} processes", "moved", moved, False),
        ("killed, a bit of the newest checkpoint flipped", "damaged", [1, 1], True),
    ]
    for what, name, sizes_in_turn, damage in ways:
        if len(sizes_in_turn) == 1:
            continue  # one process has nowhere to move to
        runs[what] = folder / name
        moments = [seconds[size] / len(sizes_in_turn) for size in sizes_in_turn[:-1]]
        while not train_and_kill(runs[what], sizes_in_turn, moments, draw, steps, damage):
            shutil.rmtree(runs[what])
    return runs


def train_and_kill(
    run: Path,
    sizes: Sequence[int],
    moments: Sequence[float],
    draw: random.Random,
    steps: int,
    damage: bool,
) -> bool:
    """Train with these numbers of processes in turn, each but the last killed around its moment.

    Returns False if a kill came too late, or too early for a checkpoint to damage.
    """
    for size, moment in zip(sizes, moments, strict=False):
        after_s = draw.uniform(0, 1.5) * moment
        train(run, size, steps, kill_after_s=after_s)
        if read_json(run / "status.json")["state"] == "finished":
            say(run, f"had finished when SIGKILL came, after {after_s:.2f} s: all anew")
            return False
        checkpoints = sorted(run.glob("checkpoints/step-*"))
        newest = checkpoints[-1].name if checkpoints else "no checkpoint"
        say(run, f"{size} x SIGKILL after {after_s:.2f} s; on disk: {newest}")
        if damage:
            if len(checkpoints) < 2:
                say(run, "two checkpoints are needed: all anew")
                return False
            flip_a_bit(checkpoints[-1], draw)
    train(run, sizes[-1], steps)
    return True


def flip_a_bit(checkpoint: Path, draw: random.Random) -> None:
    """Damage a checkpoint as a bad disk would."""
    file = checkpoint / draw.choice(("model.safetensors", "optimizer.safetensors", "state.json"))
    content = bytearray(file.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    say(checkpoint.parent.parent, f"flipped bit {bit} of byte {place:,} of {file.name}")


def outcome(run: Path) -> dict[str, str]:
    """Return the sha256 of what a run ends with."""
    last = max(run.glob("checkpoints/step-*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if k not in CLOCK_METRICS} for line in lines]
    contents = {
        "weights": (run / "model" / "model.safetensors").read_bytes(),
        "the last checkpoint's weights": (last / "model.safetensors").read_bytes(),
        "moments": (last / "optimizer.safetensors").read_bytes(),
        "metrics": json.dumps(timeless).encode(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def compare(runs: dict[str, Path]) -> bool:
    """Print what each run ended with; return whether that is the same for all."""
    expected = outcome(runs[STRAIGHT])
    same = True
    print(f"\n{'':<50} {'weights':<16}")
    for what, run in runs.items():
        found = outcome(run)
        differing = [name for name in expected if found[name] != expected[name]]
        same = same and not differing
        verdict = f"NOT the same: {', '.join(differing)}" if differing else "same"
        print(f"{what:<50} {found['weights'][:16]} {'-' if what == STRAIGHT else verdict}")
    print(f"\nall the same: {expected['weights']}" if same else "\nNOT all the same")
    return same


def count(run: Path, size: int) -> bool:
    """Evaluate a run's result in other processes; return whether each test example counted once."""
    start_and_wait(run, size, count_rank, math.inf)
    counted, total, loss, accuracy = json.loads(log_of(run).read_text().splitlines()[-1])
    logged = read_json(run / "status.json")["metrics"]
    right = counted == total and [loss, accuracy] == [logged["test/loss"], logged["test/accuracy"]]
    say(
        run,
        f"{size} process{'es' * (size > 1)} counted {counted} of {total} test examples, "
        f"accuracy {accuracy:.4f}",
    )
    if not right:
        say(run, f"NOT each once: at the end of training it was {logged}")
    return right


def train(run: Path, size: int, steps: int, kill_after_s: float = math.inf) -> float:
    """Train in new processes; return the seconds from their first step to the end or the kill."""
    seconds = start_and_wait(run, size, train_rank, kill_after_s, steps)
    for line in log_of(run).read_text().splitlines():
        if line.startswith(("resumed", "warning: checkpoint passed over")):
            say(run, line.replace(f"{run}/", ""))
    if kill_after_s == math.inf:
        say(run, f"{size} process{'es' * (size > 1)} finished, in {seconds:.1f} s")
    return seconds


def say(run: Path, text: str) -> None:
    print(f"{run.name:<11} {text}", flush=True)


# ---- processes


def start_and_wait(
    run: Path, size: int, function: Callable[..., None], kill_after_s: float, *args: object
) -> float:
    """Call a function in new processes; kill them so many seconds after the run has begun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_of(run).write_text("")
    begun = modified(run / "sessions.jsonl")  # it gets a line when training begins
    ranks = [
        CONTEXT.Process(target=enter, args=(FLAGS, rank, size, port, function, run, *args))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    started = time.monotonic()
    since = None
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        if since is None and modified(run / "sessions.jsonl") != begun:
            since = time.monotonic()
        if since is not None and time.monotonic() - since > kill_after_s:
            break
        if time.monotonic() - started > LIMIT_S:
            break
        time.sleep(0.002)
    hangs = time.monotonic() - started > LIMIT_S
    seconds = time.monotonic() - (since or math.nan)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    if hangs:
        sys.exit(f"{log_of(run).read_text()}\nerror: not at its end after {LIMIT_S} s")
    if any((rank.exitcode or 0) > 0 for rank in ranks):
        sys.exit(f"{log_of(run).read_text()}\nerror: a process failed, see above")
    return seconds


def enter(
    flags: dict[str, str],
    rank: int,
    size: int,
    port: int,
    function: Callable[..., None],
    run: Path,
    *args: object,
) -> None:
    """Become one of `size` processes, as a launcher would have it; write to the run's log."""
    FLAGS.update(flags)
    os.environ["ACCELERATE_USE_CPU"] = str(flags["device"] == "cpu").lower()
    if size > 1:  # one process has no launcher: on a GPU these would give it a DDP of its own
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    log = os.open(log_of(run), os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    function(run, *args)


def train_rank(run: Path, steps: int) -> None:
    from seqclf.training import train as train_run

    flags = FLAGS | {"train.steps": str(steps), "run_dir": str(run)}
    sys.exit(train_run(load_config(None, flags)[0]))


def count_rank(run: Path) -> None:
    from seqclf.evaluate import evaluate
    from seqclf.run.weights import load_model

    config = load_config(None, FLAGS)[0]
    test = sources.load(config.data, seed=config.seed).test
    runtime = start_runtime(config)
    found = evaluate(
        *(runtime, load_model(run)[0].to(runtime.device), test),
        batch_size=config.eval.batch_size,
        shards=config.train.shards,
    )
    if runtime.is_main:
        print(json.dumps([found.count, len(test), found.loss, found.accuracy]), flush=True)
    runtime.close()


# ---- files


def log_of(run: Path) -> Path:
    return run.with_suffix(".log")


def modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def read_json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


if __name__ == "__main__":
    main()
