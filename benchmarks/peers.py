"""Time how soon each library names 96, 97 and 98 % of MNIST's test digits, from its command.

LSTM(28, 64) by rows, batch 64, fp32 on the CPU, with all of the machine's threads. Rivals train as
the tutorial does, the last state, Adam at a constant 0.01, as long as they have not reached 98 %,
at most EPOCHS epochs, each as its documentation shows it and at its best (tensors in memory,
nothing logged or saved). All of them evaluate after each epoch. We run once as they do, and once by
our recipe, which changes schedule and pooling. Rounds alternate over all of them in random order.

    python benchmarks/peers.py --data-root data --rounds 3
"""

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import about, save

from seqclf.config.settings import Data
from seqclf.data import idx
from seqclf.errors import UserError

HERE = Path(__file__).parent
GOALS = (0.96, 0.97, 0.98)
EPOCHS = 6
EXAMPLES = 60_000
# The same machine for all: no GPU, and all threads, whatever a shell says of OpenMP's and MKL's.
MACHINE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("OMP_", "MKL_", "GOMP_"))
} | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


@dataclass(frozen=True)
class Rival:
    """A library as it is run here."""

    name: str
    script: str
    style: str | None = None
    epochs: int = EPOCHS
    needs: tuple[str, ...] = ()  # distributions
    env: dict[str, str] = field(default_factory=dict)


