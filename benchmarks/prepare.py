"""Seconds of `seqclf prepare` for a long .csv: the fast reader against the plain one.

Every round runs all ways once, in random order, each in a process of its own with its imports. All
must write the same values. `--base` is a folder with another version of seqclf, such as an older
one that `git archive` unpacked.

    python benchmarks/prepare.py --lines 10000000 --rounds 3
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FEATURES, CLASSES = 3, 5
FAST = "import sys; from seqclf.cli.main import main; sys.exit(main())"
PLAIN = f"from seqclf.data.readers import fast; fast.LARGE = 2**60; {FAST}"  # no file is so large


class Run(NamedTuple):
    """What one run took."""

    seconds: float
    cpu_seconds: float
    megabytes: float  # the most that the process held in memory
    sha256: str  # of the values that it wrote


def main() -> None:
    """Print a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=100, help="lines of a sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", type=Path, help="a folder with another version of seqclf")
    options = parser.parse_args()
    ways = {"fast": (ROOT, FAST), "plain": (ROOT, PLAIN)}
    if options.base:
        ways["base"] = (options.base.resolve(), FAST)
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "long.csv", options.lines, options.length)
        for _ in range(options.rounds):
            for way in draw.sample(list(ways), len(ways)):
                runs[way].append(prepare(folder, *ways[way]))
    assert len({run.sha256 for found in runs.values() for run in found}) == 1, runs
    middle = {way: statistics.median(run.seconds for run in found) for way, found in runs.items()}
    for way, found in runs.items():
        line = {
            "way": way,
            "seconds": round(middle[way], 2),
            "cpu_seconds": round(statistics.median(run.cpu_seconds for run in found), 2),
            "lines_per_s": round(options.lines / middle[way]),
            "fast_is_faster_by": round(middle[way] / middle["fast"], 2),
            "megabytes": round(max(run.megabytes for run in found)),
            "lines": options.lines,
            "length": options.length,
            "rounds": options.rounds,
            "cores": os.cpu_count(),
        }
        print(json.dumps(line), flush=True)


def write_table(path: Path, num_lines: int, length: int) -> None:
    """Write a table in long form: an id, a time, FEATURES measurements and a label."""
    draw = random.Random(0)
    with path.open("w") as file:
        file.write("recording,t,x,y,z,label\n")
        for first in range(0, num_lines, length):
            number = first // length
            for step in range(min(length, num_lines - first)):
                values = ",".join(f"{draw.gauss(0, 1):.6g}" for _ in range(FEATURES))
                file.write(f"rec{number},{step},{values},{'abcde'[number % CLASSES]}\n")


def prepare(folder: Path, version: Path, code: str) -> Run:
    """Prepare the table with a version of seqclf; return what it took."""
    out = folder / "out"
    table = str(folder / "long.csv")
    command = [sys.executable, "-c", code, "prepare", table, "--id", "recording", "--time", "t"]
    command += ["--out", str(out), "--overwrite"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(version)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    with (out / "values.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu_seconds, usage.ru_maxrss / 1024, sha256)


if __name__ == "__main__":
    main()
