"""bare.py, the same arithmetic as ours in plain PyTorch, evaluated after each epoch."""

import sys
from pathlib import Path

import torch
from common import Report, mnist, options

sys.path.append(str(Path(__file__).parent.parent))
import bare


def main() -> None:
    known = options(style=False)
    (x, y), (test_x, test_y) = (
        (torch.from_numpy(images), torch.from_numpy(labels))
        for images, labels in mnist(known.data_root)
    )
    per_epoch = -(-len(x) // 64)
    steps = bare.train_steps(x, y, known.epochs * per_epoch, seed=known.seed)
    next(steps)  # which makes the optimizer: the others' is made before their clock starts
    report = Report()
    for step, model in enumerate(steps, 2):
        if step % per_epoch == 0:

            def accuracy(model: bare.Classifier = model) -> float:
                with torch.inference_mode():
                    return float((model(test_x.float() / 255).argmax(1) == test_y).float().mean())

            report.epoch_ends(accuracy)


if __name__ == "__main__":
    main()
