"""One step: a global batch, and at most one update. Nothing is read back from the device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqclf.config.settings import Config
from seqclf.data.augment import augment
from seqclf.data.batches import split_range
from seqclf.data.sequences import Batch
from seqclf.loss import summed_loss
from seqclf.optim import update
from seqclf.processes.runtime import Runtime


class StepStats(NamedTuple):
    """What a step leaves on the device, unread."""

    losses: list[Tensor]
    """Of this process's micro batches: each a sum over examples."""
    total: int
    """Examples in the global batch."""
    norm: Tensor
    """Norm of the global gradient, before clipping."""
    skipped: Tensor
    """1.0 if the step was skipped, because the norm is not finite, else 0.0."""

    @property
    def loss(self) -> Tensor:
        """This process's part of the global batch's mean loss, computed when it is asked for."""
        return sum(self.losses, self.norm.new_zeros(())) / self.total


def train_step(
    runtime: Runtime,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    lr: float,
    weights_C: Tensor | None = None,
) -> StepStats:
    """Make at most one update from one global batch."""
    batch = augment(batch, config.data.augment, config.seed)
    if config.train.shards:
        losses = add_shards(runtime, model, batch, config, weights_C)
    else:
        losses = add_gradients(
            runtime,
            model,
            batch,
            config,
            weights_C,
            shard=runtime.rank,
            # DDP averages gradients over the processes, and the loss is a mean over the batch.
            scale=runtime.world_size / batch.total,
        )
    runtime.unscale(optimizer)
    norm, skipped = update(optimizer, lr, config.optim.clip)
    runtime.update_scale()
    return StepStats(losses, batch.total, norm, skipped)


def add_gradients(
    runtime: Runtime,
    model: nn.Module,
    batch: Batch,
    config: Config,
    weights_C: Tensor | None,
    *,
    shard: int,
    scale: float,
) -> list[Tensor]:
    """Add the gradient of `scale` times the summed loss to the parameters' gradients.

    Returns the summed loss of each micro batch.
    """
    num_examples = len(batch.labels)
    size = config.train.micro_batch_size or num_examples
    losses = []
    for index, first in enumerate(range(0, num_examples, size)):
        micro_batch = batch.part(first, first + size) if size < num_examples else batch
        is_last = first + size >= num_examples
        # DDP sums gradients over the processes once, after the last micro batch.
        with nullcontext() if is_last else runtime.no_sync(model):
            if config.model.dropout:
                runtime.seed_noise(config.seed, batch.step, shard, index)
            loss = summed_loss(
                model(micro_batch.values, micro_batch.lengths),
                micro_batch.labels,
                label_smoothing=config.loss.label_smoothing,
                weights_C=weights_C,
            )
            value = loss.detach()
            losses.append(value)
            # A loss that is not finite makes this weight NaN, and the reduction of gradients
            # carries the NaN to every rank.
            runtime.backward(loss, value * 0 + scale)
    return losses


def add_shards(
    runtime: Runtime, model: nn.Module, batch: Batch, config: Config, weights_C: Tensor | None
) -> list[Tensor]:
    """Take each shard's gradient by itself, and add all of them in one order (contract C1b).

    Returns the global batch's losses on the main process, and nothing on the others.
    """
    num_shards = config.train.shards or 1
    num_local_shards = num_shards // runtime.world_size
    parameters = list(model.parameters())
    rows = []  # a row a local shard: its gradient, and its summed loss as the last number
    first_shard = num_local_shards * runtime.rank
    for shard in range(first_shard, first_shard + num_local_shards):
        first, end = split_range(batch.total, shard, num_shards)
        if first == end:  # a batch with fewer examples than shards
            num_numbers = sum(p.numel() for p in parameters) + 1
            rows.append(parameters[0].new_zeros(num_numbers))
            continue
        losses = add_gradients(
            runtime,
            model,
            batch.part(first - batch.first, end - batch.first),
            config,
            weights_C,
            shard=shard,
            scale=1 / batch.total,
        )
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        rows.append(torch.cat([*gradients, torch.stack(losses).sum()[None]]))
        for parameter in parameters:
            parameter.grad = None
    total = runtime.gather(torch.stack(rows)).sum(0)
    *gradients, loss = total.split([p.numel() for p in parameters] + [1])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return [loss[0]] if runtime.is_main else []
