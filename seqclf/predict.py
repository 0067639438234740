"""Use a trained model: load it, predict, and watch it read a sequence step by step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from seqclf import checkpoint
from seqclf.config import UserError
from seqclf.data.sequences import Sequences
from seqclf.model import Architecture, LSTMClassifier, read_images

SHADES = " .:-=+*#%@"  # dark to bright
BAR_WIDTH = 20  # at most, and what is left of
WIDTH = 80  # columns of a terminal
SIZES = {  # what shapes the weights, but for the output layer: the setting that decides it
    "input_size": "data.name or data.read",
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
}


def load_model(run_dir: Path | str) -> tuple[LSTMClassifier, Architecture]:
    """Load the result of a run, on the CPU, ready to predict.

    Raises UserError if there is none or if it is damaged.
    """
    folder = Path(run_dir) / "model"
    try:
        card = Architecture.model_validate_json(checkpoint.read_small(folder / "config.json"))
        content = (folder / "model.safetensors").read_bytes()
    except OSError as error:
        raise UserError(
            f"{folder}: no trained model there ({error.strerror or error}); "
            "name a finished run's directory"
        ) from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: damaged: {error}") from None
    model = card.build()
    place = str(folder / "model.safetensors")
    checkpoint.put(content, model.state_dict(), place)
    return model.eval(), card


def take_weights(run_dir: Path, target: dict[str, Tensor], card: Architecture) -> tuple[str, str]:
    """Copy a run's weights into those of a new model; return their file's sha256, and what to say.

    They are its result's, else its newest checkpoint's. The output layer is left as it is where
    the classes are others. Raises UserError, and changes nothing, if another tensor does not fit.
    """
    file, content, theirs = _find_weights(run_dir)
    found = checkpoint.decode(content, str(file))
    said = f"weights     {file}"
    if theirs.classes != card.classes:
        found, target = (
            {name: tensor for name, tensor in tensors.items() if not name.startswith("out.")}
            for tensors in (found, target)
        )
        said += (
            "\nnote        the output layer starts anew: "
            f"its {len(theirs.classes)} classes are not these {len(card.classes)}"
        )
    try:
        checkpoint.copy(found, target, str(file))
    except UserError as error:
        changes = [
            f"{setting} (there {there}, here {here})"
            for name, setting in SIZES.items()
            if (there := getattr(theirs, name)) != (here := getattr(card, name))
        ]
        if not changes:
            raise
        raise UserError(f"{error}; to start from it, change {', '.join(changes)}") from None
    return hashlib.sha256(content).hexdigest(), said


def _find_weights(run_dir: Path) -> tuple[Path, bytes, Architecture]:
    """Find a run's weights, and what they were built for."""
    file = run_dir / "model" / "model.safetensors"
    card: object
    if file.exists():
        card_file = file.with_name("config.json")
        content, card = checkpoint.read_file(file), checkpoint.read_json(card_file)
    else:
        found, rejected = checkpoint.newest(run_dir / "checkpoints")
        if found is None:
            reasons = "".join(f"\n  {reason}" for reason in rejected)
            raise UserError(
                f"init_from: {run_dir}: neither a trained model nor a whole checkpoint there; "
                f"name a run's directory{reasons}"
            )
        file, card_file = found / "model.safetensors", run_dir / "run.json"
        content = checkpoint.read(found)[1][file.name]
        card = checkpoint.read_json(card_file).get("architecture")
    try:
        return file, content, Architecture.model_validate(card)
    except ValueError as error:
        raise UserError(f"{card_file}: damaged: {error}") from None


@torch.inference_mode()
def probabilities(model: nn.Module, values: Tensor, num_steps: int | None = None) -> Tensor:
    """Return the probabilities of all classes, float32 [B, C] on the CPU.

    `num_steps` shows the model that many of the first steps only.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BC = model(values.to(device), num_steps).float()
    model.train(training)
    chances_BC: Tensor = logits_BC.softmax(1).cpu()
    return chances_BC


def read_along(model: nn.Module, value: Tensor, ends: Iterable[int]) -> Tensor:
    """Return the probabilities after the first `ends` steps of one image or sequence, [E, C].

    A row is what the model says of these steps alone, whatever its pooling or direction.
    """
    return torch.cat([probabilities(model, value[None], end) for end in ends])


def predictions_text(model: nn.Module, sequences: Sequences, count: int) -> str:
    """Print as the tutorial does: the first predictions over the truth, errors marked."""
    count = min(count, len(sequences))
    guesses = probabilities(model, sequences.values[:count]).argmax(1).tolist()
    truths = sequences.labels[:count].tolist()
    names = sequences.classes
    width = max(len(names[i]) for i in (*guesses, *truths))
    marks = ["" if g == t else "^" for g, t in zip(guesses, truths, strict=True)]
    titled = (
        ("prediction ", [names[i] for i in guesses]),
        ("truth      ", [names[i] for i in truths]),
        ("           ", marks),
    )
    per_line = max(1, (WIDTH - len("prediction ")) // (width + 1))
    lines = []
    for start in range(0, count, per_line):
        for title, words in titled:
            row = " ".join(word.rjust(width) for word in words[start : start + per_line])
            lines.append(f"{title} {row}".rstrip())
    return "\n".join(lines).rstrip()


def reading_text(model: LSTMClassifier, sequences: Sequences, index: int) -> str:
    """Draw one image or sequence as it is read, with the model's guess and its probability so far.

    Each line is a step; of single pixels it is as many as a row of the image has.
    """
    image = sequences.values[index].cpu()
    values_TF = read_images(image[None], model.read)[0]
    num_steps, num_features = values_TF.shape
    width = image.shape[1] if model.read in ("pixels", "permuted") else num_features
    lines = values_TF.reshape(-1, width)
    per_line = num_steps // len(lines)
    brightness = (lines.float() / sequences.scale).clamp(0, 1)
    cells = (brightness * (len(SHADES) - 1)).round().int().tolist()
    guessed = read_along(model, image, range(per_line, num_steps + 1, per_line))
    chances, guesses = guessed.nan_to_num(0).max(1)  # a model that diverged can be shown too
    names = [sequences.classes[guess] for guess in guesses.tolist()]
    longest = max(map(len, names))
    bar_width = max(0, min(BAR_WIDTH, WIDTH - 2 * width - longest - len("||    100% ")))
    unit = {
        "rows": "row",
        "columns": "column",
        "pixels": f"{width} pixels",
        "permuted": f"{width} pixels in permuted order",
    }[model.read]
    truth = sequences.classes[int(sequences.labels[index])]
    text = [f"reading test example {index} (truth: {truth}), its guess after every {unit}:"]
    for row, name, chance in zip(cells, names, chances.tolist(), strict=True):
        picture = "".join(SHADES[cell] * 2 for cell in row)
        bar = "█" * round(chance * bar_width)
        text.append(f"|{picture}|  {name:<{longest}}  {chance:4.0%} {bar}".rstrip())
    return "\n".join(text)
