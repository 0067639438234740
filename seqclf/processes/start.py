"""Start the processes of a run: group, device, threads and precision, each with its reason."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, reduce

from seqclf.config.settings import Config
from seqclf.errors import UserError
from seqclf.processes.agreement import Agreement
from seqclf.processes.device import (
    Decision,
    EffectivePrecision,
    choose_device,
    flush_denormals,
    precision_problem,
    requested_precision,
    set_threads,
)
from seqclf.processes.memory import keep_memory
from seqclf.processes.rendezvous import meet
from seqclf.processes.runtime import Runtime
from seqclf.processes.signals import Signals


def start_runtime(config: Config, signals: Signals | None = None) -> Runtime:
    """Start processes, device, threads and precision; `Runtime.decisions` says which and why.

    Raises UserError for what this machine cannot do.
    """
    device, device_decision = choose_device(config)
    _refuse_plugins()
    threads, threads_decision = set_threads(config)
    _set_arithmetic(config, device)
    requested = requested_precision(config)
    timeout = timedelta(seconds=config.distributed.timeout_s)
    # The process group comes before the Accelerator: that takes a precision when it is made, and
    # only all processes together know which one every device can do.
    processes = _join_processes(device, timeout)
    precision, precision_decision = _choose_precision(requested, config, processes.device)
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    runtime = Runtime(
        accelerator,
        precision,
        threads=threads,
        decisions=[device_decision, threads_decision, precision_decision],
        signals=signals or Signals(),
    )
    _check_world_size(runtime, config.train.shards)
    if runtime.world_size > 1:
        runtime.agreement = Agreement(timeout)
    runtime.decisions += _describe_world(runtime)
    return runtime


def _refuse_plugins() -> None:
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TPU"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UserError(
                f"the launcher asks for {name}; seqclf trains with DDP: remove it from the "
                "accelerate config (configs/accelerate/ has working ones)"
            )


def _set_arithmetic(config: Config, device: str) -> None:
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(config.deterministic)
    if device == "cpu":
        keep_memory()
    flush_denormals()


def _join_processes(device: str, timeout: timedelta) -> PartialState:
    """Join the process group. Collective. Raises UserError if the processes do not meet."""
    # Accelerate keeps its state for the life of the process: a second run starts anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return PartialState(cpu=device == "cpu", timeout=timeout, **meet(timeout))
    except (RuntimeError, ValueError) as error:  # a port in use, a variable missing, nobody there
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes cannot meet at {where}: {str(error).partition(chr(10))[0]}; start them "
            "with a launcher (docs/launching.md); if the port is taken, with another one "
            "(--main_process_port or --master_port)"
        ) from None


def _choose_precision(
    requested: EffectivePrecision, config: Config, device: torch.device
) -> tuple[EffectivePrecision, Decision]:
    """Return the requested precision if every device can train an LSTM in it, else fp32."""
    if requested == "fp32":
        reason = "as asked" if config.precision == "fp32" else "nothing else asked for"
        return "fp32", Decision("precision", "fp32", reason)
    problem = precision_problem(requested, config, device)
    if int(reduce(torch.tensor(int(problem is not None), device=device), "sum")) == 0:
        return requested, Decision("precision", requested, "as asked, tried on this device")
    value = f"fp32, NOT {requested} as asked: {problem or 'another process cannot run it'}"
    return "fp32", Decision("precision", value, remedy="leave precision at auto or fp32")


def _check_world_size(runtime: Runtime, shards: int | None) -> None:
    if shards and shards % runtime.world_size:
        raise UserError(
            f"train.shards: {shards} parts cannot be dealt evenly to "
            f"{runtime.world_size} processes; use a multiple of that"
        )
    kind = runtime.accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(f"accelerate chose {kind.value}; seqclf trains with DDP on CPUs or GPUs")


def _describe_world(runtime: Runtime) -> list[Decision]:
    """Return the number of processes, and a note if the user may have meant more of them."""
    size = runtime.world_size
    backend = f", DDP over {dist.get_backend()}" if dist.is_initialized() else ""
    decisions = [Decision("world size", f"{size} process{'es' * (size > 1)}{backend}")]
    if size == 1 and (note := _missing_processes(runtime.device)) is not None:
        decisions.append(note)
    return decisions


def _missing_processes(device: torch.device) -> Decision | None:
    slurm_tasks = os.environ.get("SLURM_NTASKS")
    if slurm_tasks and int(slurm_tasks) > 1:
        return Decision(
            "note",
            f"Slurm has {slurm_tasks} tasks, but each trains alone",
            remedy="start them with torchrun or accelerate launch (see README)",
        )
    # accelerate launch --cpu --num_processes 2 sets MASTER_ADDR and starts one process
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        return Decision(
            "note",
            "the launcher was asked for several processes, but started ONE",
            remedy="on CPUs use: ACCELERATE_USE_CPU=true torchrun --standalone "
            "--nproc-per-node N launch/train.py",
        )
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        return Decision(
            "note",
            f"{torch.cuda.device_count()} GPUs here, 1 used",
            remedy="for all of them: accelerate launch "
            "--config_file configs/accelerate/multi_gpu.yaml launch/train.py",
        )
    return None
