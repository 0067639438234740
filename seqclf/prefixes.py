"""What a model says of a sequence or of its first steps, and the lines that draw these steps.

Shapes: B batch, N examples, T steps, F features, E prefixes, C classes.
"""

from __future__ import annotations

import codecs

import torch
from torch import Tensor

from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier, read_images

MOST_LETTERS = 30  # of a line of tokens or text


@torch.inference_mode()
def probabilities(model: LSTMClassifier, values: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the probabilities of all classes, [B, C] on the CPU."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BC = model(values.to(device), lengths)
    model.train(training)
    return to_probabilities(model, logits_BC)


def to_probabilities(model: LSTMClassifier, logits: Tensor) -> Tensor:
    """Return the probabilities of logits [..., C] on the CPU; the largest stays the largest.

    They are float32; float64 if the model's temperature is not 1, so that rounding makes no two of
    them equal. Denormal numbers are 0, because not every thread flushes these.
    """
    if model.temperature == 1:
        values = logits.float().softmax(-1).cpu()
    else:
        values = (logits.float().cpu().double() / model.temperature).softmax(-1)
    return values.masked_fill(values < torch.finfo(torch.float32).tiny, 0.0)


@torch.inference_mode()
def classify_prefixes(model: LSTMClassifier, values: Tensor, ends_BE: Tensor) -> Tensor:
    """Return the class probabilities after each row's first `ends_BE` steps, [B, E, C].

    They are what the model says of these steps alone, whatever its pooling or direction. Rows of
    `values` are padded up to the longest; `ends_BE` is int64, on the CPU.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BEC = model.classify_prefixes(model.steps(values.to(device)), ends_BE)
    model.train(training)
    return to_probabilities(model, logits_BEC)


def decided_at(guesses_NE: Tensor) -> Tensor:
    """Return the first prefix from which on each row's guess stays the same, int64 [N].

    >>> decided_at(torch.tensor([[1, 2, 2], [3, 3, 3], [1, 2, 1]])).tolist()
    [1, 0, 2]
    """
    changed_NE = guesses_NE[:, 1:] != guesses_NE[:, :-1]
    numbers_E = torch.arange(1, guesses_NE.shape[1], device=guesses_NE.device)
    zero_N1 = torch.zeros_like(guesses_NE[:, :1])
    return torch.cat([zero_N1, changed_NE * numbers_E], 1).amax(1)


def most_steps(model: LSTMClassifier, sequences: Sequences) -> int:
    """Return the steps of the longest example, as the model reads it."""
    if sequences.starts is not None:
        return sequences.shape[0]
    first_image = sequences.rows(slice(0, 1))[0]
    return model.steps(first_image).shape[1]


def step_name(model: LSTMClassifier, sequences: Sequences) -> str:
    """Return the word for one step: row, column or pixel of an image, else step."""
    if sequences.starts is not None:
        return "step"
    return {"rows": "row", "columns": "column"}.get(model.read, "pixel")


def line_ends(
    model: LSTMClassifier, sequences: Sequences, value: Tensor, most: int
) -> tuple[int, list[int]]:
    """Return how many steps a line of a drawing holds, and after which step each line ends.

    Of single pixels a line holds as many as a row of the image; of other steps it holds one, or as
    many as make at most `most` lines.
    """
    is_image = sequences.starts is None
    num_steps = len(read_images(value[None], model.read)[0]) if is_image else len(value)
    per_line = value.shape[1] if _reads_pixels(model) else -(-num_steps // most)
    return per_line, [*range(per_line, num_steps, per_line), num_steps]


def image_lines(model: LSTMClassifier, value: Tensor, ends: list[int]) -> Tensor:
    """Return what to draw on each line of an image: the step that ends it, or all its pixels."""
    steps_TF = model.steps(value[None])[0].float()
    if _reads_pixels(model):
        return steps_TF.reshape(len(ends), -1)
    return steps_TF[[end - 1 for end in ends]]


def _reads_pixels(model: LSTMClassifier) -> bool:
    return model.read in ("pixels", "permuted")


def token_lines(sequences: Sequences, value: Tensor, ends: list[int]) -> list[str]:
    """Return the tokens or the text on each line, cut to MOST_LETTERS."""
    lines = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a line may end within a letter
    for first, end in zip([0, *ends], ends, strict=False):
        ids = value[first:end].tolist()
        if sequences.tokens:
            names = ("?", *sequences.tokens)
            text = " ".join(names[token] for token in ids)
        else:
            text = decoder.decode(bytes(ids), final=end == ends[-1])
        printable = "".join(letter if letter.isprintable() else " " for letter in text)
        lines.append(printable[:MOST_LETTERS])
    return lines
