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
TRAIN = [sys.executable, "launch/train.py", "--data.name", "mnist", "--tracking.wandb", "disabled"]
PLAIN = """
import torch, accelerate
model = torch.nn.LSTM(8, 64)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
model(torch.randn(8, 64, 8))[0].sum().backward()
optimizer.step()
print("step", flush=True)
"""
COMMANDS = {
    "import torch and accelerate": [sys.executable, "-c", "import torch, accelerate"],
    "and a step of plain torch": [sys.executable, "-c", PLAIN],
    "seqclf --help": [*SEQCLF, "--help"],
    "a mistake in a setting": [*TRAIN, "--optim.lr", "fast"],
    "the first step on MNIST": [
        *TRAIN,
        "--train.steps",
        "1",
        "--log.every",
        "1",
        "--report",
        "false",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    draw = random.Random(0)
    for _ in range(options.rounds):
        for name in draw.sample(list(COMMANDS), len(COMMANDS)):
            found[name].append(seconds(name, str(Path(options.data_root).resolve())))
    middle = {name: statistics.median(times) for name, times in found.items()}
    print(json.dumps(middle))
    save("startup", about() | {"rounds": options.rounds, "seconds": middle, "all": found})


def seconds(name: str, root: str) -> float:
    """Run a command; return its seconds, or those up to the line of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        words = COMMANDS[name]
        if "first step" in name:
            words = [*words, "--data.root", root, "--run-dir", f"{folder}/run"]
        started = time.perf_counter()
        with subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout
            spent = None  # until the first line of a step is there, else the end
            for line in process.stdout:
                if spent is None and line.startswith("step"):
                    spent = time.perf_counter() - started
        ended = time.perf_counter() - started
        if process.returncode != (2 if "mistake" in name else 0):
            raise RuntimeError(f"{words}: exit code {process.returncode}")
        if spent is None and "step" in name:
            raise RuntimeError(f"{words} printed no step")
    return ended if spent is None else spent


if __name__ == "__main__":
    main()
