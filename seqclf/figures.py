"""Pictures of examples: images as images, series as lines, tokens and text as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqclf.data.sequences import Sequences

MOST_POINTS, MOST_FEATURES = 500, 12  # of a series, and the lines of it
LETTERS_A_LINE, MOST_LETTERS = 40, 400


def capture(sequences: Sequences, index: int) -> dict[str, Any]:
    """Return what there is to see of an example, for JSON: its kind and values.

    A long series is thinned to every `stride`-th step.
    """
    value = sequences[index][0].cpu()
    if sequences.starts is None:
        return {"kind": "image", "values": value.tolist()}
    if sequences.num_tokens:
        ids = value[:MOST_LETTERS].tolist()
        names = ("?", *sequences.tokens)
        text = " ".join(names[i] for i in ids) if sequences.tokens else None
        return {
            "kind": "text",
            "values": bytes(ids).decode("utf-8", "replace") if text is None else text,
        }
    stride = -(-len(value) // MOST_POINTS)
    kept = value[::stride, :MOST_FEATURES].double().tolist()
    rows = [[float(f"{number:.5g}") for number in row] for row in kept]
    return {"kind": "series", "values": rows, "stride": stride}


def draw(example: dict[str, Any]) -> bytes:
    """Draw an example of evaluation/SPLIT.json; return a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2), layout="constrained", dpi=80)
    axes = figure.subplots()
    values = example["values"]
    if example["kind"] == "image":
        axes.imshow(values, cmap="gray")
        axes.set_axis_off()
    elif example["kind"] == "text":
        text = values[:MOST_LETTERS]
        lines = [text[i : i + LETTERS_A_LINE] for i in range(0, len(text), LETTERS_A_LINE)]
        axes.text(0, 1, "\n".join(lines), va="top", family="monospace", parse_math=False)
        axes.set_axis_off()
    else:
        steps = [1 + number * example["stride"] for number in range(len(values))]
        for feature in zip(*values, strict=True):
            axes.plot(steps, feature, marker="." if len(values) < 20 else "")
        axes.set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
