"""What a run says on the console: decisions, a progress bar or log lines, the result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn, cast

from tqdm import tqdm

from seqclf.errors import printable_lines
from seqclf.metrics import METRICS

BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {remaining} left{postfix}"
LINES_BESIDE_A_BAR = 20  # of training, in a run; all are in metrics.jsonl
LINE_FORMATS = {name: metric.line for name, metric in METRICS.items() if metric.line}
# Training comes first, then evaluations, then what the clock decides.
BAR_ORDER = sorted(METRICS, key=lambda name: (METRICS[name].clock, not name.startswith("train/")))
BAR_FORMATS = {name: text for name in BAR_ORDER if (text := METRICS[name].bar)}


class Console:
    """Prints on the main process, and nothing on the others.

    A quiet one prints warnings on stderr, and of the rest what `say` is told to. If printing fails
    (a closed pipe, a full disk under a log file), training goes on in silence.
    """

    def __init__(self, *, enabled: bool, quiet: bool = False) -> None:
        self.enabled = enabled
        self.quiet = quiet
        self._num_steps = 0
        self._next_line = 0  # the step from which on a line of training is due beside the bar
        self._bar: tqdm[NoReturn] | None = None
        self._latest: dict[str, float] = {}

    def say(self, text: str, *, if_quiet: str = "") -> None:
        """Print lines, above the progress bar if there is one; escape sequences become text.

        A quiet console prints `if_quiet` in their place.
        """
        if not self.enabled:
            return
        if self.quiet:
            self._warn("\n".join(line for line in text.split("\n") if is_warning(line)))
            text = if_quiet
            if not text:
                return
        text = printable_lines(text)
        try:
            if self._bar is None:
                print(text, flush=True)
            else:
                tqdm.write(text, file=sys.stdout)
        except (OSError, ValueError):  # a ValueError if Python has closed the output
            self.enabled = False

    def _warn(self, text: str) -> None:
        if text:
            with suppress(OSError, ValueError):
                print(printable_lines(text), file=sys.stderr, flush=True)

    def open(self, step: int, num_steps: int) -> None:
        """Start the progress bar, if the output is a terminal or a notebook."""
        self._num_steps = num_steps
        bar_class = _choose_bar() if self.enabled and not self.quiet else None
        if bar_class is not None:
            self._bar = bar_class(
                total=num_steps,
                initial=step,
                bar_format=BAR,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )

    def step(self) -> None:
        """Move the progress bar by a step; tqdm draws it again ten times a second at most."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step on a line, and beside the bar if there is one.

        With a bar, of training a few lines stay on the terminal, and of the others each.
        """
        if self._bar is not None:
            self._latest |= metrics
            self._bar.set_postfix_str(_join(BAR_FORMATS, self._latest))
        is_due = "train/loss" not in metrics or step >= self._next_line
        if self._bar is None or is_due:
            if "train/loss" in metrics:
                self._next_line = step + self._num_steps // LINES_BESIDE_A_BAR
            self.say(f"step {step:>6}/{self._num_steps}  {_join(LINE_FORMATS, metrics)}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def is_warning(line: str) -> bool:
    """Return whether a line stays where a user asks for quiet."""
    return line.startswith(("warning: ", "note: this trained", "stopped by a signal"))


def _choose_bar() -> type[tqdm[NoReturn]] | None:
    """Return the progress bar that the output can show, None if it can show none."""
    if "ipykernel" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets the bar is plain text
            from tqdm.auto import tqdm as notebook_bar
        return cast("type[tqdm[NoReturn]]", notebook_bar)
    return tqdm if _is_terminal(sys.stdout) else None


def _is_terminal(output: object) -> bool:
    """Return whether an output is a terminal; None is none."""
    isatty = getattr(output, "isatty", None)
    return isatty is not None and bool(isatty())


def _join(formats: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    return "  ".join(
        text.format(metrics[name]) for name, text in formats.items() if name in metrics
    )
