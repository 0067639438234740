"""The metrics of a run, named as in metrics.jsonl: how each is titled, printed and compared."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """How one metric is shown and compared."""

    title: str
    line: str | None = None
    """Format on a log line; None: it does not stand there."""
    bar: str | None = None
    """Shorter format beside the progress bar, where 80 columns must do."""
    curve: bool = True
    """Whether the report draws it."""
    log_axis: bool = False
    """Whether its axis in the report is logarithmic."""
    clock: bool = False
    """Whether the clock decides it: a repeated step has another value."""


METRICS = {
    "train/loss": Metric("training loss", "loss {:.4f}", "loss {:.3g}", log_axis=True),
    "val/accuracy": Metric("validation accuracy", "val acc {:.2%}", "val {:.1%}"),
    "val/loss": Metric("validation loss", "loss {:.4f}", log_axis=True),
    "test/accuracy": Metric("test accuracy", "test acc {:.2%}", "test {:.1%}"),
    "test/loss": Metric("test loss", "loss {:.4f}", log_axis=True),
    "train/lr": Metric("learning rate", "lr {:.2e}", "lr {:.1g}"),
    "train/grad_norm": Metric("gradient norm", log_axis=True),
    "train/examples_per_s": Metric("examples/s", "{:,.0f} examples/s", bar="{:,.0f}/s", clock=True),
    "train/skipped": Metric("skipped steps", "skipped {:.0f}", curve=False),
    "train/examples": Metric("training examples", curve=False),
    "train/seconds_per_step_p50": Metric("median step time (s)", curve=False, clock=True),
    "train/seconds_per_step_p95": Metric("95 % of steps take (s)", curve=False, clock=True),
    "train/data_wait_share": Metric("share of time waiting for data", curve=False, clock=True),
    "train/peak_memory_mb": Metric("peak GPU memory (MB)", curve=False, clock=True),
}

# A step that is done again after a kill has other values of these.
CLOCK_METRICS = frozenset(name for name, metric in METRICS.items() if metric.clock)

# Of the three metrics of an evaluation (SPLIT/NAME), whether the highest or the lowest is best.
BEST: dict[str, Literal["max", "min"]] = {"loss": "min", "accuracy": "max", "macro_f1": "max"}


def percent(share: float, places: int = 1) -> str:
    """Return a share in per cent, without the sign. Less than all is never 100.

    >>> percent(0.996, 0), percent(1.0, 0), percent(0.5), percent(0.99999, 2)
    ('>99', '100', '50.0', '>99.99')
    """
    text = f"{100 * share:.{places}f}"
    is_too_much = share < 1 and float(text) >= 100
    return f">{100 - 10**-places:.{places}f}" if is_too_much else text


def best_of(name: str) -> Literal["max", "min"] | None:
    """Say which value of an evaluation's metric is its best one; None for a training metric.

    >>> best_of("val/loss")
    'min'
    """
    split, _, measure = name.partition("/")
    return None if split == "train" else BEST.get(measure)
