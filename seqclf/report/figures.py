"""The figures of a report: SVG, as wide as a phone, so that a page sets them side by side.

Shapes: E ends of lines, C classes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from seqclf.data.pictures import Picture

INK = "#1f2429"  # a page replaces it by its own colour of text
PAPER = "#fdfdfd"  # a page replaces it by nothing
COLOURS = ("#3b82f6", "#e8833a", "#2a9d63", "#d64550", "#8b6fd6", "#b08a1e", "#1b9aaa", "#c2589a")
WIDTH, HEIGHT = 4.2, 2.8  # inches of 72 points
MOST_LETTERS = 16  # of a label
MOST_NUMBERS = 15  # classes of a confusion matrix whose cells show their counts
MOST_BLOCKS = 150  # of a curve
LEAST_OF_LOG = 5  # times the lowest value is the highest one, or a logarithmic axis has few numbers
MOST_MARKED_POINTS = 40  # a curve of fewer points marks each of them
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "seqclf",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
PLAIN: dict[str, Any] = {"aspect": "auto", "interpolation": "none"}
# A page finds a map by its gid, and inverts it where the page is dark.
HEAT: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1, "gid": "heat", **PLAIN}

Point = tuple[int, float]  # a step and a value


class Reading(NamedTuple):
    """An example, and the class probabilities after each line of its picture."""

    picture: Picture
    """Of an image or a text its values are the lines; of a series they are its steps."""
    probabilities: list[list[float]]
    """After each line, [E, C]."""
    ends: list[int]
    """The step after which each line ends, counted from 1."""
    classes: list[str]

    @property
    def span(self) -> tuple[float, float]:
        """Where the axis of time begins and ends: half a step around whole lines."""
        return 0.5, 0.5 + self.ends[0] * len(self.ends)


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Figure]:
    """Give a figure to draw on, in the style of the report; `to_svg` belongs in the body too."""
    with rc_context(STYLE), warnings.catch_warnings():
        # matplotlib warns of letters that its own font lacks, but a browser chooses the font.
        warnings.simplefilter("ignore")
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> str:
    """Return a figure as SVG, the same text every time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def printable(name: str) -> str:
    """Return a name from the data without the letters that no figure can hold."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )


def short_label(name: str) -> str:
    """Return a name from the data as it fits into a figure: printable and short."""
    name = printable(name)
    if len(name) <= MOST_LETTERS:
        return name
    # The middle is left out, because names often begin alike.
    return f"{name[:6]}…{name[7 - MOST_LETTERS :]}"


def short_labels(names: Sequence[str]) -> list[str]:
    """Return names as they fit into a figure; long ones lose the words that all begin with.

    >>> short_labels(["gesture up at 1 Hz", "gesture left at 1 Hz"])
    ['…up at 1 Hz', '…left at 1 Hz']
    """
    names = [printable(name) for name in names]
    if len(names) > 1 and max(map(len, names)) > MOST_LETTERS:
        ends = zip(min(names), max(names), strict=False)  # what these share all names share
        shared = "".join(a for a, _ in takewhile(lambda letters: letters[0] == letters[1], ends))
        words = re.match(r".*[ _./-]", shared)
        names = [f"…{name[words.end() :]}" if words else name for name in names]
    return [short_label(name) for name in names]


def in_blocks(
    points: list[Point], most: int = MOST_BLOCKS
) -> list[tuple[float, float, float, float]]:
    """Return step, mean, lowest and highest value of each block of points, at most `most` blocks.

    >>> in_blocks([(1, 0.5), (2, 1.0), (3, 3.0)], most=2)
    [(1.5, 0.75, 0.5, 1.0), (3.0, 3.0, 3.0, 3.0)]
    """
    size = -(-len(points) // most)
    blocks = [tuple(zip(*points[i : i + size], strict=True)) for i in range(0, len(points), size)]
    return [(fmean(steps), fmean(values), min(values), max(values)) for steps, values in blocks]


def is_for_log(values: Collection[float]) -> bool:
    """Return whether a logarithmic axis shows values well: they are positive, and span enough.

    >>> is_for_log([0.1, 0.5]), is_for_log([0.8, 1.6]), is_for_log([0.0, 9.0])
    (True, False, False)
    """
    return min(values) > 0 and max(values) >= LEAST_OF_LOG * min(values)


def plain_log_axis(axis: Axis, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Write the numbers of a logarithmic axis plainly: 0.01, not a power of ten."""
    axis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _rotation(names: list[str]) -> int:
    """Return by how many degrees to turn labels below an axis, so that long ones stay apart."""
    return 90 if max(map(len, names)) > 2 else 0


