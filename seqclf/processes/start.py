"""Start the processes of a run: group, device, threads and precision, each with its reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, reduce

from seqclf.config.settings import Config, Value
from seqclf.errors import UserError
from seqclf.processes.agreement import Agreement
from seqclf.processes.device import (
    MAX_SLOWDOWN,
    PRECISIONS,
    Decision,
    EffectivePrecision,
    cannot_run,
    choose_device,
    flush_denormals,
    precision_problem,
    requested_precision,
    set_threads,
    slowdown,
)
from seqclf.processes.launcher import check_launcher
from seqclf.processes.memory import keep_memory
from seqclf.processes.network import choose_interface
from seqclf.processes.rendezvous import meet
from seqclf.processes.runtime import Runtime
from seqclf.processes.signals import Signals


def limited(signals: Signals, config: Config) -> AbstractContextManager[None]:
    """Limit the silence of this process if it is one of several, from before they meet."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return nullcontext()
    # This imports for seconds, which is no silence. start_runtime repeats it, then in no time.
    torch.use_deterministic_algorithms(config.deterministic)
    limit_s = config.distributed.timeout_s

    def tell(_: str) -> None:
        print(
            f"error: rank {os.environ.get('RANK')}: the processes did not meet or part within "
            f"{limit_s} s (distributed.timeout_s): one of them, or their launcher, is stopped, "
            "gone or slow; end all of them, then the same command goes on",
            file=sys.stderr,
            flush=True,
        )

    return signals.limiting(limit_s, tell)


def start_runtime(
    config: Config,
    signals: Signals | None = None,
    *,
    trained_in: str | None = None,
    keeps_memory: bool = True,
) -> Runtime:
    """Start processes, device, threads and precision; `Runtime.decisions` says which and why.

    `trained_in` is the precision of a model that is there already; it is taken wherever it runs,
    whatever config and launcher ask for. With `keeps_memory` glibc keeps freed memory for the
    rest of the process's life (memory.py). Raises UserError for what this machine cannot do.
    """
    notes = check_launcher()
    device, device_decision = choose_device(config)
    _set_arithmetic(config, device)
    if device == "cpu" and keeps_memory:
        keep_memory()
    given = next((name for name in PRECISIONS if name == trained_in), None)
    requested = given or requested_precision(config)
    timeout = timedelta(seconds=config.distributed.timeout_s)
    # The process group comes before the Accelerator: that takes a precision when it is made, and
    # only all processes together know which one every device can do.
    processes = _join_processes(device, timeout)
    # accelerate may have chosen cores for this process, and told it how many others are here.
    threads, threads_decision = set_threads(config)
    choose = _choose_precision if given is None else _take_precision
    precision, precision_decision = choose(requested, config, processes.device)
    runtime = Runtime(
        _make_accelerator(device, precision),
        precision,
        threads=threads,
        decisions=[device_decision, threads_decision, precision_decision],
        signals=signals or Signals(),
    )
    _check_world_size(runtime, config.train.shards)
    if runtime.world_size > 1:
        runtime.agreement = Agreement(timeout, runtime.rank)
    runtime.decisions += _describe_world(runtime)
    runtime.decisions += [Decision("note", text, remedy=remedy) for text, remedy in notes]
    return runtime


def keep_precision(runtime: Runtime, config: Config, find: Callable[[], Value]) -> None:
    """Train on in the precision in which a run began. Collective.

    `find`, called on the main process, returns that precision; None: there is no such run. Where
    half precision is asked for, a clock may have decided. Asked again, it may decide otherwise, and
    the run would not go on. Raises UserError if a device cannot run it.
    """
    found = runtime.from_main(find)
    began_in = next((name for name in PRECISIONS if name == found), None)
    requested = requested_precision(config)
    if began_in is None or began_in == runtime.precision == requested:
        return
    precision, decision = _take_precision(began_in, config, runtime.device)
    if precision != began_in:
        raise UserError(
            f"precision: {decision.value}; go on where it began, or begin a new run: another "
            "--run-dir, and --init-from for its weights"
        )
    if requested not in ("fp32", precision):
        decision = decision._replace(
            value=f"{precision}, NOT {requested} as asked",
            remedy="another --run-dir begins a run that tries it again",
        )
    runtime.accelerator = _make_accelerator(runtime.device.type, precision)
    runtime.precision = precision
    runtime.decisions = [
        decision if other.subject == decision.subject else other for other in runtime.decisions
    ]


def _make_accelerator(device: str, precision: EffectivePrecision) -> Accelerator:
    AcceleratorState._reset_state()  # but not the process group
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        dynamo_backend="no",
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def _set_arithmetic(config: Config, device: str) -> None:
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(config.deterministic)
    flush_denormals()


def _join_processes(device: str, timeout: timedelta) -> PartialState:
    """Join the process group. Collective. Raises UserError if the processes do not meet."""
    # Accelerate keeps its state for the life of the process: a second run starts anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    choose_interface()
    # Else accelerate warns that it chooses a number; set_threads does.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        processes = PartialState(cpu=device == "cpu", timeout=timeout, **meet(timeout))
    except (RuntimeError, ValueError) as error:  # a port in use, a variable missing, nobody there
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes cannot meet at {where}: {str(error).partition(chr(10))[0]}; start them "
            "with a launcher (docs/launching.md); if the port is taken, with another one "
            "(--main_process_port or --master_port); if it is another network than that between "
            "the hosts, GLOO_SOCKET_IFNAME names the right one"
        ) from None
    except ImportError as error:  # nvidia-ml-py, if the launcher should choose the cores
        raise UserError(f"the launcher asks for what accelerate cannot do: {error}") from None
    processes.debug = False  # it would compare shapes by pickles on the wire
    return processes


def _choose_precision(
    requested: EffectivePrecision, config: Config, device: torch.device
) -> tuple[EffectivePrecision, Decision]:
    """Return the requested precision if every device can train an LSTM in it, else fp32."""
    if requested == "fp32":
        reason = "as asked" if config.precision == "fp32" else "nothing else asked for"
        return "fp32", Decision("precision", "fp32", reason)
    problem = precision_problem(requested, config, device)
    if not _any_has(problem, device):
        return requested, Decision("precision", requested, "as asked, tried on this device")
    value = f"fp32, NOT {requested} as asked: {problem or 'another process cannot run it'}"
    return "fp32", Decision("precision", value, remedy="leave precision at auto or fp32")


def _take_precision(
    precision: EffectivePrecision, config: Config, device: torch.device
) -> tuple[EffectivePrecision, Decision]:
    """Return the precision of a model that is there if every device can run it, else fp32."""
    if precision == "fp32":
        return "fp32", Decision("precision", "fp32", "as the run began")
    problem = cannot_run(precision, config, device)
    if _any_has(problem, device):
        problem = problem or "another process cannot run it"
        value = f"fp32, NOT {precision} as the run began: {problem}"
        return "fp32", Decision("precision", value, remedy="use the device that it began on")
    reason = "as the run began"
    if (ratio := slowdown(precision, config, device)) > MAX_SLOWDOWN:
        reason += f", though this CPU runs it {ratio:.1f} times slower than fp32"
    return precision, Decision("precision", precision, reason)


def _any_has(problem: str | None, device: torch.device) -> bool:
    """Say whether any process has a problem. Collective."""
    return int(reduce(torch.tensor(int(problem is not None), device=device), "sum")) > 0


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
