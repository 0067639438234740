"""What `auto` becomes, and all that follows: a config and its data -> a Setup.

The data decide what is settled here. The machine decides device, threads and precision: those are
settled when the processes start (processes/start.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from seqclf.auto import choose_crop, choose_noise, choose_rocket, choose_stack, usual_length
from seqclf.config.naming import run_name
from seqclf.config.settings import Config, Value
from seqclf.data import idx
from seqclf.data.batches import BatchPlan, count_steps
from seqclf.data.blocks import Blocks
from seqclf.data.orders import LARGEST_STORED, make_buckets
from seqclf.data.reading import Reading
from seqclf.data.sequences import Sequences, spread_over_classes
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.loss import class_weights
from seqclf.model import Architecture, LSTMClassifier, read_images
from seqclf.optim import count_warmup_steps, lr_at
from seqclf.processes.memory import free_memory
from seqclf.processes.runtime import Runtime
from seqclf.rocket import choose_dilations, round_features

NUM_READERS = 2  # threads that read ahead, where memory cannot keep the data set
SHORT_EPOCH = 100  # steps; of shorter epochs not each one ends with an evaluation
MOST_TIMES = 20  # how often a run with short epochs is evaluated
FEW = 50  # validation examples; fewer are too few to choose by
REFERENCE, REFERENCE_BATCH = 256, 8  # training examples, and how many are read at once
DECAY = 0.1  # share of a run over which the rate falls when the patience has run out


@dataclass(frozen=True)
class Setup:
    """A run before its first step. `settle` makes it once, and nothing is settled again later."""

    requested: Config
    """The config as it was written: `auto` where the user left a choice."""
    config: Config
    """The same config with what each `auto` became."""
    splits: Splits
    plan: BatchPlan
    architecture: Architecture
    longest: int
    """Steps of the longest training example, as the model reads it."""
    class_weights: Tensor | None
    """Weight of each class in the loss, float32 [C], if the config asks for any."""

    def build_model(self) -> LSTMClassifier:
        """Make the model with its first weights, a function of the seed and the training examples.

        The examples decide the thresholds of fixed convolutions, if there are any.
        """
        # On the CPU, so that every device starts from the same weights.
        # Not torch.manual_seed, which seeds the generators of all devices.
        torch.default_generator.manual_seed(self.config.seed)
        num_steps = -(-self.longest // self.architecture.stack)
        model = self.architecture.build(self.config.model.init, num_steps)
        if model.rocket is not None:
            model.rocket.fit(lambda: self._read_reference(model))
        return model

    def _read_reference(self, model: LSTMClassifier) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the training examples that fixed convolutions are fitted to, ready to be read.

        A few of each class: all of a small data set.
        """
        train = self.splits.train
        for ids in spread_over_classes(train.labels, REFERENCE).split(REFERENCE_BATCH):
            values, lengths = train.rows(ids.to(train.labels.device))
            yield model.embed(model.steps(values.cpu())), None if lengths is None else lengths.cpu()

    def on_device(self, device: torch.device) -> Setup:
        """Copy the data set to the device if it should lie there, and the class weights always.

        The data set should if data.on_device is true, or if it is auto and the data set takes at
        most an eighth of a GPU's memory.
        """
        on_device = self.config.data.on_device
        if device.type == "cuda" and on_device == "auto":
            total = torch.cuda.get_device_properties(device).total_memory
            on_device = self.splits.num_bytes <= total // 8
        splits = self.splits.to(device) if on_device is True else self.splits
        weights_C = None if self.class_weights is None else self.class_weights.to(device)
        return replace(self, splits=splits, class_weights=weights_C)

    def num_workers(self) -> int:
        """Return how many threads read ahead: they pay only where reading waits for a disk."""
        workers = self.config.data.workers
        if workers != "auto":
            return workers
        return NUM_READERS if self.waits_for_disk else 0

    @property
    def waits_for_disk(self) -> bool:
        """Whether the data set is a file larger than the memory that is free."""
        cpu = torch.device("cpu")
        is_file = self.splits.stored_fingerprint is not None
        is_file = is_file and self.splits.train.values.device == cpu
        return is_file and self.splits.num_bytes > free_memory(cpu)

    @property
    def fitting_buffer(self) -> int:
        """How many examples fit into a quarter of the free memory; two buffers are there at once.

        In two digits, as the memory that is free is not the same at any two starts.
        """
        mean_bytes = self.splits.num_bytes / len(self.splits.train)
        count = max(1, int(free_memory(torch.device("cpu")) / 4 / mean_bytes))
        unit: int = 10 ** max(0, len(str(count)) - 2)
        return count // unit * unit

    @property
    def usual_every(self) -> int:
        """Steps between evaluations, and between checkpoints, where the config does not say."""
        epoch, num_steps = self.plan.steps_per_epoch, self.plan.num_steps
        if epoch >= SHORT_EPOCH:
            return epoch
        # Whole epochs: on small data evaluations and checkpoints would take longer than training.
        return epoch * math.ceil(num_steps / (MOST_TIMES * epoch))

    def evaluation_due(self, step: int) -> bool:
        """Return whether the config asks for an evaluation before this step."""
        return step > 0 and step % (self.config.eval.every or self.usual_every) == 0

    @property
    def num_warmup_steps(self) -> int:
        """Over how many steps the learning rate rises."""
        return count_warmup_steps(self.config.optim, self.plan.num_steps)

    @property
    def patience(self) -> float:
        """How many evaluations in a row may be no better; infinity if the config does not say.

        With fewer than FEW validation examples more of them may be: see docs/recipes.md.
        """
        patience, validation = self.config.train.patience, self.splits.validation
        if patience is None or validation is None:
            return math.inf
        if isinstance(patience, float):  # a share of the run
            every = self.config.eval.every or self.usual_every
            patience = max(1, math.ceil(patience * self.plan.num_steps / every))
        return math.ceil(patience * FEW / min(FEW, len(validation)))

    @property
    def takes_best(self) -> bool:
        """Whether the result is the weights of the best evaluation, not the last ones."""
        return takes_best(self.config, len(self.splits.validation or ()))

    def last_step(self, decay_from: int) -> int:
        """Return the step that the run ends at, if its patience ran out at a step (0: never)."""
        if not decay_from:
            return self.plan.num_steps
        return min(self.plan.num_steps, decay_from + math.ceil(DECAY * self.plan.num_steps))

    def lr_at(self, step: int, decay_from: int) -> float:
        """Return the learning rate of a step; where the patience has run out, it falls linearly.

        Weights of a high rate are worse than the same weights after a short decay: see Zhai et al.,
        "Scaling Vision Transformers", CVPR 2022, and docs/recipes.md.
        """
        lr = lr_at(step, self.config.optim, self.plan.num_steps)
        last = self.last_step(decay_from)
        return lr * (last - step) / (last - decay_from) if decay_from else lr

    def log_due(self, step: int, last_step: int) -> bool:
        """Return whether the config asks for a training line after this many steps."""
        return step % self.config.log.every == 0 or step == last_step

    def save_due(self, step: int, *, best_step: int) -> bool:
        """Return whether a checkpoint is due before this step: the config asks, or it is best."""
        every = self.config.checkpoint.every or self.usual_every
        return step > 0 and (step % every == 0 or step == best_step)


