"""`seqclf demo`: from its arguments to its exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from seqclf.cli.options import data_folders
from seqclf.errors import UserError, printable, printable_lines
from seqclf.metrics import percent
from seqclf.run.records import CHECKPOINTS, MODEL, STATUS, Status, find_record

if TYPE_CHECKING:
    from seqclf.data.sequences import Sequences


def demo_command(arguments: Namespace) -> int:
    """Write a page that runs a trained model."""
    from seqclf.demo.page import make_page
    from seqclf.run.data import load_data
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
    test: Sequences | None = None
    try:
        test = load_data(run_dir, data_folders(arguments))[1].test
    except UserError as error:
        lines.append(f"note: no examples to try: {error}")
    architecture = saved.architecture
    facts = [f"An LSTM of {architecture.num_parameters:,} parameters, trained by seqclf."]
    if saved.step is not None:
        facts.append(f"Its training is not finished: these are the weights of step {saved.step:,}.")
    status = find_record(run_dir / STATUS, Status)
    accuracy = None if status is None else status.metrics.get("test/accuracy")
    if test is not None and accuracy is not None and saved.step is None:
        facts.append(f"It names {percent(accuracy)}% of {len(test):,} test examples correctly.")
    title = printable(os.path.basename(os.path.abspath(run_dir)))
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
