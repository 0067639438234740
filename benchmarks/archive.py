"""configs/files.yaml, one recipe for all, against 1-nearest-neighbour DTW on small archive sets.

The sets, of the UCR and UEA archives, are those that the package aeon carries; DTW is aeon's, with
its defaults (no window, all features together), trained on the same examples. Ours is `seqclf
prepare` and three seeds of the recipe as it stands.

    python benchmarks/archive.py --seeds 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
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
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = Path(run(sys.executable, "-c", WHERE).strip())
    rows = []
    for name in SETS:
        files = [str(folder / name / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
        rival = float(run(sys.executable, "-c", DTW, *files).splitlines()[-1])
        rows.append({"set": name, "dtw": rival, "ours": train(files, options.seeds)})
        print(json.dumps(rows[-1]), flush=True)
    save("archive", about() | {"seeds": options.seeds, "rows": rows})


def train(files: list[str], seeds: int) -> list[float]:
    """Prepare a set and train on it; return each seed's test accuracy."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        words = ["prepare", "--train", files[0], "--test", files[1], "--out", f"{place}/data"]
        run(sys.executable, "-m", "seqclf", *words)
        for seed in range(seeds):
            words = ["--config", "configs/files.yaml", "--seed", str(seed)]
            words += ["--data.path", f"{place}/data"]
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
