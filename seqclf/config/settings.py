"""Every setting once: its type, default, bounds and meaning.

The module imports neither torch nor accelerate, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

# `train.batch_size: auto` is a power of two that makes about so many steps an epoch.
STEPS_PER_EPOCH = 16
SMALLEST_BATCH = 8
LARGEST_BATCH = 64
# `model.hidden_size: auto` is the small one with fewer training examples than this.
MANY_EXAMPLES = 2000
SMALL_HIDDEN_SIZE = 64
LARGE_HIDDEN_SIZE = 128

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resume = Literal["auto", "never"]
Scalar = str | int | float | bool | None
Value = Scalar | list["Value"] | dict[str, "Value"]
Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


def expand_path(path: str | None) -> str | None:
    """Put the home directory for a leading ~, and its value for each $VARIABLE, as a shell does.

    A shell leaves both alone in --run-dir=~/runs and in a YAML file. Raises ValueError for a
    variable that is not set and for an unknown user; a path that exists as it is written is kept.
    """
    if path is None or not ("$" in path or path.startswith("~")):
        return path
    if path.startswith("~"):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            user = path.partition("/")[0]
            raise ValueError(f"{user}: no such user's home directory; write the path out")
    if os.path.lexists(path):
        return path
    names = [one or other for one, other in re.findall(r"\$(?:(\w+)|\{(\w+)\})", path)]
    if unset := [name for name in names if not os.environ.get(name)]:
        raise ValueError(f"${unset[0]} is not set; set it, or write the path out")
    return os.path.expandvars(path)


Expanded = AfterValidator(expand_path)


class Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @field_validator("*")
    @classmethod
    def _refuse_what_is_not_utf8(cls, value: object) -> object:
        """Refuse the name of a file whose bytes are not UTF-8: no config.yaml could hold it."""
        texts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(text, str) and not _is_utf8(text) for text in texts):
            raise ValueError("is not UTF-8; rename the file or the folder")
        return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Augment(Settings):
    shift: NonNegativeInt = 0
    """Move each training image by up to this many rows and columns, zeros moving in; 0 is off."""
    flip: bool = False
    """Mirror every second training image, drawn by chance, left to right."""
    noise: Literal["auto"] | NonNegativeFloat = 0.0
    """Add normal noise to the features of prepared data, of so many of their own standard
    deviations; 0 is off. auto: 0.2 where training examples are few and there is no
    `model.rocket`."""
    crop: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = 1.0
    """Train on a stretch of each sequence of prepared data, drawn by chance, which has at least
    this share of its steps; 1 is off. auto: 0.5 where training examples are few, have 64 steps or
    more, and those of a class have little in common at the same place, as windows of recordings."""


class Data(Settings):
    name: Literal[
        "auto", "files", "digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist"
    ] = "auto"
    """Data set. files: what `seqclf prepare` wrote to `data.path`. auto: that, if the path is set,
    else MNIST from `data.root` or downloaded, else the embedded digits."""
    path: Annotated[str | None, Expanded] = None
    """Folder that `seqclf prepare` wrote. null: none."""
    emnist_split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = (
        "balanced"
    )
    """Which of EMNIST's sets, where `data.name` is emnist."""
    read: Literal["rows", "columns", "pixels", "permuted"] = "rows"
    """What a step of an image is: a row, a column, one pixel, or one pixel in a fixed random
    order."""
    root: Annotated[str, Expanded] = "data"
    """Folder of the data files, in torchvision's layout (MNIST/raw/train-images-idx3-ubyte ...)."""
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training examples held out for watching, stratified; 0: the test split is
    watched, and nothing is ever chosen by it."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Deal the training examples into so many folds, for cross-validation: stratified, and groups
    stay whole. A run trains on all folds but `data.fold`. null: off."""
    fold: PositiveInt | None = None
    """The fold, from 1 to `data.folds`, that this run measures as its test split; it chooses
    nothing. The data set's own test examples are left out."""
    bucket: bool = True
    """Put sequences of like length into a batch, where lengths differ; less padding, faster."""
    max_steps_per_batch: PositiveInt | None = None
    """Steps of a batch over all processes, padding included: long sequences come in smaller
    batches. null: no bound."""
    shuffle_buffer: PositiveInt | None = None
    """Training examples that are shuffled together: blocks from 256 random places of the data. An
    epoch then reads data larger than memory once, in large pieces. null: all examples."""
    max_length: PositiveInt | None = None
    """Steps of a sequence that are read; longer ones are cut. null: all."""
    keep: Literal["first", "last"] = "first"
    """Which steps of a sequence longer than `data.max_length` are read."""
    workers: Literal["auto"] | NonNegativeInt = "auto"
    """Threads that read ahead, per training process. auto: 2 if the data set is a file larger than
    the memory that is free, else none."""
    augment: Augment = Augment()
    on_device: Literal["auto"] | bool = "auto"
    """Keep the whole data set in the device's memory. auto: if it takes at most an eighth of it."""


