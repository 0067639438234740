"""What every rival shares: the same arrays, the same options, the same lines of results."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def options(style: bool = True) -> argparse.Namespace:
    """Read the command line that peers.py writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    if style:
        parser.add_argument("--style", choices=["documented", "best"], required=True)
    return parser.parse_args()


def mnist(root: str) -> tuple[Arrays, Arrays]:
    """Read MNIST: images uint8 [N, 28, 28] and labels int64 [N], of training and test."""

    def read(name: str, header: int) -> NDArray[np.uint8]:
        return np.fromfile(Path(root) / "MNIST/raw" / name, dtype=np.uint8)[header:]

    train, test = (
        (
            read(f"{split}-images-idx3-ubyte", 16).reshape(-1, 28, 28),
            read(f"{split}-labels-idx1-ubyte", 8).astype(np.int64),
        )
        for split in ("train", "t10k")
    )
    return train, test


class Whole:
    """Arrays or tensors as a torch data set whose batches are fetched at once."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, ids: list[int]) -> tuple[Any, Any]:
        return self.x[ids], self.y[ids]


def as_is(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


class Report:
    """Print a line for each epoch: seconds of training so far, and accuracy over the test split."""

    def __init__(self, goal: float = 0.98) -> None:
        self.goal, self.train_s, self.epoch = goal, 0.0, 0
        self.started = time.perf_counter()

    def start(self) -> None:
        """Begin to count training seconds."""
        self.started = time.perf_counter()

    def epoch_ends(self, accuracy: Callable[[], float], **more: float) -> bool:
        """Stop counting, evaluate, print; return whether the goal is reached."""
        self.train_s += time.perf_counter() - self.started
        self.epoch += 1
        found = accuracy()
        line = {"epoch": self.epoch, "train_s": self.train_s, "accuracy": found} | more
        print(json.dumps(line), flush=True)
        self.start()
        return found >= self.goal
