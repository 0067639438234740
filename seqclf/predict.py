"""Use a trained model: load it, and predict."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor, nn

from seqclf import checkpoint
from seqclf.config import UserError
from seqclf.data.batches import MAX_EVAL_STEPS, evaluation_batches
from seqclf.data.readers import Bad, Reading, Row, read
from seqclf.data.sequences import Sequences
from seqclf.hardware import flush_denormals
from seqclf.model import Architecture, LSTMClassifier, read_images

WIDTH = 80  # columns of a terminal
AT_ONCE = 256  # rows of a file, at most, in memory
SIZES = {  # what shapes the weights, but for the output layer: the setting that decides it
    "input_size": "data.name or data.read",
    "hidden_size": "model.hidden_size",
    "num_layers": "model.num_layers",
    "bidirectional": "model.bidirectional",
    "stack": "model.stack",
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
    try:
        file, content, theirs = _find_weights(run_dir)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
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


def load_newest(run_dir: Path) -> tuple[LSTMClassifier, Path]:
    """Load a run's result, or its newest checkpoint where it has none yet; say from which file.

    Raises UserError if there is neither.
    """
    file, content, card = _find_weights(run_dir)
    model = card.build()
    checkpoint.put(content, model.state_dict(), str(file))
    return model.eval(), file


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
                f"{run_dir}: neither a trained model nor a whole checkpoint there; "
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
def probabilities(model: nn.Module, values: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the probabilities of all classes, float32 [B, C] on the CPU."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    logits_BC = model(values.to(device), lengths).float()
    model.train(training)
    chances_BC: Tensor = logits_BC.softmax(1).cpu()
    return chances_BC


# ---- predicting a file


def predict_file(
    run_dir: Path,
    path: Path,
    out: Path | None,
    reading: Reading,
    file_format: str | None,
    *,
    skip: bool,
) -> int:
    """Write the class and all probabilities of each row of a file, in its order.

    Returns the exit code: 0, or 2 if rows could not be used, unless they are to be skipped; each of
    them is told on stderr. The file `out` appears when it is whole. Raises UserError.
    """
    kind = out.suffix if out else ".csv"
    if kind not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: expected a name that ends in .csv or .jsonl")
    model, card = load_model(run_dir)
    flush_denormals()
    if torch.cuda.is_available():
        model.cuda()
    rows = read(path, reading, format=file_format)
    good = bad = hits = labelled = known = 0
    with _written(out) as file:
        writer = csv.writer(file)
        if kind == ".csv":
            writer.writerow(["id", "class", *(f"p({name})" for name in card.classes)])
        for row, chances in predict_rows(model, card, rows):
            if isinstance(row, Bad) or chances is None:
                problem = row.problem if isinstance(row, Bad) else "?"
                print(f"left out: {row.where}: {problem}", file=sys.stderr)
                bad += 1
                continue
            guess = card.classes[max(range(len(chances)), key=chances.__getitem__)]
            good, labelled = good + 1, labelled + bool(row.label)
            hits, known = hits + (row.label == guess), known + (row.label in card.classes)
            if kind == ".csv":
                writer.writerow([row.id, guess, *(f"{chance:.6g}" for chance in chances)])
            else:
                named = dict(zip(card.classes, chances, strict=True))
                found = {"id": row.id, "class": guess, "probabilities": named}
                file.write(json.dumps(found) + "\n")
    said = f"{good:,} predictions" + f" in {out}" * (out is not None)
    if labelled:
        said += f"; {hits / labelled:.2%} of the {labelled:,} labels in the input agree"
    if bad:
        said += f"; {bad:,} rows were left out, see above"
    if labelled and not known:
        said += "\nnote: none of the labels in the input is a class of the model; are they labels?"
    print(said, file=sys.stderr)
    return 0 if skip or not bad else 2


@contextmanager
def _written(out: Path | None) -> Iterator[TextIO]:
    """Give a text file that becomes `out` at the end, or standard output."""
    if out is None:
        yield sys.stdout
        return
    staging = out.with_name(f".{out.name}.partial")
    try:
        with staging.open("w", encoding="utf-8", newline="") as file:
            yield file
        staging.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write it: {error.strerror or error}") from None
    finally:
        staging.unlink(missing_ok=True)


def predict_rows(
    model: LSTMClassifier, card: Architecture, rows: Iterable[Row | Bad]
) -> Iterator[tuple[Row | Bad, list[float] | None]]:
    """Yield each row with its classes' probabilities, or a bad one with None, in their order."""
    known = {name: number for number, name in enumerate(card.tokens, 1)}
    waiting: list[tuple[Row | Bad, Tensor | None]] = []
    num_steps = 0
    for row in rows:
        value = None if isinstance(row, Bad) else to_values(row, card, known)
        if isinstance(value, str):
            row, value = Bad(row.where, value), None
        waiting.append((row, value))
        num_steps += 0 if value is None else len(value)
        if len(waiting) == AT_ONCE or num_steps > MAX_EVAL_STEPS:
            yield from _predict_together(model, card, waiting)
            waiting, num_steps = [], 0
    yield from _predict_together(model, card, waiting)


def to_values(row: Row, card: Architecture, known: dict[str, int]) -> Tensor | str:
    """Return a row as the model's training data were, [T, F] or tokens [T], or what is wrong."""
    steps = row.steps
    wanted = "features" if not card.num_tokens else "tokens" if card.tokens else "text"
    kind = "tokens" if isinstance(steps, tuple) else "text" if steps.ndim == 1 else "features"
    if kind != wanted:
        return f"{kind}, where the model reads {wanted}"
    if isinstance(steps, tuple):
        return torch.tensor([known.get(token, 0) for token in steps])
    if row.features and card.features and row.features != card.features:
        if lacking := [name for name in card.features if name not in row.features]:
            return f"no feature {', '.join(lacking)}, which the model was trained on"
        steps = steps[:, [row.features.index(name) for name in card.features]]
    value = torch.from_numpy(np.ascontiguousarray(steps))
    if kind == "features":
        found = read_images(value[None], card.read).shape[2]
        if found != card.input_size:
            return f"{found} features a step, where the model reads {card.input_size}"
    return value


def _predict_together(
    model: LSTMClassifier, card: Architecture, waiting: list[tuple[Row | Bad, Tensor | None]]
) -> Iterator[tuple[Row | Bad, list[float] | None]]:
    values = [value for _, value in waiting if value is not None]
    found: list[list[float]] = [[]] * len(values)
    if values:
        lengths = torch.tensor([len(value) for value in values])
        sequences = Sequences(
            torch.cat(values),
            torch.zeros_like(lengths),
            card.classes,
            starts=lengths.cumsum(0) - lengths,
            lengths=lengths,
        ).cut(card.max_length, card.keep)
        one_size = card.read == "rows" or bool((lengths == lengths[0]).all())
        size = AT_ONCE if one_size else 1  # images of unequal sizes
        for ids in evaluation_batches(sequences.lengths, 0, len(values), size):
            chances = probabilities(model, *sequences.rows(ids)).tolist()
            for place, row in zip(torch.arange(len(values))[ids].tolist(), chances, strict=True):
                found[place] = row
    good = iter(found)
    for row, value in waiting:
        yield row, None if value is None else next(good)


# ---- for people


def predictions_text(model: nn.Module, sequences: Sequences, count: int) -> str:
    """Print as the tutorial does: the first predictions over the truth, errors marked."""
    count = min(count, len(sequences))
    guesses = probabilities(model, *sequences.rows(slice(count))).argmax(1).tolist()
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
