"""Small pictures of examples, as HTML: an image, the lines of a series, or a text."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from seqclf.data.pictures import Picture
from seqclf.report.figures import COLOURS

MOST_POINTS = 40  # of a line
WIDE, HIGH = 120, 60
LEAST_LANE = 9  # the height of a feature's lane where there are many


def thumbnail(picture: Picture, label: str) -> Markup:
    """Draw a picture; each feature of a series has a lane, in its colour and its own scale."""
    if picture.kind == "text":
        return Markup('<p class="text">{}</p>').format(picture.values)
    if picture.kind == "image":
        return Markup('<img class="image" width="100%" src="{}" alt="{}">').format(
            png_url(picture.values), label
        )
    lane = max(LEAST_LANE, HIGH // len(picture.values[0]))
    lines = scaled(picture.values, MOST_POINTS, lane - 2)
    drawn = Markup("").join(
        Markup('<path d="{}" stroke="{}"/>').format(
            _path(heights, lane * (number + 1) - 1), COLOURS[number % len(COLOURS)]
        )
        for number, heights in enumerate(lines)
    )
    return Markup(
        '<svg class="series" viewBox="-1 -1 {} {}" role="img" aria-label="{}" fill="none">{}</svg>'
    ).format(WIDE + 2, lane * len(lines) + 2, label, drawn)


def scaled(rows: list[list[float]], most: int, high: int) -> list[list[int]]:
    """Return a line for each feature: at most `most` values from 0, its lowest one, to `high`.

    >>> scaled([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], 10, 60)
    [[0, 30, 60], [30, 30, 30]]
    """
    kept = rows[:: -(-len(rows) // most)]
    lines = []
    for values in zip(*kept, strict=True):
        low, high_value = min(values), max(values)
        span = high_value - low
        lines.append(
            [round(high * (value - low) / span) if span else high // 2 for value in values]
        )
    return lines


def _path(heights: list[int], bottom: int) -> str:
    """Return a line as the d of a path, in relative moves, which are short."""
    xs = [round(WIDE * place / max(1, len(heights) - 1)) for place in range(len(heights))]
    points = [(x, bottom - height) for x, height in zip(xs, heights, strict=True)]
    moves = [f"l{x - old_x} {y - old_y}" for (old_x, old_y), (x, y) in pairwise(points)]
    first_x, first_y = points[0]
    return f"M{first_x} {first_y}{''.join(moves) or 'h1'}"


def png_url(values: Any) -> str:
    """Draw an image, its lowest value black and its highest white; return a PNG as a data URL."""
    pixels = np.nan_to_num(np.array(values, dtype=float))
    pixels -= pixels.min()
    content = io.BytesIO()
    grey = np.rint(255 * pixels / (pixels.max() or 1)).astype(np.uint8)
    Image.fromarray(grey).save(content, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
