"""A page of a run, or of several: report.html, self-contained, with its figures beside it.

What evaluations found comes from evaluation/SPLIT.json and is not computed again. What the model
says while it reads is computed here, from the run's weights and data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqclf import figures
from seqclf.config import NEUTRAL, Config, UserError, load_config, settings
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.mirror import class_table
from seqclf.model import LSTMClassifier
from seqclf.predict import line_ends, load_model, probabilities, read_along, token_lines
from seqclf.runs import family

MOST_FLOP = 2e10  # of the reading over many examples, half a second of a small CPU
FEWEST_READ, AT_ONCE, MOST_SHARES = 100, 250, 40
MOST_LINES, MOST_COLUMNS, OF_A_KIND = 100, 10, 3  # of a reading that is drawn
MOST_CLASSES = 30  # in a figure with a row for each
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
        total, examples, size = 0.0, 0, self.config.train.batch_size
        for step, rate in self.points("train/examples_per_s"):
            total += (step * int(size) - examples) / rate if rate else 0.0
            examples = step * int(size)
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
        if out.exists() and b'content="seqclf"' not in out.read_bytes()[:2000]:
            raise UserError(f"{out}: is there already and no report of ours; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.svg"):
            old.unlink()
        for name, svg in drawn.items():
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    return out


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
        model, _ = load_model(run.path)
        config, _ = load_config(run.path / "config.yaml", flags)
        splits = sources.load(config.data, seed=config.seed)
        if splits.fingerprint() != run.facts.get("data_fingerprint"):
            raise UserError(f"the data of {run.path} are others now; name its own")
    except UserError as error:
        content["unread"] = str(error)
    else:
        content |= watch_reading(model, splits.test, drawn)
    return content


def overview(run: Read) -> list[tuple[str, str]]:
    """Return what was run, as names and values."""
    facts, config = run.facts, run.config
    step, total = run.status.get("step", 0), facts.get("num_steps", "?")
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
    names = [other.path.name for other in runs]
    return run.path.name if names.count(run.path.name) == 1 else str(run.path)


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
        "loss": found[f"{split}/loss"],
        "ece": sum(abs(right - chance) for _, right, chance in calibration) / n,
        "classes": rows,
        "pairs": pairs[:10],
        "mistakes": [m | {"picture": picture(m)} for m in found["mistakes"]],
    }


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson's score interval, 1927)."""
    if not n:
        return 0.0, 1.0
    z, share = statistics.NormalDist().inv_cdf(0.975), hits / n
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


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
    return {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}


# ---- the model reading


