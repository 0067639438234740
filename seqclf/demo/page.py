"""What a page needs of a model: its weights, what it reads, and examples to try.

The page is one file. It holds the model of model.js, and makes no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from seqclf.data.readers.numbers import MISSING
from seqclf.data.readers.rows import count_of
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError, printable
from seqclf.inputs import num_features_of
from seqclf.model import Architecture, LSTMClassifier, permutation
from seqclf.predict import kind_of, named_features, predict_split
from seqclf.rocket import OUTSIDE, ROW_EPSILON, make_kernels
from seqclf.stepwise import reason_against

Kind = Literal["image", "series", "tokens", "text"]
MOST_BYTES = 20_000_000  # of a page; mail and browsers take as much
MOST_EXAMPLES = 30
MOST_NUMBERS = 60_000  # in all examples
MOST_NAMED = 8  # features in the page's head
TAKEN = (  # of an architecture, under the same names
    *("hidden_size", "num_layers", "bidirectional", "pooling", "stack", "dilations"),
    *("scale", "read", "max_length", "keep", "temperature", "mean", "std"),
)
INVITATIONS: dict[Kind, str] = {
    "image": "Draw something.",
    "series": "Paste a sequence: a step in a line, numbers separated by commas, blanks or tabs; "
    "or a table with a header line.",
    "tokens": "Type tokens, separated by blanks.",
    "text": "Type a text.",
}
BY_LINE = "Type tokens, one a line."


def make_page(
    model: LSTMClassifier,
    architecture: Architecture,
    test: Sequences | None,
    *,
    title: str,
    facts: list[str],
) -> tuple[str, list[str]]:
    """Return a page that runs a model, and what to say of it, in lines.

    `test` gives examples. Raises UserError for a model that a page cannot hold.
    """
    if architecture.reading.measured:
        raise UserError(
            "no page: the model reads which values were measured (seqclf prepare --measured), "
            "which a page cannot ask for"
        )
    notes = []
    parts = payload_of(model, architecture, test)
    facts = [*facts, f"It reads {in_words(architecture, parts)}."]
    page = render(parts, is_half=False, title=title, facts=facts)
    if len(page) > MOST_BYTES:
        page = render(parts, is_half=True, title=title, facts=facts)
        if len(page) > MOST_BYTES:
            raise UserError(
                f"no page: it would have {len(page) / 1e6:,.0f} MB, and {MOST_BYTES / 1e6:.0f} are "
                "the most; train a smaller model (--model.hidden_size), or use seqclf export"
            )
        notes.append(check_half(model, architecture, test))
    return page, notes


def check_half(model: LSTMClassifier, architecture: Architecture, test: Sequences | None) -> str:
    """Return a line about weights of 16 bits. Raises UserError if they change a prediction."""
    remedy = "train a smaller model (--model.hidden_size), or use seqclf export"
    if test is None or not len(test):
        raise UserError(
            "no page: with weights of 32 bits it is too large, and without test examples nobody "
            f"knows what 16 bits change; {remedy}"
        )
    half = architecture.build()
    half.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    pairs = zip(predict_split(model, test), predict_split(half.eval(), test), strict=True)
    num_changed = sum(one.guess != other.guess for one, other in pairs)
    if num_changed:
        raise UserError(
            f"no page: with weights of 32 bits it is too large, and weights of 16 bits change "
            f"{num_changed:,} of {len(test):,} test predictions; {remedy}"
        )
    return f"weights of 16 bits, which change none of {len(test):,} test predictions"


def payload_of(
    model: LSTMClassifier, architecture: Architecture, test: Sequences | None
) -> dict[str, Any]:
    """Return what the script of a page reads, but for the weights' numbers, which are tensors."""
    kind = find_kind(architecture)
    reading = architecture.reading
    spec: dict[str, Any] = {name: getattr(architecture, name) for name in TAKEN}
    spec |= {
        "width": architecture.embedding_size
        if architecture.num_tokens
        else architecture.input_size,
        "offset": reading.offset,
        "window": reading.window,
        "stride": reading.stride,
        "kernels": make_kernels().tolist() if model.rocket else [],
        "row_epsilon": ROW_EPSILON,
        "outside": OUTSIDE,
        "operations": 0 if model.rocket is None else model.rocket.operations_per_step,
        "streams": reason_against(architecture) is None and architecture.stack == 1,
    }
    found: dict[str, Any] = {
        "kind": kind,
        "spec": spec,
        "classes": [printable(name) for name in architecture.classes],
        "table": table_of(architecture) if kind == "series" else None,
        "tokens": architecture.tokens,
        "by_line": is_by_line(architecture),
        "lengths": None if kind == "image" or reading.window else architecture.lengths,
        "unit": unit_of(architecture),
        "invitation": BY_LINE if is_by_line(architecture) else INVITATIONS[kind],
        "examples": [] if test is None else list(examples_of(test, architecture)),
        "tensors": {name: value.detach() for name, value in model.state_dict().items()},
    }
    if kind == "image":
        found |= of_images(architecture, test)
        rows, columns = found["shape"]
        # An image is cut before its steps are read, which may be columns or pixels.
        found["most_rows"], spec["max_length"] = architecture.max_length, None
        num_pixels = min(rows, architecture.max_length or rows) * columns
        if architecture.read == "permuted":
            spec["permutation"] = permutation(num_pixels, torch.device("cpu")).tolist()
    return found


def table_of(architecture: Architecture) -> dict[str, Any]:
    """Return how table.js reads a table of sequences."""
    reading = architecture.reading
    return {
        "features": named_features(architecture) or (),
        "num_features": num_features_of(architecture),
        "missing": sorted(MISSING),
        "mean": architecture.mean,
        "offset": reading.offset,
        "id": reading.id,
        "time": reading.time,
        "fill_missing": reading.fill_missing,
        "pad_value": reading.pad_value,
    }


