"""What a run shows while it goes: the console, and a mirror in Weights & Biases.

metrics.jsonl (run.py) is the truth. A mirror that fails is reported once and dropped: it never
stops training.
"""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqclf.config import Tracking as TrackingSettings


class Tracking:
    """Prints, and mirrors metrics, on the main process; does nothing on the others."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._bar: Any = None
        self._wandb: Any = None  # accelerate's WandBTracker, once opened

    def say(self, text: str) -> None:
        """Print lines above the progress bar."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def open(self, options: TrackingSettings, run_dir: Path, config: Mapping[str, object]) -> None:
        """Start the mirror that the settings ask for."""
        if self.enabled and options.wandb != "disabled":
            self._guarded(lambda: self._open_wandb(options, run_dir, config))

    def _open_wandb(
        self, options: TrackingSettings, run_dir: Path, config: Mapping[str, object]
    ) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        mode = wandb_mode(options.wandb)
        if mode == "offline":
            self.say(f"wandb       offline; to upload: wandb sync {run_dir}/wandb/offline-run-*")
        tracker = WandBTracker(
            options.project,
            name=run_dir.name,
            dir=str(run_dir),
            mode=mode,
            settings=wandb.Settings(silent=mode == "offline", console="off"),
        )
        tracker.start()
        self._wandb = tracker
        tracker.store_init_configuration(dict(config))
        tracker.run.define_metric("global_step")
        tracker.run.define_metric("*", step_metric="global_step")

    def log(self, step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
        """Show and mirror the metrics of a step."""
        if not self.enabled:
            return
        if sys.stdout.isatty():
            if self._bar is None:
                self._bar = tqdm(total=num_steps, initial=step, unit="step", leave=False)
            self._bar.n = step
            loss = metrics.get("train/loss")
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.refresh()
        if not sys.stdout.isatty() or "train/loss" not in metrics:
            self.say(f"step {step:>6}/{num_steps}  " + _line(metrics))
        if self._wandb is not None:
            tracker = self._wandb
            self._guarded(lambda: tracker.log({"global_step": step, **metrics}))

    def close(self, exit_code: int = 0) -> None:
        """Take the bar away and let the mirror finish."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._wandb is not None:
            tracker, self._wandb = self._wandb, None
            self._guarded(lambda: tracker.run.finish(exit_code=exit_code))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # any failure of a mirror, reported once; training goes on
            self._wandb = None
            self.say(f"warning: W&B failed and is left out from here on: {error}")


def wandb_mode(asked: str) -> str | None:
    """Return W&B's mode: as asked; auto is W&B's own environment, else online only with a key."""
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if _has_wandb_key() else "offline"


def _has_wandb_key() -> bool:
    """Look for an API key where `wandb login` leaves it, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
        return host in netrc.netrc(path).hosts  # not its `default` entry
    except (OSError, netrc.NetrcParseError):
        return False


SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/lr": "lr {:.2e}",
    "train/examples_per_s": "{:,.0f} examples/s",
    "val/accuracy": "val accuracy {:.2%}",
    "val/loss": "val loss {:.4f}",
    "test/accuracy": "test accuracy {:.2%}",
    "test/loss": "test loss {:.4f}",
    "train/skipped": "skipped {:.0f}",
}


def _line(metrics: Mapping[str, float]) -> str:
    return "  ".join(form.format(metrics[key]) for key, form in SHOWN.items() if key in metrics)
