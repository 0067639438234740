"""A run's weights: those of its result, or of its newest checkpoint."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier
from seqclf.run.checkpoint import (
    MANIFEST_FILE,
    MODEL_FILE,
    Checkpoint,
    copy_tensors,
    decode_tensors,
    encode_tensors,
    newest_checkpoint,
    read_checkpoint,
)
from seqclf.run.files import first_reason, read_file, read_json, read_small, replace_file
from seqclf.run.records import CHECKPOINTS, CONFIG, FACTS, MODEL, STATUS, Facts, read_record

ARCHITECTURE_FILE = "config.json"
# What shapes the weights below the output layer, and the setting that decides it.
SETTING_OF = {
    "input_size": "data.name or data.read",
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
    "stack": "model.stack",
    "rocket": "model.rocket",
    "dilations": "model.rocket, which depends on the usual length of a sequence, to 0 in both",
}


class SavedWeights(NamedTuple):
    """A file of weights, and the architecture that they belong to."""

    file: Path
    content: bytes
    architecture: Architecture
    step: int | None = None  # of the checkpoint; None: the result of a run that has finished

    def raw(self) -> SavedWeights:
        """Return the same without the temperature that was fitted on validation examples."""
        architecture = self.architecture.model_copy(update={"temperature": 1.0})
        return self._replace(architecture=architecture)

    def build(self) -> LSTMClassifier:
        """Build the model, on the CPU, ready to predict. Raises UserError if it is damaged."""
        tensors = decode_tensors(self.content, where=str(self.file))
        num_stored = sum(tensor.numel() for tensor in tensors.values())
        # One that is a little too large gets a message below, of the tensor that differs.
        if (num_parameters := self.architecture.num_parameters) > 10 * num_stored:
            raise UserError(
                f"{self.file}: {num_stored:,} numbers, where its {ARCHITECTURE_FILE} describes a "
                f"model of {num_parameters:,}"
            )
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError(f"{self.file}: damaged: holds numbers that are not finite")
        with torch.random.fork_rng(devices=[]):  # the first weights, which are not kept, draw
            model = self.architecture.build().float()  # a program may have another default
        copy_tensors(tensors, model.state_dict(), where=str(self.file))
        return model.eval()


def load_model(run_dir: Path | str) -> tuple[LSTMClassifier, Architecture]:
    """Load the result of a run, or a bare folder model/, on the CPU, ready to predict.

    Raises UserError if there is no result, if it is damaged, or if it is not the one of the
    run.json beside it.
    """
    folder = _model_folder(Path(run_dir))
    try:
        content = (folder / MODEL_FILE).read_bytes()
        architecture = Architecture.model_validate_json(read_small(folder / ARCHITECTURE_FILE))
    except OSError as error:
        raise UserError(
            f"{folder}: no trained model there ({error.strerror or error}); "
            "name a finished run's directory"
        ) from None
    except ValueError as error:
        reason = first_reason(error)
        raise UserError(f"{folder / ARCHITECTURE_FILE}: damaged: {reason}") from None
    saved = SavedWeights(folder / MODEL_FILE, content, architecture)
    _check(saved)
    return saved.build(), architecture


def save_model(folder: Path, model: LSTMClassifier, architecture: Architecture) -> None:
    """Write a model as a run's folder model/ has it; over another model, but nothing else.

    Raises UserError if the folder holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / ARCHITECTURE_FILE).is_file():
            raise UserError(f"{folder}: holds something else than a model; name another folder")
        content = architecture.model_dump_json(indent=1) + "\n"
        replace_file(folder / ARCHITECTURE_FILE, content.encode())
        replace_file(folder / MODEL_FILE, encode_tensors(model.state_dict()))
    except OSError as error:
        raise UserError(f"{folder}: cannot write it: {error.strerror or error}") from None


def _model_folder(path: Path) -> Path:
    """Return where a run keeps its result; the path itself if it is such a folder."""
    is_bare = all(os.path.isfile(path / name) for name in (MODEL_FILE, ARCHITECTURE_FILE))
    if not is_bare:
        return path / MODEL
    return path if path.name else Path(os.path.abspath(path))  # `.` has no parent to look into


def _read_result(folder: Path) -> SavedWeights:
    described_in = folder / ARCHITECTURE_FILE
    content = read_file(folder / MODEL_FILE)
    return SavedWeights(folder / MODEL_FILE, content, _parse(read_json(described_in), described_in))


def _parse(content: object, file: Path) -> Architecture:
    try:
        return Architecture.model_validate(content)
    except ValueError as error:
        raise UserError(f"{file}: damaged: {first_reason(error)}") from None


