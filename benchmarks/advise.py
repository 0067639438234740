"""Does `seqclf advise` foresee what two processes give? Its efficiency against scaling.py's.

LSTM(28, 64) on MNIST's shape, processes of one thread, CPU. Each round asks advise without a
launcher and under torchrun, and measures one and two processes, in random order.

    python benchmarks/advise.py --data-root data --rounds 3
"""

import argparse
import random
import re
import subprocess
import sys
from collections.abc import Callable

import scaling
from results import about, save

BATCHES = (64, 256, 1024)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    words = ["-m", "seqclf", "advise", "--data.name", "mnist", "--data.root", options.data_root]
    words += ["--device", "cpu", "--train.threads", "1", "--gpus", "2"]

    def ask(batch: int, launcher: list[str]) -> float:
        command = [sys.executable, *launcher, *words, "--train.batch_size", str(batch)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = re.search(r"^ +2 .* (\d+)%$", done.stdout, re.M)
        assert row is not None, done.stdout
        return int(row[1]) / 100

    def rate(batch: int, processes: int) -> float:
        return scaling.measure(processes, 1, batch, keeps=True)["examples_per_s"]

    ways: dict[str, Callable[[int], float]] = {
        "one": lambda batch: rate(batch, 1),
        "two": lambda batch: rate(batch, 2),
        "alone": lambda batch: ask(batch, []),
        "launched": lambda batch: ask(batch, TORCHRUN),
    }
    found: dict[tuple[int, str], list[float]] = {(b, way): [] for b in BATCHES for way in ways}
    draw = random.Random(0)
    for number in range(options.rounds):
        for batch, way in draw.sample(list(found), len(found)):
            found[batch, way].append(ways[way](batch))
            print(number, batch, way, found[batch, way][-1], file=sys.stderr, flush=True)
    rows = []
    for batch in BATCHES:
        one, two = found[batch, "one"], found[batch, "two"]
        measured = [b / a / 2 for a, b in zip(one, two, strict=True)]
        foreseen = {way: found[batch, way] for way in ("alone", "launched")}
        rows.append({"batch": batch, "measured": measured} | foreseen)
    save("advise", about(cpu_only=True) | {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
