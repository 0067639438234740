"""A result in a cell of a notebook: its figures as a table, pictures, and nothing to load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from seqclf.metrics import percent
from seqclf.report.curves import PANELS, draw_panel
from seqclf.report.evaluation import EvaluationSection, show_evaluation
from seqclf.report.matrix import draw_confusion
from seqclf.report.render import inline_figure
from seqclf.report.thumbnails import thumbnail
from seqclf.run.records import Evaluation

MOST_MISTAKES = 4
SPLITS = {"val": "validation", "test": "test"}

# Everything that comes from data is escaped. There is no style for the whole page: a notebook has
# its own.
CELL = """
<div style="max-width: 60rem">
<p><strong>{{ title }}</strong></p>
<table>
<tr>{% for name in ("", "accuracy", "95 % interval", "macro F1", "loss", "examples") %}
<th>{{ name }}</th>{% endfor %}</tr>
{% for split, one in sections.items() %}<tr><th>{{ split }}</th>
<td>{{ percent(one.accuracy, 2) }} %</td>
<td>{{ percent(one.accuracy_interval[0], 2) }} to {{ percent(one.accuracy_interval[1], 2) }}</td>
<td>{{ number(one.macro_f1) }}</td><td>{{ number(one.loss) }}</td>
<td>{{ "{:,}".format(one.n) }}</td></tr>{% endfor %}
</table>
<div style="display: flex; flex-wrap: wrap; gap: 1rem">
{% for caption, svg in figures.items() %}<figure style="margin: 0; width: 19rem">
{{ svg }}<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
{% for mistake in mistakes %}<figure style="margin: 0; width: 9rem">
{{ thumbnail(mistake.picture, "example " ~ mistake.title) }}
<figcaption>{{ mistake.guess }} ({{ percent(mistake.probability, 0) }} %), truth
{{ mistake.truth }}; example {{ mistake.title }}</figcaption></figure>{% endfor %}
</div>
</div>
"""


def draw_cell(
    title: str,
    evaluations: Mapping[str, Evaluation],
    history: Sequence[Mapping[str, float | None]],
) -> str:
    """Return a result as HTML: figures of each split, the last one's confusion, the loss curves."""
    sections: dict[str, EvaluationSection] = {
        SPLITS[split]: show_evaluation(evaluation, split)
        for split, evaluation in evaluations.items()
    }
    figures = {}
    mistakes = []
    if evaluations:
        split, evaluation = list(evaluations.items())[-1]
        figures[f"{SPLITS[split]}: truth down, guess across"] = draw_confusion(
            evaluation.classes, evaluation.confusion
        )
        mistakes = evaluation.mistakes[:MOST_MISTAKES]
    panel = PANELS["loss"]
    losses = {name: _points(history, name) for name in panel.metrics}
    if any(losses.values()):
        figures[panel.caption] = draw_panel(panel, losses, None)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(CELL).render(
        title=title,
        sections=sections,
        figures={caption: Markup(_unlike_others(svg, caption)) for caption, svg in figures.items()},
        mistakes=mistakes,
        thumbnail=thumbnail,
        percent=percent,
        number=lambda value: "not finite" if value is None else f"{value:.4f}",
    )


def _points(history: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[int, float]]:
    values = [(line["step"], line.get(name)) for line in history]
    return [(int(step), value) for step, value in values if step is not None and value is not None]


def _unlike_others(svg: str, caption: str) -> str:
    """Return a figure whose ids are its own among the cells of a notebook."""
    return inline_figure(f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}", svg, caption)
