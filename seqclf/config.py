"""Every setting once: its type, default, bounds and meaning. Defaults < YAML < flags.

YAML files and flags are written into one tree that remembers where each value stood, the tree is
validated once, and every error names its place (`configs/x.yaml:3:3` or `--optim.lr`) and the
remedy. Imports neither torch nor accelerate, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

LONGEST_YAML = 2**16
DEEPEST_YAML = 10
# What `auto` means: about so many batches make an epoch ...
STEPS_AN_EPOCH, SMALLEST_BATCH, LARGEST_BATCH = 16, 8, 64
# ... and the LSTM is this wide with fewer, or with more training examples.
MANY_EXAMPLES, SMALL_WIDTH, LARGE_WIDTH = 2000, 64, 128
NOISE = 0.2  # where there are fewer than that
PREEMPTED = 143  # exit code of what a signal stopped: 128 + SIGTERM
# EFBIG: a limit on the size of files (ulimit -f); Python ignores SIGXFSZ
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resume = Literal["auto", "never"]
Scalar = str | int | float | bool | None
Value = Scalar | list["Value"] | dict[str, "Value"]
Probability = Annotated[float, Field(ge=0, lt=1)]


class UserError(ValueError):
    """Something the user can mend: printed without a traceback, exit code 2."""


class Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Augment(Settings):
    shift: NonNegativeInt = 0
    """Move each training image by up to this many rows and columns, zeros moving in; 0 is off."""
    flip: bool = False
    """Mirror every second training image, drawn by chance, left to right."""
    noise: Literal["auto"] | NonNegativeFloat = 0.0
    """Add normal noise to the features of prepared data, of so many of their own standard
    deviations; 0 is off. auto: 0.2 where training examples are few."""


class Data(Settings):
    name: Literal[
        "auto", "files", "digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist"
    ] = "auto"
    """Data set. files: what `seqclf prepare` wrote to `data.path`. auto: that, if the path is set,
    else MNIST from `data.root` or downloaded, else the embedded digits."""
    path: str | None = None
    """Folder that `seqclf prepare` wrote. null: none."""
    emnist_split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = (
        "balanced"
    )
    """Which of EMNIST's sets, where `data.name` is emnist."""
    read: Literal["rows", "columns", "pixels", "permuted"] = "rows"
    """What a step of an image is: a row, a column, one pixel, or one pixel in a fixed random
    order."""
    root: str = "data"
    """Folder of the data files, in torchvision's layout (MNIST/raw/train-images-idx3-ubyte ...)."""
    val_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training examples held out for watching, stratified; 0: the test split is
    watched, and nothing is ever chosen by it."""
    bucket: bool = True
    """Put sequences of like length into a batch, where lengths differ; less padding, faster."""
    max_steps_per_batch: PositiveInt | None = None
    """Steps of a batch over all processes, padding included: long sequences come in smaller
    batches. null: no bound."""
    max_length: PositiveInt | None = None
    """Steps of a sequence that are read; longer ones are cut. null: all."""
    keep: Literal["first", "last"] = "first"
    """Which steps of a sequence longer than `data.max_length` are read."""
    workers: Literal["auto"] | NonNegativeInt = "auto"
    """Processes that read ahead, per training process. auto: 2 if the data set is a file larger
    than the memory that is free, else none."""
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
    """Probability of dropping a unit between layers and before the output layer."""
    pooling: Literal["last", "mean", "max", "attention"] = "last"
    """What the output layer sees: the last state, or over all steps the mean, the maximum, or
    attention: a mean with learnt weights."""
    embedding_size: PositiveInt = 32
    """Numbers that stand for a token, where the data are tokens or text."""
    stack: Literal["auto"] | PositiveInt = 1
    """Steps that are read at once, their features side by side: long sequences become shorter, and
    faster to read. auto: a quarter of the root of the usual length; of tokens 1."""
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
    """Number of steps; wins over epochs if set."""
    shards: PositiveInt | None = None
    """Cut each batch into this many parts, whose gradients are added in one order: any number of
    processes that divides it gives the same bits. null: off."""
    threads: PositiveInt | None = None
    """CPU threads per process. null: this job's cores, divided by its processes or its shards."""
    max_skipped: PositiveInt = 10
    """Stop after this many steps in a row with a loss or gradient that is not finite."""
    patience: PositiveInt | None = None
    """Finish after this many evaluations in a row without a better `checkpoint.metric`; the best
    weights are the result. null: off."""


class Eval(Settings):
    every: PositiveInt | None = None
    """Steps between evaluations. null: once an epoch. The last step is always evaluated."""
    batch_size: PositiveInt = 1000
    """Examples per forward pass of an evaluation, per process; bounds memory only."""