class Model(Settings):
    hidden_size: Literal["auto"] | PositiveInt = 64
    """Width of the LSTM's state, per direction. auto: by the number of training examples."""
    num_layers: PositiveInt = 1
    """LSTM layers, one above the other."""
    bidirectional: bool = False
    """Read the sequence in both directions."""
    dropout: Probability = 0.0
    """Probability of dropping a unit of the LSTM between layers and before the output layer."""
    pooling: Literal["last", "mean", "max", "attention"] = "last"
    """What the output layer sees: the last state, or over all steps the mean, the maximum, or
    attention: a mean with learnt weights."""
    embedding_size: PositiveInt = 32
    """Numbers that stand for a token, where the data are tokens or text."""
    stack: Literal["auto"] | PositiveInt = 1
    """Steps that are read at once, their features side by side: long sequences become shorter, and
    faster to read. auto: a quarter of the root of the usual length; of tokens 1."""
    rocket: Literal["auto"] | NonNegativeInt = 0
    """About how many features of fixed convolutions (MiniRocket) stand beside the LSTM. They see
    shapes wherever these are, and are not trained. 0: none; else at least 84 for each dilation.
    auto: 5,000 with numbers of fewer than 2,000 training examples, or if a training sequence of
    numbers or image has 500 steps or more; else 0."""
    init: Literal["orthogonal", "chrono", "tutorial"] = "orthogonal"
    """orthogonal: recurrent weights orthogonal, forget-gate bias 1. chrono: and gates that remember
    from one step up to the longest sequence, for long ones. tutorial: torch's defaults."""


class Loss(Settings):
    label_smoothing: Probability = 0.0
    """Share of the target's probability spread evenly over all classes."""
    class_weights: (
        Literal["balanced"] | Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)] | None
    ) = None
    """Weight of each class's examples in the loss, scaled to a mean of 1 over the training set.
    balanced: every class weighs the same. null: every example does."""


class Optim(Settings):
    name: Literal["adamw", "adam"] = "adamw"
    """Optimizer; they differ in how weight decay acts only."""
    lr: PositiveFloat = 0.01
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after warm-up: constant, or falling to zero at the last step."""
    warmup: Probability = 0.1
    """Share of all steps over which the learning rate rises linearly from zero to `lr`."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weight matrices (biases are left alone)."""
    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of Adam's two running means."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; a longer one is scaled down to it. null: off."""


class Train(Settings):
    batch_size: Literal["auto"] | PositiveInt = 64
    """Examples per step over all processes together. auto: by the number of training examples."""
    micro_batch_size: PositiveInt | None = None
    """Examples per forward pass in one process; bounds memory only. null: the process's share."""
    epochs: PositiveFloat | None = None
    """Passes over the training set. null: 2, or as many as make 1,000 steps."""
    steps: PositiveInt | None = None
    """Number of steps, in place of `train.epochs`: a config has one of the two."""
    shards: PositiveInt | None = None
    """Cut each batch into this many parts, whose gradients are added in one order: any number of
    processes that divides it gives the same bits. null: off."""
    threads: PositiveInt | None = None
    """CPU threads per process. null: this job's cores, divided by its processes or its shards."""
    max_skipped: PositiveInt = 10
    """Stop after this many steps in a row with a loss or gradient that is not finite."""
    patience: PositiveInt | Share | None = None
    """Finish after this many evaluations in a row without a better `checkpoint.metric`, or after
    this share of the run: over a tenth of its steps the rate falls, and the best weights are the
    result. With fewer than 50 validation examples it waits for longer, and the last weights are
    the result. null: off."""


class Eval(Settings):
    every: PositiveInt | None = None
    """Steps between evaluations. null: once an epoch; 20 times in a run if an epoch has fewer
    than 100 steps. The last step is always evaluated."""
    batch_size: PositiveInt = 1000
    """Examples per forward pass of an evaluation, per process; bounds memory only."""


class Checkpoint(Settings):
    every: PositiveInt | None = None
    """Steps between checkpoints. null: as often as without
    `eval.every` evaluations are. The last step is always saved."""
    minutes: PositiveFloat | None = None
    """Save, too, when the last checkpoint is this old, by the main process's clock. null: off."""
    keep_last: PositiveInt = 2
    """Checkpoints kept on disk, the newest."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation, too: its weights are the result."""
    metric: Literal["val/accuracy", "val/macro_f1", "val/loss"] = "val/accuracy"
    """What makes an evaluation the best: the highest, of a loss the lowest; of equals the one with
    the lowest loss."""


class Log(Settings):
    every: PositiveInt = 50
    """Steps between two training lines in metrics.jsonl, the console and the trackers."""


