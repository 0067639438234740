"""Mirror a run directory, as it grows, in W&B or TensorBoard: a process beside the training.

python -m seqclf.tracking.mirror wandb RUN_DIR          sends what W&B lacks, and leaves
python -m seqclf.tracking.mirror wandb RUN_DIR TRAINER  is what a training starts
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.run.records import CONFIG, METRICS
from seqclf.tracking.delivery import only_mirror
from seqclf.tracking.mirrors import TITLES
from seqclf.tracking.to_wandb import to_wandb
from seqclf.tracking.trainer import Trainer, follow, say


def main() -> int:
    """Mirror until the trainer ends; return 0, or 2 if that failed."""
    parser = argparse.ArgumentParser("python -m seqclf.tracking.mirror", description=__doc__)
    parser.add_argument("kind", choices=list(TITLES))
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("trainer", type=int, nargs="?", help="its process's number")
    arguments = parser.parse_args()
    run_dir: Path = arguments.run_dir
    mirror = {"wandb": to_wandb, "tensorboard": to_tensorboard}[arguments.kind]
    try:
        config, _ = load_config(run_dir / CONFIG)
        trainer = Trainer(arguments.trainer, config.tracking.finish_s)
        with only_mirror(run_dir, arguments.kind) as delivery:
            delivery.confirm(mirror(run_dir, config, trainer))
    except Exception as error:  # a mirror that fails is reported once, and training goes on
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        say(f"warning: {TITLES[arguments.kind]} failed and is left out from here on: {reason}")
        return 2
    return 0


def to_tensorboard(run_dir: Path, config: Config, trainer: Trainer) -> int:
    """Mirror in TensorBoard's files; return the number of lines that they hold.

    The files are made anew from metrics.jsonl at each start.
    """
    from torch.utils.tensorboard import SummaryWriter

    num_lines = 0
    folder = run_dir / "tensorboard"
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder), flush_secs=5) as writer:
        writer.add_text("config", "```\n" + (run_dir / CONFIG).read_text() + "\n```")
        for line in follow(run_dir / METRICS, trainer.ended):
            num_lines = line.number
            for name, value in line.metrics.items():
                writer.add_scalar(name, value, line.step)
    return num_lines


if __name__ == "__main__":
    sys.exit(main())
