"""A page of a run, or of several: report.html, self-contained, with its figures beside it.

The numbers of an evaluation come from evaluation/SPLIT.json and are not computed again. What the
model says while it reads is computed here, from the run's weights and data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave

from seqclf.baselines import TITLES, find_baselines
from seqclf.config.settings import Config
from seqclf.data.pictures import Picture, draw_picture, take_picture
from seqclf.data.sequences import Sequences
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.model import LSTMClassifier
from seqclf.prefixes import probabilities
from seqclf.report.compare import Comparison, compare, curves_by_setting, learning_curves
from seqclf.report.early import EarlySection, watch_decisions
from seqclf.report.figures import INK, PAPER, draw_confusion, draw_reliability
from seqclf.report.intervals import macro_f1_interval, wilson
from seqclf.report.reading import ReadingSection, watch_reading
from seqclf.report.run_record import RunRecord, read_run
from seqclf.report.stamp import stamped
from seqclf.report.together import Together, measure_together
from seqclf.run.data import load_data
from seqclf.run.files import check_regular, replace_file
from seqclf.run.records import (
    MODEL,
    REPORT,
    ClassRow,
    Evaluation,
    MistakeRecord,
    class_table,
)
from seqclf.run.verdict import why_no_result
from seqclf.run.weights import find_weights
from seqclf.stepwise import reason_against

NUM_PREDICTIONS = 10
MOST_PAIRS = 10  # of confused classes


class Prediction(NamedTuple):
    """A test example, and what the model takes it for."""

    title: str
    is_named: bool
    truth: str
    guess: str
    probability: float
    picture: Picture


@dataclass(frozen=True)
class EvaluationSection:
    """What a page shows of an evaluation."""

    step: int
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float | None
    macro_f1_interval: tuple[float, float]
    loss: float | None
    calibration_error: float
    calibrated: tuple[float, float, float | None] | None
    """The temperature of the result, and the calibration error and the loss with it."""
    doubt: str | None
    """Why the numbers are no result."""
    is_perfect: bool
    """Whether there is no mistake."""
    classes: list[tuple[ClassRow, tuple[float, float]]]
    """Each with the interval of its recall."""
    pairs: list[tuple[int, str, str]]
    """Pairs of classes that are confused most: how often, truth, guess."""
    mistakes: list[MistakeRecord]
    figures: dict[str, str]


class BaselineRow(NamedTuple):
    """What another method names right of the test split."""

    title: str
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Page:
    """What the template shows. Figures are SVG, by name."""

    title: str
    curves: dict[str, str]
    state: str | None = None
    error: str | None = None
    headline: str | None = None
    commands: list[tuple[str, str]] = field(default_factory=list)
    """What to do next, and what it is for."""
    overview: list[tuple[str, str]] = field(default_factory=list)
    comparison: Comparison | None = None
    together: Together | None = None
    not_together_because: str | None = None
    evaluations: dict[str, EvaluationSection] = field(default_factory=dict)
    baselines: list[BaselineRow] = field(default_factory=list)
    reading: ReadingSection | None = None
    early: EarlySection | None = None
    no_early_because: str | None = None
    no_reading_because: str | None = None
    weights: str | None = None
    """Whose weights read, unless they are those of the result."""
    predictions: list[Prediction] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, str]:
        """The figures of all sections."""
        figures = dict(self.curves)
        for evaluation in self.evaluations.values():
            figures |= evaluation.figures
        for section in (self.reading, self.early):
            figures |= section.figures if section else {}
        return figures


def write_report(run_dirs: list[Path], out: Path | None, flags: dict[str, str]) -> Path:
    """Write the page of one run, or one that compares several; return its path.

    `flags` are settings that say where the data are now. Raises UserError if a run cannot be read
    or the page cannot be written.
    """
    runs = [read_run(path) for path in run_dirs]
    out = out or (run_dirs[0] if len(runs) == 1 else Path()) / REPORT
    page = page_of_run(runs[0], flags) if len(runs) == 1 else page_of_runs(runs, flags)
    text = render(page)
    if len(runs) == 1:
        text = stamped(text, run_dirs[0])
    folder = out.with_name(f"{out.stem}-figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The page comes last: one that is there has its figures.
        files = {
            folder / f"{name}.svg": f"<!-- seqclf -->\n{svg}".encode()
            for name, svg in page.figures.items()
        } | {out: text.encode()}
        for file, content in files.items():
            check_regular(file)
            if file.exists() and not _is_ours(file, content):
                raise UserError(f"{file}: is there already and not ours; choose another --out")
        for old in folder.glob("*.svg"):
            if old not in files and old.is_file() and _is_ours(old, b""):
                old.unlink()
        for file, content in files.items():
            replace_file(file, content)
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    return out


def _is_ours(file: Path, content: bytes) -> bool:
    """Return whether seqclf has written a page or a figure, or the torn start of this one."""
    with file.open("rb") as opened:
        start = opened.read(300)
    is_torn = content.startswith(start.rstrip(b"\0"))
    return is_torn or b'content="seqclf"' in start or b"<!-- seqclf -->" in start


def page_of_runs(runs: list[RunRecord], flags: dict[str, str]) -> Page:
    """Put together a page that compares runs."""
    page = Page(f"{len(runs)} runs", curves_by_setting(runs))
    try:
        if any(run.state != "finished" for run in runs):
            raise UserError("not all of the runs have finished")
        together = measure_together([run.path for run in runs], flags)
    except UserError as error:
        return replace(page, comparison=compare(runs), not_together_because=str(error))
    comparison = compare(runs, together.hits)
    if together.hits is None:
        note = "No test compares single runs: the test examples are parts of longer recordings."
        comparison = comparison._replace(notes=[*comparison.notes, note])
    return replace(page, comparison=comparison, together=together)


def page_of_run(run: RunRecord, flags: dict[str, str]) -> Page:
    """Put together the page of one run."""
    page = Page(
        run.path.name or str(run.path),
        learning_curves(run),
        state=run.state,
        error=None if run.status is None else run.status.error,
        overview=overview(run),
        commands=next_commands(run.path.name),
        evaluations={
            split: show_evaluation(evaluation, split)
            # The result comes first.
            for split, evaluation in sorted(
                run.evaluations.items(), key=lambda one: one[0] != "test"
            )
        },
    )
    if "test" in page.evaluations:
        page = replace(page, headline=headline(page.evaluations["test"]))
    try:
        saved = find_weights(run.path)
        model = saved.build()
        config, splits = load_data(run.path, flags)
    except UserError as error:
        return replace(page, no_reading_because=str(error))
    name = saved.file.parent.name
    reason = reason_against(saved.architecture)
    has_test = len(splits.test) > 0  # a Python program may train without
    if not has_test:
        reason = "the data have no test examples"
    return replace(
        page,
        baselines=show_baselines(config, splits),
        reading=watch_reading(model, splits.test) if has_test else None,
        early=watch_decisions(model, splits.test) if reason is None else None,
        no_early_because=reason,
        weights=None if name == MODEL else f"{name}, as the run has no result yet",
        predictions=first_predictions(model, splits.test) if has_test else [],
    )


def show_baselines(config: Config, splits: Splits) -> list[BaselineRow]:
    """Return what `seqclf baselines` has measured on a run's data set, the best first."""
    if config.data.path is None or config.data.folds is not None:  # then the test split is a fold
        return []
    found = find_baselines(Path(config.data.path), splits.stored_fingerprint)
    if found is None:
        return []
    n = found.num_test
    rows = [
        BaselineRow(TITLES[row.name], row.accuracy, wilson(round(row.accuracy * n), n))
        for row in found.rows
        if row.accuracy is not None
    ]
    return sorted(rows, key=lambda row: -row.accuracy)


