"""All that only a GPU can show, for the first person who has one: `make gpu`.

Tests, proof, precisions, speed and several seeds at once. A part that fails does not stop the
others. Writes results/gpu.json and the tables of docs/gpu.md, and ends with what failed. Exit code
0: nothing did; 1: something did; 2: no GPU.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick    a rehearsal: every part, small, on a CPU
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import loop
import numpy as np
import prove
import sweep
import torch
from results import about, gpu_tables, save

from seqclf.config.load import load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.jobs import find_gpus
from seqclf.run.records import Facts, Status
from seqclf.training import train

ROOT = Path(__file__).parents[1]
LEARNS = 0.8  # test accuracy that a run of the precision matrix must reach
MOST_LINES = 40  # of what a failed part printed


class Size(NamedTuple):
    """How much each part does."""

    tests: str
    prove: list[str]
    steps: int  # of a run of the precision matrix
    examples: int  # of the two data sets of that matrix that are made
    images: int  # of the data set that the speed is measured on
    widths: tuple[int, ...]
    batches: tuple[int, ...]
    speed_steps: int
    seeds: int
    seed_steps: int
    rounds: int


FULL = Size(
    tests="tests",
    prove=[],
    steps=200,
    examples=2000,
    images=60_000,
    widths=(64, 256, 1024),
    batches=(64, 512, 4096),
    speed_steps=300,
    seeds=4,
    seed_steps=2000,
    rounds=3,
)
QUICK = Size(
    tests="tests/test_gpu.py",
    prove=["--processes", "1", "--steps", "120", "--kills", "1"],
    steps=150,
    examples=400,
    images=2000,
    widths=(16,),
    batches=(32,),
    speed_steps=100,
    seeds=2,
    seed_steps=20,
    rounds=1,
)


class Day:
    """A call of this script: where it runs, and what it has found and lacks so far."""

    def __init__(self, device: str, size: Size, folder: Path) -> None:
        self.device = device
        self.size = size
        self.folder = folder
        self.flags = {"device": device, "tracking.wandb": "disabled", "report": "false"}
        if device == "cpu":
            self.flags["train.threads"] = "1"
        self.failed: list[dict[str, str]] = []

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Go on after a failure, and keep it."""
        started = time.monotonic()
        try:
            yield
        except (Exception, SystemExit) as error:
            lines = (str(error) or repr(error)).strip().splitlines()[-MOST_LINES:]
            self.failed.append({"what": what, "text": "\n".join(lines)})
            print(f"FAILED      {what}", flush=True)
        else:
            print(f"ok          {what}, {time.monotonic() - started:.0f} s", flush=True)

    def started(self, what: str, function: Callable[..., None], *args: object) -> Path:
        """Call a function in a process of its own, so that its failure is its own; return where."""
        run = self.folder / re.sub(r"\W+", "-", what)
        prove.start_and_wait(run, 1, function, math.inf, *args)
        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="every part small")
    parser.add_argument("--out", type=Path, help="file for the JSON of a rehearsal on a CPU")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"no GPU: torch {torch.__version__} finds none (seqclf doctor says more; is it the CPU "
            "build?). `python benchmarks/gpu.py --device cpu --quick` rehearses on the CPU",
            file=sys.stderr,
        )
        sys.exit(2)
    started = time.monotonic()
    prove.start_on(options.device)
    found = about(cpu_only=options.device == "cpu")
    if options.device == "cuda":
        found["gpus"] = torch.cuda.device_count()
        found["versions"] |= {
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    with tempfile.TemporaryDirectory() as folder:
        day = Day(options.device, QUICK if options.quick else FULL, Path(folder))
        for part in (run_tests, run_proof, precisions, speeds, seeds_at_once):
            print(f"\n{part.__doc__}", flush=True)
            found[part.__name__] = part(day)
    found |= {"failed": day.failed, "minutes": (time.monotonic() - started) / 60}
    print(f"\n{gpu_tables(found)}\n")
    if options.device == "cuda":
        save("gpu", found)
    elif options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    for failure in day.failed:
        print(f"FAILED      {failure['what']}\n{failure['text']}\n")
    print(f"{len(day.failed) or 'nothing'} failed")
    if options.device == "cuda":
        print(
            "please open an issue of this repository and attach benchmarks/results/gpu.json: it "
            "holds the machine, the versions, all figures, and the last lines of what failed"
        )
    sys.exit(1 if day.failed else 0)


def run_tests(day: Day) -> str:
    """The tests that need a GPU."""
    words = ["-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", day.size.tests]
    summary = ""
    with day.trying("tests"):
        text, code = program(words)
        summary = text.splitlines()[-1]
        if code or (day.device == "cuda" and not re.match(r"\d+ passed", summary)):
            raise RuntimeError(text)
    return summary


def run_proof(day: Day) -> str:
    """Kills and damage, which end with the same bits; with several GPUs also other numbers."""
    words = [str(ROOT / "benchmarks" / "prove.py"), "--device", day.device, "--seed", "0"]
    text = ""
    with day.trying("prove"):
        text, code = program([*words, *day.size.prove])
        if code:
            raise RuntimeError(text)
    return text.partition("\n\n")[2]


def program(words: list[str]) -> tuple[str, int]:
    """Run a Python program; return what it printed, and its exit code."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3600,
        check=False,
    )
    return done.stdout.strip(), done.returncode


# ---- precisions


def precisions(day: Day) -> list[dict[str, Any]]:
    """Short runs in every precision, of every kind of data, resident on the device or streamed."""
    kinds = {"images": {"data.name": "digits"}}
    for kind, make_row in (("ragged series", series_row), ("tokens", tokens_row)):
        with day.trying(f"preparing {kind}"):
            kinds[kind] = {"data.path": str(make_set(day, kind, make_row))}
    rows = []
    names = ("fp32", "bf16", "fp16")[: None if day.device == "cuda" else 2]  # fp16: on GPUs alone
    for kind, precision, resident in product(kinds, names, (True, False)):
        what = f"{kind}, {precision}, {'resident' if resident else 'streamed'}"
        row = {"data": kind, "precision": precision, "resident": resident, "accuracy": None}
        rows.append(row)
        with day.trying(what):
            flags = {
                "precision": precision,
                "data.on_device": str(resident).lower(),
                "model.dropout": "0.1",
                "train.steps": str(day.size.steps),
                "log.every": "10",
            }
            run = day.started(what, train_rank, day.flags | kinds[kind] | flags)
            row |= outcome(run)
            check(row, expected=precision if day.device == "cuda" else None)
    return rows


def make_set(
    day: Day, kind: str, make_row: Callable[[np.random.Generator, int], dict[str, Any]]
) -> Path:
    """Prepare a data set of four classes."""
    generator = np.random.default_rng(0)
    file = day.folder / f"{kind}.jsonl"
    rows = [make_row(generator, number % 4) for number in range(day.size.examples)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = file.with_suffix("")
    prepare([Input(file)], folder, Preparation(fractions=(0.8, 0.0, 0.2)), lambda _: None)
    return folder


def series_row(generator: np.random.Generator, label: int) -> dict[str, Any]:
    """Return two noisy waves of 8 to 40 steps, whose frequency is the class."""
    times = np.arange(generator.integers(8, 41)) * (label + 1) / 4 + generator.uniform(0, 6)
    waves = np.stack([np.sin(times), np.cos(times)], 1) + generator.normal(0, 0.1, (len(times), 2))
    return {"steps": waves.round(4).tolist(), "label": f"class {label}"}


def tokens_row(generator: np.random.Generator, label: int) -> dict[str, Any]:
    """Return 8 to 40 words, half of which are the word of the class."""
    words = generator.integers(0, 12, generator.integers(8, 41))
    words[generator.random(len(words)) < 0.5] = label
    return {"tokens": [f"word{word}" for word in words], "label": f"class {label}"}


def train_rank(run: Path, flags: dict[str, str]) -> None:
    sys.exit(train(load_config(None, flags | {"run_dir": str(run)})[0]))


def outcome(run: Path) -> dict[str, Any]:
    """Return what a run came to."""
    status = Status.model_validate_json((run / "status.json").read_text())
    facts = Facts.model_validate_json((run / "run.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return {
        "state": status.state,
        "ran_in": facts.precision,
        "accuracy": status.metrics.get("test/accuracy"),
        "finite": bool(losses) and None not in losses,  # null is what is not finite
    }


def check(row: dict[str, Any], *, expected: str | None) -> None:
    """Raise RuntimeError if a run has not finished, learned and stayed finite, as it should."""
    problems = {
        f"{row['state']}, not finished": row["state"] != "finished",
        f"a test accuracy of {row['accuracy']}, below {LEARNS}": (row["accuracy"] or 0) < LEARNS,
        "a loss was not finite": not row["finite"],
        f"ran in {row['ran_in']}": expected is not None and row["ran_in"] != expected,
    }
    if any(problems.values()):
        raise RuntimeError("; ".join(text for text, is_so in problems.items() if is_so))


# ---- speed


def speeds(day: Day) -> list[dict[str, Any]]:
    """The loop against a bare loop of plain torch, whose data are always on the device."""
    rows = []
    for width, batch, resident in product(day.size.widths, day.size.batches, (True, False)):
        what = f"width {width}, batch {batch}, {'resident' if resident else 'streamed'}"
        with day.trying(what):
            flags = day.flags | {
                "data.name": "mnist",  # of its shape: the images are random
                "data.on_device": str(resident).lower(),
                "model.hidden_size": str(width),
                "train.batch_size": str(batch),
                "train.steps": str(day.size.speed_steps),
                "eval.every": str(day.size.speed_steps),
                "checkpoint.every": str(day.size.speed_steps),
            }
            run = day.started(what, time_rank, flags, day.size.images)
            found = json.loads(prove.log_of(run).read_text().splitlines()[-1])
            rows.append({"width": width, "batch": batch, "resident": resident} | found)
    return rows


def time_rank(_: Path, flags: dict[str, str], num_images: int) -> None:
    """Print the rates of both loops, medians over blocks of steps, as a line of JSON."""
    config = load_config(None, flags)[0]
    generator = torch.Generator().manual_seed(0)
    train_set, test_set = (
        Sequences(
            torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator),
            torch.randint(0, 10, (count,), generator=generator),
            tuple("0123456789"),
            scale=255.0,
        )
        for count in (num_images, 100)
    )
    splits = Splits("random images", train_set, None, test_set)
    ours, theirs = loop.measure(config, splits, random.Random(0))
    examples = loop.BLOCK * config.sizes()[0]
    found = {
        "seqclf": examples / statistics.median(ours),
        "bare": examples / statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "blocks": len(ours),
    }
    print(json.dumps(found))


def seeds_at_once(day: Day) -> dict[str, Any]:
    """Several seeds at once on one GPU, and one after the other."""
    size = day.size
    found: dict[str, Any] = {"seeds": size.seeds, "steps": size.seed_steps, "rounds": size.rounds}
    with day.trying("seeds at once"):
        if day.device == "cuda":
            os.environ["CUDA_VISIBLE_DEVICES"] = find_gpus()[0]
        flags = day.flags | {"config": "digits", "train.steps": str(size.seed_steps)}
        flags.pop("train.threads", None)  # compare deals the cores
        common = [word for name, value in flags.items() for word in (f"--{name}", value)]
        cores = about()["cores"]
        found |= sweep.compare(
            common, seeds=size.seeds, rounds=size.rounds, cores=cores, jobs=size.seeds
        )
    return found


if __name__ == "__main__":
    main()
