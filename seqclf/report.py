"""A page of a run, or of several: report.html, self-contained, with its figures beside it.

What evaluations found comes from evaluation/SPLIT.json and is not computed again. What the model
says while it reads is computed here, from the run's weights and data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqclf import figures
from seqclf.config import NEUTRAL, Config, UserError, load_config, settings
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.evaluate import macro_f1_interval, wilson
from seqclf.mirror import class_table
from seqclf.model import LSTMClassifier
from seqclf.predict import load_newest, probabilities
from seqclf.reading import watch_reading
from seqclf.runs import family

CURVES = (  # key, the axis, whether it is logarithmic
    ("train/loss", "training loss", True),
    ("val/loss", "validation loss", True),
    ("test/loss", "test loss", True),
    ("val/accuracy", "validation accuracy", False),
    ("test/accuracy", "test accuracy", False),
    ("train/lr", "learning rate", False),
    ("train/grad_norm", "gradient norm", True),
    ("train/examples_per_s", "examples/s", False),
)


@dataclass(frozen=True)
class Read:
    """What a run directory holds for a page."""

    path: Path
    config: Config
    facts: dict[str, Any]
    status: dict[str, Any]
    lines: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]  # by split

    def points(self, key: str) -> list[tuple[int, float]]:
        """Return a metric's values that are numbers, with their steps."""
        found = ((line["step"], line.get(key)) for line in self.lines)
        return sorted((step, value) for step, value in found if value is not None)

    @property
    def training_s(self) -> float:
        """Seconds of training, without evaluations and saves, up to the last line."""
        total, before, seen = 0.0, 0.0, dict(self.points("train/examples"))
        for step, rate in self.points("train/examples_per_s"):
            total += (seen.get(step, before) - before) / rate if rate else 0.0
            before = seen.get(step, before)
        return total


