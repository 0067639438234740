"""The processes of a run: their group and what they agree on, loader, noise, failures.

The only module that builds an Accelerator. Everything decided is kept as a line with its reason.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, reduce
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store
from torch.utils.data import DataLoader

from seqclf.config import Config, UserError, Value
from seqclf.data.batches import BatchPlan, mix
from seqclf.data.sequences import Batch, Sequences
from seqclf.hardware import (
    EffectivePrecision,
    choose_device,
    flush_denormals,
    keep_memory,
    precision_problem,
    requested_precision,
    set_threads,
)
from seqclf.rendezvous import meet
from seqclf.watch import STOP_SIGNALS, Watch

AGREE_EVERY_S = 0.5  # seconds between two agreements of several processes ...
MOST_STEPS_APART = 64  # ... and how many steps that may be
FAILURE = "seqclf/failure"  # in the process group's store: what the first to fail told ...
SILENT = "seqclf/silent"  # ... where each process stands that has heard nothing for too long ...
MAIN_SPEAKS = "seqclf/main speaks"  # ... and that rank 1 need not write status.json


class Agreement:
    """What several processes agree on while they go on: asked at one step, read at a later one.

    The question travels on a gloo group of its own, so nobody ever waits for it, nor for a GPU.
    """

    def __init__(self, timeout: timedelta) -> None:
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._words = torch.zeros(3, dtype=torch.int32)  # stop, save, steps until the next question
        self._work: dist.Work | None = None
        self._due = -1  # at this step the answer is read, and the next question asked
        self._asked = (0, 0.0)

    def at(self, step: int, *, stop: bool, save: bool, leads: bool) -> tuple[bool, bool]:
        """Return whether anyone wanted to stop or to save when last asked, on every rank alike.

        The process that leads says how many steps lie between two questions.
        """
        if self._work is not None and step < self._due:
            return False, False
        agreed = (False, False)
        if self._work is not None:
            self._work.wait()
            agreed = (bool(self._words[0]), bool(self._words[1]))
        now = time.perf_counter()
        apart = max(1, int(self._words[2]))
        self._due = step + apart
        asked_step, asked_at = self._asked
        step_s = (now - asked_at) / max(1, step - asked_step)
        wanted = min(MOST_STEPS_APART, max(1, int(AGREE_EVERY_S / max(step_s, 1e-6))))
        self._asked = (step, now)
        self._words.copy_(torch.tensor([stop, save, wanted if leads else 0], dtype=torch.int32))
        self._work = dist.all_reduce(self._words, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for the question that is still under way."""
        if self._work is not None:
            self._work.wait()