def damage_of(folder: Path) -> str | None:
    """Return what is wrong with a finished run's model/; None if it is as it was written."""
    try:
        return _difference(_read_result(folder))
    except UserError as error:
        return str(error)


def _check(saved: SavedWeights) -> None:
    """Refuse a result that is not the one of the run.json beside it. Raises UserError."""
    damage = _difference(saved)
    if damage is None:
        return
    run_dir = shlex.quote(str(saved.file.parent.parent))
    raise UserError(
        f"{damage}; the command that trained it makes it anew: "
        f"seqclf train --config {run_dir}/{CONFIG} --run-dir {run_dir}"
    )


def _difference(saved: SavedWeights) -> str | None:
    """Return how a result differs from what run.json says of it; None if it does not."""
    folder = saved.file.parent
    facts_file = folder.parent / FACTS
    if folder.name != MODEL or not os.path.lexists(facts_file):
        return None
    facts = read_record(facts_file, Facts)
    if facts.weights_sha256 is None:  # the run goes on, and the result is of an earlier length
        return None
    if hashlib.sha256(saved.content).hexdigest() != facts.weights_sha256:
        try:
            decode_tensors(saved.content, where=str(saved.file))
        except UserError as error:
            return str(error)
        return f"{saved.file}: damaged (its sha256 is not the one in {facts_file})"
    if facts.architecture and _parse(facts.architecture, facts_file) != saved.architecture:
        described_in = saved.file.with_name(ARCHITECTURE_FILE)
        return f"{described_in}: damaged (it is not the architecture in {facts_file})"
    return None


def start_from_weights(
    run_dir: Path, target: dict[str, Tensor], architecture: Architecture
) -> tuple[str, str]:
    """Copy another run's weights into a new model; return their sha256 and a line for people.

    The output layer keeps its first weights if the classes differ. Raises UserError, and changes
    nothing, if another tensor does not fit.
    """
    try:
        saved = find_weights(run_dir)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    source = decode_tensors(saved.content, where=str(saved.file))
    line = f"weights     {saved.file}"
    their_classes = saved.architecture.classes
    if their_classes != architecture.classes:
        source = _without_output_layer(source)
        target = _without_output_layer(target)
        line += (
            "\nnote        the output layer starts anew: "
            f"its {len(their_classes)} classes are not these {len(architecture.classes)}"
        )
    try:
        copy_tensors(source, target, where=str(saved.file))
    except UserError as error:
        changes = [
            f"{setting} (there {there}, here {here})"
            for name, setting in SETTING_OF.items()
            if (there := getattr(saved.architecture, name)) != (here := getattr(architecture, name))
        ]
        if not changes:
            raise
        raise UserError(f"{error}; to start from it, change {', '.join(changes)}") from None
    return hashlib.sha256(saved.content).hexdigest(), line


def is_model(path: Path) -> bool:
    """Return whether a path is a run's directory, its folder model/ or one of its checkpoints."""
    kinds = ((MANIFEST_FILE,), (MODEL_FILE, ARCHITECTURE_FILE), (CONFIG, STATUS))
    return any(all(os.path.isfile(path / name) for name in names) for names in kinds)


def find_weights(run_dir: Path) -> SavedWeights:
    """Find a run's result, or its newest checkpoint if there is no result yet.

    `run_dir` may also be a run's folder model/, or one checkpoint of a run. Raises UserError if
    there is none of these.
    """
    if run_dir.parts[:1] == ("hf:",):
        raise UserError(
            f"{run_dir}: a command takes a folder; download the model of the Hugging Face Hub in "
            f'Python: seqclf.load("hf://{Path(*run_dir.parts[1:])}").save("model")'
        )
    if os.path.isfile(run_dir / MANIFEST_FILE):
        checkpoint = read_checkpoint(run_dir)
        return _weights_of(checkpoint, Path(os.path.abspath(run_dir)).parent.parent)
    folder = _model_folder(run_dir)
    if os.path.exists(folder / MODEL_FILE):
        saved = _read_result(folder)
        _check(saved)
        return saved
    newest, rejected = newest_checkpoint(run_dir / CHECKPOINTS)
    if newest is None:
        reasons = "".join(f"\n  {reason}" for reason in rejected)
        raise UserError(
            f"{run_dir}: neither a trained model nor a whole checkpoint there; "
            f"name a run's directory, or its model/{reasons}"
        )
    return _weights_of(newest, run_dir)


def _weights_of(checkpoint: Checkpoint, run_dir: Path) -> SavedWeights:
    return SavedWeights(
        checkpoint.path / MODEL_FILE,
        checkpoint.files[MODEL_FILE],
        _parse(read_json(run_dir / FACTS).get("architecture"), run_dir / FACTS),
        checkpoint.state.step,
    )


def _without_output_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("out.")}
