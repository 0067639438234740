"""Examples a second in shuffled batches from disk: seqclf against HF datasets and litdata.

A million sequences of 4 steps of 2 features, in the files of each library, read once before.
Batches of 64 as tensors, 5,000 of them, one process of one thread. `all` shuffles all examples; a
buffer holds 2**17 of them (litdata: a chunk does). Each measurement is a process of its own; a
round goes through all in random order. A library that is not installed is left out, and named.

    python benchmarks/streaming.py --folder /tmp/streams --rounds 3
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from large import BATCH, make, memory
from results import about, save

from seqclf.data.batches import BatchPlan
from seqclf.data.blocks import Blocks
from seqclf.data.prepared import open_dataset
from seqclf.data.read_ahead import ask_ahead

ROWS, STEPS, BUFFER, NUM_BATCHES = 1_000_000, 4, 2**17, 5_000
LIBRARIES = ("seqclf", "datasets", "litdata")  # ours first: the others store what it holds


def ours(folder: Path, blocks: Blocks | None) -> Iterable[Any]:
    train = open_dataset(folder).splits["train"]
    plan = BatchPlan(len(train), BATCH, seed=0, num_steps=NUM_BATCHES, blocks=blocks)
    shares = plan.shares(0, 0, 1)
    if blocks is not None:
        shares = ask_ahead(train, plan, shares, drops=False)
    return (train.__getitems__(share).values for share in shares)


def hugging_face(folder: Path, *, is_stream: bool) -> Iterable[Any]:
    import datasets

    stored = datasets.load_from_disk(folder)
    if is_stream:
        stream = stored.to_iterable_dataset(num_shards=16).shuffle(seed=0, buffer_size=BUFFER)
    else:
        stream = stored.shuffle(seed=0)
    batches = stream.with_format("torch").iter(batch_size=BATCH)
    return (batch["values"].view(-1, STEPS, 2) for batch in batches)


def litdata_chunks(folder: Path) -> Iterable[Any]:
    import litdata

    stored = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(stored, batch_size=BATCH, num_workers=0)
    return (batch["values"] for batch in loader)


WAYS: dict[str, tuple[str, Callable[[Path], Iterable[Any]]]] = {
    "seqclf, all": ("seqclf", lambda folder: ours(folder, None)),
    "seqclf, buffer": ("seqclf", lambda folder: ours(folder, Blocks(ROWS - 100, BATCH, 0, BUFFER))),
    "HF datasets, all": ("datasets", lambda folder: hugging_face(folder, is_stream=False)),
    "HF datasets, buffer": ("datasets", lambda folder: hugging_face(folder, is_stream=True)),
    "litdata, buffer": ("litdata", litdata_chunks),
}


def rows_of(part: int) -> Iterable[dict[str, Any]]:
    """Yield a sixteenth of the examples, as litdata stores them."""
    train = open_dataset(Path(sys.argv[sys.argv.index("--folder") + 1]) / "seqclf").splits["train"]
    first, end = (len(train) * number // 16 for number in (part, part + 1))
    values, labels = train.rows(slice(first, end))[0].numpy(), train.labels[first:end]
    yield from ({"values": v, "label": y} for v, y in zip(values, labels.tolist(), strict=True))


def store(folder: Path, library: str) -> None:
    """Write the examples in the files of a library."""
    if library == "seqclf":
        make(folder / library, ROWS, STEPS)
    elif library == "litdata":
        import litdata

        litdata.optimize(
            rows_of, list(range(16)), str(folder / library), chunk_size=BUFFER, num_workers=1
        )
    else:
        import datasets
        import pyarrow as pa

        train = open_dataset(folder / "seqclf").splits["train"]
        flat = train.rows(slice(0, len(train)))[0].numpy().ravel()
        values = pa.FixedSizeListArray.from_arrays(pa.array(flat), STEPS * 2)
        table = pa.table({"values": values, "label": train.labels.numpy()})
        datasets.Dataset(table).save_to_disk(folder / library)


def measure(folder: Path, way: str) -> dict[str, float]:
    """Fetch the batches; return the rate after the first, the seconds to it, and the memory."""
    torch.set_num_threads(1)
    library, batches = WAYS[way]
    for file in (folder / library).rglob("*"):
        if file.is_file():
            file.read_bytes()
    before, started = memory(), time.perf_counter()
    stream = iter(batches(folder / library))
    first = next(stream)
    first_s = time.perf_counter() - started
    started, count = time.perf_counter(), 0
    for batch in islice(stream, NUM_BATCHES - 1):
        count += len(batch)
    seconds = time.perf_counter() - started
    assert first.shape == (BATCH, STEPS, 2), first.shape
    return {"examples_per_s": count / seconds, "first_s": first_s, "mb": memory() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="is made, and deleted again")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.folder, options.inside)))
        return
    present = [name for name in LIBRARIES if find_spec(name)]
    options.folder.mkdir(parents=True)
    try:
        for library in present:
            store(options.folder, library)
        ways = [way for way, (library, _) in WAYS.items() if library in present]
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        draw = random.Random(0)
        for number in range(options.rounds):
            for way in draw.sample(ways, len(ways)):
                words = [sys.executable, *sys.argv, "--inside", way]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    finally:
        shutil.rmtree(options.folder)
    middle = {
        way: {name: statistics.median(of[name] for of in times) for name in times[0]}
        for way, times in found.items()
    }
    lacking = [name for name in LIBRARIES if name not in present]
    saved = {"rounds": options.rounds, "lacking": lacking, "found": middle, "all": found}
    save("streaming", about(cpu_only=True) | saved)


if __name__ == "__main__":
    main()
