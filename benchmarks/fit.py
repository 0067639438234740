"""Measure `seqclf.train` in memory against the same training of prepared files.

    python benchmarks/fit.py

Both train scikit-learn's digits, read row by row, with configs/files.yaml and the same settings on
one thread, in one warm process, in turn. The time in memory holds all of the call: writing the data
set, training, loading the model. The time of files is that of `seqclf.training.train`, without
`seqclf prepare`.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

from sklearn.datasets import load_digits

import seqclf
from seqclf.config.load import load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.training import train

ROUNDS = 7
NUM_TRAIN = 1437
STEPS = 300


def main() -> None:
    """Print the median seconds of both."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        inputs = []
        for split, part in (("train", slice(NUM_TRAIN)), ("test", slice(NUM_TRAIN, None))):
            rows = zip(images[part].tolist(), labels[part].tolist(), strict=True)
            lines = [json.dumps({"steps": steps, "label": label}) for steps, label in rows]
            (home / f"{split}.jsonl").write_text("\n".join(lines))
            inputs.append(Input(home / f"{split}.jsonl", split))
        prepare(inputs, home / "data", Preparation(), print)
        flags = {"data.path": str(home / "data"), "train.steps": str(STEPS), "quiet": "true"}
        flags |= {"tracking.wandb": "disabled", "report": "false", "train.threads": "1"}
        flags |= {"checkpoint.every": str(STEPS)}  # as in memory, where nobody goes on from one
        seconds: dict[str, list[float]] = {"files": [], "memory": []}
        for number in range(ROUNDS + 1):  # the first one warms up
            config, _ = load_config("files", flags | {"run_dir": str(home / f"run-{number}")})
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                train(config)
            middle = time.perf_counter()
            seqclf.train(
                {"train.steps": STEPS, "train.threads": 1},
                train=(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
                test=(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
                verbose=0,
            )
            end = time.perf_counter()
            if number:
                seconds["files"].append(middle - start)
                seconds["memory"].append(end - middle)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratios = [m / f for m, f in zip(seconds["memory"], seconds["files"], strict=True)]
    print(f"files {medians['files']:.2f} s, memory {medians['memory']:.2f} s, n = {ROUNDS}")
    print(f"median of the ratios {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