class Checkpoint(Settings):
    every: PositiveInt | None = None
    """Steps between checkpoints. null: once an epoch. The last step is always saved."""
    minutes: PositiveFloat | None = None
    """Save, too, when the last checkpoint is this old, by the main process's clock. null: off."""
    keep_last: PositiveInt = 2
    """Checkpoints kept on disk, the newest."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation, too: its weights are the result."""
    metric: Literal["val/accuracy", "val/macro_f1", "val/loss"] = "val/accuracy"
    """What makes an evaluation the best: the highest, of a loss the lowest; the first of equals."""


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
    run_dir: str | None = None
    """Run directory. null: runs/NAME, the config's or data set's name plus the changing flags."""
    resume: Resume | str = "auto"
    """auto: go on from the newest good checkpoint. never: insist on a new run directory. Else the
    path of a checkpoint or of a run, from which a new run branches off."""
    init_from: str | None = None
    """Run directory whose weights a new run starts from; without the output layer's if the classes
    are others. null: fresh weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train. auto: CUDA, or mps if it computes what the CPU does, else the CPU."""
    precision: Precision = "auto"
    """Arithmetic. auto: what `accelerate launch --mixed_precision` says, else fp32."""
    deterministic: bool = False
    """Repeat a GPU run bit for bit, at some cost in speed (CPU runs always do)."""
    quiet: bool = False
    """Print neither progress bar nor log lines; what was decided and the result stay."""
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
        """Whether the result is the weights of the best evaluation, not the last ones."""
        return self.checkpoint.keep_best or self.train.patience is not None

    def sizes(self, num_examples: int = MANY_EXAMPLES) -> tuple[int, int]:
        """Return batch and hidden size; where they are auto, those for so many examples."""
        power = round(math.log2(max(1, num_examples / STEPS_AN_EPOCH)))
        batch_size: int = min(max(2**power, SMALLEST_BATCH), LARGEST_BATCH)
        hidden_size = SMALL_WIDTH if num_examples < MANY_EXAMPLES else LARGE_WIDTH
        if self.train.batch_size != "auto":
            batch_size = self.train.batch_size
        if self.model.hidden_size != "auto":
            hidden_size = self.model.hidden_size
        return batch_size, hidden_size


# Settings that change neither the weights nor the numbers measured: not part of a run's name.
NEUTRAL = {"run_dir", "resume", "quiet", "report", "data.root", "data.path", "data.on_device"} | {
    "data.workers",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.minutes",
    "log.every",
    "distributed.timeout_s",
    *(f"tracking.{name}" for name in Tracking.model_fields),
}


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Yield (dotted name, annotation, description) of every setting."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            description = " ".join((field.description or "").split())
            yield prefix + name, annotation, description


def is_switch(annotation: object) -> bool:
    """Say whether a setting may stand on the command line without a value, meaning true."""
    return annotation is bool or bool in get_args(annotation)


def flatten(tree: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Turn a nested mapping into one with dotted names."""
    flat: dict[str, Value] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {prefix + key: list(value) if isinstance(value, tuple) else value}
        )
    return flat


def settings(config: Config) -> dict[str, Value]:
    """Return every setting of a config by its dotted name."""
    return flatten(config.model_dump())


# ---- reading: YAML with positions, flags, one validation


class _Yaml(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: 1e-3 is a number, `no` is a word.

    Refuses aliases (ten lines of them can stand for more values than memory holds) and nesting that
    no setting has.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build the node that comes next."""
        problem = None
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name); write out what it stands for"
        elif self.depth == DEEPEST_YAML:
            problem = f"nested deeper than {DEEPEST_YAML} levels"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, self.current_event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Yaml.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


class _YamlOut(yaml.SafeDumper):
    """SafeDumper that quotes the text that _Yaml would not read as text."""


# What either reading takes for something else than text is quoted.
_YamlOut.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Yaml.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Yaml.yaml_implicit_resolvers}
}


def _scalar(node: yaml.ScalarNode) -> Scalar:
    text, tag = node.value, node.tag.rpartition(":")[2]
    match tag:
        case "null":
            return None
        case "bool":
            return bool(text.lower() == "true")
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return str(text)
    raise yaml.constructor.ConstructorError(
        None, None, f"unknown tag {node.tag!r}", node.start_mark
    )


def _read_node(node: yaml.Node, path: str, where: dict[str, str], place: str) -> Value:
    """Build the value of a YAML node, writing the place of each key into `where`."""
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Value] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            here = f"{place}:{mark.line + 1}:{mark.column + 1}"
            key = str(key_node.value)
            name = f"{path}.{key}" if path else key
            if key in tree:
                raise UserError(f"{here}: {name}: stands twice (first at {where[name]})")
            where[name] = here
            tree[key] = _read_node(value_node, name, where, place)
        return tree
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(item, path, where, place) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def read_yaml(text: str, where: dict[str, str], place: str) -> dict[str, Value]:
    """Parse one YAML mapping; `place` names the file in errors."""
    if len(text) > LONGEST_YAML:
        raise UserError(
            f"{place}: {len(text):,} characters; settings take at most {LONGEST_YAML:,}"
        )
    try:
        node = yaml.compose(io.StringIO(text), Loader=_Yaml)
        value = _read_node(node, "", where, place) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{place}{position}: not valid YAML: {error.problem}") from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{place}:1:1: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}:1:1: expected settings (`train:` ...), found {value!r}")
    return value