def takes_best(config: Config, num_validation: int) -> bool:
    """Return whether a run with so many validation examples takes the best evaluation's weights.

    Few cannot tell which weights are better, so there `keep_best` has to ask.
    """
    if not config.chooses_best or not num_validation:
        return False
    return config.checkpoint.keep_best or num_validation >= FEW


def settle(requested: Config, splits: Splits) -> Setup:
    """Settle what the data decide. Raises UserError for a setting that they do not allow."""
    train = splits.train
    longest, num_features = steps_and_features(train, requested.data.read)
    config = settle_config(requested, splits, longest=longest)
    return Setup(
        requested=requested,
        config=config,
        splits=splits,
        plan=make_plan(config, train),
        architecture=make_architecture(config, train, num_features=num_features),
        longest=longest,
        class_weights=class_weights(config.loss.class_weights, train.labels, train.classes),
    )


def settle_config(config: Config, splits: Splits, *, longest: int) -> Config:
    """Return the config with what each `auto` becomes for these data.

    Raises UserError for a setting that the data do not allow.
    """
    if config.chooses_best and splits.validation is None:
        raise UserError(
            f"train.patience or checkpoint.keep_best: {config.data.path} has no validation part to "
            "choose by; prepare it with one, or set data.val_fraction, such as 0.1"
        )
    train, augment = splits.train, config.data.augment
    rocket, stack = config.model.rocket, config.model.stack
    noise, crop = augment.noise, augment.crop
    rocket = choose_rocket(train, longest=longest) if rocket == "auto" else rocket
    stack = choose_stack(train, longest=longest) if stack == "auto" else stack
    noise = choose_noise(train, rocket=rocket) if noise == "auto" else noise
    crop = choose_crop(train, longest=longest) if crop == "auto" else crop
    if noise and not train.std:
        raise UserError(
            f"data.augment.noise: {augment.noise}: {config.data.path} holds no features to add it "
            "to; leave it out"
        )
    if crop < 1 and math.ceil(crop * longest) == longest:
        raise UserError(
            f"data.augment.crop: {crop}: takes nothing from sequences of at most {longest} steps; "
            "lower it, or leave it out"
        )
    if rocket and train.num_tokens:
        raise UserError(
            f"model.rocket: {config.model.rocket}: fixed convolutions read numbers, and "
            f"{config.data.path} holds tokens; leave it out"
        )
    rocket = round_features(rocket, len(choose_dilations(usual_length(train, longest))))
    batch_size, hidden_size = config.sizes(len(train))
    augment = augment.model_copy(update={"noise": noise, "crop": crop})
    model = {"hidden_size": hidden_size, "stack": stack, "rocket": rocket}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"augment": augment}),
            "train": config.train.model_copy(update={"batch_size": batch_size}),
            "model": config.model.model_copy(update=model),
        }
    )


