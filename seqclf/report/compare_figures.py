"""Curves of several runs: a colour a setting, and a band over its seeds."""

from __future__ import annotations

from statistics import fmean

from seqclf.report.figures import (
    COLOURS,
    MOST_MARKED_POINTS,
    Point,
    canvas,
    in_blocks,
    is_for_log,
    plain_log_axis,
    printable,
    to_svg,
)

MOST_OF_A_LEGEND = 48  # letters of one name
MOST_BESIDE = 20  # letters of names that stand two on a line


def draw_settings(
    settings: dict[str, list[list[Point]]], ylabel: str, *, log_axis: bool = False
) -> str:
    """Draw a metric of runs over the step: the mean of each setting's seeds, and their range.

    Where the seeds have fewer than two steps in common each has a line, in the setting's colour.
    """
    with canvas() as figure:
        axes = figure.subplots()
        for number, (name, runs) in enumerate(settings.items()):
            colour = COLOURS[number % len(COLOURS)]
            style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
            steps, *values = over_seeds(runs)
            lines = [list(zip(steps, values[0], strict=True))] if len(steps) > 1 else runs
            for points in lines:
                xs, means, _, _ = zip(*in_blocks(points), strict=True)
                marker = "." if len(points) < MOST_MARKED_POINTS else ""
                label = short_name(name) if points is lines[0] else None
                axes.plot(xs, means, style, marker=marker, lw=1.2, color=colour, label=label)
            if len(runs) > 1 and len(steps) > 1:
                lows = in_blocks(list(zip(steps, values[1], strict=True)))
                highs = in_blocks(list(zip(steps, values[2], strict=True)))
                axes.fill_between(
                    [block[0] for block in lows],
                    [block[1] for block in lows],
                    [block[1] for block in highs],
                    color=colour,
                    alpha=0.2,
                    lw=0,
                )
        drawn = [value for runs in settings.values() for run in runs for _, value in run]
        if log_axis and is_for_log(drawn):
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        is_short = max(map(len, settings)) <= MOST_BESIDE
        figure.legend(loc="outside lower center", ncols=2 if is_short else 1, fontsize=8)
        return to_svg(figure)


def over_seeds(
    runs: list[list[Point]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return the steps that all runs have, and the mean, the lowest and the highest value there.

    >>> over_seeds([[(1, 2.0), (2, 3.0)], [(2, 5.0), (3, 1.0)]])
    ([2], [4.0], [3.0], [5.0])
    """
    by_step = [dict(run) for run in runs]
    steps = sorted(set.intersection(*map(set, by_step)))
    columns = [[run[step] for run in by_step] for step in steps]
    return (
        steps,
        [fmean(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
    )


def short_name(name: str) -> str:
    """Return a setting's name as it fits below a figure: printable, with its middle left out."""
    text = printable(name)
    half = MOST_OF_A_LEGEND // 2
    return text if len(text) <= MOST_OF_A_LEGEND else f"{text[: half - 1]}…{text[-half:]}"