@dataclass
class Runtime:
    """What a run stands on. `decisions` are lines for people, with reasons."""

    accelerator: Accelerator
    precision: EffectivePrecision
    threads: int
    decisions: list[str]
    watch: Watch = field(default_factory=Watch)
    _agreement: Agreement | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device(self.accelerator.device)

    @cached_property
    def rank(self) -> int:
        """This process's number, 0 to world_size - 1."""
        return int(self.accelerator.process_index)

    @cached_property
    def world_size(self) -> int:
        """Number of processes that train together."""
        return int(self.accelerator.num_processes)

    @cached_property
    def is_main(self) -> bool:
        """Whether this process prints, writes and tracks."""
        return bool(self.accelerator.is_main_process)

    # ---- what the loop uses

    def prepare(self, model: nn.Module, *, reduces: bool = True) -> nn.Module:
        """Move a model to the device, under autocast and, with several processes, torch's DDP.

        Without DDP, and each process with gradients of its own, if it is not to reduce them.
        """
        prepared: nn.Module = self.accelerator.prepare_model(model, evaluation_mode=not reduces)
        return prepared

    def loader(
        self, sequences: Sequences, plan: BatchPlan, *, start: int, workers: int = 0
    ) -> Iterator[Batch]:
        """Yield this process's batches from step `start` on, on the device.

        `workers` processes read ahead; they inherit the mapped data.
        """
        shares = plan.shares(start, self.rank, self.world_size)
        pins = self.device.type == "cuda" and sequences.values.device.type == "cpu"
        batches: Iterable[Batch] = map(sequences.__getitems__, shares)
        if workers or pins:  # else a DataLoader would add only its cost, 2 % of a small step
            # its fetcher calls __getitems__ with whatever the batch sampler yields: a Share
            batches = DataLoader(
                sequences,  # type: ignore[arg-type]
                batch_sampler=shares,  # type: ignore[arg-type]
                collate_fn=_identity,  # type: ignore[arg-type]
                pin_memory=pins,
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,
                worker_init_fn=_start_worker if workers else None,
            )
        for batch in batches:
            yield batch.to(self.device)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep DDP from reducing gradients; only the last micro batch of a step reduces them."""
        return self.accelerator.no_sync(model) if self.world_size > 1 else nullcontext()

    def backward(self, loss: Tensor, weight: Tensor) -> None:
        """Add the gradient of `weight * loss` to the parameters', scaled up for fp16.

        Not Accelerator.backward: it divides by a configured count, here 1, for 1.5 % of a step.
        """
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward(weight)

    def seed_noise(self, *parts: int) -> None:
        """Seed what dropout draws from next (not torch.manual_seed: it visits every backend)."""
        seed = mix("noise", *parts)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes. Collective."""
        if self.world_size == 1:
            return values
        total: Tensor = reduce(values.to(self.device), "sum")
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """Put all processes' rows below each other, in the order of ranks. Collective."""
        if self.world_size == 1:
            return rows
        rows = rows.to(self.device)
        everyones = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(everyones, rows)
        return torch.cat(everyones)

    def agree(self, step: int, *, save: bool) -> tuple[bool, bool]:
        """Say whether to stop, and whether the main process's clock asks for a checkpoint.

        The same answer on every rank at the same step.
        """
        stop = self.watch.requested is not None
        if self._agreement is None:
            return stop, save
        return self._agreement.at(step, stop=stop, save=save, leads=self.is_main)

    # ---- agreeing

    def from_main(self, function: Callable[[], Value]) -> Value:
        """Call a function on the main process and return its JSON value on every rank.

        An error raised there is raised everywhere. Collective; JSON, because torch's object
        collectives pickle.
        """
        if self.world_size == 1:
            return function()
        answer: dict[str, Value] = {}
        caught: BaseException | None = None
        if self.is_main:
            try:
                answer = {"value": function()}
            except Exception as error:  # raised again below, after the others have heard of it
                caught = error
                answer = {"error": str(error), "user": isinstance(error, UserError)}
        received = json.loads(self._broadcast_bytes(json.dumps(answer).encode()))
        if caught is not None:
            raise caught
        if "error" in received:
            cls = UserError if received["user"] else RuntimeError
            raise cls(str(received["error"]))
        value: Value = received["value"]
        return value

    def _broadcast_bytes(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)], device=self.device)
        dist.broadcast(size, 0)
        buffer = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.is_main:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return bytes(buffer.cpu().numpy())

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with the main process's. Collective."""
        if self.world_size > 1:
            for tensor in tensors:
                on_device = tensor.to(self.device)
                dist.broadcast(on_device, 0)
                tensor.copy_(on_device)

    def from_all(self, value: Value) -> list[Value]:
        """Return every rank's JSON value, in the order of ranks. Collective."""
        if self.world_size == 1:
            return [value]
        content = json.dumps(value).encode()
        sizes = self.sum(_one_hot(self.rank, len(content), self.world_size)).tolist()
        buffers = torch.zeros(self.world_size, max(sizes), dtype=torch.uint8, device=self.device)
        buffers[self.rank, : len(content)] = torch.frombuffer(
            bytearray(content), dtype=torch.uint8
        ).to(self.device)
        rows = self.sum(buffers).cpu()
        return [json.loads(bytes(row[:n].numpy())) for row, n in zip(rows, sizes, strict=True)]

    def all_true(self, flag: bool) -> bool:
        """Say whether a flag is true on every process. Collective."""
        return int(self.sum(torch.tensor(int(not flag)))) == 0

    # ---- failing

    def first_failure(self, text: str, wait_s: float = 1.0) -> str | None:
        """Tell the others why this process fails; return what the first to fail told.

        On the main process, or on rank 1 if the main one does not answer; None on the others.
        """
        if self.world_size == 1:
            return text
        self.watch.give_way()
        first = f"rank {self.rank}: {text}"
        with suppress(RuntimeError):  # the process that keeps the store may be gone
            first = _store().compare_set(FAILURE, "", first).decode()
        if not self._speaks(wait_s):
            return None
        return text if first.endswith(f": {text}") else first

    def gather_silence(self, text: str, wait_s: float) -> str | None:
        """Put together where each process stands when all are silent; called by all at one time.

        Returns it, or the failure that caused the silence, where `first_failure` does.
        """
        store = _store()
        with suppress(RuntimeError):
            store.set(f"{SILENT}/{self.rank}", text)
        if not self._speaks(2 * wait_s):
            return None
        ranks: dict[str, list[int]] = {}  # of each text
        end = time.monotonic() + wait_s
        for rank in range(self.world_size):
            left_s = max(0.01, end - time.monotonic())
            said = text if rank == self.rank else _get(store, f"{SILENT}/{rank}", left_s)
            ranks.setdefault(said or "no answer; its stderr may say more\n", []).append(rank)
        stacks = [f"rank {', '.join(map(str, who))}: {what}" for what, who in ranks.items()]
        return _get(store, FAILURE, 0.01) or "\n".join(stacks)

    def _speaks(self, wait_s: float) -> bool:
        """Say whether this process speaks for all: the main one, or rank 1 if that is dumb."""
        if self.is_main:
            with suppress(RuntimeError):
                _store().set(MAIN_SPEAKS, "yes")
        return self.is_main or (self.rank == 1 and _get(_store(), MAIN_SPEAKS, wait_s) is None)

    def close(self) -> None:
        """Leave the process group. Not after a failure: the others may never answer."""
        if self._agreement is not None:
            self._agreement.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _store() -> Store:
    return dist.distributed_c10d._get_default_store()


