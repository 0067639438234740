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
    cores = str(machine["cores"])
    found: dict[str, list[float]] = {"at once": [], "one after the other": []}
    draw = random.Random(0)
    for _ in range(options.rounds):
        for way in draw.sample(list(found), len(found)):
            with tempfile.TemporaryDirectory() as folder:
                seeds = range(options.seeds)
                commands = [
                    ["train", *common, "--seed", str(seed), "--train.threads", cores]
                    for seed in seeds
                ]
                if way == "at once":
                    jobs = ["--jobs", cores, "--train.threads", "1"]
                    commands = [["sweep", *common, "--seed", f"0-{options.seeds - 1}", *jobs]]
                found[way].append(seconds(commands, folder))
                print(way, found[way][-1], flush=True)
    middle = {way: statistics.median(times) for way, times in found.items()}
    ratio = middle["one after the other"] / middle["at once"]
    print(json.dumps(middle | {"ratio": ratio}))
    counts = {"rounds": options.rounds, "seeds": options.seeds, "epochs": options.epochs}
    save("sweep", machine | counts | {"seconds": middle, "ratio": ratio, "all": found})


def seconds(commands: list[list[str]], folder: str) -> float:
    """Run commands one after the other, each with a directory of its own; return their time."""
    started = time.perf_counter()
    for number, words in enumerate(commands):
        where = ["--run-dir", f"{folder}/{number}"]
        subprocess.run([*SEQCLF, *words, *where], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
