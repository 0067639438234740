"""The model reading: what it says after every step, in the terminal and on a page."""

from __future__ import annotations

import codecs
import statistics
from typing import Any

import torch
from torch import Tensor

from seqclf import figures
from seqclf.data.batches import MAX_EVAL_STEPS
from seqclf.data.sequences import Sequences
from seqclf.evaluate import wilson
from seqclf.model import LSTMClassifier, read_images
from seqclf.predict import WIDTH

SHADES = " .:-=+*#%@"  # dark to bright
BAR_WIDTH = 20  # at most, and what is left of
MOST_LINES, MOST_FEATURES, MOST_LETTERS = 32, 28, 30  # of a picture in the terminal
MOST_FLOP = 2e10  # of the reading over many examples, half a second of a small CPU
FEWEST_READ, AT_ONCE, MOST_SHARES = 20, 250, 40
MOST_LINES_DRAWN, MOST_COLUMNS, OF_A_KIND = 100, 10, 3  # of a reading on a page
MOST_CLASSES = 30  # in a figure with a row for each


@torch.inference_mode()
def read_along(model: LSTMClassifier, values: Tensor, ends_BE: Tensor) -> Tensor:
    """Return the probabilities after each row's first `ends_BE` steps, float32 [B, E, C].

    They are what the model says of these steps alone, whatever its pooling or direction. Rows of
    `values` are padded up to the longest; `ends_BE` is int64, on the CPU.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BEC = model.along(model.steps(values.to(device)), ends_BE).float()
    model.train(training)
    chances_BEC: Tensor = logits_BEC.softmax(2).cpu()
    return chances_BEC


# ---- in the terminal


def reading_text(model: LSTMClassifier, sequences: Sequences, index: int) -> str:
    """Draw one image or sequence as it is read, with the model's guess and its probability so far.

    Each line is a step; of single pixels it is as many as a row of the image has, and of a long
    sequence as many as make MOST_LINES.
    """
    value = sequences[index][0].cpu()
    flat = model.read in ("pixels", "permuted")
    per_line, ends = line_ends(model, sequences, value, MOST_LINES)
    guessed = read_along(model, value[None], torch.tensor([ends]))[0]
    chances, guesses = guessed.nan_to_num(0).max(1)  # a model that diverged can be shown too
    names = [sequences.classes[guess] for guess in guesses.tolist()]
    longest = max(map(len, names))
    if sequences.num_tokens:
        pictures = token_lines(sequences, value, ends)
    else:
        pictures = _shaded_lines(model, sequences, value, ends)
    width = max(map(len, pictures))
    bar_width = max(0, min(BAR_WIDTH, WIDTH - width - longest - len("||    100% ")))
    unit = {
        "rows": "row" if sequences.starts is None else "step",
        "columns": "column",
        "pixels": f"{per_line} pixels",
        "permuted": f"{per_line} pixels in permuted order",
    }[model.read]
    if per_line > 1 and not flat:
        unit = f"{per_line} {unit}s"
    truth = sequences.classes[int(sequences.labels[index])]
    text = [f"reading test example {index} (truth: {truth}), its guess after every {unit}:"]
    for picture, name, chance in zip(pictures, names, chances.tolist(), strict=True):
        bar = "█" * round(chance * bar_width)
        text.append(f"|{picture:<{width}}|  {name:<{longest}}  {chance:4.0%} {bar}".rstrip())
    return "\n".join(text)


def line_ends(
    model: LSTMClassifier, sequences: Sequences, value: Tensor, most: int
) -> tuple[int, list[int]]:
    """Return the steps that a line of a picture takes, and after which of them each line ends.

    That is one; of single pixels as many as a row has; of a long sequence as many as make `most`.
    """
    is_image = sequences.starts is None
    num_steps = len(read_images(value[None], model.read)[0]) if is_image else len(value)
    flat = model.read in ("pixels", "permuted")
    per_line = value.shape[1] if flat else -(-num_steps // most)
    return per_line, [*range(per_line, num_steps, per_line), num_steps]


def _shaded_lines(
    model: LSTMClassifier, sequences: Sequences, value: Tensor, ends: list[int]
) -> list[str]:
    """Draw features dark to bright: images as they are, else two deviations about the mean."""
    if sequences.starts is None:
        lines = image_lines(model, value, ends) / sequences.scale
    else:
        lines = (model.cpu().embed(value[None])[0][[end - 1 for end in ends]] + 2) / 4
    lines = lines[:, :MOST_FEATURES]
    cells = (lines.clamp(0, 1).nan_to_num(0) * (len(SHADES) - 1)).round().int().tolist()
    return ["".join(SHADES[cell] * 2 for cell in row) for row in cells]


def image_lines(model: LSTMClassifier, value: Tensor, ends: list[int]) -> Tensor:
    """Return what is read of an image up to each line's end: a step, or the pixels since then."""
    steps_TF = model.steps(value[None])[0].float()
    flat = model.read in ("pixels", "permuted")
    return steps_TF.reshape(len(ends), -1) if flat else steps_TF[[end - 1 for end in ends]]