def first_predictions(model: LSTMClassifier, test: Sequences) -> list[Prediction]:
    """Return what the model says of the first test examples."""
    count = min(NUM_PREDICTIONS, len(test))
    probabilities_BC = probabilities(model, *test.rows(slice(count)))
    best_B, guesses_B = probabilities_BC.nan_to_num(0).max(1)  # a model that diverged says NaN
    return [
        Prediction(
            title=test.title(index),
            is_named=test.origins is not None,
            truth=test.classes[int(test.labels[index])],
            guess=test.classes[int(guesses_B[index])],
            probability=float(best_B[index]),
            picture=take_picture(test, index),
        )
        for index in range(count)
    ]


def headline(test: EvaluationSection) -> str | None:
    """Return the result in a sentence; None if there is none."""
    if test.doubt is not None:
        return None
    low, high = (100 * bound for bound in test.accuracy_interval)
    return (
        f"Of {test.n:,} examples that it was not trained on, it names {100 * test.accuracy:.1f} % "
        f"rightly (95 % interval {low:.1f} to {high:.1f})."
    )


def next_commands(name: str) -> list[tuple[str, str]]:
    """Return what people do with a run."""
    run = shlex.quote(name)
    return [
        (f"seqclf predict {run} FILE", "name the sequences of a file"),
        (f"seqclf demo {run}", "a page that runs the model in the browser"),
        (f"seqclf export {run} --out model.onnx", "a file for onnxruntime"),
    ]


