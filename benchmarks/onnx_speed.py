"""Time onnxruntime beside torch on the same sequences: python benchmarks/onnx_speed.py RUN ...

Each round asks both for a sequence at a time and for batches of 64, in turn; medians of rounds, in
milliseconds a call, and how often torch's time onnxruntime's goes into it. Both have one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.export.files import export_model
from seqclf.prefixes import probabilities
from seqclf.run.weights import load_model

ROUNDS, CALLS = 30, 10


def measure(run: Path) -> None:
    model, architecture = load_model(run)
    config, _ = load_config(run / "config.yaml", {})
    sequences = sources.load(config.data, seed=config.seed).test
    onnx_model, _ = export_model(model, architecture)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    content = onnx_model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    kind = np.int64 if architecture.num_tokens else np.float32
    for size in (1, 64):
        calls: dict[str, list[Callable[[], object]]] = {"torch": [], "onnxruntime": []}
        for call in range(CALLS):
            first = call * size % (len(sequences) - size)
            values, lengths = sequences.rows(torch.arange(first, first + size))
            all_steps = torch.full((size,), values.shape[1])
            inputs = {"values": values.numpy().astype(kind)}
            inputs["lengths"] = (all_steps if lengths is None else lengths).numpy()
            calls["torch"].append(lambda v=values, n=lengths: probabilities(model, v, n))  # type: ignore[misc]
            calls["onnxruntime"].append(lambda i=inputs: session.run(["probabilities"], i))  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS + 1):
            for name, functions in calls.items():
                start = time.perf_counter()
                for function in functions:
                    function()
                times[name].append((time.perf_counter() - start) * 1000 / CALLS)
        median = {name: statistics.median(found[1:]) for name, found in times.items()}
        ratio = median["torch"] / median["onnxruntime"]
        print(
            f"{run.name}: batches of {size}: torch {median['torch']:.3f} ms, onnxruntime "
            f"{median['onnxruntime']:.3f} ms, {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        measure(Path(name))
