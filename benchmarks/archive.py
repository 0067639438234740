"""The untuned configs/files.yaml against 1-nearest-neighbour DTW on small UCR and UEA sets.

The sets are those that the package aeon carries; DTW is aeon's, with its defaults (no window, all
features together), trained on the same examples. Ours is `seqclf prepare` and three seeds of the
recipe as it stands. `--aeon` names a Python that has aeon, if it is not this one.

    python benchmarks/archive.py --seeds 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import about, save

ROOT = Path(__file__).parents[1]
SETS = (
    "ArrowHead",
    "BasicMotions",
    "GunPoint",
    "ItalyPowerDemand",
    "JapaneseVowels",
    "OSULeaf",
    "PickupGestureWiimoteZ",
)
WHERE = "import aeon.datasets, pathlib; print(pathlib.Path(aeon.datasets.__file__).parent / 'data')"
DTW = """
import sys
from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier
from aeon.datasets import load_from_ts_file
(x, y), (test_x, test_y) = (load_from_ts_file(path) for path in sys.argv[1:])
rival = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw").fit(x, y)
print((rival.predict(test_x) == test_y).mean())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--aeon", default=sys.executable, help="a Python that has aeon")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--config", default="configs/files.yaml")
    options = parser.parse_args()
    folder = Path(run(options.aeon, "-c", WHERE).strip())
    rows = []
    for name in options.sets:
        files = [str(folder / name / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
        started = time.perf_counter()
        rival = float(run(options.aeon, "-c", DTW, *files).splitlines()[-1])
        rival_s, started = time.perf_counter() - started, time.perf_counter()
        ours = train(files, options.config, options.seeds)
        seconds = (time.perf_counter() - started) / options.seeds
        rows.append({"set": name, "dtw": rival, "dtw_s": rival_s, "ours": ours, "ours_s": seconds})
        print(json.dumps(rows[-1]), flush=True)
    save("archive", about() | {"seeds": options.seeds, "rows": rows})


def train(files: list[str], config: str, seeds: int) -> list[float]:
    """Prepare a set and train on it; return each seed's test accuracy."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        words = ["prepare", "--train", files[0], "--test", files[1], "--out", f"{place}/data"]
        run(sys.executable, "-m", "seqclf", *words)
        for seed in range(seeds):
            words = ["--config", config, "--data.path", f"{place}/data", "--seed", str(seed)]
            words += ["--run-dir", f"{place}/{seed}", "--quiet", "--report", "false"]
            run(sys.executable, "launch/train.py", *words, "--tracking.wandb", "disabled")
            status = json.loads(Path(f"{place}/{seed}/status.json").read_text())
            found.append(status["metrics"]["test/accuracy"])
    return found


def run(*words: str) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
