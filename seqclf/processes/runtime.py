"""Runtime: what a run uses of its processes: device, batches, noise, sums and agreement."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor, nn

from seqclf.config.settings import Value
from seqclf.data.batches import BatchPlan
from seqclf.data.orders import mix
from seqclf.data.read_ahead import Read, ask_ahead, read_ahead
from seqclf.data.sequences import Batch, Sequences, Share
from seqclf.errors import UserError
from seqclf.processes.agreement import Agreement
from seqclf.processes.device import Decision, EffectivePrecision
from seqclf.processes.memory import free_memory
from seqclf.processes.signals import Signals


@dataclass
class Runtime:
    """The processes of a run, as one of them sees them; `start_runtime` makes it."""

    accelerator: Accelerator
    precision: EffectivePrecision
    threads: int
    decisions: list[Decision]
    signals: Signals = field(default_factory=Signals)
    agreement: Agreement | None = None

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

    @cached_property
    def is_local_main(self) -> bool:
        """Whether this process is the first one on its host."""
        return bool(self.accelerator.is_local_main_process)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has asked this process to stop."""
        return self.signals.requested is not None

    def alive(self) -> None:
        """Note that this process makes progress: one that is silent for too long is ended."""
        self.signals.alive()

    def prepare(self, model: nn.Module, *, reduces: bool = True) -> nn.Module:
        """Move a model to the device, under autocast and, with several processes, torch's DDP.

        Without `reduces` there is no DDP: each process keeps gradients of its own.
        """
        prepared: nn.Module = self.accelerator.prepare_model(model, evaluation_mode=not reduces)
        return prepared

    def loader(
        self,
        sequences: Sequences,
        plan: BatchPlan,
        *,
        start: int,
        workers: int = 0,
        limit_s: float = 600,
    ) -> Generator[Batch, None, None]:
        """Yield the batches of this process from a step on, on the device, as `read_ahead` does."""
        shares = _asked(sequences, plan, plan.shares(start, self.rank, self.world_size))
        read: Read = sequences.__getitems__
        if self.device.type == "cuda" and sequences.values.device.type == "cpu":
            read = _pinned(read, torch.cuda.current_device())
        with closing(read_ahead(read, shares, num_threads=workers, limit_s=limit_s)) as batches:
            for batch in batches:
                yield batch.to(self.device)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keep DDP from reducing gradients; only the last micro batch of a step reduces them."""
        return self.accelerator.no_sync(model) if self.world_size > 1 else nullcontext()

    def backward(self, loss: Tensor, weight: Tensor) -> None:
        """Add the gradient of `weight * loss` to the parameters' gradients, scaled up for fp16."""
        # Not Accelerator.backward, which divides by a configured count, here 1: 1.5 % of a step.
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward(weight)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by fp16's loss scale; does nothing in another precision."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(optimizer)

    def update_scale(self) -> None:
        """Adapt fp16's loss scale after a step; does nothing in another precision."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.update()

    def scaler_state(self) -> dict[str, float]:
        """Return fp16's loss scale and its counters; empty in another precision."""
        return dict(self.accelerator.scaler.state_dict()) if self.accelerator.scaler else {}

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Continue with a loss scale that `scaler_state` returned, unless it was empty."""
        if self.accelerator.scaler and state:
            self.accelerator.scaler.load_state_dict(state)

    def seed_noise(self, *parts: int) -> None:
        """Seed the generator that dropout draws from on this device."""
        seed = mix("noise", *parts)
        # Not torch.manual_seed, which visits every backend.
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
        """Concatenate all processes' rows, in the order of ranks. Collective."""
        if self.world_size == 1:
            return rows
        rows = rows.to(self.device)
        rows_of_ranks = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(rows_of_ranks, rows)
        return torch.cat(rows_of_ranks)

    def agree(self, step: int, *, save: bool) -> tuple[bool, bool]:
        """Return whether to stop, and whether the main process's clock asks for a checkpoint.

        Every rank gets the same answer at the same step.
        """
        if self.agreement is None:
            return self.stop_requested, save
        return self.agreement.at(step, stop=self.stop_requested, save=save, is_main=self.is_main)

    def from_main(self, function: Callable[[], Value]) -> Value:
        """Call a function on the main process and return its JSON value on every rank.

        An error raised there is raised on every rank. Collective. The value travels as JSON,
        because torch's object collectives unpickle what they receive.
        """
        if self.world_size == 1:
            return function()
        answer: dict[str, Value] = {}
        caught: BaseException | None = None
        if self.is_main:
            try:
                answer = {"value": function()}
            except Exception as error:  # raised below, after the other ranks have received it
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

    def from_all(self, value: Value) -> list[Value]:
        """Return every rank's JSON value, in the order of ranks. Collective."""
        if self.world_size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.gather(torch.tensor([len(content)])).tolist()
        buffer = torch.zeros(1, max(sizes), dtype=torch.uint8)
        buffer[0, : len(content)] = content
        rows = self.gather(buffer).cpu()
        return [json.loads(bytes(row[:n].numpy())) for row, n in zip(rows, sizes, strict=True)]

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with the main process's tensors. Collective."""
        if self.world_size > 1:
            for tensor in tensors:
                on_device = tensor.to(self.device)
                dist.broadcast(on_device, 0)
                tensor.copy_(on_device)

    def all_true(self, flag: bool) -> bool:
        """Say whether a flag is true on every process. Collective."""
        return int(self.sum(torch.tensor(int(not flag)))) == 0

    def close(self) -> None:
        """Leave the process group. Not after a failure: the others may never answer."""
        if self.agreement is not None:
            self.agreement.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _asked(sequences: Sequences, plan: BatchPlan, shares: Iterator[Share]) -> Iterator[Share]:
    """Have the kernel read the blocks of a mapped data set before they are used."""
    if plan.blocks is None or sequences.values.device.type != "cpu":
        return shares
    drops = sequences.values.nbytes > free_memory(torch.device("cpu"))
    return ask_ahead(sequences, plan, shares, drops=drops)


def _pinned(read: Read, device: int) -> Read:
    """Have batches read into memory that a GPU copies from without waiting."""

    def read_pinned(share: Share) -> Batch:
        batch = read(share)
        with torch.cuda.device(device):  # a new thread's device is the first one
            values, labels = batch.values.pin_memory(), batch.labels.pin_memory()
        return batch._replace(values=values, labels=labels)

    return read_pinned