def make_plan(config: Config, examples: Sequences) -> BatchPlan:
    """Plan a run's batches. Raises UserError for a sequence longer than a batch may be."""
    batch_size, _ = config.sizes(len(examples))
    buckets, blocks = None, None
    wanted = config.data.shuffle_buffer
    buffer = len(examples) if wanted is None else batch_size * math.ceil(wanted / batch_size)
    if buffer < len(examples):
        lengths = examples.lengths if config.data.bucket else None
        blocks = Blocks(len(examples), batch_size, config.seed, buffer, lengths)
    elif examples.lengths is not None and _needs_buckets(config, examples.lengths):
        budget = config.data.max_steps_per_batch
        longest = int(examples.lengths.max())
        if budget is not None and longest > budget:
            title = examples.title(int(examples.lengths.argmax()))
            raise UserError(
                f"data.max_steps_per_batch: training {title} has {longest} steps, more than "
                f"{budget}; raise it, or set data.max_length"
            )
        buckets = make_buckets(examples.lengths, batch_size, budget)
    plan = BatchPlan(len(examples), batch_size, config.seed, 0, buckets, blocks)
    steps, epochs = config.train.steps, config.train.epochs
    return replace(plan, num_steps=count_steps(plan.steps_per_epoch, steps=steps, epochs=epochs))


