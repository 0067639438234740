"""C8 and the machine: precision, threads, device, world size, agreement."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.files import read_facts
from helpers.launching import as_words, launch
from helpers.ranks import run_ranks
from helpers.training import train_tiny

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime

FLAGS = {
    "data.name": "digits",
    "train.steps": "3",
    "tracking.wandb": "disabled",
    "report": "false",
}
THREE_STEPS = ["launch/train.py", *as_words(FLAGS)]


def start(**flags: str) -> Runtime:
    return start_runtime(load_config(None, flags)[0])


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_precision_is_fp32_unless_asked() -> None:
    assert start().precision == "fp32"


def test_the_launchers_no_is_not_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert start(precision="fp32").precision == "fp32"


def test_fp16_on_a_cpu_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"fp16 contradicts device: cpu .*use fp32"):
        start(precision="fp16", device="cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="fp16 does not exist on the CPU"):
        start(device="cpu")


def test_two_different_requests_name_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match=r"fp32 was asked for.*--mixed_precision bf16"):
        start(precision="fp32")


def test_a_precision_nobody_here_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="fp8 is not supported"):
        start()


def test_the_loss_scale_of_fp16_is_applied_and_kept() -> None:
    runtime = start()
    runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight = torch.nn.Parameter(torch.ones(1))
    runtime.backward(weight.sum(), torch.tensor(3.0))
    assert weight.grad == 24
    runtime.unscale(torch.optim.SGD([weight], lr=0.1))
    assert weight.grad == 3
    runtime.update_scale()
    runtime.load_scaler_state(runtime.scaler_state() | {"scale": 2.0})
    runtime.load_scaler_state({})
    assert runtime.scaler_state()["scale"] == 2.0


def test_without_fp16_there_is_no_loss_scale() -> None:
    runtime = start()
    runtime.load_scaler_state({"scale": 2.0})
    runtime.unscale(torch.optim.SGD([torch.zeros(1)], lr=0.1))
    runtime.update_scale()
    assert runtime.scaler_state() == {}


@pytest.mark.parametrize("problem", ["this CPU runs it 9.0 times slower than fp32", None])
def test_what_cannot_run_is_replaced_loudly(
    problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqclf.processes.start.precision_problem", lambda *_: problem)
    runtime = start(precision="bf16", device="cpu")
    assert runtime.precision == ("fp32" if problem else "bf16")
    assert runtime.accelerator.mixed_precision == ("no" if problem else "bf16")
    decision = next(d for d in runtime.decisions if d.subject == "precision")
    assert (decision.value == f"fp32, NOT bf16 as asked: {problem}") == bool(problem)
    assert (decision.remedy == "leave precision at auto or fp32") == bool(problem)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONEDNN_MAX_CPU_ISA is for x86")
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_bf16_where_the_cpus_lstm_cannot_do_it_trains_in_fp32(isa: str, tmp_path: Path) -> None:
    words: list[str | Path] = [*THREE_STEPS, "--precision", "bf16", "--run-dir", tmp_path]
    done = launch("python", *words, ONEDNN_MAX_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert "fp32, NOT bf16 as asked:" in done.stdout
    assert read_facts(tmp_path)["precision"] == "fp32"


def test_bf16_trains_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # How fast it is beside other programs is chance, and is not what this test is about.
    monkeypatch.setattr("seqclf.processes.device.MAX_SLOWDOWN", math.inf)
    runtime = start(precision="bf16", device="cpu")
    if runtime.precision != "bf16":
        pytest.skip("this CPU has no fast bf16 LSTM")
    assert train_tiny(tmp_path, {"device": "cpu", "train.steps": 3, "precision": "bf16"}) == 0
    assert read_facts(tmp_path)["precision"] == "bf16"


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="finds none here"):
        start(device="cuda")


def test_threads_are_all_cores_whatever_the_launcher_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert start().threads == 5
    assert start(**{"train.threads": "3"}).threads == torch.get_num_threads() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert start().threads == 2


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("MASTER_ADDR", "127.0.0.1", "started ONE"), ("SLURM_NTASKS", "4", "Slurm has 4 tasks")],
)
def test_a_smaller_world_than_asked_for_is_said(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(decision.subject == "note" for decision in start().decisions)
    monkeypatch.setenv(variable, value)
    [note] = [decision for decision in start().decisions if decision.subject == "note"]
    assert said in note.value
    assert note.remedy is not None


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED"])
def test_other_ways_to_distribute_are_refused_by_name(
    plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(UserError, match=f"asks for {plugin}"):
        start()


def agree(case: str) -> Any:
    runtime = start_runtime(Config())
    try:
        if case == "value":
            return runtime.from_main(lambda: {"rank": runtime.rank})
        if case == "user error":
            return runtime.from_main(lambda: _fail(UserError("your mistake")))
        if case == "failure":
            return runtime.from_main(lambda: _fail(OSError("disk full")))
        # one rank alone is told to stop, and the main process's clock asks for a checkpoint
        runtime.signals.requested = 15 if runtime.rank == 1 else None
        save = runtime.is_main
        agreed = [runtime.agree(step, save=save) for step in range(200)]
        return [agreed.index((True, True)), len(set(agreed))]
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        runtime.close()


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("case", "answers"),
    [
        ("value", [{"rank": 0}] * 2),
        ("user error", [("UserError", "your mistake")] * 2),
        ("failure", [("OSError", "disk full"), ("RuntimeError", "disk full")]),
        ("stopping", [[1, 2]] * 2),
    ],
)
def test_ranks_agree(case: str, answers: list[Any]) -> None:
    assert run_ranks(2, agree, case) == answers
