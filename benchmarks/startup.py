"""Seconds from the command to its first word: help, a mistake, the first step, against imports.

Every round runs all commands once, in random order.

    python benchmarks/startup.py --rounds 7
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
TRAIN = [sys.executable, "launch/train.py", "--data.name", "digits", "--tracking.wandb", "disabled"]
COMMANDS = {
    "import torch and accelerate": [sys.executable, "-c", "import torch, accelerate"],
    "seqclf --help": [*SEQCLF, "--help"],
    "a mistake in a setting": [*TRAIN, "--optim.lr", "fast"],
    "the first step": [*TRAIN, "--train.steps", "1", "--log.every", "1", "--report", "false"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    draw = random.Random(0)
    for _ in range(options.rounds):
        for name in draw.sample(list(COMMANDS), len(COMMANDS)):
            found[name].append(seconds(name))
    middle = {name: statistics.median(times) for name, times in found.items()}
    print(json.dumps(middle))
    save("startup", about() | {"rounds": options.rounds, "seconds": middle, "all": found})


def seconds(name: str) -> float:
    """Run a command; return its seconds, or those up to the line of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        words = COMMANDS[name] + ["--run-dir", f"{folder}/run"] * (name == "the first step")
        started, clock = time.perf_counter(), time.time()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        spent = time.perf_counter() - started
        if done.returncode != (2 if "mistake" in name else 0):
            raise RuntimeError(f"{words}: {done.returncode}\n{done.stderr}")
        if name == "the first step":
            first = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()[0]
            spent = json.loads(first)["time"] - clock
    return spent


if __name__ == "__main__":
    main()