def _read_flag(name: str, text: str) -> Value:
    """Read a flag's value as YAML would, except that text stays text, whatever it looks like."""
    annotation = {full: annotation for full, annotation, _ in fields()}.get(name)
    if annotation is str or str in get_args(annotation):
        return None if text == "null" and annotation is not str else text
    try:
        node = yaml.compose(io.StringIO(text), Loader=_Yaml)
        if isinstance(node, yaml.ScalarNode | yaml.SequenceNode):
            return _read_node(node, "", {}, "")
    except (yaml.YAMLError, ValueError):  # or a number of thousands of digits
        pass
    return text


def load_config(
    path: str | Path | None = None, flags: Mapping[str, str] | None = None
) -> tuple[Config, list[str]]:
    """Read a YAML file and flags into a config; return it and the names that the flags set.

    Raises UserError with one line per mistake, each with its place and the remedy.
    """
    where: dict[str, str] = {}
    tree: dict[str, Value] = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"--config {path}: cannot read it: {reason}") from None
        tree = _drop_empty_sections(read_yaml(text, where, str(path)), Config)
    for name, value in (flags or {}).items():
        *parents, leaf = name.split(".")
        branch = tree
        for parent in parents:
            child = branch.get(parent)
            branch[parent] = child = dict(child) if isinstance(child, dict) else {}
            branch = child
        branch[leaf] = _read_flag(name, value)
        where[name] = f"--{name}"
    return _validate(tree, where), list(flags or ())


def _drop_empty_sections(tree: dict[str, Value], model: type[BaseModel]) -> dict[str, Value]:
    """Read a section with nothing below it, which YAML takes for null, as its defaults."""
    kept: dict[str, Value] = {}
    for name, value in tree.items():
        field = model.model_fields.get(name)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if isinstance(value, dict):
                kept[name] = _drop_empty_sections(value, inner)
            elif value is not None:
                kept[name] = value
        else:
            kept[name] = value
    return kept


