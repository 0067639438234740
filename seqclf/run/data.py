"""The data that a run was trained on, as they are now."""

from __future__ import annotations

import os
from pathlib import Path

from seqclf.config.load import load_config_of_run
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.data.sources import Splits
from seqclf.errors import UserError
from seqclf.run.records import CONFIG, FACTS, Facts, read_record


def load_data(run_dir: Path, flags: dict[str, str]) -> tuple[Config, Splits]:
    """Load a run's config and data; `flags` are settings that say where these are now.

    Raises UserError if the run's config is not there, or its data are not, or are others now.
    """
    if not os.path.isfile(run_dir / CONFIG):
        raise UserError(f"{run_dir}: no {CONFIG} of a run")
    config = load_config_of_run(run_dir / CONFIG, flags)
    splits = sources.load(config.data, seed=config.seed)
    if splits.fingerprint() != read_record(run_dir / FACTS, Facts).data_fingerprint:
        raise UserError(f"the data of {run_dir} are others now; name its own")
    return config, splits
