"""Several ranks of a gloo group on this machine, each a process that starts in 0.1 s."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from typing import ParamSpec, TypeVar

import torch

from .launching import LIMIT_S

P = ParamSpec("P")
T = TypeVar("T")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(  # torch imports the last one, for 3 s, when a run starts
    ["seqclf.training", "torch.distributed", "sklearn.datasets", "torch._inductor.config"]
)


def run_ranks(
    world_size: int, function: Callable[P, T], *args: P.args, **options: P.kwargs
) -> list[T]:
    """Call a module-level function on every rank of a fresh gloo group; return their answers."""
    port = _free_port()
    with ProcessPoolExecutor(world_size, mp_context=_CONTEXT) as pool:
        futures = [
            pool.submit(_enter, rank, world_size, port, partial(function, *args, **options))
            for rank in range(world_size)
        ]
        return [future.result(timeout=LIMIT_S) for future in futures]


def start_ranks(
    world_size: int, function: Callable[P, object], *args: P.args, **options: P.kwargs
) -> list[ForkServerProcess]:
    """Start a module-level function on every rank of a fresh gloo group; each may be killed."""
    port = _free_port()
    call = partial(function, *args, **options)
    ranks = [
        _CONTEXT.Process(target=_enter, args=(rank, world_size, port, call))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def exit_codes(ranks: Sequence[ForkServerProcess]) -> list[int | None]:
    """Wait for ranks that leave by themselves; return their exit codes."""
    for rank in ranks:
        rank.join(60)
    return [rank.exitcode for rank in ranks]


def run_mortal_ranks(
    world_size: int, function: Callable[P, object], *args: P.args, **options: P.kwargs
) -> list[int]:
    """Run a module-level function on every rank, each of which may be killed; return exit codes.

    Once one has failed or was killed the others are killed, as a launcher does.
    """
    ranks = start_ranks(world_size, function, *args, **options)
    try:
        while alive := [rank for rank in ranks if rank.exitcode is None]:
            ended = wait([rank.sentinel for rank in alive], timeout=LIMIT_S)
            if not ended or any(rank.exitcode for rank in ranks):
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [rank.exitcode or 0 for rank in ranks]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _enter(rank: int, world_size: int, port: int, call: Callable[[], T]) -> T:
    """Become one of several ranks, as a launcher would have it."""
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
    try:
        return call()
    finally:
        stuck.cancel()


def _say_where_it_is_stuck() -> None:
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)