def _needs_buckets(config: Config, lengths: Tensor) -> bool:
    """Return whether sequences are put into buckets: not if very many are all of one length.

    Sorting them would take memory for nothing. Fewer have buckets, as older runs had.
    """
    if not config.data.bucket:
        return False
    are_few = len(lengths) <= LARGEST_STORED
    is_cut = config.data.max_steps_per_batch is not None
    return are_few or is_cut or int(lengths.min()) < int(lengths.max())


def steps_and_features(examples: Sequences, read: str) -> tuple[int, int]:
    """Return the steps and features of the longest example as the model reads it."""
    if examples.starts is not None:
        return examples.shape
    _, num_steps, num_features = read_images(examples.values[:1], read).shape  # type: ignore[arg-type]
    return num_steps, num_features


def make_architecture(config: Config, train: Sequences, *, num_features: int) -> Architecture:
    """Put together everything that builds the model, and that reads new files for it."""
    longest, _ = steps_and_features(train, config.data.read)
    shortest = longest if train.lengths is None else int(train.lengths.min())
    dilations = choose_dilations(usual_length(train, longest)) if config.model.rocket else ()
    return Architecture(
        input_size=num_features,
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
        reading=train.reading or Reading(),
        lengths=(shortest, longest),
        dilations=dilations,
        **config.model.model_dump(exclude={"init"}),
    )


# ---- agreed on by all processes, before there is a run


def config_of_main(config: Config, flagged: Sequence[str], runtime: Runtime) -> Config:
    """Use the main process's config on every rank. Collective.

    `wandb agent` passes a trial's flags to the main process alone. Only the place of the data is
    another matter on each host: there a process's own flags count.
    """
    received = Config.model_validate_json(str(runtime.from_main(config.model_dump_json)))
    own = {key: getattr(config.data, key) for key in ("root", "path") if f"data.{key}" in flagged}
    return received.model_copy(update={"data": received.data.model_copy(update=own)})


def choose_run_dir(
    config: Config, config_path: Path | str | None, flagged: Sequence[str], runtime: Runtime
) -> Path:
    """Return the run directory; each trial of a W&B sweep has its own by its id. Collective."""

    def choose() -> Value:
        sweep = os.environ.get("WANDB_SWEEP_ID")
        trial = os.environ.get("WANDB_RUN_ID")
        if sweep and trial:
            return str(Path(config.run_dir or Path("runs") / f"sweep-{sweep}") / trial)
        return config.run_dir or str(Path("runs") / run_name(config, config_path, flagged))

    return Path(str(runtime.from_main(choose)))


def find_data(
    config: Config, runtime: Runtime, say: Callable[[str], None]
) -> tuple[Config, str | None]:
    """Make sure that the data set is there; settle `data.name: auto`. Collective.

    Returns the config with the data set's name. Where the embedded digits stand in for MNIST, a
    line that says why comes with it. Raises UserError if a data set that was named is not to be
    had.
    """
    fallback: str | None = None

    def choose() -> str:
        nonlocal fallback
        if config.data.name != "auto":
            return config.data.name
        if config.data.path is not None:
            return "files"
        try:
            mnist = config.data.model_copy(update={"name": "mnist"})
            plan_b = "(if that fails, the embedded digits are trained instead)"
            idx.fetch(mnist, lambda text: say(f"{text} {plan_b}"))
        except UserError as error:
            say(f"note: training the embedded digits instead of MNIST: {error}")
            root = config.data.root
            fallback = (
                f"note: this trained the embedded digits: no MNIST under '{root}' (see above)"
            )
            return "digits"
        return "mnist"

    data = config.data.model_copy(update={"name": str(runtime.from_main(choose))})
    problem: UserError | None = None
    if runtime.is_local_main:  # one process a host downloads
        try:
            idx.fetch(data, say)
        except UserError as error:
            problem = error
    if not runtime.all_true(problem is None):
        raise problem or UserError(f"data set '{data.name}' is missing on another host or process")
    return config.model_copy(update={"data": data}), fallback
