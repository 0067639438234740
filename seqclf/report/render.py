"""From a page's content to its HTML: the template, the figures in its colours, the script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from seqclf.metrics import percent
from seqclf.report.figures import COLOURS, INK, PAPER
from seqclf.report.matrix import DARK, LIGHT, ramp_css
from seqclf.report.thumbnails import thumbnail

if TYPE_CHECKING:
    from seqclf.report.page import Page

FOLDER = Path(__file__).parent
STYLES = ("shared.css", "page.css")
SCRIPTS = ("shared.js", "reading.js", "page.js")


def render(page: Page) -> str:
    """Fill the template; everything that comes from data is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((FOLDER / "page.html.jinja").read_text(encoding="utf-8"))
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in STYLES)
    style += f"{ramp_css(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {ramp_css(DARK)} }}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = page.figures
    played = [] if page.reading is None else [example.played for example in page.reading.examples]
    payload = json.dumps(
        {"examples": played, "features": page.features, "colours": COLOURS},
        separators=(",", ":"),
    )
    return template.render(
        page=page,
        figures=figures,
        inline=lambda name, label: Markup(inline_figure(name, figures[name], label)),
        thumbnail=thumbnail,
        percent=percent,
        colours=COLOURS,
        style=Markup(style),
        payload=Markup(payload.replace("<", "\\u003c")),  # no end of the script in a name
        script=Markup(script),
        script_hash=digest,
    )


def inline_figure(name: str, svg: str, label: str) -> str:
    """Return a figure for a page: in the page's colours, its ids unlike those of other figures."""
    svg = re.sub(r' id="[a-z]+[a-z0-9]*_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    svg = re.sub(r"\n\s*", "\n", svg)
    # A hundredth of a pixel is fine enough; numbers in names and texts stay as they are.
    places = r' (d|x|y|width|height|transform)="[^"]*"'
    svg = re.sub(places, lambda place: re.sub(r"(\d\.\d\d)\d+", r"\1", place[0]), svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    role = "group" if "<a href" in svg else "img"
    return re.sub(
        r"<svg [^>]*>",
        lambda _: (
            f'<svg role="{role}" aria-label="{escape(label)}" {box and box[0]} fill="currentColor">'
        ),
        svg,
        count=1,
    )
