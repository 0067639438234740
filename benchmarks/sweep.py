"""K seeds at once, one thread each, against one after the other on all threads.

Every round runs both, in random order; each run is the whole command, with imports.

    python benchmarks/sweep.py --data-root data --rounds 3
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import about, save

ROOT = Path(__file__).parents[1]
SEQCLF = [sys.executable, "-m", "seqclf"]
QUIET = ["--tracking.wandb", "disabled", "--report", "false", "--quiet"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1)
    options = parser.parse_args()
    common = ["--config", "mnist_fast", "--train.epochs", str(options.epochs), *QUIET]
    common += ["--data.root", str(Path(options.data_root).resolve())]
    machine = about()
    cores = machine["cores"]
    found = compare(common, seeds=options.seeds, rounds=options.rounds, cores=cores, jobs=cores)
    counts = {"rounds": options.rounds, "seeds": options.seeds, "epochs": options.epochs}
    save("sweep", machine | counts | found)


def compare(common: list[str], *, seeds: int, rounds: int, cores: int, jobs: int) -> dict[str, Any]:
    """Return the seconds of seeds of `seqclf train COMMON`, so many jobs at once and in turn."""
    found: dict[str, list[float]] = {"at once": [], "one after the other": []}
    draw = random.Random(0)
    for _ in range(rounds):
        for way in draw.sample(list(found), len(found)):
            with tempfile.TemporaryDirectory() as folder:
                commands = [
                    ["train", *common, "--seed", str(seed), "--train.threads", str(cores)]
                    for seed in range(seeds)
                ]
                if way == "at once":
                    dealt = ["--jobs", str(jobs), "--train.threads", str(max(1, cores // jobs))]
                    commands = [["sweep", *common, "--seed", f"0-{seeds - 1}", *dealt]]
                found[way].append(seconds(commands, folder))
                print(way, found[way][-1], flush=True)
    middle = {way: statistics.median(times) for way, times in found.items()}
    ratio = middle["one after the other"] / middle["at once"]
    print(json.dumps(middle | {"ratio": ratio}))
    return {"seconds": middle, "ratio": ratio, "all": found}


def seconds(commands: list[list[str]], folder: str) -> float:
    """Run commands one after the other, each with a directory of its own; return their time."""
    started = time.perf_counter()
    for number, words in enumerate(commands):
        where = ["--run-dir", f"{folder}/{number}"]
        subprocess.run([*SEQCLF, *words, *where], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
