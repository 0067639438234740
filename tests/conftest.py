"""Shared by the tests: several gloo ranks in 0.1 s, real launchers, a place for runs."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
Json = Any

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and sys.platform == "linux":
    # A core for each worker and what it starts: OpenMP's threads spin while they wait.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(  # torch imports the last one, for 3 s, when a run starts
    ["seqclf.train", "torch.distributed", "sklearn.datasets", "torch._inductor.config"]
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _enter(
    rank: int, world_size: int, port: int, function: Callable[..., Json], args: Json
) -> Json:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    torch.set_num_threads(1)
    stuck = threading.Timer(100, _say_where_it_is_stuck)  # before the caller's patience ends
    stuck.daemon = True
    stuck.start()
    import seqclf.train

    seqclf.train.write_page = lambda *_: None  # 2 s each; test_report has its own
    try:
        return function(*args)
    finally:
        stuck.cancel()


def _say_where_it_is_stuck() -> None:
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


def run_ranks(world_size: int, function: Callable[..., Json], *args: Json) -> list[Json]:
    """Call a module-level function on every rank of a fresh gloo group; return their answers."""
    port = _free_port()
    with ProcessPoolExecutor(world_size, mp_context=_CONTEXT) as pool:
        futures = [
            pool.submit(_enter, rank, world_size, port, function, args)
            for rank in range(world_size)
        ]
        return [future.result(timeout=120) for future in futures]


def start_ranks(
    world_size: int, function: Callable[..., Json], *args: Json
) -> list[ForkServerProcess]:
    """Start a module-level function on every rank of a fresh gloo group, each may be killed."""
    port = _free_port()
    ranks = [
        _CONTEXT.Process(target=_enter, args=(rank, world_size, port, function, args))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def run_mortal_ranks(world_size: int, function: Callable[..., Json], *args: Json) -> list[int]:
    """Run a module-level function on every rank, each of which may be killed; return exit codes.

    Once one has failed or was killed the others are killed, as a launcher does.
    """
    ranks = start_ranks(world_size, function, *args)
    try:
        while alive := [rank for rank in ranks if rank.exitcode is None]:
            ended = wait([rank.sentinel for rank in alive], timeout=120)
            if not ended or any(rank.exitcode for rank in ranks):
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [rank.exitcode or 0 for rank in ranks]


def read_metrics(run_dir: Path, *, timed: bool = False) -> list[dict[str, float]]:
    """Return metrics.jsonl, without the figures that depend on the clock."""
    from seqclf.run import TIMED

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [{k: v for k, v in p.items() if timed or k not in TIMED} for p in parsed]


def toy_rows(count: int, seed: int = 0) -> list[dict[str, Json]]:
    """Return sequences of 1 to 15 steps of 3 features; the sign of the first one's sum decides."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        steps = generator.normal(1.0 if number % 3 else -1.0, 1.0, (1 + number % 15, 3))
        label = "up" if steps[:, 0].sum() > 0 else "down"
        rows.append({"id": f"row {number}", "steps": steps.tolist(), "label": label})
    return rows


def toy_dataset(folder: Path, count: int = 120, seed: int = 0) -> Path:
    """Prepare a small data set of sequences of unequal length."""
    from seqclf.data.prepare import Input, Preparation, prepare

    source = folder.with_suffix(".jsonl")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in toy_rows(count, seed)))
    prepare([Input(source)], folder, Preparation(fractions=(0.7, 0.1, 0.2)), print)
    source.unlink()
    return folder


def launch(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment in the repository's root."""
    program = Path(sys.executable).parent / words[0]
    ours = ("WANDB", "ACCELERATE", "OMP")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.run(
        [str(program), *map(str, words[1:])],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(autouse=True)
def _no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, 2 s of each run; test_report has it."""
    if request.path.stem != "test_report":
        monkeypatch.setattr("seqclf.train.write_page", lambda *_: None)


@pytest.fixture(autouse=True)
def _same_process_state() -> Iterator[None]:
    """Undo what a run sets for its whole process."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(variables)


@pytest.fixture(scope="session")
def mnist_root() -> str:
    """The folder that holds the real MNIST files, from SEQCLF_DATA."""
    root = os.environ.get("SEQCLF_DATA")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("SEQCLF_DATA does not name a folder with MNIST/raw")
    return root