def read_run(run_dir: Path) -> Read:
    """Read a run directory. Raises UserError if there is none."""
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no run there (config.yaml is missing); see seqclf runs")
    evaluations = {split: _json(run_dir / f"evaluation/{split}.json") for split in ("val", "test")}
    return Read(
        run_dir,
        load_config(run_dir / "config.yaml")[0],
        _json(run_dir / "run.json"),
        _json(run_dir / "status.json"),
        _json_lines(run_dir / "metrics.jsonl"),
        _json_lines(run_dir / "sessions.jsonl"),
        {split: found for split, found in evaluations.items() if found},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # a torn last line
            continue
    return [line for line in found if isinstance(line, dict) and "step" in line]


def write_report(run_dirs: list[Path], out: Path | None, flags: dict[str, str]) -> Path:
    """Write the page of one run, or one that compares several; return its path.

    Raises UserError if a run cannot be read or the page not be written.
    """
    runs = [read_run(path) for path in run_dirs]
    out = out or (run_dirs[0] if len(runs) == 1 else Path()) / "report.html"
    drawn: dict[str, str] = {}
    content = compare(runs, drawn) if len(runs) > 1 else describe(runs[0], drawn, flags)
    text = render(content, drawn)
    folder = out.with_name(f"{out.stem}-figures")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure_files = {folder / f"{name}.svg": svg for name, svg in drawn.items()}
        for file in (out, *figure_files):
            if file.exists() and not _is_ours(file):
                raise UserError(f"{file}: is there already and not ours; choose another --out")
        for old in folder.glob("*.svg"):
            if _is_ours(old):
                old.unlink()
        for file, svg in figure_files.items():
            file.write_text(f"<!-- seqclf -->\n{svg}", encoding="utf-8")
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    return out


def _is_ours(file: Path) -> bool:
    start = file.read_bytes()[:300]
    return b'content="seqclf"' in start or b"<!-- seqclf -->" in start


# ---- one run


def describe(run: Read, drawn: dict[str, str], flags: dict[str, str]) -> dict[str, Any]:
    """Put together the page of one run; its figures are added to `drawn`."""
    draw_curves([run], drawn)
    content: dict[str, Any] = {
        "title": run.path.name or str(run.path),
        "state": run.status.get("state", "unknown"),
        "error": run.status.get("error"),
        "facts": overview(run),
        "evaluations": {},
    }
    for split, found in run.evaluations.items():
        content["evaluations"][split] = evaluation(split, found, drawn)
    try:
        model, file = load_newest(run.path)
        config, _ = load_config(run.path / "config.yaml", flags)
        splits = sources.load(config.data, seed=config.seed)
        if splits.fingerprint() != run.facts.get("data_fingerprint"):
            raise UserError(f"the data of {run.path} are others now; name its own")
    except UserError as error:
        content["unread"] = str(error)
    else:
        content |= watch_reading(model, splits.test, drawn)
        content["ten"] = ten_predictions(model, splits.test)
        if file.parent.name != "model":
            content["weights"] = f"{file.parent.name}, as the run has no result yet"
    return content


def ten_predictions(model: LSTMClassifier, test: Sequences) -> list[dict[str, Any]]:
    """Return the first ten test examples, and what the model says of them."""
    values, lengths = test.rows(slice(min(10, len(test))))
    return [
        {
            "guess": test.classes[int(chances_C.argmax())],
            "truth": test.classes[int(test.labels[index])],
            "probability": float(chances_C.max()),
            "picture": picture(figures.capture(test, index)),
        }
        for index, chances_C in enumerate(probabilities(model, values, lengths).nan_to_num(0))
    ]


def overview(run: Read) -> list[tuple[str, str]]:
    """Return what was run, as names and values."""
    facts, config = run.facts, run.config
    step, total = run.status.get("step", 0), facts.get("num_steps", 0)
    versions = facts.get("versions", {})
    rows = [
        ("data", str(facts.get("data", config.data.name))),
        ("model", _model_words(config, facts)),
        ("steps", f"{step:,} of {total:,} ({run.status.get('epoch', 0):.3g} epochs)"),
        ("training time", f"{run.training_s:,.1f} s, without evaluations and saves"),
        ("batch", f"{config.train.batch_size} examples"),
        ("optimizer", f"{config.optim.name}, rate {config.optim.lr:g}, {config.optim.schedule}"),
        ("seed", str(config.seed)),
        ("where", ", ".join(f"{facts.get(k)}" for k in ("host", "device", "precision"))),
        ("processes", f"{facts.get('world_size')} of {facts.get('threads')} threads"),
        ("starts", str(len(run.sessions))),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("weights", str(facts.get("weights_sha256", ""))[:16]),
    ]
    return [(name, value) for name, value in rows if value]


def _model_words(config: Config, facts: dict[str, Any]) -> str:
    model = config.model
    words = f"LSTM, {model.num_layers} layer{'s' * (model.num_layers > 1)} of {model.hidden_size}"
    words += ", both directions" * model.bidirectional + f", pooling {model.pooling}"
    return f"{words}, {facts.get('num_parameters', 0):,} parameters"


def draw_curves(runs: list[Read], drawn: dict[str, str]) -> None:
    """Draw the learning curves of runs over each other; one run's with its starts and skips."""
    marks, skipped = [], []
    if len(runs) == 1:
        marks = sorted({int(start["step"]) for start in runs[0].sessions if start["step"] > 0})
        counts = runs[0].points("train/skipped")
        skipped = [
            step
            for (step, count), (_, before) in zip(counts, [(0, 0.0), *counts], strict=False)
            if count > before
        ]
    for key, axis, log in CURVES:
        points = {_name(run, runs): found for run in runs if (found := run.points(key))}
        if points:
            name = key.replace("/", "-")
            drawn[name] = figures.curve(points, axis, marks, skipped, log=log)


def _name(run: Read, runs: list[Read]) -> str:
    """Return a run's name, numbered where there are several: long names are cut in figures."""
    names = [other.path.name for other in runs]
    name = run.path.name if names.count(run.path.name) == 1 else str(run.path)
    return name if len(runs) == 1 else f"{runs.index(run) + 1}: {name}"


def evaluation(split: str, found: dict[str, Any], drawn: dict[str, str]) -> dict[str, Any]:
    """Return what an evaluation found, for a page."""
    classes, matrix = found["classes"], found["confusion"]
    n, hits = sum(map(sum, matrix)), sum(row[i] for i, row in enumerate(matrix))
    drawn[f"{split}-confusion"] = figures.confusion(classes, matrix)
    calibration = found["calibration"]
    drawn[f"{split}-reliability"] = figures.reliability(calibration)
    rows = []
    for number, row in enumerate(class_table(classes, matrix)):
        name, precision, recall, f1, support = row
        low, high = wilson(matrix[number][number], support)
        rows.append((name, support, precision, recall, low, high, f1))
    pairs = sorted(
        (
            (count, classes[i], classes[j])
            for i, row in enumerate(matrix)
            for j, count in enumerate(row)
            if i != j and count
        ),
        key=lambda pair: -pair[0],
    )
    return {
        "step": found["step"],
        "n": n,
        "accuracy": hits / n,
        "interval": wilson(hits, n),
        "macro_f1": found[f"{split}/macro_f1"],
        "macro_f1_interval": macro_f1_interval(matrix),
        "loss": found[f"{split}/loss"],
        "ece": sum(abs(right - chance) for _, right, chance in calibration) / n,
        "classes": rows,
        "pairs": pairs[:10],
        "mistakes": [m | {"picture": picture(m)} for m in found["mistakes"]],
    }


def picture(example: dict[str, Any]) -> dict[str, str]:
    """Return an example as a page shows it: text, or a PNG as a data URL."""
    if example["kind"] == "text":
        return {"text": example["values"]}
    if example["kind"] == "image":
        from matplotlib.image import imsave

        content = io.BytesIO()
        imsave(content, example["values"], cmap="gray", format="png")
        png = content.getvalue()
    else:
        png = figures.draw(example)
    return {
        "kind": example["kind"],
        "url": f"data:image/png;base64,{base64.b64encode(png).decode()}",
    }


# ---- several runs


def compare(runs: list[Read], drawn: dict[str, str]) -> dict[str, Any]:
    """Put together a page that compares runs."""
    draw_curves(runs, drawn)
    flat = [settings(run.config) for run in runs]
    differing = [
        name
        for name in flat[0]
        if name not in NEUTRAL and len({json.dumps(one.get(name)) for one in flat}) > 1
    ]
    columns = [[json.dumps(one.get(name)) for name in differing] for one in flat]
    prints = [str(run.facts.get("data_fingerprint", "")) for run in runs]
    if len(set(prints)) > 1:
        differing.insert(0, "data")
        for run, row, fingerprint in zip(runs, columns, prints, strict=True):
            row.insert(0, f"{run.facts.get('data', '')} {fingerprint[:8]}")
    metrics = sorted({name for run in runs for name in run.status.get("metrics") or {}})
    rows = [
        {
            "name": _name(run, runs),
            "state": run.status.get("state", "unknown"),
            "settings": row,
            "metrics": [(run.status.get("metrics") or {}).get(name, "") for name in metrics],
        }
        for run, row in zip(runs, columns, strict=True)
    ]
    families: dict[str, dict[int, Read]] = {}
    for run in runs:
        if run.status.get("state") == "finished":
            key = family(run.config, run.facts)
            families.setdefault(key, {})[run.config.seed] = run
    groups = []
    for by_seed in families.values():
        group = list(by_seed.values())
        if len(group) < 2:
            continue
        found = []
        for name in metrics:
            values = [run.status["metrics"].get(name) for run in group]
            good = [value for value in values if value is not None]
            whole = len(good) == len(values)
            found.append((statistics.mean(good), statistics.stdev(good)) if whole else None)
        groups.append({"names": [_name(run, runs) for run in group], "metrics": found})
    return {
        "title": f"{len(runs)} runs",
        "several": {"differing": differing, "metrics": metrics, "rows": rows, "groups": groups},
        "evaluations": {},
    }


# ---- the page


def render(content: dict[str, Any], drawn: dict[str, str]) -> str:
    """Fill the template; everything that comes from data is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    )
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inline = {name: Markup(_inline(name, svg)) for name, svg in drawn.items()}
    empty = dict.fromkeys(
        ("state", "error", "facts", "several", "unread", "weights", "readings", "ten")
    )
    known = empty | content
    return template.render(**known, drawn=inline, script=Markup(script), script_hash=digest)


def _inline(name: str, svg: str) -> str:
    """Return a figure for a page: in its colours, ids of its own; the caption is its text."""
    svg = re.sub(r' id="[a-z]+[a-z0-9]*_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(figures.INK, "currentColor").replace(figures.PAPER, "none")
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', svg, count=1
    )
