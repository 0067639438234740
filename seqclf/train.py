"""The loop: a run from its config to its result, on any number of processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqclf import predict, reading
from seqclf import runtime as runtimes
from seqclf.checkpoint import State
from seqclf.config import (
    MANY_EXAMPLES,
    NOISE,
    PREEMPTED,
    Config,
    UserError,
    Value,
    run_name,
    settings,
)
from seqclf.console import Console
from seqclf.data import sources
from seqclf.data.augment import augment
from seqclf.data.batches import BatchPlan, count_steps, make_buckets, padding_share, split_range
from seqclf.data.sequences import Batch, Sequences
from seqclf.data.sources import Splits
from seqclf.evaluate import Interrupted, evaluate
from seqclf.hardware import free_memory, least_memory, refuse_too_large
from seqclf.loss import class_weights, summed_loss
from seqclf.model import Architecture, LSTMClassifier, read_images
from seqclf.optim import lr_at, make_optimizer, update
from seqclf.run import Run, open_run
from seqclf.runtime import Runtime
from seqclf.tracking import Tracking
from seqclf.watch import Watch

NAMED = 10  # examples, at most, in a message
AHEAD = 2  # processes that read what memory cannot keep


class StepStats(NamedTuple):
    """What a step leaves on the device: nothing here has been read back."""

    losses: list[Tensor]  # of this process's micro batches, each a sum over examples
    total: int  # examples in the global batch
    norm: Tensor  # of the global gradient, before clipping
    bad: Tensor  # 1.0 if the step was skipped, because the norm is not finite, else 0.0

    @property
    def loss(self) -> Tensor:
        """This process's part of the global batch's mean loss; computed where it is looked at."""
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
    """Make at most one update from one global batch; read nothing back from the device."""
    batch = augment(batch, config.data.augment, config.seed)
    if config.train.shards:
        losses = add_shards(runtime, model, batch, config, weights_C)
    else:
        # times the world size, because DDP averages over it
        scale = runtime.world_size / batch.total
        losses = add_gradients(runtime, model, batch, runtime.rank, scale, config, weights_C)
    if runtime.accelerator.scaler is not None:
        runtime.accelerator.scaler.unscale_(optimizer)
    norm, bad = update(optimizer, lr, config.optim.clip)
    if runtime.accelerator.scaler is not None:
        runtime.accelerator.scaler.update()
    return StepStats(losses, batch.total, norm, bad)


def add_gradients(
    runtime: Runtime,
    model: nn.Module,
    batch: Batch,
    shard: int,
    scale: float,
    config: Config,
    weights_C: Tensor | None,
) -> list[Tensor]:
    """Add the gradient of `scale` times the summed loss to the parameters'; return the losses.

    One loss per micro batch. Step, shard and number of the micro batch seed dropout.
    """
    count = len(batch.labels)
    size = config.train.micro_batch_size or count
    losses = []
    for index, first in enumerate(range(0, count, size)):
        part = batch.part(first, first + size) if size < count else batch
        reduces = first + size >= count
        with nullcontext() if reduces else runtime.no_sync(model):
            if config.model.dropout:
                runtime.seed_noise(config.seed, batch.step, shard, index)
            loss = summed_loss(
                model(part.values, part.lengths),
                part.labels,
                label_smoothing=config.loss.label_smoothing,
                weights_C=weights_C,
            )
            losses.append(value := loss.detach())
            # A loss that is not finite makes the weight NaN, and the reduction carries that to
            # every rank.
            runtime.backward(loss, value * 0 + scale)
    return losses


def add_shards(
    runtime: Runtime, model: nn.Module, batch: Batch, config: Config, weights_C: Tensor | None
) -> list[Tensor]:
    """Take the gradient of each shard by itself and add all of them up in one order (C1b).

    Returns the global batch's losses on the main process, and nothing on the others.
    """
    shards = config.train.shards or 1
    mine = shards // runtime.world_size
    parameters = list(model.parameters())
    rows = []  # of each of this process's shards: its gradient, and its summed loss last
    for shard in range(mine * runtime.rank, mine * (runtime.rank + 1)):
        first, end = (place - batch.first for place in split_range(batch.total, shard, shards))
        if first == end:  # fewer examples than shards
            size = sum(p.numel() for p in parameters) + 1
            rows.append(parameters[0].new_zeros(size))
            continue
        part, scale = batch.part(first, end), 1 / batch.total
        losses = add_gradients(runtime, model, part, shard, scale, config, weights_C)
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        rows.append(torch.cat([*gradients, torch.stack(losses).sum()[None]]))
        for parameter in parameters:
            parameter.grad = None
    total = runtime.gather(torch.stack(rows)).sum(0)
    parts = total.split([p.numel() for p in parameters] + [1])
    for parameter, part in zip(parameters, parts[:-1], strict=True):
        parameter.grad = part.view_as(parameter)
    return [parts[-1][0]] if runtime.is_main else []


def train_loop(run: Run, splits: Splits, plan: BatchPlan) -> tuple[LSTMClassifier, bool]:
    """Train until the end or a signal; return the bare model and whether it finished.

    Everything happens at the boundary before a step: evaluate, save, leave. So a stop during an
    evaluation redoes that evaluation on resume, and nothing here moves a weight.
    """
    config, runtime = run.config, run.runtime
    torch.manual_seed(config.seed)  # on the CPU, so that every device starts from the same weights
    card, (num_steps, _) = architecture(config, splits), read_shape(splits.train, config)
    model = card.build(config.model.init, -(-num_steps // card.stack)).to(runtime.device)
    optimizer = make_optimizer(model, config.optim)
    state = run.restore(model, optimizer)
    prepared = runtime.prepare(model, reduces=not config.train.shards)
    weights_C = class_weights(config.loss.class_weights, splits.train.labels, splits.train.classes)
    if weights_C is not None:
        weights_C = weights_C.to(runtime.device)
    unread: list[StepStats] = []  # of the steps since the device was last read
    workers = count_workers(config, splits)
    batches = runtime.loader(splits.train, plan, start=state.step, workers=workers)
    run.console.open(state.step, plan.num_steps)
    clock = Stopwatch(plan.examples(state.step), runtime.device)
    while True:
        step, last = state.step, state.step == plan.num_steps
        runtime.watch.progress()
        stop, save = runtime.agree(step, save=run.minutes_passed())
        if not stop and state.judged < step and (last or run.evaluation_due(step)):
            with clock.paused(), suppress(Interrupted):
                state.metrics, state.judged = measure(run, model, *splits.watched, step), step
                if config.chooses_best:
                    choose(state, config.checkpoint.metric)
            stop = state.judged < step
        waited = state.waited >= (config.train.patience or math.inf)
        finished = waited or (last and state.judged == step)
        if stop or finished or save or run.save_due(step):
            with clock.paused():
                count_skipped(state, unread)
                run.save(model, optimizer)
        if stop or finished:
            return model, finished
        lr = lr_at(step, config.optim, plan.num_steps)
        with clock.step():
            batch = clock.fetch(batches)
            unread.append(train_step(runtime, prepared, optimizer, batch, config, lr, weights_C))
        state.step += 1
        run.console.step()
        if run.log_due(state.step):
            report(run, model, splits.train, unread, lr, clock)


def measure(
    run: Run, model: nn.Module, split: str, sequences: Sequences, step: int
) -> dict[str, float]:
    """Evaluate the weights of a step on a split, keep it if it may be the result's, and log it.

    Collective. Raises Interrupted if a signal comes meanwhile.
    """
    config = run.config
    found = evaluate(
        run.runtime,
        model,
        sequences,
        batch_size=config.eval.batch_size,
        shards=config.train.shards,
    )
    metrics, metric = found.named(split), config.checkpoint.metric
    if not config.chooses_best or metric not in metrics or is_better(run.state, metrics, metric):
        run.write_evaluation(split, step, found, sequences)
    run.log(step, metrics)
    return metrics


def is_better(state: State, metrics: dict[str, float], metric: str) -> bool:
    """Say whether an evaluation is better than the best so far, which neither tie nor NaN is."""
    sign = -1 if metric == "val/loss" else 1
    return sign * metrics[metric] > (sign * state.best[metric] if state.best else -math.inf)


def choose(state: State, metric: str) -> None:
    """Make the latest evaluation the best one if it is better."""
    if is_better(state, state.metrics, metric):
        state.best, state.best_step, state.waited = state.metrics, state.step, 0
    else:
        state.waited += 1
        state.longest_wait = max(state.longest_wait, state.waited)


def count_skipped(state: State, unread: list[StepStats]) -> None:
    """Read which of the latest steps were skipped, the same on every rank, and forget them."""
    flags = torch.stack([stats.bad for stats in unread]).tolist() if unread else []
    unread.clear()
    for bad in flags:
        state.skipped += int(bad)
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if bad else 0


def report(
    run: Run,
    model: nn.Module,
    examples: Sequences,
    unread: list[StepStats],
    lr: float,
    clock: Stopwatch,
) -> None:
    """Log the latest step: but for saves the one place where training reads the device. Collective.

    Raises UserError after `train.max_skipped` skipped steps in a row.
    """
    stats, state = unread[-1], run.state
    loss = float(run.runtime.sum(stats.loss))
    count_skipped(state, unread)
    metrics = {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": float(stats.norm),
        **clock.read(run.plan.examples(state.step)),
    }
    if state.skipped:
        metrics["train/skipped"] = state.skipped
    run.log(state.step, metrics)
    if state.skipped_in_a_row >= run.config.train.max_skipped:
        found = run.runtime.from_main(lambda: find_not_finite(run, model, examples))
        raise UserError(
            f"step {state.step}: the last {state.skipped_in_a_row} steps were skipped, because "
            f"loss or gradient was not finite (learning rate {lr:.3g}); in the last batch {found}; "
            "lower optim.lr, set optim.clip, or look for extreme values in the data"
        )


@torch.inference_mode()
def find_not_finite(run: Run, model: nn.Module, examples: Sequences) -> str:
    """Say what of the latest step was not finite, and of which examples, from 0 in the split.

    As it was skipped it moved no weight: its global batch is looked at again, without dropout.
    """
    config = run.config
    share = run.plan.share(run.state.step - 1, 0, 1)
    batch = examples.__getitems__(share).to(run.runtime.device)
    batch = augment(batch, config.data.augment, config.seed)
    model.eval()  # and nobody trains it again
    size = config.eval.batch_size
    parts = [batch.part(first, first + size) for first in range(0, len(batch.values), size)]
    logits = torch.cat([model(part.values, part.lengths) for part in parts])
    losses = [
        summed_loss(row[None], label[None], label_smoothing=config.loss.label_smoothing)
        for row, label in zip(logits, batch.labels, strict=True)
    ]
    what, ids = "every loss is finite, so it is the gradient, that", share.ids
    for name, finite in (
        ("the loss is not finite, that", torch.stack(losses).isfinite()),
        ("values are not finite, those", batch.values.isfinite().flatten(1).all(1)),
    ):
        if not finite.all():
            what, ids = name, share.ids[~finite.cpu()]
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{what} of training examples {', '.join(map(str, ids[:NAMED].tolist()))}{more}"


class Stopwatch:
    """Times training between two reports: evaluation and saves are not counted.

    A step's time is the device's on CUDA, where the host runs ahead, else the host's.
    """

    def __init__(self, examples: int, device: torch.device) -> None:
        self._device = device
        self._restart(examples)

    def _restart(self, examples: int) -> None:
        self._examples, self._since, self._waited = examples, time.perf_counter(), 0.0
        self._steps: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent in the body."""
        paused_at = time.perf_counter()
        yield
        self._since += time.perf_counter() - paused_at

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time the body, a step."""
        if self._device.type == "cuda":
            events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
        else:
            started = time.perf_counter()
            yield
            self._steps.append(time.perf_counter() - started)

    def fetch(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; the wait for it counts as one for data."""
        started = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - started
        return batch

    def read(self, examples: int) -> dict[str, float]:
        """Return the figures since the last call; the device's work must be done."""
        now = time.perf_counter()
        on_device = (start.elapsed_time(end) / 1000 for start, end in self._events)
        seconds = sorted([*self._steps, *on_device])
        elapsed = now - self._since
        figures = {
            "train/examples": float(examples),
            "train/examples_per_s": (examples - self._examples) / elapsed,
            "train/seconds_per_step_p50": seconds[(len(seconds) - 1) // 2],
            "train/seconds_per_step_p95": seconds[math.ceil(0.95 * len(seconds)) - 1],
            "train/data_wait_share": self._waited / elapsed,
        }
        if self._device.type == "cuda":
            figures["train/peak_memory_mb"] = torch.cuda.max_memory_allocated(self._device) / 1e6
        self._restart(examples)
        return figures


# ---- around the loop


def train(
    config: Config,
    config_path: Path | str | None = None,
    flagged: Sequence[str] = (),
    watch: Watch | None = None,
) -> int:
    """Train, evaluate and save as a config says; return the process's exit code.

    0: finished. 143: stopped by a signal; the same call goes on from its last checkpoint.
    `config_path` and `flagged` (the settings given as flags) name the run directory where `run_dir`
    does not. `watch` is the command line's; without one a second signal raises KeyboardInterrupt.
    Raises UserError for what the user can mend.
    """
    runtime = runtimes.start(config, watch)
    console = Console(enabled=runtime.is_main, quiet=config.quiet)
    tracking = Tracking(console.say, enabled=runtime.is_main)
    exit_code, fallback = 1, None
    try:
        config = from_main(config, flagged, runtime)
        config, fallback = resolve_data(config, runtime, console)
        path = choose_path(config, config_path, flagged, runtime)
        exit_code = _train(config, runtime, console, tracking, path)
        runtime.close()  # before the mirrors, so that no rank waits for a slow upload
        if exit_code == 0 and runtime.is_main and config.report:
            write_page(path, console)
    except UserError:
        exit_code = 2
        raise
    finally:
        console.close()
        # where the main process fails the others may wait for it in a collective
        waits = runtime.world_size == 1 or exit_code in (0, PREEMPTED)
        tracking.close(exit_code, waits=waits)
    if fallback:
        console.say(fallback)
    return exit_code


def write_page(path: Path, console: Console) -> None:
    """Write a finished run's report.html; a failure is told, and is none of the run's."""
    page, status = path / "report.html", path / "status.json"
    untouched = page.exists() and page.stat().st_mtime_ns > status.stat().st_mtime_ns
    if untouched or os.environ.get("WANDB_SWEEP_ID"):
        return
    from seqclf.report import write_report

    try:
        console.say(f"report      {write_report([path], None, {})}")
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        console.say(f"warning: no report: {reason}; try again: seqclf report {path}")


def _train(
    config: Config, runtime: Runtime, console: Console, tracking: Tracking, path: Path
) -> int:
    splits = sources.load(config.data, seed=config.seed)
    asked, config = config, fit(config, splits)
    class_weights(config.loss.class_weights, splits.train.labels, splits.train.classes)
    plan, card = make_plan(config, splits.train), architecture(config, splits)
    num_steps, _ = read_shape(splits.train, config)
    needed = least_memory(config, card, num_steps, runtime.world_size)
    refuse_too_large(needed, runtime.device)
    facts: dict[str, Value] = {
        "data": splits.name,
        "data_fingerprint": splits.fingerprint(),
        "architecture": card.model_dump(mode="json"),
        "num_parameters": card.num_parameters,
    }
    with open_run(path, config, runtime, console, tracking, plan, facts) as run:
        console.say("\n".join((*runtime.decisions, *describe(run, splits, plan, asked))))
        if run.finished():
            console.say(f"{path} is finished: nothing to do (another --run-dir starts anew)")
            return 0
        splits = place(splits, config, runtime)
        model, finished = train_loop(run, splits, plan)
        console.close()
        with suppress(Interrupted):
            if finished:
                conclude(run, model, splits)
                sha256 = run.finish(model, architecture(config, splits))
                if runtime.is_main:
                    console.say(closing(run, model, splits, str(sha256)))
                return 0
        run.write_status("preempted")
        console.say(f"stopped by a signal; {where_it_goes_on(run)}")
        return PREEMPTED


def conclude(run: Run, model: nn.Module, splits: Splits) -> None:
    """Make the model and the metrics those of the result. Collective; redone if it is killed.

    Where there is a validation split, it is here that the test split is evaluated, once.
    """
    state, config = run.state, run.config
    if state.step < run.plan.num_steps:
        run.console.say(
            f"ended       at step {state.step} of {run.plan.num_steps}: {state.waited} evaluations "
            f"in a row without a better {config.checkpoint.metric}"
        )
    step = run.restore_best(model) if config.chooses_best else state.step
    if splits.validation is not None:
        state.metrics = state.metrics | measure(run, model, "test", splits.test, step)


def where_it_goes_on(run: Run) -> str:
    """Say from which step the same command goes on: this one, if its checkpoint was saved."""
    if run.saved_step == run.state.step:
        return f"saved at step {run.saved_step}; the same command goes on"
    start = "the beginning" if run.saved_step < 0 else f"step {run.saved_step}"
    return f"NOT saved, see above; the same command goes on from {start}"


def closing(run: Run, model: LSTMClassifier, splits: Splits, sha256: str) -> str:
    """Return what a run ends with: result, predictions, the model reading, what to do next."""
    config = run.config
    rows = [f"{'':<10} {'accuracy':>9} {'macro F1':>9} {'loss':>9} {'examples':>9}"]
    for split, sequences in splits.measured.items():
        of = {
            name: run.state.metrics[f"{split}/{name}"] for name in ("accuracy", "macro_f1", "loss")
        }
        numbers = f"{of['accuracy']:9.2%} {of['macro_f1']:9.4f} {of['loss']:9.4f}"
        rows.append(f"{split:<10} {numbers} {len(sequences):9,}")
    test = splits.test
    return "\n".join(
        [
            "",
            *rows,
            "",
            predict.predictions_text(model, test, 10),
            "",
            reading.reading_text(model, test, 0),
            "",
            f"sha256      {sha256}",
            f"result      {run.path}/model",
            f"try next    seqclf predict {run.path} --count 25",
            f"            the same command with --seed {config.seed + 1}"
            + " and another --run-dir" * (config.run_dir is not None),
            f"            seqclf runs {run.path.parent}",
        ]
    )


def fit(config: Config, splits: Splits) -> Config:
    """Settle what the data decide. Raises UserError for a setting that they do not allow."""
    if config.chooses_best and splits.validation is None:
        raise UserError(
            f"train.patience or checkpoint.keep_best: {config.data.path} has no validation part to "
            "choose by; prepare it with one, or set data.val_fraction, such as 0.1"
        )
    noise = config.data.augment.noise
    if noise == "auto":
        noise = NOISE if splits.train.std and len(splits.train) < MANY_EXAMPLES else 0.0
    if noise and not splits.train.std:
        raise UserError(
            f"data.augment.noise: {config.data.augment.noise}: {config.data.path} holds no "
            "features to add it to; leave it out"
        )
    batch_size, hidden_size = config.sizes(len(splits.train))
    train = config.train.model_copy(update={"batch_size": batch_size})
    stack = config.model.stack
    if stack == "auto":
        stack = choose_stack(splits.train, config)
    model = config.model.model_copy(update={"hidden_size": hidden_size, "stack": stack})
    augmented = config.data.augment.model_copy(update={"noise": noise})
    data = config.data.model_copy(update={"augment": augmented})
    return config.model_copy(update={"data": data, "train": train, "model": model})


def choose_stack(examples: Sequences, config: Config) -> int:
    """Return how many steps are read at once: more of longer sequences, but one token."""
    steps, lengths = read_shape(examples, config)[0], examples.lengths
    usual = steps if lengths is None else int(lengths.median())
    return 1 if examples.num_tokens else max(1, round(math.sqrt(usual) / 4))


def make_plan(config: Config, examples: Sequences) -> BatchPlan:
    """Plan a run's batches. Raises UserError for a sequence longer than a batch may be."""
    (batch_size, _), train, buckets = config.sizes(len(examples)), config.train, None
    if examples.lengths is not None and config.data.bucket:
        try:
            budget = config.data.max_steps_per_batch
            buckets = make_buckets(examples.lengths, batch_size, budget)
        except ValueError as error:
            raise UserError(
                f"data.max_steps_per_batch: training {error}; raise it, or set data.max_length"
            ) from None
    plan = BatchPlan(len(examples), batch_size, config.seed, 0, buckets)
    num_steps = count_steps(plan.steps_per_epoch, steps=train.steps, epochs=train.epochs)
    return replace(plan, num_steps=num_steps)


def read_shape(examples: Sequences, config: Config) -> tuple[int, int]:
    """Return the steps and features of the longest example as the model reads it."""
    if examples.starts is not None:
        return examples.shape
    _, steps, features = read_images(examples.values[:1], config.data.read).shape
    return steps, features


def architecture(config: Config, splits: Splits) -> Architecture:
    """Put together what the model is built from."""
    train = splits.train
    return Architecture(
        input_size=read_shape(train, config)[1],
        classes=train.classes,
        scale=train.scale,
        mean=train.mean,
        std=train.std,
        num_tokens=train.num_tokens,
        tokens=train.tokens,
        features=train.features,
        read=config.data.read,
        max_length=config.data.max_length,
        keep=config.data.keep,
        **config.model.model_dump(exclude={"init"}),
    )


def describe(run: Run, splits: Splits, plan: BatchPlan, asked: Config) -> list[str]:
    """Say what is about to happen, and what was settled where `auto` was asked for."""
    train, config = splits.train, run.config
    sizes = [f"{len(train):,} train", f"{len(splits.test):,} test"]
    if splits.validation is not None:
        sizes.insert(1, f"{len(splits.validation):,} validation")
    steps, features = read_shape(train, config)
    what = f"{features} feature{'s' * (features > 1)}"
    if train.num_tokens:
        what = f"one of {train.num_tokens:,} tokens"
    shortest = steps if train.lengths is None else int(train.lengths.min())
    lines = [
        f"data        {splits.name}: {', '.join(sizes)}",
        f"example     {steps if shortest == steps else f'{shortest} to {steps}'} steps of {what}"
        + f" ({config.data.read})" * (train.starts is None)
        + f", {config.model.stack} at once" * (config.model.stack != 1),
    ]
    if plan.buckets is not None and train.lengths is not None:
        lines.append(
            f"batches     of like length: {padding_share(train.lengths, plan):.1%} padding"
        )
    wanted = settings(asked)
    settled = [
        f"{name.rpartition('.')[2]} {value}"
        for name, value in settings(config).items()
        if wanted[name] == "auto" and value != "auto"
    ]
    if settled:
        lines.append(f"auto        {', '.join(settled)}")
    return [
        *lines,
        f"run         {run.path}",
        f"length      {plan.num_steps:,} steps of {plan.batch_size} examples "
        f"({plan.num_steps / plan.steps_per_epoch:.3g} epochs)",
    ]


def place(splits: Splits, config: Config, runtime: Runtime) -> Splits:
    """Move the data set to the device's memory if asked to, or if it takes an eighth of it."""
    wanted = config.data.on_device
    if runtime.device.type == "cuda" and wanted == "auto":
        total = torch.cuda.get_device_properties(runtime.device).total_memory
        wanted = splits.num_bytes <= total // 8
    return splits.to(runtime.device) if wanted is True else splits


def count_workers(config: Config, splits: Splits) -> int:
    """Return how many processes read ahead: they pay only where reading waits for a disk."""
    if config.data.workers != "auto":
        return config.data.workers
    device = torch.device("cpu")
    is_file = splits.stored_fingerprint is not None and splits.train.values.device == device
    return AHEAD if is_file and splits.num_bytes > free_memory(device) else 0


def from_main(config: Config, flagged: Sequence[str], runtime: Runtime) -> Config:
    """Return the main process's config, as a sweep's arguments may reach that one only. Collective.

    Where the data lie is another matter on each host: there, a process's own flags count.
    """
    found = Config.model_validate_json(str(runtime.from_main(config.model_dump_json)))
    own = {key: getattr(config.data, key) for key in ("root", "path") if f"data.{key}" in flagged}
    return found.model_copy(update={"data": found.data.model_copy(update=own)})


def choose_path(
    config: Config, config_path: Path | str | None, flagged: Sequence[str], runtime: Runtime
) -> Path:
    """Return the run directory; each trial of a W&B sweep has its own by its id. Collective."""

    def choose() -> Value:
        sweep, trial = (os.environ.get(f"WANDB_{name}_ID") for name in ("SWEEP", "RUN"))
        if sweep and trial:
            return str(Path(config.run_dir or Path("runs") / f"sweep-{sweep}") / trial)
        return config.run_dir or str(Path("runs") / run_name(config, config_path, flagged))

    return Path(str(runtime.from_main(choose)))


def resolve_data(config: Config, runtime: Runtime, console: Console) -> tuple[Config, str | None]:
    """Make sure that the data set is there; settle `data.name: auto`. Collective.

    Returns the config with the data set's name, and the line that says why it is the embedded one.
    Raises UserError if a data set that was named cannot be had.
    """
    fallback: str | None = None

    def announce(text: str) -> None:
        console.say(f"{text} (if that fails, the embedded digits are trained instead)")

    def choose() -> str:
        nonlocal fallback
        if config.data.name != "auto":
            return config.data.name
        if config.data.path is not None:
            return "files"
        try:
            sources.fetch(config.data.model_copy(update={"name": "mnist"}), announce)
        except UserError as error:
            console.say(f"note: training the embedded digits instead of MNIST: {error}")
            root = config.data.root
            fallback = (
                f"note: this trained the embedded digits: no MNIST under '{root}' (see above)"
            )
            return "digits"
        return "mnist"

    data = config.data.model_copy(update={"name": str(runtime.from_main(choose))})
    problem: UserError | None = None
    if runtime.accelerator.is_local_main_process:  # once a host
        try:
            sources.fetch(data, console.say)
        except UserError as error:
            problem = error
    if not runtime.all_true(problem is None):
        raise problem or UserError(f"data set '{data.name}' is missing on another host or process")
    return config.model_copy(update={"data": data}), fallback