def watch_reading(model: LSTMClassifier, test: Sequences, drawn: dict[str, str]) -> dict[str, Any]:
    """Have the model read test examples: some drawn, many counted."""
    ids = spread(model, test)
    shares, chances_NEC = read_shares(model, test, ids)
    labels, guesses_NE = test.labels[ids].cpu(), chances_NEC.argmax(2)
    n, right_NE = len(ids), guesses_NE == labels[:, None]
    hits = right_NE.sum(0).tolist()
    xlabel, factor = "share of the sequence read (%)", 100.0
    if test.lengths is None or int(test.lengths.min()) == int(test.lengths.max()):
        xlabel, factor = "steps read", float(num_steps_of(model, test))
    xs = [share * factor for share in shares]
    drawn["reading-share"] = figures.share_curve(
        xs, [hit / n for hit in hits], [wilson(hit, n) for hit in hits], xlabel
    )
    decided_N = decided_at(guesses_NE)
    points = {
        number: [xs[i] for i in decided_N[(labels == number) & right_NE[:, -1]].tolist()]
        for number in range(len(test.classes))
    }
    shown = sorted((k for k, v in points.items() if v), key=lambda k: statistics.median(points[k]))
    if len(shown) > MOST_CLASSES:
        shown = shown[: MOST_CLASSES // 2] + shown[-MOST_CLASSES // 2 :]
    if shown:
        names = [test.classes[number] for number in shown]
        drawn["reading-decided"] = figures.decisions(names, [points[k] for k in shown], xlabel)
    final_N, guess_N = chances_NEC[:, -1].nan_to_num(0).max(1)
    right_N = guess_N == labels
    order = final_N.argsort(descending=True, stable=True)
    kinds = {
        "right": right_N.nonzero()[:, 0],
        "wrong, and most sure": order[~right_N[order]],
        "unsure": order.flip(0),
    }
    told: dict[int, dict[str, Any]] = {}  # an example is drawn once
    for kind, places in kinds.items():
        new = [index for index in ids[places].tolist() if index not in told][:OF_A_KIND]
        told |= {index: read_one(model, test, index, kind, drawn) for index in new}
    ten = [
        {
            "guess": test.classes[int(chances_C.argmax())],
            "truth": test.classes[int(test.labels[index])],
            "probability": float(chances_C.max()),
            "picture": picture(figures.capture(test, index)),
        }
        for index, chances_C in enumerate(
            probabilities(model, *test.rows(slice(min(10, len(test))))).nan_to_num(0)
        )
    ]
    return {"read_n": n, "test_n": len(test), "readings": list(told.values()), "ten": ten}


def num_steps_of(model: LSTMClassifier, test: Sequences) -> int:
    """Return the steps of the longest example."""
    return model.steps(test.rows(slice(0, 1))[0]).shape[1] if test.starts is None else test.shape[0]


def spread(model: LSTMClassifier, test: Sequences) -> Tensor:
    """Choose the examples that are read, evenly over the split: all, or what MOST_FLOP allows."""
    steps = num_steps_of(model, test)
    times = min(steps, MOST_SHARES) / 2 if model.rnn.bidirectional else 1
    flop = 2 * steps * times * sum(p.numel() for p in model.parameters())
    count = min(len(test), max(FEWEST_READ, int(MOST_FLOP / flop)))
    return torch.arange(count) * len(test) // count


def read_shares(model: LSTMClassifier, test: Sequences, ids: Tensor) -> tuple[list[float], Tensor]:
    """Return the shares of a sequence read, and the probabilities after each, [N, E, C]."""
    count = min(num_steps_of(model, test), MOST_SHARES)
    parts = torch.arange(1, count + 1)
    found = []
    for some in ids.split(AT_ONCE):
        values, lengths = test.rows(some)
        if lengths is None:
            lengths = torch.full([len(some)], model.steps(values).shape[1])
        ends_BE = -(-lengths[:, None] * parts // count)  # rounded up: at least one step
        found.append(read_along(model, values, ends_BE))
    return [part / count for part in range(1, count + 1)], torch.cat(found)


def decided_at(guesses_NE: Tensor) -> Tensor:
    """Return where each row took its last value for good, int64 [N].

    >>> decided_at(torch.tensor([[1, 2, 2], [3, 3, 3], [1, 2, 1]])).tolist()
    [1, 0, 2]
    """
    changed_NE = guesses_NE[:, 1:] != guesses_NE[:, :-1]
    places_E = torch.arange(1, guesses_NE.shape[1], device=guesses_NE.device)
    zero_N1 = torch.zeros_like(guesses_NE[:, :1])
    return torch.cat([zero_N1, changed_NE * places_E], 1).amax(1)


def read_one(
    model: LSTMClassifier, test: Sequences, index: int, kind: str, drawn: dict[str, str]
) -> dict[str, Any]:
    """Draw an example being read, and say in words what happened."""
    value = test[index][0].cpu()
    per_line, ends = line_ends(model, test, value, MOST_LINES)
    chances_EC = read_along(model, value[None], torch.tensor([ends]))[0].nan_to_num(0)
    truth, guesses = int(test.labels[index]), chances_EC.argmax(1)
    across, is_image = (
        model.read == "columns" or not (test.starts is None or test.num_tokens),
        (test.starts is None),
    )
    lines: list[list[float]] | list[str]
    if test.num_tokens:
        lines = token_lines(test, value, ends)
    elif is_image:
        steps_TF = model.steps(value[None])[0].float()
        flat = model.read in ("pixels", "permuted")
        lines = (
            steps_TF.reshape(len(ends), -1) if flat else steps_TF[[e - 1 for e in ends]]
        ).tolist()
    else:
        lines = value[[end - 1 for end in ends]][:, : figures.MOST_FEATURES].double().tolist()
    columns = list(range(len(test.classes)))
    if len(columns) > MOST_COLUMNS:
        peaks = chances_EC.amax(0)
        peaks[[truth, int(guesses[-1])]] = 2.0
        columns = sorted(peaks.topk(MOST_COLUMNS).indices.tolist())
    name = f"reading-example-{index}"
    drawn[name] = figures.reading(
        lines,
        chances_EC[:, columns].tolist(),
        ends,
        [test.classes[number] for number in columns],
        across=across,
        is_image=is_image,
    )
    changes = int((guesses[1:] != guesses[:-1]).sum())
    decided = ends[int(decided_at(guesses[None])[0])]
    unit = {"rows": "row" if is_image else "step", "columns": "column"}.get(model.read, "pixel")
    told = f"says {test.classes[int(guesses[-1])]} ({float(chances_EC[-1].max()):.0%}) "
    told += f"for good from {unit} {decided} of {ends[-1]} on"
    told += f", after {changes} change{'s' * (changes != 1)} of mind" if changes else ""
    if per_line > 1:
        told += f"; drawn every {per_line} {unit}s"
    return {
        "figure": name,
        "kind": kind,
        "index": index,
        "truth": test.classes[truth],
        "told": told,
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
    metrics = sorted({name for run in runs for name in run.status.get("metrics") or {}})
    rows = [
        {
            "name": _name(run, runs),
            "state": run.status.get("state", "unknown"),
            "settings": [json.dumps(one.get(name)) for name in differing],
            "metrics": [(run.status.get("metrics") or {}).get(name) for name in metrics],
        }
        for run, one in zip(runs, flat, strict=True)
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
    empty: dict[str, Any] = {
        "state": None,
        "error": None,
        "facts": [],
        "several": None,
        "unread": None,
    }
    empty |= {"readings": [], "ten": [], "read_n": 0, "test_n": 0}
    return template.render(
        **(empty | content),
        drawn=inline,
        script=Markup(script),
        script_hash=digest,
    )


def _inline(name: str, svg: str) -> str:
    """Return a figure for a page: in its colours, ids of its own; the caption is its text."""
    svg = re.sub(r' id="[a-z]+[a-z0-9]*_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(figures.INK, "currentColor").replace(figures.PAPER, "none")
    return re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', svg, count=1
    )