def in_words(architecture: Architecture, parts: dict[str, Any]) -> str:
    """Return what the model reads."""
    if parts["kind"] == "text":
        return "texts, byte by byte"
    if parts["kind"] == "tokens":
        return f"sequences of tokens, of which it knows {len(architecture.tokens):,}"
    if parts["kind"] == "series":
        num_features = num_features_of(architecture)
        names = [printable(name) for name in named_features(architecture) or ()]
        more = ", …" * (len(names) > MOST_NAMED)
        of_names = f": {', '.join(names[:MOST_NAMED])}{more}" * bool(names)
        return f"sequences of steps, each of {count_of(num_features, 'number')}{of_names}"
    rows, columns = parts["shape"]
    permuted = " in a fixed random order" * (architecture.read == "permuted")
    return f"images of {rows} x {columns} pixels, {parts['unit']} by {parts['unit']}{permuted}"


def find_kind(architecture: Architecture) -> Kind:
    """Return what a page asks for."""
    kind = kind_of(architecture)
    if kind != "features":
        return kind
    return "image" if architecture.scale != 1 or architecture.read != "rows" else "series"


def is_by_line(architecture: Architecture) -> bool:
    """Return whether tokens are typed one a line, because blanks stand within them."""
    return any(len(token.split()) != 1 for token in architecture.tokens)


def unit_of(architecture: Architecture) -> str:
    """Return the word for one step."""
    if find_kind(architecture) != "image":
        return {"text": "byte", "tokens": "token"}.get(kind_of(architecture), "step")
    return {"rows": "row", "columns": "column"}.get(architecture.read, "pixel")


def of_images(architecture: Architecture, test: Sequences | None) -> dict[str, Any]:
    """Return the shape of images, their brightest value, and where and how much ink they have.

    The ink is the mean over the pixels of an image, as a share of the brightest; the box holds the
    first and last rows and columns with ink. Both are medians over the test images.
    """
    if test is None or not len(test):
        raise UserError(
            "no page: without the images of the run nobody knows where drawings belong; name the "
            "directory of the run, and if they are elsewhere now, say where with --data.root"
        )
    images = test.values[:500].double()
    brightest = float(images.max()) or 1.0
    inked = images > brightest / 5
    boxes = [bounds(one) for one in inked if one.any()]
    box = np.median(boxes, axis=0).tolist() if boxes else [0, 0, *images.shape[1:]]
    return {
        "shape": list(images.shape[1:]),
        "brightest": architecture.scale if architecture.scale > 1 else brightest,
        "box": box,
        "ink": float(images.mean((1, 2)).median() / brightest),
    }


def bounds(inked: Tensor) -> tuple[int, int, int, int]:
    """Return the top, left, bottom and right of what is True, [rows, columns]."""
    rows, columns = inked.any(1).nonzero(), inked.any(0).nonzero()
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def examples_of(test: Sequences, architecture: Architecture) -> Iterator[dict[str, Any]]:
    """Yield test examples, of each class in turn, as the page takes what a person enters."""
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(test.labels.tolist()):
        of_class.setdefault(label, []).append(index)
    turns = [
        indices[turn]
        for turn in range(MOST_EXAMPLES)
        for _, indices in sorted(of_class.items())
        if turn < len(indices)
    ]
    num_numbers = 0
    for index in turns[:MOST_EXAMPLES]:
        value = test[index][0].cpu()
        num_numbers += value.numel()
        if num_numbers > MOST_NUMBERS and index != turns[0]:
            return
        truth = test.classes[int(test.labels[index])]
        yield {
            "title": test.title(index),
            "truth": printable(truth),
            "values": raw(value, architecture),
        }


def raw(value: Tensor, architecture: Architecture) -> object:
    """Return an example of a data set as files had it."""
    if architecture.tokens:
        unknown = "?"
        while unknown in architecture.tokens:
            unknown += "?"
        names = (unknown, *architecture.tokens)
        separator = "\n" if is_by_line(architecture) else " "
        return separator.join(names[token] for token in value.tolist())
    if architecture.num_tokens:
        return bytes(value.tolist()).decode("utf-8", "replace")
    if not value.is_floating_point():
        return value.tolist()
    steps_TF = value.double().numpy()[:, : num_features_of(architecture)]
    if architecture.reading.offset:
        return (steps_TF + np.array(architecture.reading.offset)).tolist()
    # As many digits as a number of 32 bits has.
    return [[float(str(number)) for number in row] for row in value.numpy()]


def render(parts: dict[str, Any], *, is_half: bool, title: str, facts: list[str]) -> str:
    """Fill the template; names from data are text, wherever they stand."""
    dtype = "<f2" if is_half else "<f4"
    places, content = {}, b""
    for name, value in parts["tensors"].items():
        places[name] = (len(content) // np.dtype(dtype).itemsize, value.numel())
        content += value.float().cpu().numpy().astype(dtype).tobytes()
    weights = base64.b64encode(content).decode()
    payload = json.dumps(parts | {"tensors": places, "weights": weights, "half": is_half})
    folder = Path(__file__).parent
    shared = folder.parent / "report"
    script = "\n".join(
        file.read_text(encoding="utf-8")
        for file in (
            shared / "shared.js",
            *(folder / name for name in ("model.js", "table.js", "page.js")),
        )
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        facts=facts,
        kind=parts["kind"],
        unit=parts["unit"],
        invitation=parts["invitation"],
        num_examples=len(parts["examples"]),
        payload=Markup(payload.replace("<", "\\u003c")),  # no end of the script in a name
        style=Markup((shared / "shared.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )
