"""The card of a result: what model/ says of itself where its run is not at hand.

model/card.json  data, metrics with n and interval, versions, date, settings, an example
model/README.md  the same for people
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from seqclf.config.settings import settings_by_name
from seqclf.data.sequences import Sequences
from seqclf.errors import printable
from seqclf.hub import NO_LICENCE
from seqclf.inputs import num_features_of, what_is_read
from seqclf.metrics import percent
from seqclf.model import Architecture
from seqclf.predict import kind_of
from seqclf.report.intervals import wilson
from seqclf.run.records import Facts, finite_or_null
from seqclf.settle import Setup

MOST_CLASSES = 50  # that README.md names


def make_card(setup: Setup, facts: Facts, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what card.json holds."""
    splits = setup.splits
    named = {"train": splits.train, "val": splits.validation, "test": splits.test}
    counts = {name: len(split) for name, split in named.items() if split}
    accuracy: dict[str, object] = {}
    share = metrics.get("test/accuracy")
    if share is not None and "test" in counts:
        interval = wilson(round(share * counts["test"]), counts["test"])
        accuracy = {"value": share, "n": counts["test"], "interval_95": interval}
    return {
        "format": 1,
        "data": {"name": facts.data, "fingerprint": facts.data_fingerprint, "examples": counts},
        "reads": what_is_read(setup.architecture),
        "classes": setup.architecture.classes,
        "test_accuracy": accuracy,
        "classes_without_test": _without_examples(setup.splits.test),
        "metrics": finite_or_null(metrics),
        "num_parameters": facts.num_parameters,
        "versions": facts.versions,
        "date": datetime.now(UTC).date().isoformat(),
        "licence": None,  # whoever publishes the model writes it there
        "settings": settings_by_name(setup.config.model_copy(update={"run_dir": None})),
        "example": example_of(setup.architecture),
    }


def _without_examples(split: Sequences | None) -> list[str]:
    """Return the classes of which a split has no example; none if there is no split."""
    if not split:
        return []
    counts = split.labels.bincount(minlength=len(split.classes)).tolist()
    return [name for name, count in zip(split.classes, counts, strict=True) if not count]


def example_of(architecture: Architecture) -> object:
    """Return a short sequence of the form that the model reads; None of an image."""
    kind = kind_of(architecture)
    if kind == "text":
        return "a text"
    if kind == "tokens":
        return list(architecture.tokens[:3])
    if architecture.read != "rows":
        return None
    means = architecture.mean or (0.0,) * architecture.input_size
    offset = architecture.reading.offset or (0.0,) * architecture.input_size
    step = [mean + zero for mean, zero in zip(means, offset, strict=False)]
    return [step[: num_features_of(architecture)]] * 2


def card_files(card: dict[str, Any]) -> dict[str, bytes]:
    """Return the names and contents of the card's files."""
    content = json.dumps(card, indent=1) + "\n"
    return {"card.json": content.encode(), "README.md": to_markdown(card).encode()}


def escape(text: str) -> str:
    """Return a text that Markdown and HTML show as it is: names in data may hold either."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()#+.!|~>:@-])", r"\\\1", shown)


def name_some(classes: Sequence[str]) -> str:
    """Return the first names of classes, and how many more there are."""
    num_more = len(classes) - MOST_CLASSES
    more = f" and {num_more:,} more" * (num_more > 0)
    return ", ".join(map(escape, classes[:MOST_CLASSES])) + more


def to_markdown(card: dict[str, Any]) -> str:
    """Return the card for people."""
    data, accuracy = card["data"], card["test_accuracy"]
    result = "not measured"
    if accuracy:
        share, low, high = (
            f"{percent(number, 2)}%" for number in (accuracy["value"], *accuracy["interval_95"])
        )
        result = (
            f"{share} of n = {accuracy['n']:,} test examples "
            f"(95 % interval {low} to {high}, Wilson)"
        )
    metrics = "".join(
        f"| {escape(name)} | {value if value is None else format(value, '.6g')} |\n"
        for name, value in card["metrics"].items()
    )
    versions = ", ".join(f"{n} {v}" for n, v in card["versions"].items())
    counts = ", ".join(f"{count:,} {split}" for split, count in data["examples"].items())
    example = "" if card["example"] is None else "; card.json holds an example"
    untested = card["classes_without_test"]
    limits = f"No test example is of the class {name_some(untested)}.\n" if untested else ""
    return f"""# A sequence classifier

Trained with seqclf on {card["date"]}, {card["num_parameters"]:,} parameters.

- Reads: {escape(card["reads"])}
- Classes: {name_some(card["classes"])}
- Data: {escape(data["name"])} ({counts} examples), sha256 {data["fingerprint"]}
- Accuracy: {result}
{NO_LICENCE}
- Versions: {versions}

| metric | value |
| --- | --- |
{metrics}
## Use

```python
import seqclf

classifier = seqclf.load("model")  # this folder
classifier.predict(sequences)  # a list of what the model reads{example}
```

## Limits

{limits}The figures hold for sequences like those of the data above. The model gives each sequence
one of its classes, also a sequence that is of none of them. Of sequences of quite another length
or scale it may say anything. Nobody has checked whether it treats people alike.

card.json holds the settings of the training.
"""