def token_lines(sequences: Sequences, value: Tensor, ends: list[int]) -> list[str]:
    """Write the tokens or the text that each line adds, cut to MOST_LETTERS."""
    lines = []
    letters = codecs.getincrementaldecoder("utf-8")("replace")  # a line may end within a letter
    for first, end in zip([0, *ends], ends, strict=False):
        ids = value[first:end].tolist()
        if sequences.tokens:
            names = ("?", *sequences.tokens)
            text = " ".join(names[token] for token in ids)
        else:
            text = letters.decode(bytes(ids), final=end == ends[-1])
        printable = "".join(letter if letter.isprintable() else " " for letter in text)
        lines.append(printable[:MOST_LETTERS])
    return lines


# ---- on a page


def watch_reading(model: LSTMClassifier, test: Sequences, drawn: dict[str, str]) -> dict[str, Any]:
    """Have the model read test examples: some drawn, many counted."""
    ids = spread(model, test)
    shares, chances_NEC = read_shares(model, test, ids)
    labels, guesses_NE = test.labels[ids].cpu(), chances_NEC.argmax(2)
    n, right_NE = len(ids), guesses_NE == labels[:, None]
    hits = right_NE.sum(0).tolist()
    xlabel, xs = "share of the sequence read (%)", [100 * share for share in shares]
    if test.lengths is None or int(test.lengths.min()) == int(test.lengths.max()):
        steps, count = num_steps_of(model, test), len(shares)
        xlabel, xs = "steps read", [-(-part * steps // count) for part in range(1, count + 1)]
    drawn["reading-share"] = figures.share_curve(
        xs, [hit / n for hit in hits], [wilson(hit, n) for hit in hits], xlabel
    )
    decided_N = decided_at(guesses_NE)
    points = {
        number: [xs[i] for i in decided_N[(labels == number) & right_NE[:, -1]].tolist()]
        for number in range(len(test.classes))
    }
    shown = sorted((k for k, v in points.items() if v), key=lambda k: statistics.median(points[k]))
    if len(shown) > MOST_CLASSES:
        shown = shown[: MOST_CLASSES // 2] + shown[-MOST_CLASSES // 2 :]
    if shown:
        names = [test.classes[number] for number in shown]
        drawn["reading-decided"] = figures.decisions(
            names, [points[k] for k in shown], xs[-1], xlabel
        )
    told: dict[int, dict[str, Any]] = {}  # an example is drawn once
    for kind, places in kinds(chances_NEC[:, -1], labels).items():
        new = [index for index in ids[places].tolist() if index not in told][:OF_A_KIND]
        told |= {index: read_one(model, test, index, kind, drawn) for index in new}
    return {"read_n": n, "test_n": len(test), "readings": list(told.values())}


def kinds(chances_NC: Tensor, labels_N: Tensor) -> dict[str, Tensor]:
    """Return which examples are worth looking at, by what is to be seen, the best first."""
    most_N, guess_N = chances_NC.nan_to_num(0).max(1)
    right_N = guess_N == labels_N
    order = most_N.argsort(descending=True, stable=True)
    return {
        "right": right_N.nonzero()[:, 0],
        "wrong, and most sure": order[~right_N[order]],
        "unsure": order.flip(0),
    }


def num_steps_of(model: LSTMClassifier, test: Sequences) -> int:
    """Return the steps of the longest example."""
    return model.steps(test.rows(slice(0, 1))[0]).shape[1] if test.starts is None else test.shape[0]


def spread(model: LSTMClassifier, test: Sequences) -> Tensor:
    """Choose the examples that are read, evenly over the split: all, or what MOST_FLOP allows."""
    steps = num_steps_of(model, test)
    times = min(steps, MOST_SHARES) / 2 if model.reads_prefixes_anew else 1
    flop = 2 * steps / model.stack * times * sum(p.numel() for p in model.parameters())
    count = min(len(test), max(FEWEST_READ, int(MOST_FLOP / flop)))
    return torch.arange(count) * len(test) // count


def read_shares(model: LSTMClassifier, test: Sequences, ids: Tensor) -> tuple[list[float], Tensor]:
    """Return the shares of a sequence read, and the probabilities after each, [N, E, C]."""
    count = min(num_steps_of(model, test), MOST_SHARES)
    parts = torch.arange(1, count + 1)
    found = []
    at_once = min(AT_ONCE, max(1, MAX_EVAL_STEPS // num_steps_of(model, test)))
    for some in ids.split(at_once):
        values, lengths = test.rows(some)
        if lengths is None:
            lengths = torch.full([len(some)], model.steps(values).shape[1])
        ends_BE = -(-lengths[:, None] * parts // count)  # rounded up: at least one step
        found.append(read_along(model, values, ends_BE))
    return [part / count for part in range(1, count + 1)], torch.cat(found)


def decided_at(guesses_NE: Tensor) -> Tensor:
    """Return where each row took its last value for good, int64 [N].

    >>> decided_at(torch.tensor([[1, 2, 2], [3, 3, 3], [1, 2, 1]])).tolist()
    [1, 0, 2]
    """
    changed_NE = guesses_NE[:, 1:] != guesses_NE[:, :-1]
    places_E = torch.arange(1, guesses_NE.shape[1], device=guesses_NE.device)
    zero_N1 = torch.zeros_like(guesses_NE[:, :1])
    return torch.cat([zero_N1, changed_NE * places_E], 1).amax(1)


def read_one(
    model: LSTMClassifier, test: Sequences, index: int, kind: str, drawn: dict[str, str]
) -> dict[str, Any]:
    """Draw an example being read, and say in words what happened."""
    value = test[index][0].cpu()
    per_line, ends = line_ends(model, test, value, MOST_LINES_DRAWN)
    chances_EC = read_along(model, value[None], torch.tensor([ends]))[0].nan_to_num(0)
    truth, guesses = int(test.labels[index]), chances_EC.argmax(1)
    final = int(guesses[-1])
    is_image, is_series = test.starts is None, test.starts is not None and not test.num_tokens
    if is_image:
        shown: dict[str, Any] = {"values": image_lines(model, value, ends).tolist()}
    elif is_series:
        shown = figures.capture(test, index)
    else:
        shown = {"values": token_lines(test, value, ends)}
    columns = list(range(len(test.classes)))
    if len(columns) > MOST_COLUMNS:
        peaks = chances_EC.amax(0)
        peaks[[truth, final]] = 2.0
        columns = sorted(peaks.topk(MOST_COLUMNS).indices.tolist())
    name = f"reading-example-{index}"
    drawn[name] = figures.reading(
        shown,
        chances_EC[:, columns].tolist(),
        ends,
        [test.classes[number] for number in columns],
        across=is_series or model.read == "columns",
        is_image=is_image,
    )
    changes = int((guesses[1:] != guesses[:-1]).sum())
    decided = ends[int(decided_at(guesses[None])[0])]
    unit = {"rows": "row" if is_image else "step", "columns": "column"}.get(model.read, "pixel")
    told = f"says {test.classes[final]} ({float(chances_EC[-1].max()):.0%}) "
    told += f"for good from {unit} {decided} of {ends[-1]} on"
    told += f", after {changes} change{'s' * (changes != 1)} of mind" if changes else ""
    told += f"; drawn every {per_line} {unit}s" if per_line > 1 else ""
    return {
        "figure": name,
        "kind": kind,
        "index": index,
        "truth": test.classes[truth],
        "told": told,
    }