class Tracking(Settings):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Weights & Biases. auto: online with an API key, else offline."""
    tensorboard: bool = False
    """Write RUN_DIR/tensorboard (needs the package tensorboard)."""
    project: str | None = None
    """W&B project. null: WANDB_PROJECT, else seqclf."""
    entity: str | None = None
    """W&B user or team. null: WANDB_ENTITY, else your default one."""
    name: str | None = None
    """Name in W&B. null: WANDB_NAME, else that of the run directory."""
    group: str | None = None
    """W&B group. null: WANDB_RUN_GROUP."""
    tags: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    """W&B tags. null: WANDB_TAGS."""
    notes: str | None = None
    """W&B notes. null: WANDB_NOTES."""
    tables: Literal["end", "best", "never"] = "end"
    """When W&B gets confusion matrix, classes and worst mistakes. best: at each new best, too."""
    artifact: bool = False
    """Send model/ to W&B at the end, as an artifact (latest; best, if that is what it is)."""
    finish_s: PositiveInt = 30
    """Seconds that a mirror may take to finish after the training has."""


class Distributed(Settings):
    timeout_s: PositiveInt = 600
    """Seconds within which all processes have left when one hangs or is gone."""


class Config(Settings):
    """The settings of a run. A run is a pure function of these and the step."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all that is random: first weights, order, dropout, augmentation, validation split."""
    run_dir: Annotated[str | None, Expanded] = None
    """Run directory. null: runs/NAME, the config's or data set's name plus the changing flags."""
    resume: Annotated[Resume | str, Expanded] = "auto"
    """auto: go on from the newest good checkpoint. never: insist on a new run directory. Else the
    path of a checkpoint or of a run, from which a new run branches off."""
    init_from: Annotated[str | None, Expanded] = None
    """Run directory whose weights a new run starts from; without the output layer's if the classes
    are others. null: fresh weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train. auto: CUDA, or mps if it computes what the CPU does, else the CPU."""
    precision: Precision = "auto"
    """Arithmetic. auto: what `accelerate launch --mixed_precision` says, else fp32."""
    deterministic: bool = False
    """Repeat a GPU run bit for bit, at some cost in speed (CPU runs always do)."""
    quiet: bool = False
    """Print the path of the trained model alone, and warnings and errors on stderr."""
    report: bool = True
    """Write report.html at the end, a page of the run (not in sweeps)."""
    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    tracking: Tracking = Tracking()
    distributed: Distributed = Distributed()

    @property
    def chooses_best(self) -> bool:
        """Whether evaluations are compared, to end early or to take the best weights."""
        return self.checkpoint.keep_best or self.train.patience is not None

    def sizes(self, num_examples: int = MANY_EXAMPLES) -> tuple[int, int]:
        """Return batch size and hidden size; `auto` becomes what suits so many examples."""
        power = round(math.log2(max(1, num_examples / STEPS_PER_EPOCH)))
        batch_size: int = min(max(2**power, SMALLEST_BATCH), LARGEST_BATCH)
        hidden_size = SMALL_HIDDEN_SIZE if num_examples < MANY_EXAMPLES else LARGE_HIDDEN_SIZE
        if self.train.batch_size != "auto":
            batch_size = self.train.batch_size
        if self.model.hidden_size != "auto":
            hidden_size = self.model.hidden_size
        return batch_size, hidden_size


# Settings that change neither the weights nor the numbers measured: not part of a run's name.
NEUTRAL = frozenset(
    {
        "run_dir",
        "resume",
        "quiet",
        "report",
        "data.root",
        "data.path",
        "data.on_device",
        "data.workers",
        "checkpoint.every",
        "checkpoint.keep_last",
        "checkpoint.minutes",
        "log.every",
        "distributed.timeout_s",
        *(f"tracking.{name}" for name in Tracking.model_fields),
    }
)

# What runs are neither named nor told apart by: threads belong to the machine, and only round.
UNNAMED = NEUTRAL | {"train.threads"}


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Yield (dotted name, annotation, description) of every setting."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, annotation, " ".join((field.description or "").split())


def choices(annotation: object) -> list[str]:
    """Return the words that a setting may be."""
    arguments = get_args(annotation)
    nested = [word for argument in arguments for word in choices(argument)]
    return nested + [argument for argument in arguments if isinstance(argument, str)]


def is_switch(annotation: object) -> bool:
    """Say whether a setting may stand on the command line without a value, meaning true."""
    return annotation is bool or bool in get_args(annotation)


def settings_by_name(config: Config) -> dict[str, Value]:
    """Return every setting of a config by its dotted name."""
    return _flatten(config.model_dump())


def _flatten(tree: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Turn a nested mapping into one with dotted names; tuples become lists, as in YAML."""
    flat: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
