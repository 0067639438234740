"""`seqclf push`: from its arguments to its exit code."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

from seqclf.errors import UserError, printable_lines


def push_command(arguments: Namespace) -> int:
    """Upload a trained model to the Hugging Face Hub, or write the folder that would go there."""
    from seqclf import hub
    from seqclf.run.weights import find_weights

    name = hub.parse_name(arguments.name)
    saved = find_weights(arguments.run_dir)
    if saved.step is not None:
        raise UserError(
            f"{arguments.run_dir}: no result yet, only a checkpoint of step {saved.step}; "
            "let the run finish"
        )
    saved.build()  # a damaged model is refused here, not by those who download it
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model" if arguments.dry_run is None else arguments.dry_run
        lines = [f"note: {one}" for one in hub.gather(saved.file.parent, folder, name)]
        for file in sorted(folder.iterdir()):
            lines.append(f"{file.name:<20} {file.stat().st_size:>12,} bytes")
        if arguments.dry_run is not None:
            lines.append(f"wrote       {folder}; nothing was sent")
        else:
            print(printable_lines("\n".join(lines)), flush=True)
            lines = [f"sent        {hub.push(folder, name, private=arguments.private)}"]
    print(printable_lines("\n".join(lines)))
    return 0