RIVALS = (
    Rival("tutorial", "tutorial"),
    Rival("Accelerate, documented", "accelerate_loop", "documented", needs=("accelerate",)),
    Rival("Accelerate, best", "accelerate_loop", "best", needs=("accelerate",)),
    Rival("Lightning, documented", "lightning_fit", "documented", needs=("lightning",)),
    Rival("Lightning, best", "lightning_fit", "best", needs=("lightning",)),
    Rival("Trainer, documented", "trainer", "documented", needs=("transformers",)),
    Rival("Trainer, best", "trainer", "best", needs=("transformers",)),
    Rival("Keras on torch", "keras_fit", needs=("keras",), env={"KERAS_BACKEND": "torch"}),
    Rival("Keras on JAX", "keras_fit", needs=("keras", "jax"), env={"KERAS_BACKEND": "jax"}),
    Rival("Flax, scan of an epoch", "flax_scan", needs=("flax", "jax", "optax")),
    Rival("bare.py, two epochs", "bare_loop", epochs=2),
)
OURS = {
    "seqclf, mnist_fast": ("mnist_fast.yaml",),
    "seqclf, trained as the rivals": ("tutorial.yaml", "--train.epochs", str(EPOCHS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names that contain this")
    options = parser.parse_args()
    root = str(Path(options.data_root).resolve())
    try:
        idx.fetch(Data(name="mnist", root=root), print)
    except UserError as error:
        sys.exit(f"error: {error}")
    rivals = {rival.name: rival for rival in RIVALS if options.only in rival.name}
    names = [*rivals, *(name for name in OURS if options.only in name)]
    runs: dict[str, list[list[dict[str, float]]]] = {name: [] for name in names}
    lacking: dict[str, str] = {}
    draw = random.Random(0)
    for seed in range(options.rounds):
        draw.shuffle(names)
        for name in names:
            if name in lacking:
                continue
            try:
                if name in OURS:
                    lines = run_ours(*OURS[name], root=root, seed=seed)
                else:
                    lines = run_rival(rivals[name], root, seed)
            except (importlib.metadata.PackageNotFoundError, subprocess.CalledProcessError) as why:
                reason = (getattr(why, "stderr", None) or "").strip() or str(why)
                lacking[name] = reason.splitlines()[-1][:200]
                print(f"{name}: {lacking[name]}", file=sys.stderr)
                continue
            runs[name].append(lines)
            last = lines[-1]
            print(
                f"round {seed} {name:26} {last['accuracy']:.4f} after {last['epoch']:g} epochs, "
                f"{last['command_s']:.1f} s from the command, {last['train_s']:.1f} s of training",
                flush=True,
            )
    if options.only:
        return  # a part of them is no result
    found = {name: summary(lines) for name, lines in runs.items() if name not in lacking}
    told = {"rounds": options.rounds, "found": found, "lacking": lacking}
    save("peers", about(cpu_only=True) | told)


def run_rival(rival: Rival, root: str, seed: int) -> list[dict[str, float]]:
    """Run a rival's script; return its lines, with seconds since the command."""
    for name in rival.needs:
        importlib.metadata.version(name)
    words = [sys.executable, "-u", str(HERE / "peers" / f"{rival.script}.py")]
    words += ["--data-root", root, "--epochs", str(rival.epochs), "--seed", str(seed)]
    words += ["--style", rival.style] if rival.style else []
    lines: list[dict[str, float]] = []
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with subprocess.Popen(
            words,
            env=MACHINE | rival.env | {"PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
        ) as process:
            for line in process.stdout or ():
                if line.startswith('{"epoch"'):
                    now = time.monotonic() - started
                    lines.append(json.loads(line) | {"command_s": now})
        if process.returncode or not lines:
            errors.seek(0)
            raise subprocess.CalledProcessError(process.returncode, words, stderr=errors.read())
    return lines


def run_ours(recipe: str, *flags: str, root: str, seed: int) -> list[dict[str, float]]:
    """Run a recipe as the README does, to its end; return the same lines from metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(HERE.parent / "launch/train.py")]
        words += ["--config", str(HERE.parent / "configs" / recipe), *flags]
        words += ["--data.root", root, "--seed", str(seed), "--run-dir", f"{folder}/run"]
        words += ["--tracking.wandb", "disabled", "--log.every", "67"]  # of 938
        started = time.monotonic()
        judged: list[float] = []
        with subprocess.Popen(
            words, env=MACHINE, stdout=subprocess.PIPE, text=True, cwd=folder
        ) as process:
            for printed in process.stdout or ():
                if " test acc " in printed:
                    judged.append(time.monotonic() - started)
        whole = time.monotonic() - started
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words)
        text = (Path(folder) / "run/metrics.jsonl").read_text()
    lines: list[dict[str, float]] = []
    train_s, examples = 0.0, 0.0
    for line in map(json.loads, text.splitlines()):
        if rate := line.get("train/examples_per_s"):
            train_s += (line["train/examples"] - examples) / rate
            examples = line["train/examples"]
        if "test/accuracy" in line:
            lines.append(
                {
                    "epoch": examples / EXAMPLES,
                    "train_s": train_s,
                    "accuracy": line["test/accuracy"],
                    "command_s": judged[len(lines)],
                    "whole_s": whole,
                }
            )
    return lines


def summary(runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Return medians over the rounds; a goal that a round did not reach is None in it."""
    found: dict[str, Any] = {"n": len(runs), "lines": runs}
    for goal in GOALS:
        for kind in ("command_s", "train_s"):
            reached = [
                next((line[kind] for line in lines if line["accuracy"] >= goal), None)
                for lines in runs
            ]
            good = [seconds for seconds in reached if seconds is not None]
            always = len(good) == len(runs)
            found[f"{kind}_to_{goal:.0%}"] = statistics.median(good) if always else None
            found[f"rounds_to_{goal:.0%}"] = len(good)
    rates = []
    for lines in runs:
        first, last = lines[0], lines[-1]
        spans = last["epoch"] - first["epoch"], last["train_s"] - first["train_s"]
        if not spans[0]:
            spans = first["epoch"], first["train_s"]
        rates.append(spans[0] * EXAMPLES / spans[1])
    found["examples_per_s"] = statistics.median(rates)
    found["compile_s"] = statistics.median(lines[0].get("compile_s", 0.0) for lines in runs)
    found["accuracy"] = statistics.median(lines[-1]["accuracy"] for lines in runs)
    return found


if __name__ == "__main__":
    main()