def draw_reliability(calibration: list[list[float]]) -> str:
    """Draw accuracy over confidence by bin (`Evaluation.calibration`), and how many are in each."""
    with canvas() as figure:
        top, bottom = figure.subplots(2, height_ratios=[3, 1], sharex=True)
        width = 1 / len(calibration)
        edges = [number * width for number in range(len(calibration))]
        accuracies = [hits / count if count else 0 for count, hits, _ in calibration]
        counts = [count for count, *_ in calibration]
        bars: dict[str, Any] = {"align": "edge", "edgecolor": PAPER}
        top.bar(edges, accuracies, width, color=COLOURS[0], alpha=0.8, **bars)
        top.plot([0, 1], [0, 1], ls="--", lw=1, color=INK)
        top.set_ylabel("accuracy")
        bottom.bar(edges, counts, width, color=COLOURS[1], **bars)
        bottom.set_yscale("log")
        plain_log_axis(bottom.yaxis, subs=(1,))
        bottom.set_ylabel("examples")
        bottom.set_xlabel("confidence")
        bottom.set_xlim(0, 1)
        return to_svg(figure)


def draw_share_curve(
    xs: list[float], accuracies: list[float], *, bounds: list[tuple[float, float]], xlabel: str
) -> str:
    """Draw accuracy over how much was read, with its confidence band."""
    with canvas() as figure:
        axes = figure.subplots()
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(xs, lows, highs, color=COLOURS[0], alpha=0.25, lw=0)
        marker = "." if len(xs) < MOST_MARKED_POINTS else ""
        axes.plot(xs, accuracies, marker=marker, color=COLOURS[0], clip_on=False)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("accuracy")
        axes.set_ylim(0, 1)
        return to_svg(figure)


def draw_early(points: list[tuple[float, float, float]]) -> str:
    """Draw accuracy over earliness: a point for each threshold, which stands beside it."""
    with canvas() as figure:
        axes = figure.subplots()
        xs, ys, _ = zip(*points, strict=True)
        axes.plot(xs, ys, marker=".", color=COLOURS[0], clip_on=False)
        taken: list[float] = []
        for x, y, threshold in points:
            if all(abs(x - other) > 0.08 for other in taken):  # labels would cover each other
                axes.annotate(f"{threshold:g}", (x, y), (3, -11), textcoords="offset points")
                taken.append(x)
        axes.set_xlabel("earliness: mean share of the steps read")
        axes.set_ylabel("accuracy")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        return to_svg(figure)


def draw_decisions(points_of_class: dict[str, list[float]], *, end: float, xlabel: str) -> str:
    """Draw when the examples of each class are decided, of `end`: median, quartiles, 5 and 95 %."""
    with canvas(WIDTH, 1 + 0.22 * len(points_of_class)) as figure:
        axes = figure.subplots()
        axes.boxplot(
            list(points_of_class.values())[::-1],
            orientation="horizontal",
            whis=(5, 95),
            showfliers=False,
            widths=0.6,
            boxprops={"color": INK},
            whiskerprops={"color": INK},
            capprops={"color": INK},
            medianprops={"color": COLOURS[1], "lw": 2},
        )
        axes.set_xlim(0, 1.02 * end)
        names = short_labels(list(points_of_class))
        axes.set_yticks(range(1, len(names) + 1), names[::-1])
        axes.set_xlabel(xlabel)
        return to_svg(figure)


def draw_reading(reading: Reading, *, across: bool) -> str:
    """Draw an example beside the class probabilities; time runs to the right if `across`."""
    if across:
        with canvas(WIDTH, WIDTH * 0.75) as figure:
            _draw_across(figure, reading)
            return to_svg(figure)
    with canvas(WIDTH, max(2.6, 0.9 + 0.085 * len(reading.ends))) as figure:
        _draw_down(figure, reading)
        return to_svg(figure)


def _draw_across(figure: Figure, reading: Reading) -> None:
    top, bottom = figure.subplots(2, sharex=True)
    picture = reading.picture
    columns = list(zip(*picture.values, strict=True))
    first, last = reading.span
    if picture.kind == "image":
        top.imshow(columns, cmap="gray", extent=(first, last, 1, 0), **PLAIN)
        top.set_yticks([])
    else:
        steps = [1 + number * picture.stride for number in range(len(picture.values))]
        for number, feature in enumerate(columns):
            top.plot(steps, feature, lw=1, color=COLOURS[number % 8])
    names = short_labels(reading.classes)
    extent = (first, last, len(names) - 0.5, -0.5)
    bottom.imshow(list(zip(*reading.probabilities, strict=True)), extent=extent, **HEAT)
    bottom.set_yticks(range(len(names)), names, fontsize=8)
    bottom.set_xlabel("read so far")
    bottom.spines[:].set_visible(True)


def _draw_down(figure: Figure, reading: Reading) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    picture = reading.picture
    first, last = reading.span
    if picture.kind == "image":
        left.imshow(picture.values, cmap="gray", extent=(0, 1, last, first), **PLAIN)
    else:
        left.set_axis_off()
        style: dict[str, Any] = {"fontsize": 7, "family": "monospace", "ha": "right"}
        style |= {"va": "center", "transform": left.get_yaxis_transform()}
        for number, line in enumerate(picture.values):
            left.text(1, first + (number + 0.5) * reading.ends[0], line, **style)
    left.set_xticks([])
    left.set_ylabel("read so far")
    names = short_labels(reading.classes)
    extent = (-0.5, len(names) - 0.5, last, first)
    right.imshow(reading.probabilities, extent=extent, **HEAT)
    right.set_xticks(range(len(names)), names, fontsize=8, rotation=_rotation(names))
    right.spines[:].set_visible(True)