def overview(run: RunRecord) -> list[tuple[str, str]]:
    """Return what was run, as names and values."""
    facts = run.facts
    config = run.config
    model = config.model
    step, epoch = (0, 0.0) if run.status is None else (run.status.step, run.status.epoch)
    layers = f"{model.num_layers} layer{'s' * (model.num_layers > 1)} of {model.hidden_size}"
    layers += ", both directions" * model.bidirectional
    rows = {
        "data": facts.data or config.data.name,
        "model": f"LSTM, {layers}, pooling {model.pooling}, {facts.num_parameters:,} parameters",
        "steps": f"{step:,} of {facts.num_steps:,} ({epoch:.3g} epochs)",
        "training time": f"{run.training_s:,.1f} s, without evaluations and saves",
        "batch": f"{config.train.batch_size} examples",
        "optimizer": f"{config.optim.name}, rate {config.optim.lr:g}, {config.optim.schedule}",
        "seed": str(config.seed),
        "where": ", ".join(filter(None, (facts.host, facts.device, facts.precision))),
        "processes": f"{facts.world_size} of {facts.threads} threads" * bool(facts.world_size),
        "starts": str(len(run.sessions)),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        "weights": (facts.weights_sha256 or "")[:16],
    }
    return [(name, value) for name, value in rows.items() if value]


def show_evaluation(evaluation: Evaluation, split: str) -> EvaluationSection:
    """Return what a page shows of the evaluation of a split."""
    classes = evaluation.classes
    matrix = evaluation.confusion
    hits = [row[number] for number, row in enumerate(matrix)]
    n = sum(map(sum, matrix))
    table = class_table(evaluation)
    pairs = [
        (count, classes[truth], classes[guess])
        for truth, row in enumerate(matrix)
        for guess, count in enumerate(row)
        if truth != guess and count
    ]
    figures = {
        f"{split}-confusion": draw_confusion(classes, matrix),
        f"{split}-reliability": draw_reliability(evaluation.calibration),
    }
    calibrated = None
    if record := evaluation.calibrated:
        error = calibration_error(record.calibration)
        calibrated = (record.temperature, error, record.loss)
        figures[f"{split}-reliability-calibrated"] = draw_reliability(record.calibration)
    return EvaluationSection(
        step=evaluation.step,
        n=n,
        accuracy=sum(hits) / n,
        accuracy_interval=wilson(sum(hits), n),
        macro_f1=evaluation.metrics[f"{split}/macro_f1"],
        macro_f1_interval=macro_f1_interval(matrix),
        loss=evaluation.metrics[f"{split}/loss"],
        calibration_error=calibration_error(evaluation.calibration),
        calibrated=calibrated,
        doubt=why_no_result(evaluation, split) if split == "test" else None,
        is_perfect=sum(hits) == n,
        classes=[(row, wilson(h, row.support)) for row, h in zip(table, hits, strict=True)],
        pairs=sorted(pairs, key=lambda pair: -pair[0])[:MOST_PAIRS],
        mistakes=evaluation.mistakes,
        figures=figures,
    )


def calibration_error(calibration: list[list[float]]) -> float:
    """Return the expected calibration error: the mean gap of accuracy and confidence over bins."""
    gaps = (abs(hits - expected) for _, hits, expected in calibration)
    return sum(gaps) / sum(count for count, *_ in calibration)


def png_url(picture: Picture) -> str:
    """Draw an image, without axes, or a series; return a PNG as a data URL."""
    if picture.kind == "image":
        content = io.BytesIO()
        imsave(content, picture.values, cmap="gray", format="png")
        png = content.getvalue()
    else:
        png = draw_picture(picture)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render(page: Page) -> str:
    """Fill the template; everything that comes from data is escaped."""
    folder = Path(__file__).parent
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    script = (folder / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = {name: Markup(inline_figure(name, svg)) for name, svg in page.figures.items()}
    return template.render(
        page=page,
        figures=figures,
        png_url=png_url,
        script=Markup(script),
        script_hash=digest,
    )


def inline_figure(name: str, svg: str) -> str:
    """Return a figure for a page: in the page's colours, its ids unlike those of other figures."""
    svg = re.sub(r' id="[a-z]+[a-z0-9]*_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    # Hidden from screen readers, which read the caption.
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', svg, count=1
    )
