"""What a run says on the console: decisions, a progress bar or log lines, the result."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {remaining} left{postfix}"
LINE = {  # on a log line ...
    "train/loss": "loss {:.4f}",
    "train/lr": "lr {:.2e}",
    "train/examples_per_s": "{:,.0f} examples/s",
    "val/accuracy": "val acc {:.2%}",
    "val/loss": "loss {:.4f}",
    "test/accuracy": "test acc {:.2%}",
    "test/loss": "loss {:.4f}",
    "train/skipped": "skipped {:.0f}",
}
BESIDE_BAR = {  # ... and what of it fits beside the bar in 80 columns
    "train/loss": "loss {:.3g}",
    "train/lr": "lr {:.1g}",
    "test/accuracy": "test {:.1%}",
    "val/accuracy": "val {:.1%}",
    "train/examples_per_s": "{:,.0f}/s",
}


class Console:
    """Prints on the main process; says nothing on the others.

    A console that goes away (a closed pipe, a full disk under a log file) stops nothing.
    """

    def __init__(self, *, enabled: bool, quiet: bool = False) -> None:
        self.enabled = enabled
        self.quiet = quiet
        self._num_steps = 0
        self._bar: Any = None  # tqdm
        self._latest: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print lines, above the progress bar if there is one."""
        if not self.enabled:
            return
        try:
            if self._bar is None:
                print(text, flush=True)
            else:
                tqdm.write(text, file=sys.stdout)
        except OSError:
            self.enabled = False

    def open(self, step: int, num_steps: int) -> None:
        """Start the progress bar, on a terminal."""
        self._num_steps = num_steps
        if self.enabled and not self.quiet and sys.stdout.isatty():
            self._bar = tqdm(
                total=num_steps,
                initial=step,
                bar_format=BAR,
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
            )

    def step(self) -> None:
        """Move the progress bar by a step; it redraws itself ten times a second at most."""
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step: training beside the bar, all the rest on a line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._latest |= metrics
            self._bar.set_postfix_str(_join(BESIDE_BAR, self._latest))
        if self._bar is None or "train/loss" not in metrics:
            self.say(f"step {step:>6}/{self._num_steps}  {_join(LINE, metrics)}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _join(forms: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    return "  ".join(form.format(metrics[key]) for key, form in forms.items() if key in metrics)
