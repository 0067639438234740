"""A run's weights: those of its result, or of its newest checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from seqclf.errors import UserError
from seqclf.model import Architecture, LSTMClassifier
from seqclf.run.checkpoint import (
    MODEL_FILE,
    copy_tensors,
    decode_tensors,
    load_tensors,
    newest_checkpoint,
)
from seqclf.run.files import read_file, read_json, read_small
from seqclf.run.records import CHECKPOINTS, FACTS, MODEL

ARCHITECTURE_FILE = "config.json"
# What shapes the weights below the output layer, and the setting that decides it.
SETTING_OF = {
    "input_size": "data.name or data.read",
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
    "stack": "model.stack",
}


class SavedWeights(NamedTuple):
    """A file of weights, and the architecture that they belong to."""

    file: Path
    content: bytes
    architecture: Architecture
    step: int | None = None  # of the checkpoint; None: the result of a run that has finished

    def build(self) -> LSTMClassifier:
        """Build the model, on the CPU, ready to predict. Raises UserError if it is damaged."""
        model = self.architecture.build()
        load_tensors(self.content, model.state_dict(), where=str(self.file))
        return model.eval()


def load_model(run_dir: Path | str) -> tuple[LSTMClassifier, Architecture]:
    """Load the result of a run, or a bare folder model/, on the CPU, ready to predict.

    Raises UserError if there is no result or if it is damaged.
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
        raise UserError(f"{folder / ARCHITECTURE_FILE}: damaged: {error}") from None
    return SavedWeights(folder / MODEL_FILE, content, architecture).build(), architecture


def _model_folder(path: Path) -> Path:
    """Return where a run keeps its result; the path itself if it is such a folder."""
    is_bare = (path / MODEL_FILE).is_file() and (path / ARCHITECTURE_FILE).is_file()
    return path if is_bare else path / MODEL


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


def find_weights(run_dir: Path) -> SavedWeights:
    """Find a run's result, or its newest checkpoint if there is no result yet.

    Raises UserError if there is neither.
    """
    file = _model_folder(run_dir) / MODEL_FILE
    architecture: object
    step = None
    if file.exists():
        content = read_file(file)
        described_in = file.with_name(ARCHITECTURE_FILE)
        architecture = read_json(described_in)
    else:
        checkpoint, rejected = newest_checkpoint(run_dir / CHECKPOINTS)
        if checkpoint is None:
            reasons = "".join(f"\n  {reason}" for reason in rejected)
            raise UserError(
                f"{run_dir}: neither a trained model nor a whole checkpoint there; "
                f"name a run's directory, or its model/{reasons}"
            )
        file = checkpoint.path / MODEL_FILE
        step = checkpoint.state.step
        content = checkpoint.files[MODEL_FILE]
        described_in = run_dir / FACTS
        architecture = read_json(described_in).get("architecture")
    try:
        return SavedWeights(file, content, Architecture.model_validate(architecture), step)
    except ValueError as error:
        raise UserError(f"{described_in}: damaged: {error}") from None


def _without_output_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("out.")}
