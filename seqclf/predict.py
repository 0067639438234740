"""Use a trained model: load it, predict, and watch it read a sequence step by step."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from seqclf import checkpoint
from seqclf.config import UserError
from seqclf.data.sequences import Sequences
from seqclf.model import Architecture, LSTMClassifier

SHADES = " .:-=+*#%@"  # dark to bright
BAR_WIDTH = 20


def load_model(run_dir: Path | str) -> tuple[LSTMClassifier, Architecture]:
    """Load the result of a run, on the CPU, ready to predict.

    Raises UserError if there is none or if it is damaged.
    """
    folder = Path(run_dir) / "model"
    try:
        text, content = [
            (folder / name).read_bytes() for name in ("config.json", "model.safetensors")
        ]
        card = Architecture.model_validate_json(text)
    except OSError as error:
        raise UserError(
            f"{folder}: no trained model there ({error.strerror}); name a finished run's directory"
        ) from None
    except ValidationError as error:
        raise UserError(f"{folder / 'config.json'}: damaged: {error}") from None
    model = card.build()
    place = str(folder / "model.safetensors")
    checkpoint.put(content, model.state_dict(), place)
    return model.eval(), card


@torch.inference_mode()
def probabilities(model: nn.Module, values_BTF: Tensor) -> Tensor:
    """Return the probabilities of all classes, float32 [B, C] on the CPU."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BC = model(values_BTF.to(device)).float()
    model.train(training)
    chances_BC: Tensor = logits_BC.softmax(1).cpu()
    return chances_BC


def read_along(model: nn.Module, values_TF: Tensor) -> Tensor:
    """Return the probabilities after each step of one sequence, [T, C].

    Row t is what the model says of the first t + 1 steps alone, whatever its pooling or direction.
    """
    prefixes = [values_TF[None, : t + 1] for t in range(len(values_TF))]
    return torch.cat([probabilities(model, prefix) for prefix in prefixes])


def predictions_text(model: nn.Module, sequences: Sequences, count: int) -> str:
    """Print as the tutorial does: the first predictions beside the truth."""
    count = min(count, len(sequences))
    guesses = probabilities(model, sequences.values[:count]).argmax(1).tolist()
    truths = sequences.labels[:count].tolist()
    names = sequences.classes
    width = max(len(names[i]) for i in (*guesses, *truths))
    rows = [
        f"{title} {' '.join(names[i].rjust(width) for i in row)}"
        for title, row in (("prediction ", guesses), ("truth      ", truths))
    ]
    marks = " ".join(
        " ".rjust(width) if g == t else "^".rjust(width)
        for g, t in zip(guesses, truths, strict=True)
    )
    return "\n".join([*rows, f"            {marks}".rstrip()]).rstrip()


def reading_text(model: nn.Module, sequences: Sequences, index: int) -> str:
    """Draw one sequence step by step, with the model's guess and its probability after each."""
    values_TF = sequences.values[index].cpu()
    guessed = read_along(model, values_TF)
    brightness = (values_TF.float() / sequences.scale).clamp(0, 1)
    cells = (brightness * (len(SHADES) - 1)).round().int().tolist()
    lines = []
    for row, chances in zip(cells, guessed, strict=True):
        picture = "".join(SHADES[cell] * 2 for cell in row)
        chance, guess = chances.nan_to_num(0).max(0)  # a model that diverged can be shown too
        bar = "█" * round(float(chance) * BAR_WIDTH)
        lines.append(
            f"|{picture}|  {sequences.classes[int(guess)]}  {float(chance):4.0%} {bar}".rstrip()
        )
    return "\n".join(lines)
