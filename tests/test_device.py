from __future__ import annotations

import errno
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.model import Architecture
from seqclf.optim import update
from seqclf.processes.device import (
    Decision,
    choose_device,
    disagreement,
    set_threads,
    threads_slowdown,
)
from seqclf.processes.memory import least_memory, refuse_too_large
from seqclf.run.directory import remedy_for

ARCHITECTURE = Architecture(
    input_size=28,
    classes=tuple("0123456789"),
    scale=255.0,
    read="rows",
    hidden_size=64,
    num_layers=1,
    bidirectional=False,
    dropout=0.0,
    pooling="last",
)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("decision", "line"),
    [
        (Decision("device", "cpu", "no GPU found"), "device      cpu (no GPU found)"),
        (Decision("world size", "1 process"), "world size  1 process"),
        (Decision("note", "2 GPUs here", remedy="use both"), "note        2 GPUs here; use both"),
    ],
)
def test_a_decision_is_a_line_with_its_reason_or_remedy(decision: Decision, line: str) -> None:
    assert decision.line() == line


@pytest.mark.parametrize(
    ("requested", "available", "launcher_says_cpu", "chosen"),
    [
        ("auto", (), "", "cpu (no GPU found)"),
        ("auto", ("cuda", "mps"), "", "cuda (there is a GPU)"),
        ("auto", ("cuda",), "true", "cpu (the launcher says so)"),
        ("cpu", ("cuda",), "", "cpu (device: cpu)"),
        ("cuda", ("cuda",), "", "cuda (device: cuda)"),
        ("auto", ("mps",), "", "mps (there is one, and it computes what the CPU does)"),
    ],
)
def test_the_device_is_chosen_with_its_reason(
    requested: str,
    available: tuple[str, ...],
    launcher_says_cpu: str,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("seqclf.processes.device._available", lambda device: device in available)
    monkeypatch.setattr("seqclf.processes.device.disagreement", lambda _: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", launcher_says_cpu)
    device, decision = choose_device(load_config(None, {"device": requested})[0])
    assert decision.line() == f"device      {chosen}"
    assert device == chosen.partition(" ")[0]


@pytest.mark.parametrize(
    ("flags", "local_processes", "threads"),
    [
        ({}, "1", "8 (8 cores, 1 process)"),
        ({}, "2", "4 (8 cores, 2 processes here)"),
        ({"train.shards": "4"}, "1", "2 (8 cores, 4 shards)"),
        ({"train.shards": "4"}, "2", "2 (8 cores, 4 shards)"),  # another number, other bits
        ({"train.shards": "16"}, "1", "1 (8 cores, 16 shards)"),
        ({"train.threads": "3", "train.shards": "4"}, "1", "3 (train.threads)"),
    ],
)
def test_threads_are_dealt_to_processes_or_shards(
    flags: dict[str, str], local_processes: str, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    number, decision = set_threads(load_config(None, flags)[0])
    assert decision.line() == f"threads     {threads}"
    assert torch.get_num_threads() == number == int(threads.partition(" ")[0])


def test_mps_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqclf.processes.device._available", lambda device: device == "mps")
    monkeypatch.setattr(
        "seqclf.processes.device.disagreement", lambda _: "its numbers are not the CPU's"
    )
    device, decision = choose_device(Config())
    assert device == "cpu"
    assert decision.reason == "mps is there, but its numbers are not the CPU's"


def test_devices_are_compared_by_what_an_update_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement("cpu") is None
    rates = iter([0.01, 0.01, 0.02, 0.01])  # the first two are the device's
    monkeypatch.setattr(
        "seqclf.processes.device.update", lambda o, _, clip: update(o, next(rates), clip)
    )
    assert disagreement("cpu") is not None
    monkeypatch.undo()
    assert str(disagreement("meta")).startswith("it cannot train an LSTM: ")


@pytest.mark.parametrize(
    ("load", "threads", "slower", "is_said"),
    [(9.0, 2, 17.0, True), (9.0, 2, 1.2, False), (0.1, 2, 17.0, False), (9.0, 1, 17.0, False)],
)
def test_threads_that_wait_for_other_programs_are_said(
    load: float, threads: int, slower: float, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("seqclf.processes.device.threads_slowdown", lambda _: slower)
    _, decision = set_threads(load_config(None, {"train.threads": str(threads)})[0])
    expected = "2 threads are 17 times slower than one now; stop those, or set train.threads to 1"
    assert (expected in decision.line()) == is_said


def test_threads_are_measured_in_turn_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def take_time(*_: object) -> float:
        measured.append(torch.get_num_threads())
        return 100.0 if len(measured) <= 4 else 0.1 * measured[-1] ** 2  # the first ones warm up

    monkeypatch.setattr("seqclf.processes.device._time_lstm", take_time)
    state = torch.get_rng_state()
    assert threads_slowdown(3) == pytest.approx(9)
    assert measured == [1, 3] * 12
    assert torch.get_num_threads() == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_that_is_not_there_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    config = load_config(None, {"train.batch_size": "128"})[0]
    needed = least_memory(config, ARCHITECTURE, 28, 1)
    weights = 4 * 64 * (28 + 64 + 2) + 10 * 65
    assert needed == 4 * (4 * weights + 128 * 28 * (28 + 8 * 64))
    assert least_memory(config, ARCHITECTURE, 28, 2) < needed
    deep = ARCHITECTURE.model_copy(update={"num_layers": 3, "bidirectional": True})
    weights = sum(weight.numel() for weight in deep.build().parameters())
    assert least_memory(config, deep, 28, 1) == 4 * (4 * weights + 128 * 28 * (28 + 8 * 64 * 6))
    stacked = ARCHITECTURE.model_copy(update={"stack": 3})
    weights = 4 * 64 * (3 * 28 + 64 + 2) + 10 * 65
    kept = 128 * (28 * 28 + 10 * 8 * 64)  # ten times three of 28 steps
    assert least_memory(config, stacked, 28, 1) == 4 * (4 * weights + kept)
    branch = ARCHITECTURE.model_copy(update={"rocket": 168, "dilations": (1, 2)})
    weights = branch.num_parameters
    kept = 128 * 28 * (28 + 8 * 64) + 28 * 2 * 84  # a CPU reads some rows at a time
    assert least_memory(config, branch, 28, 1) == 4 * (4 * weights + kept)
    vast = ARCHITECTURE.model_copy(update={"hidden_size": 10**30, "num_layers": 10**9})
    with pytest.raises(UserError, match="GiB of memory"):
        refuse_too_large(least_memory(config, vast, 28, 1), CPU)
    monkeypatch.setattr("seqclf.processes.memory.free_memory", lambda _: needed)
    refuse_too_large(needed, CPU)
    with pytest.raises(UserError, match=r"needs at least .* lower train\.micro_batch_size"):
        refuse_too_large(needed + 1, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # they share it
    with pytest.raises(UserError, match="GiB of memory"):
        refuse_too_large(needed, CPU)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("x"), "out of memory (x): lower train.micro_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/f"),
            "runs/x/f: No space left on device; make room there or mend it",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x/f"),
            "runs/x/f: Disk quota exceeded;",
        ),
        (OSError(errno.EFBIG, "File too large", "runs/x/f"), "runs/x/f: File too large; make room"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device, and the system does not say where: look at runs/x, at the",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_1"), None),
        (OSError(errno.ENOENT, "No such file"), None),
        (RuntimeError("a cosmic ray"), None),
    ],
)
def test_what_the_user_can_mend_gets_advice(error: BaseException, said: str | None) -> None:
    found = remedy_for(error, Path("runs/x"))
    assert (found is None) if said is None else str(found).startswith(said)


KEPT = """
import sys, psutil, torch
from seqclf.processes.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
before = psutil.Process().memory_info().rss
block = torch.ones(16_000_000)
del block
print((psutil.Process().memory_info().rss - before) / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step() -> None:
    held = []
    for how in ("leave", "keep"):
        words = [sys.executable, "-c", KEPT, how]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        held.append(float(done.stdout))
    assert held[0] < 20 < 55 < held[1] < 80
