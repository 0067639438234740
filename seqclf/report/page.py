"""A page of a run, or of several: report.html, self-contained, with its figures beside it.

The numbers of an evaluation come from evaluation/SPLIT.json and are not computed again. What the
model says while it reads is computed here, from the run's weights and data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from seqclf.baselines import TITLES, find_baselines, name_majority
from seqclf.config.settings import Config
from seqclf.data.pictures import MOST_FEATURES
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.metrics import percent
from seqclf.report.compare import Comparison, compare, curves_by_setting
from seqclf.report.curves import CAPTIONS, curves_of_run
from seqclf.report.early import EarlySection, watch_decisions
from seqclf.report.evaluation import EvaluationSection, show_evaluation
from seqclf.report.intervals import wilson
from seqclf.report.overview import (
    SettingRow,
    SplitRow,
    changed_settings,
    command_again,
    links_to_files,
    loss_note,
    next_commands,
    overview,
    role_of_validation,
    split_rows,
)
from seqclf.report.reading import ReadingSection, watch_reading
from seqclf.report.render import render
from seqclf.report.run_record import RunRecord, read_run
from seqclf.report.stamp import stamped
from seqclf.report.together import Together, measure_together
from seqclf.run.data import load_data
from seqclf.run.files import check_regular, replace_file
from seqclf.run.records import MODEL, REPORT
from seqclf.run.weights import find_weights
from seqclf.stepwise import reason_against


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
    captions: dict[str, str] = field(default_factory=dict)
    """Of the learning curves."""
    loss_note: str | None = None
    validation_role: str | None = None
    commands: list[tuple[str, str]] = field(default_factory=list)
    """What to do next, and what it is for."""
    command: str | None = None
    """What trains with the same settings and another seed."""
    overview: list[tuple[str, str]] = field(default_factory=list)
    settings: list[SettingRow] = field(default_factory=list)
    splits: list[SplitRow] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    """The names of the features of a series that pictures draw."""
    files: list[tuple[str, str, str]] = field(default_factory=list)
    """Files of the run: address, name, and what it is."""
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
    if len(runs) == 1:
        page = replace(page, files=links_to_files(run_dirs[0], out.parent))
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
    curves = curves_of_run(run)
    page = Page(
        run.path.name or str(run.path),
        curves,
        state=run.state,
        error=None if run.status is None else run.status.error,
        captions={name: CAPTIONS[name] for name in curves},
        loss_note=loss_note(run),
        overview=overview(run),
        settings=changed_settings(run.config),
        commands=next_commands(run.path.name),
        command=command_again(run.path.name, run.config.seed),
    )
    temperature = 1.0
    try:
        saved = find_weights(run.path)
        temperature = saved.architecture.temperature
        model = saved.build()
        config, splits = load_data(run.path, flags)
    except UserError as error:
        return with_evaluations(replace(page, no_reading_because=str(error)), run, temperature)
    name = saved.file.parent.name
    reason = reason_against(saved.architecture)
    has_test = len(splits.test) > 0  # a Python program may train without
    if not has_test:
        reason = "the data have no test examples"
    page = replace(
        page,
        baselines=show_baselines(config, splits),
        splits=split_rows(splits),
        features=feature_names(splits),
        reading=watch_reading(model, splits.test) if has_test else None,
        early=watch_decisions(model, splits.test) if reason is None else None,
        no_early_because=reason,
        weights=None if name == MODEL else f"{name}, as the run has no result yet",
    )
    return with_evaluations(page, run, temperature)


def with_evaluations(page: Page, run: RunRecord, temperature: float) -> Page:
    """Return a page with its evaluations, that of the test split first: it is the result."""
    evaluations: dict[str, EvaluationSection] = {
        split: show_evaluation(
            run.evaluations[split],
            split,
            page.reading.cells if page.reading and split == "test" else None,
        )
        for split in ("test", "val")
        if split in run.evaluations
    }
    sentence = headline(evaluations["test"]) if "test" in evaluations else None
    role = None
    if "val" in evaluations:
        # Where the weights are gone, the test split's evaluation still knows of a temperature.
        is_calibrated = temperature != 1 or any(one.calibrated for one in evaluations.values())
        n = evaluations["val"].n
        role = role_of_validation(run.config, n, is_calibrated=is_calibrated)
    return replace(page, evaluations=evaluations, headline=sentence, validation_role=role)


def feature_names(splits: Splits) -> list[str]:
    """Return the names of the features of a series that pictures draw."""
    test = splits.test
    if test.starts is None or test.num_tokens:
        return []
    names = test.features or tuple(f"feature {number}" for number in range(test.shape[1]))
    return list(names[:MOST_FEATURES])


def show_baselines(config: Config, splits: Splits) -> list[BaselineRow]:
    """Return what simple methods name right of the test split, the best first.

    The majority class is counted here; the others `seqclf baselines` has measured, if it was run
    on the data set.
    """
    n = len(splits.test)
    if not n:
        return []
    commonest = int(name_majority(splits.train, splits.test)[0])
    hits = int((splits.test.labels == commonest).sum())
    title = f"{TITLES['majority']} ({splits.train.classes[commonest]})"
    rows = [BaselineRow(title, hits / n, wilson(hits, n))]
    # With folds the test split is a fold, of which nothing was measured.
    if config.data.path is not None and config.data.folds is None:
        found = find_baselines(Path(config.data.path), splits.stored_fingerprint)
        rows += [
            BaselineRow(TITLES[row.name], row.accuracy, wilson(round(row.accuracy * n), n))
            for row in (found.rows if found else [])
            if row.accuracy is not None and row.name != "majority"
        ]
    return sorted(rows, key=lambda row: -row.accuracy)


def headline(test: EvaluationSection) -> str | None:
    """Return the result in a sentence; None if there is none."""
    if test.doubt is not None:
        return None
    low, high = map(percent, test.accuracy_interval)
    share = f"all {test.n:,}" if test.is_perfect else f"{percent(test.accuracy)} % of {test.n:,}"
    return f"It names {share} unseen examples rightly (95 % interval {low} to {high})."
