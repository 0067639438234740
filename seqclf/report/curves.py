"""The learning curves of one run: losses on one axis, accuracies on one, what drives them small."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seqclf.metrics import METRICS
from seqclf.report.figures import (
    COLOURS,
    HEIGHT,
    INK,
    MOST_MARKED_POINTS,
    WIDTH,
    Point,
    canvas,
    in_blocks,
    is_for_log,
    plain_log_axis,
    to_svg,
)
from seqclf.report.run_record import RunRecord


class Panel(NamedTuple):
    """A figure of curves, and what it shows."""

    caption: str
    metrics: tuple[str, ...]
    is_share: bool = False
    """Whether the values lie between 0 and 1."""


PANELS = {
    "loss": Panel("Loss (nats) over the step", ("train/loss", "val/loss", "test/loss")),
    "accuracy": Panel("Accuracy over the step", ("val/accuracy", "test/accuracy"), is_share=True),
}
# What drives training is small: a row each, one below the other, with the steps in common.
ROWS = {
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm, before clipping",
    "train/examples_per_s": "examples per second",
}
CAPTIONS = {name: panel.caption for name, panel in PANELS.items()} | {
    "drivers": "Learning rate, gradient norm and speed over the step"
}
# Each split has a colour of its own in all panels.
SPLIT_COLOURS = {"train": COLOURS[0], "val": COLOURS[1], "test": COLOURS[2]}
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}


def curves_of_run(run: RunRecord) -> dict[str, str]:
    """Draw the panels in which at least one metric has two points."""
    figures = {}
    for name, panel in PANELS.items():
        points_of = {metric: run.points(metric) for metric in panel.metrics}
        if max(map(len, points_of.values())) > 1:
            figures[name] = draw_panel(panel, points_of, run)
    rows = {name: points for name in ROWS if len(points := run.points(name)) > 1}
    if rows:
        figures["drivers"] = draw_rows(rows)
    return figures


def draw_panel(panel: Panel, points_of: dict[str, list[Point]], run: RunRecord | None) -> str:
    """Draw the metrics of a panel; of a run that is at hand its starts and skipped steps, too."""
    with canvas() as figure:
        axes = figure.subplots()
        for metric, points in points_of.items():
            if points:
                _draw_metric(axes, metric, points, is_share=panel.is_share)
        values = [value for points in points_of.values() for _, value in points]
        if any(METRICS[metric].log_axis for metric in panel.metrics) and is_for_log(values):
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
        if panel.is_share:
            low, high = axes.get_ylim()
            axes.set_ylim(max(0, low), min(1, high))
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        if run is not None:
            _mark_starts_and_skips(axes, run)
        _put_legend(figure, axes)
        return to_svg(figure)


def draw_rows(rows: dict[str, list[Point]]) -> str:
    """Draw metrics one below the other, each on an axis of its own."""
    with canvas(WIDTH, HEIGHT * (1 + len(rows)) / (1 + len(ROWS))) as figure:
        grid = figure.subplots(len(rows), sharex=True, squeeze=False)
        for axes, (metric, points) in zip(grid[:, 0], rows.items(), strict=True):
            _draw_metric(axes, metric, points, is_share=False)
            axes.set_title(ROWS[metric], fontsize=9, loc="left", pad=2)
            values = [value for _, value in points]
            if METRICS[metric].log_axis and is_for_log(values):
                axes.set_yscale("log")
                plain_log_axis(axes.yaxis, subs=(1,) if max(values) > 50 * min(values) else (1, 3))
            else:
                axes.yaxis.set_major_locator(MaxNLocator(2))
                axes.yaxis.set_major_formatter("{x:,g}")
                axes.set_ylim(0, 1.15 * max(values) or 1)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        return to_svg(figure)


def _draw_metric(axes: Axes, metric: str, points: list[Point], *, is_share: bool) -> None:
    split = metric.partition("/")[0]
    colour = SPLIT_COLOURS[split]
    steps, means, lows, highs = zip(*in_blocks(points), strict=True)
    is_one = len(points) == 1
    axes.plot(
        steps,
        means,
        marker="D" if is_one else "." if len(points) < MOST_MARKED_POINTS else "",
        ls="" if is_one else "-",
        lw=1.3,
        color=colour,
        label=f"{SPLIT_TITLES[split]}, at the end" if is_one else SPLIT_TITLES[split],
        clip_on=not is_share,  # a point at 1 is drawn whole
    )
    if lows != highs:
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.2, lw=0)


def _mark_starts_and_skips(axes: Axes, run: RunRecord) -> None:
    """Draw a dotted line where the run went on after a stop, a cross where it skipped a step."""
    resumed_at = sorted({session.step for session in run.sessions if session.step > 0})
    for number, step in enumerate(resumed_at):
        axes.axvline(step, color=INK, ls=":", lw=1, label="resumed" if number == 0 else None)
    counts = [(0, 0.0), *run.points("train/skipped")]
    if skipped := [step for (_, before), (step, count) in pairwise(counts) if count > before]:
        low = axes.get_ylim()[0]
        axes.plot(skipped, [low] * len(skipped), "x", color=COLOURS[3], label="skipped steps")


def _put_legend(figure: Figure, axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(loc="outside upper left", ncols=min(3, len(labels)), fontsize=8)
