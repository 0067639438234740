"""A mirror of a run's metrics in Weights & Biases.

metrics.jsonl (run.py) is the truth. A mirror that fails is reported once and dropped: it never
stops training.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seqclf.config import Tracking as TrackingSettings


class Tracking:
    """Mirrors metrics on the main process; does nothing on the others. `say` prints."""

    def __init__(self, say: Callable[[str], None], *, enabled: bool) -> None:
        self._say = say
        self.enabled = enabled
        self._wandb: Any = None  # accelerate's WandBTracker, once opened

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
            self._say(f"wandb       offline; to upload: wandb sync {run_dir}/wandb/offline-run-*")
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

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror the metrics of a step."""
        if self._wandb is not None:
            tracker = self._wandb
            self._guarded(lambda: tracker.log({"global_step": step, **metrics}))

    def close(self, exit_code: int = 0) -> None:
        """Let the mirror finish."""
        if self._wandb is not None:
            tracker, self._wandb = self._wandb, None
            self._guarded(lambda: tracker.run.finish(exit_code=exit_code))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # any failure of a mirror, reported once; training goes on
            self._wandb = None
            self._say(f"warning: W&B failed and is left out from here on: {error}")


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