def _get(store: Store, key: str, wait_s: float) -> str | None:
    try:
        store.wait([key], timedelta(seconds=wait_s))
        return str(store.get(key).decode())
    except RuntimeError:  # not there in time, or the store is gone
        return None


def _one_hot(place: int, value: int, size: int) -> Tensor:
    row = torch.zeros(size, dtype=torch.int64)
    row[place] = value
    return row


def _identity(batch: Batch) -> Batch:
    return batch


def _start_worker(_: int) -> None:
    """Leave signals to the process that trains, which ends its workers."""
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start(config: Config, watch: Watch | None = None) -> Runtime:
    """Bring up processes, device, precision and threads, and say what was decided and why.

    Raises UserError for what this machine cannot do.
    """
    decisions: list[str] = []
    device = choose_device(config, decisions)
    _refuse_plugins()
    threads = set_threads(config, decisions)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
    torch.use_deterministic_algorithms(config.deterministic)
    if device == "cpu":
        keep_memory()
    flush_denormals()
    requested = requested_precision(config)
    # Accelerate keeps its state for the life of the process: a second run starts anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    cpu = device == "cpu"
    # The process group first, then the precision that all of its devices can do: an Accelerator
    # takes that at birth.
    timeout = timedelta(seconds=config.distributed.timeout_s)
    try:
        processes = PartialState(cpu=cpu, timeout=timeout, **meet(timeout))
    except (RuntimeError, ValueError) as error:  # a port in use, a variable missing, nobody there
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise UserError(
            f"the processes cannot meet at {where}: {str(error).partition(chr(10))[0]}; start them "
            "with a launcher (docs/launching.md); if the port is taken, with another one "
            "(--main_process_port or --master_port)"
        ) from None
    precision = _effective_precision(requested, config, processes.device, decisions)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    runtime = Runtime(accelerator, precision, threads, decisions, watch or Watch())
    if config.train.shards and config.train.shards % runtime.world_size:
        raise UserError(
            f"train.shards: {config.train.shards} parts cannot be dealt evenly to "
            f"{runtime.world_size} processes; use a multiple of that"
        )
    if runtime.world_size > 1:
        runtime._agreement = Agreement(timeout)
    _say_world_size(runtime)
    return runtime


def _refuse_plugins() -> None:
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TPU"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UserError(
                f"the launcher asks for {name}; seqclf trains with DDP: remove it from the "
                "accelerate config (configs/accelerate/ has working ones)"
            )


def _effective_precision(
    requested: EffectivePrecision, config: Config, device: torch.device, decisions: list[str]
) -> EffectivePrecision:
    """Try the requested arithmetic on every device with an LSTM, forward and backward."""
    if requested == "fp32":
        asked = "as asked" if config.precision == "fp32" else "nothing else asked for"
        decisions.append(f"precision   fp32 ({asked})")
        return "fp32"
    problem = precision_problem(requested, config, device)
    if int(reduce(torch.tensor(int(problem is not None), device=device), "sum")) == 0:
        decisions.append(f"precision   {requested} (as asked, tried on this device)")
        return requested
    reason = problem or "another process cannot run it"
    decisions.append(f"precision   fp32, NOT {requested} as asked: {reason}")
    return "fp32"


def _say_world_size(runtime: Runtime) -> None:
    size, device = runtime.world_size, runtime.device.type
    kind = runtime.accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UserError(f"accelerate chose {kind.value}; seqclf trains with DDP on CPUs or GPUs")
    backend = f", DDP over {dist.get_backend()}" if dist.is_initialized() else ""
    runtime.decisions.append(f"world size  {size} process{'es' * (size > 1)}{backend}")
    asked = os.environ.get("SLURM_NTASKS")
    if size == 1 and asked and int(asked) > 1:
        runtime.decisions.append(
            f"note        Slurm has {asked} tasks, but each trains alone: start them with "
            "torchrun or accelerate launch (see README)"
        )
    elif size == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        # accelerate launch --cpu --num_processes 2 sets MASTER_ADDR and starts one process
        runtime.decisions.append(
            "note        the launcher was asked for several processes, but started ONE; on CPUs "
            "use: ACCELERATE_USE_CPU=true torchrun --standalone --nproc-per-node N launch/train.py"
        )
    elif device == "cuda" and size == 1 and torch.cuda.device_count() > 1:
        runtime.decisions.append(
            f"note        {torch.cuda.device_count()} GPUs here, 1 used; for all of them: "
            "accelerate launch --config_file configs/accelerate/multi_gpu.yaml launch/train.py"
        )
