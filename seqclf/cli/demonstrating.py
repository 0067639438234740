"""`seqclf demo`: from its arguments to its exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from seqclf.cli.options import data_folders
from seqclf.errors import UserError, printable, printable_lines
from seqclf.run.records import CHECKPOINTS, CONFIG, FACTS, MODEL, STATUS, Status, find_record

if TYPE_CHECKING:
    from seqclf.data.sequences import Sequences


def demo_command(arguments: Namespace) -> int:
    """Write a page that runs a trained model."""
    from seqclf.demo.page import make_page
    from seqclf.run.files import replace_file
    from seqclf.run.weights import find_weights

    out: Path = arguments.out
    if os.path.lexists(out) and not (arguments.overwrite and os.path.isfile(out)):
        raise UserError(f"{out}: is there already; --overwrite replaces a file")
    saved = find_weights(arguments.run_dir)
    lines = []
    if saved.step is not None:
        lines.append(f"note: no result yet; the weights are of step {saved.step}")
    run_dir = home_of(saved.file)
    test = None
    try:
        test = load_test(run_dir, data_folders(arguments))
    except UserError as error:
        lines.append(f"note: no examples to try: {error}")
    architecture = saved.architecture
    facts = [f"An LSTM of {architecture.num_parameters:,} parameters, trained by seqclf."]
    status = find_record(run_dir / STATUS, Status)
    accuracy = None if status is None else status.metrics.get("test/accuracy")
    if test is not None and accuracy is not None and saved.step is None:
        facts.append(f"It names {accuracy:.1%} of {len(test):,} test examples rightly.")
    title = printable(run_dir.name or "model")
    page, notes = make_page(saved.build(), architecture, test, title=title, facts=facts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, page.encode())
    except OSError as error:
        raise UserError(f"{out}: cannot write the page: {error.strerror or error}") from None
    lines += [f"note: {note}" for note in notes]
    size = len(page.encode())
    lines.append(f"wrote       {out}: {size / 1000:,.0f} kB; open it in a browser")
    print(printable_lines("\n".join(lines)))
    return 0


def home_of(weights: Path) -> Path:
    """Return the directory of the run that weights belong to; their own folder if there is none."""
    folder = weights.parent
    if folder.parent.name == CHECKPOINTS:
        return folder.parent.parent
    return folder.parent if folder.name == MODEL else folder


def load_test(run_dir: Path, flags: dict[str, str]) -> Sequences | None:
    """Return the test split of a run; None if it has no example.

    Raises UserError if the run's config is not there, or its data are not, or are others now.
    """
    from seqclf.config.load import load_config_of_run
    from seqclf.data import sources
    from seqclf.run.records import Facts, read_record

    if not os.path.isfile(run_dir / CONFIG):
        raise UserError(f"{run_dir}: no {CONFIG} of a run")
    config = load_config_of_run(run_dir / CONFIG, flags)
    splits = sources.load(config.data, seed=config.seed)
    if splits.fingerprint() != read_record(run_dir / FACTS, Facts).data_fingerprint:
        raise UserError(f"the data of {run_dir} are others now; name its own")
    return splits.test if len(splits.test) else None
