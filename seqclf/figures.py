"""Pictures of examples: images as images, series as lines, tokens and text as text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


# ---- the report's figures: SVG, as wide as a phone, so that a page sets them side by side

INK, PAPER = "#1f2429", "#fdfdfd"  # a page puts its own colours in their place
COLOURS = ("#3b82f6", "#e8833a", "#2a9d63", "#d64550", "#8b6fd6", "#b08a1e", "#1b9aaa", "#c2589a")
WIDTH, HEIGHT = 4.2, 2.8  # inches of 72 points
MOST_LABELS, MOST_LETTERS_OF_A_LABEL, MOST_NUMBERS = 30, 14, 15
MOST_BLOCKS = 150  # of a curve


@contextmanager
def canvas(width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, list[str]]]:
    """Give a figure to draw on, and a list that holds its SVG afterwards."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
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
    }
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context(style | dict.fromkeys(inked, INK)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that matplotlib's font lacks, a browser's not
        figure = Figure(figsize=(width, height), layout="constrained")
        drawn: list[str] = []
        yield figure, drawn
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        drawn.append(text.getvalue()[text.getvalue().index("<svg") :])


def label(name: str) -> str:
    """Return a name from the data as it fits into a figure: printable and short."""
    plain = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    if len(plain) <= MOST_LETTERS_OF_A_LABEL:
        return plain
    return f"{plain[:6]}…{plain[7 - MOST_LETTERS_OF_A_LABEL :]}"  # names often begin alike


def curve(
    runs: dict[str, list[tuple[int, float]]],
    ylabel: str,
    marks: list[int],
    skipped: list[int],
    *,
    log: bool = False,
) -> str:
    """Draw a metric of runs over the step; dotted lines where a run went on, crosses for skips.

    A long curve is drawn as means over blocks, and their range as a shade.
    """
    with canvas() as (figure, drawn):
        axes = figure.subplots()
        for number, (name, points) in enumerate(runs.items()):
            colour, marker = COLOURS[number % 8], "." if len(points) < 40 else ""
            steps, values, lows, highs = zip(*in_blocks(points), strict=True)
            style = ("-", "--", ":", "-.")[number // 8 % 4]
            axes.plot(steps, values, style, marker=marker, lw=1.1, color=colour, label=label(name))
            if lows != highs:
                axes.fill_between(steps, lows, highs, color=colour, alpha=0.2, lw=0)
        if log and min(v for points in runs.values() for _, v in points) > 0:
            axes.set_yscale("log")
            _plain_log(axes.yaxis)
        for number, step in enumerate(marks):
            axes.axvline(step, color=INK, ls=":", lw=1, label="resumed" if number == 0 else None)
        if skipped:
            low = axes.get_ylim()[0]
            axes.plot(skipped, [low] * len(skipped), "x", color=COLOURS[3], label="skipped steps")
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        if len(runs) > 1 or marks or skipped:
            axes.legend(fontsize=8)
    return drawn[0]


def in_blocks(
    points: list[tuple[int, float]], most: int = MOST_BLOCKS
) -> list[tuple[float, float, float, float]]:
    """Return step, value, lowest and highest: of each point, or of many in at most `most` blocks.

    >>> in_blocks([(1, 0.5), (2, 1.0), (3, 3.0)], most=2)
    [(1.5, 0.75, 0.5, 1.0), (3.0, 3.0, 3.0, 3.0)]
    """
    size = -(-len(points) // most)
    blocks = [tuple(zip(*points[i : i + size], strict=True)) for i in range(0, len(points), size)]
    return [(fmean(steps), fmean(values), min(values), max(values)) for steps, values in blocks]


def _plain_log(axis: Any, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Write the numbers of a logarithmic axis without mathematics."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def confusion(classes: list[str], matrix: list[list[int]]) -> str:
    """Draw a confusion matrix: truth down, guess across, shaded by the share of the truth."""
    from matplotlib.colors import PowerNorm

    count = len(classes)
    with canvas(WIDTH, WIDTH * 0.92) as (figure, drawn):
        axes = figure.subplots()
        shares = [[cell / max(1, sum(row)) for cell in row] for row in matrix]
        axes.imshow(
            shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="none", aspect="auto"
        )
        if count <= MOST_NUMBERS:
            for i, row in enumerate(matrix):
                for j, cell in enumerate(row):
                    colour = "#ffffff" if shares[i][j] > 0.2 else "#10243e"
                    axes.text(
                        *(j, i, str(cell) if cell else ""),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=colour,
                    )
        stride = -(-count // MOST_LABELS)
        ticks = list(range(0, count, stride))
        names = [label(classes[i]) for i in ticks]
        axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=8)
        axes.set_yticks(ticks, names, fontsize=8)
        axes.set_xlabel("guess")
        axes.set_ylabel("truth")
    return drawn[0]


def reliability(calibration: list[list[float]]) -> str:
    """Draw accuracy over confidence by bin (`Metrics.calibration`), and how many are in each."""
    with canvas() as (figure, drawn):
        top, bottom = figure.subplots(2, height_ratios=[3, 1], sharex=True)
        width = 1 / len(calibration)
        edges = [number * width for number in range(len(calibration))]
        top.bar(
            edges,
            [hits / count if count else 0 for count, hits, _ in calibration],
            width,
            align="edge",
            color=COLOURS[0],
            alpha=0.8,
            edgecolor=PAPER,
        )
        top.plot([0, 1], [0, 1], ls="--", lw=1, color=INK)
        top.set_ylabel("accuracy")
        bottom.bar(
            edges,
            [count for count, *_ in calibration],
            width,
            align="edge",
            color=COLOURS[1],
            edgecolor=PAPER,
        )
        bottom.set_yscale("log")
        _plain_log(bottom.yaxis, subs=(1,))
        bottom.set_ylabel("examples")
        bottom.set_xlabel("confidence")
        bottom.set_xlim(0, 1)
    return drawn[0]


def share_curve(
    shares: list[float], accuracy: list[float], bounds: list[tuple[float, float]], xlabel: str
) -> str:
    """Draw accuracy over what was read, with its confidence band."""
    with canvas() as (figure, drawn):
        axes = figure.subplots()
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(shares, lows, highs, color=COLOURS[0], alpha=0.25, lw=0)
        axes.plot(shares, accuracy, marker="." if len(shares) < 40 else "", color=COLOURS[0])
        axes.set_xlabel(xlabel)
        axes.set_ylabel("accuracy")
        axes.set_ylim(0, 1.02)
    return drawn[0]


def decisions(classes: list[str], points: list[list[float]], end: float, xlabel: str) -> str:
    """Draw when the examples of each class are decided, of `end`: median, quartiles, 5 and 95 %."""
    with canvas(WIDTH, 1 + 0.22 * len(classes)) as (figure, drawn):
        axes = figure.subplots()
        axes.boxplot(
            points[::-1],
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
        axes.set_yticks(range(1, len(classes) + 1), [label(name) for name in classes[::-1]])
        axes.set_xlabel(xlabel)
    return drawn[0]


def reading(
    shown: dict[str, Any],
    chances: list[list[float]],
    ends: list[int],
    classes: list[str],
    *,
    across: bool,
    is_image: bool,
) -> str:
    """Draw what is read beside the class probabilities after each line of it.

    Of an image or text the values of `shown` are a line for each row of `chances`; a series is as
    `capture` returns it. `ends` says after which step each row is, from 1. Time runs down, or
    `across`.
    """
    picture = shown["values"]
    height = WIDTH * 0.75 if across else max(2.6, 0.9 + 0.085 * len(chances))
    with canvas(WIDTH, height) as (figure, drawn):
        names = [label(name) for name in classes]
        heat: dict[str, Any] = {"cmap": "Blues", "vmin": 0, "vmax": 1}
        heat |= (plain := {"aspect": "auto", "interpolation": "none"})
        a_line, first, last = ends[0], 0.5, 0.5 + ends[0] * len(ends)
        names_span = (-0.5, len(names) - 0.5)
        if across:
            top, bottom = figure.subplots(2, sharex=True)
            if is_image:
                turned = list(zip(*picture, strict=True))
                top.imshow(turned, cmap="gray", extent=(first, last, 1, 0), **plain)
                top.set_yticks([])
            else:
                steps = [1 + number * shown["stride"] for number in range(len(picture))]
                for number, feature in enumerate(zip(*picture, strict=True)):
                    top.plot(steps, feature, lw=1, color=COLOURS[number % 8])
            span = (first, last, *names_span[::-1])
            bottom.imshow(list(zip(*chances, strict=True)), extent=span, **heat)
            bottom.set_yticks(range(len(names)), names, fontsize=8)
            bottom.set_xlabel("read so far")
            bottom.spines[:].set_visible(True)
        else:
            left, right = figure.subplots(1, 2, sharey=True)
            if is_image:
                left.imshow(picture, cmap="gray", extent=(0, 1, last, first), **plain)
            else:
                left.set_axis_off()
                for number, line in enumerate(picture):
                    left.text(
                        1,
                        first + (number + 0.5) * a_line,
                        line,
                        ha="right",
                        va="center",
                        fontsize=7,
                        family="monospace",
                        transform=left.get_yaxis_transform(),
                    )
            left.set_xticks([])
            left.set_ylabel("read so far")
            right.imshow(chances, extent=(*names_span, last, first), **heat)
            turn = 90 if max(map(len, names)) > 2 else 0
            right.set_xticks(range(len(names)), names, fontsize=8, rotation=turn)
            right.spines[:].set_visible(True)
    return drawn[0]
