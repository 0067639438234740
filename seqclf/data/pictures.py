"""Pictures of examples: images as images, series as lines, tokens and text as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from seqclf.data.sequences import Sequences

MOST_POINTS = 500  # steps of a series that are drawn
MOST_FEATURES = 12  # lines of a series
LETTERS_A_LINE = 40
MOST_LETTERS = 400  # of a text


class Picture(BaseModel):
    """What there is to see of an example, as JSON keeps it."""

    kind: Literal["image", "text", "series"]
    values: Any
    """An image's rows, a text, or a row of features for each step kept of a series."""
    stride: int = 1
    """A series keeps every stride-th step."""


def take_picture(sequences: Sequences, index: int) -> Picture:
    """Take the picture of one example; a long series is thinned."""
    value = sequences[index][0].cpu()
    if sequences.starts is None:
        return Picture(kind="image", values=value.tolist())
    if sequences.num_tokens:
        ids = value[:MOST_LETTERS].tolist()
        names = ("?", *sequences.tokens)
        is_text = not sequences.tokens
        text = bytes(ids).decode("utf-8", "replace") if is_text else " ".join(names[i] for i in ids)
        return Picture(kind="text", values=text)
    stride = -(-len(value) // MOST_POINTS)
    kept = value[::stride, :MOST_FEATURES].double().tolist()
    rows = [[float(f"{number:.5g}") for number in row] for row in kept]
    return Picture(kind="series", values=rows, stride=stride)


def draw_picture(picture: Picture) -> bytes:
    """Draw a picture with its axes; return a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2), layout="constrained", dpi=80)
    axes = figure.subplots()
    values = picture.values
    if picture.kind == "image":
        axes.imshow(values, cmap="gray")
        axes.set_axis_off()
    elif picture.kind == "text":
        text = values[:MOST_LETTERS]
        lines = [text[i : i + LETTERS_A_LINE] for i in range(0, len(text), LETTERS_A_LINE)]
        axes.text(0, 1, "\n".join(lines), va="top", family="monospace", parse_math=False)
        axes.set_axis_off()
    else:
        steps = [1 + number * picture.stride for number in range(len(values))]
        for feature in zip(*values, strict=True):
            axes.plot(steps, feature, marker="." if len(values) < 20 else "")
        axes.set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
