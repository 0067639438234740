"""The confusion matrix of a report, as SVG whose colours a page can change, and its cells.

A page colours a cell by its class (m0 to m10), so that a dark page has a map of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from markupsafe import Markup

from seqclf.report.figures import INK, MOST_NUMBERS, WIDTH, printable, short_labels

Cell = tuple[int, int]  # truth and guess, as numbers of classes

LEVELS = 10  # of shade, above none
LIGHT = ("#f4f7fb", "#08306b")  # from a share of 0 to 1, on a light page
DARK = ("#1a222d", "#a8d2ff")
LETTER = 4.7  # the width of a letter of 8 px, in px
LEAST_OF_LABEL = 10.4  # px from one label to the next; of more classes every second one, or fewer


def ramp(ends: tuple[str, str]) -> list[str]:
    """Return the colours of all levels, evenly from one to the other.

    >>> ramp(("#000000", "#ffffff"))[5]
    '#808080'
    """
    low, high = (_channels(end) for end in ends)
    mixes = (
        [a + (b - a) * level / LEVELS for a, b in zip(low, high, strict=True)]
        for level in range(LEVELS + 1)
    )
    return ["#" + "".join(f"{int(channel + 0.5):02x}" for channel in mix) for mix in mixes]


def _channels(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    shares = [channel / 255 for channel in _channels(colour)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_on(colour: str) -> str:
    """Return black or white, whichever has more contrast with a colour."""
    return "#000000" if luminance(colour) > 0.179 else "#ffffff"


def ramp_css(ends: tuple[str, str]) -> str:
    """Return the rules that colour cells, and the numbers in them."""
    return "".join(
        f".m{level}{{fill:{colour}}}.m{level}+text{{fill:{text_on(colour)}}}"
        for level, colour in enumerate(ramp(ends))
    )


def level_of(share: float) -> int:
    """Return the level of a share: few errors are still seen, so it rises steeply from 0."""
    return min(LEVELS, max(1, round(LEVELS * share**0.4))) if share else 0


def draw_confusion(
    classes: tuple[str, ...], matrix: list[list[int]], linked: Collection[Cell] = ()
) -> str:
    """Draw truth down and guess across, shaded by the share of the truth.

    A cell of `linked` leads to the element `cell-TRUTH-GUESS`.
    """
    count = len(classes)
    names = short_labels(classes)
    longest = LETTER * max(map(len, names))
    is_turned = max(map(len, names)) > 2
    left, below = 18 + longest, 18 + (longest if is_turned else 8)
    width = 72 * WIDTH
    side = (width - left - 2) / count
    height = side * count + below + 2
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:.0f} {:.0f}">'
            '<g font-family="sans-serif" font-size="8" fill="{}">'
        ).format(width, height, INK),
        _rect(left, 2, side * count, 0),
        *_cells(classes, matrix, linked, left=left, side=side),
        *_labels(names, left=left, side=side, is_turned=is_turned),
        _text(left + side * count / 2, height - 3, "guess", "middle"),
        Markup(
            '<text transform="translate(9 {:.1f}) rotate(-90)" text-anchor="middle">truth</text>'
        ).format(2 + side * count / 2),
        Markup("</g></svg>"),
    ]
    return str(Markup("\n").join(parts))


def _cells(
    classes: tuple[str, ...],
    matrix: list[list[int]],
    linked: Collection[Cell],
    *,
    left: float,
    side: float,
) -> Iterator[Markup]:
    for truth, row in enumerate(matrix):
        for guess, count in enumerate(row):
            if not count:
                continue
            x, y = left + side * guess, 2 + side * truth
            level = level_of(count / sum(row))
            cell = _rect(x, y, side, level)
            if len(classes) <= MOST_NUMBERS:
                fill = text_on(ramp(LIGHT)[level])
                cell += _text(x + side / 2, y + side / 2 + 3, str(count), "middle", fill)
            told = f"truth {printable(classes[truth])}, guess {printable(classes[guess])}: {count}"
            cell = Markup("<title>{}</title>{}").format(told, cell)
            if (truth, guess) in linked:
                yield Markup('<a href="#cell-{}-{}" aria-label="{}">{}</a>').format(
                    truth, guess, told, cell
                )
            else:
                yield Markup("<g>{}</g>").format(cell)


def _labels(names: list[str], *, left: float, side: float, is_turned: bool) -> Iterator[Markup]:
    bottom = 2 + side * len(names)
    for number in range(0, len(names), math.ceil(LEAST_OF_LABEL / side)):
        middle = side * (number + 0.5)
        yield _text(left - 3, 5 + middle, names[number], "end")
        if is_turned:
            yield Markup(
                '<text transform="translate({:.1f} {:.1f}) rotate(-90)" text-anchor="end">{}</text>'
            ).format(left + middle + 3, bottom + 3, names[number])
        else:
            yield _text(left + middle, bottom + 9, names[number], "middle")


def _rect(x: float, y: float, side: float, level: int) -> Markup:
    return Markup(
        '<rect class="m{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>'
    ).format(level, x, y, side, side, ramp(LIGHT)[level])


def _text(x: float, y: float, text: str, anchor: str, fill: str = INK) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" fill="{}">{}</text>').format(
        x, y, anchor, fill, text
    )