def _contradictions(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield two settings that cannot both be, and the remedy."""
    if config.precision == "fp16" and config.device == "cpu":
        yield (
            "precision",
            "device",
            "fp16 exists on a GPU only; use fp32, or bf16 if the CPU has it",
        )
    if config.data.path is None and config.data.name == "files":
        yield "data.name", "data.path", "name the folder that `seqclf prepare` wrote"
    if config.data.path is not None and config.data.name not in ("auto", "files"):
        yield "data.path", "data.name", "leave it out, or set data.name to files"
    if config.data.path is not None:
        for name in ("data.augment.shift", "data.augment.flip", "data.read"):
            if settings(config)[name] != settings(Config())[name]:
                yield name, "data.path", "it is for images; leave it out"
    elif config.data.augment.noise:
        yield "data.augment.noise", "data.path", "it is for prepared data; leave it out"
    if config.data.max_steps_per_batch and not config.data.bucket:
        yield "data.max_steps_per_batch", "data.bucket", "set data.bucket to true"
    if config.data.emnist_split != Data().emnist_split and config.data.name != "emnist":
        yield "data.emnist_split", "data.name", "leave it out, or set data.name to emnist"
    for name in ("train.patience", "checkpoint.keep_best"):
        # a prepared data set may have a validation part of its own: see `fit` in train.py
        if settings(config)[name] and not config.data.val_fraction and config.data.path is None:
            yield (
                name,
                "data.val_fraction",
                "hold out a part to choose by, such as 0.1: nothing is chosen by the test split",
            )


def _validate(tree: Mapping[str, Value], where: Mapping[str, str]) -> Config:
    try:
        config = Config.model_validate(tree)
        values = settings(config)
        mistakes = [
            f"{_label(name, where)}: {dump_value(values[name])} contradicts "
            f"{other}: {dump_value(values[other])} ({where.get(other, 'the default')}): {remedy}"
            for name, other, remedy in _contradictions(config)
        ]
        if mistakes:
            raise UserError("\n".join(mistakes))
        return config
    except ValidationError as error:
        problems: dict[str, list[str]] = {}  # of each place; a union complains once per branch
        for item in error.errors():
            place, problem = _explain(dict(item), where)
            problems[place] = [*problems.get(place, []), problem]
        order = {where[name]: number for number, name in enumerate(where)}  # as in the file
        places = sorted(
            problems, key=lambda label: order.get(label.rpartition(": ")[0] or label, 0)
        )
        lines = [f"{place}: {_join(problems[place])}" for place in places]
        raise UserError("\n".join(lines)) from None


def _explain(item: Mapping[str, Any], where: Mapping[str, str]) -> tuple[str, str]:
    """Turn one pydantic error into `place: name` and what is wrong, with the remedy."""
    name = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
    while name and name not in where:  # pydantic appends the tried types of a union
        name = name.rpartition(".")[0]
    label = _label(name, where)
    if item["type"] == "extra_forbidden":
        return label, _unknown_key(name)
    annotation = {full: annotation for full, annotation, _ in fields()}.get(name)
    context = item.get("ctx", {})
    found = f" (found {dump_value(item['input'])})"
    match item["type"]:
        case "int_type" | "int_from_float" | "int_parsing_size":
            problem = "expected a whole number"
        case "float_type":
            problem = "expected a number"
        case "bool_type":
            problem = "expected true or false"
            meant = {"no": "false", "off": "false", "yes": "true", "on": "true"}.get(
                str(item["input"])
            )
            found += f"; did you mean '{meant}'?" if meant else ""
        case "string_type":
            problem = "expected text"
        case "model_type":
            problem = "expected settings below it"
        case "tuple_type" | "missing" | "too_long":
            problem = f"expected a list like {settings(Config())[name] or [1.0, 2.0]}"
        case "literal_error":
            problem = "expected " + context["expected"].replace("'", "")
            meant = _alike(str(item["input"]).lower(), choices(annotation))
            found += f"; did you mean '{meant}'?" if meant else ""
        case _:  # out of bounds
            problem = item["msg"].replace("Input should be", "must be")
    if type(None) in get_args(annotation):
        problem += ", or null"
    return label, problem + found


def _label(name: str, where: Mapping[str, str]) -> str:
    place = where.get(name, "config")
    return place if place == f"--{name}" else f"{place}: {name}"


def _join(problems: Sequence[str]) -> str:
    """Say the complaints of a union's branches as one: expected A, B or C (found x)."""
    if len(problems) == 1:
        return problems[0]
    heads = [problem.rpartition(" (found ")[0].removesuffix(", or null") for problem in problems]
    said = ", ".join([*heads[:-1], problems[-1].removeprefix("expected ")])
    return said.replace("must be", "a number")


def _unknown_key(name: str) -> str:
    known = [full for full, _, _ in fields()]
    section, _, leaf = name.rpartition(".")
    if name in known:  # one key with a dot in it
        return f"unknown key; write '{section}:' and below it '{leaf}:'"
    meant = closest(name, known + sorted({full.rpartition(".")[0] for full in known} - {""}))
    if not meant:
        return "unknown key; `seqclf train --help` lists all"
    sibling = meant.rpartition(".")[0] == section
    return f"unknown key; did you mean '{meant.rpartition('.')[2] if sibling else meant}'?"


def choices(annotation: object) -> list[str]:
    """Return the words that a setting may be."""
    arguments = get_args(annotation)
    inner = [word for argument in arguments for word in choices(argument)]
    return inner + [argument for argument in arguments if isinstance(argument, str)]


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known dotted name that was probably meant: a sibling, a namesake, or one alike."""
    section, _, leaf = name.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    if found := _alike(leaf, list(siblings)):
        return siblings[found]
    namesakes = [k for k in known if k.rpartition(".")[2] == leaf]
    return namesakes[0] if namesakes else _alike(name, known)


def _alike(word: str, words: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, 1)), None)


# ---- writing, naming, comparing


def dump(config: Config) -> str:
    """Write a config as YAML that reads back as the same config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_YamlOut, sort_keys=False)


def dump_value(value: Value) -> str:
    """Write one value as YAML on one line."""
    text: str = yaml.dump(value, Dumper=_YamlOut, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def run_name(config: Config, path: str | Path | None, flagged: Sequence[str]) -> str:
    """Name a run: the config file's stem, or the data set, plus the flags that change the result.

    >>> run_name(Config(), "configs/mnist.yaml", [])
    'mnist'
    """
    values = settings(config)
    base = Path(path).stem if path is not None else config.data.name
    if config.data.path is not None:
        folder = Path(config.data.path).absolute().name
        base = folder if path is None or base == "files" else f"{base}-{folder}"
    parts = [
        f"{name}={_plain(values[name])}"
        for name in sorted(flagged)
        if name not in NEUTRAL and not (path is None and name == "data.name")
    ]
    suffix = "".join(f"-{part}" for part in parts)
    if len(suffix) > 80 or re.search(r"[^\w.=+,-]", suffix):
        suffix = "-" + hashlib.sha256(suffix.encode()).hexdigest()[:10]
    return base + suffix


def _plain(value: Value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
