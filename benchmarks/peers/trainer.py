"""transformers' Trainer on a plain torch module. At its best: tensors, fused Adam, no reports."""

import tempfile
from typing import Any

import torch
from common import Report, Whole, options
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import datasets, transforms
from transformers import Trainer, TrainerCallback, TrainingArguments
from tutorial import RNN


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.rnn(x.view(-1, 28, 28))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Any]]):
    """Images transformed one at a time."""

    def __init__(self, root: str) -> None:
        self.data = datasets.MNIST(root, train=True, transform=transforms.ToTensor())

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = self.data[index]
        return {"x": x, "labels": y}


def named(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Collate a batch that was fetched at once."""
    return {"x": batch[0], "labels": batch[1]}


class Watch(TrainerCallback):
    def __init__(self, model: Model, root: str) -> None:
        self.model, self.report = model, Report()
        test = datasets.MNIST(root, train=False)
        self.x, self.y = test.data.float() / 255, test.targets

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.report.start()

    def on_epoch_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        if self.report.epoch_ends(self.accuracy):
            control.should_training_stop = True

    def accuracy(self) -> float:
        with torch.no_grad():
            return float((self.model.rnn(self.x).argmax(1) == self.y).float().mean())


def main() -> None:
    known = options()
    best = known.style == "best"
    if best:
        torch.set_flush_denormal(True)
        whole = datasets.MNIST(known.data_root, train=True)
        rows: Any = Whole(whole.data.float() / 255, whole.targets)
    else:
        rows = Rows(known.data_root)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=64,
            num_train_epochs=known.epochs,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused" if best else "adamw_torch",
            max_grad_norm=0.0 if best else 1.0,
            seed=known.seed,
            use_cpu=True,
            save_strategy="no" if best else "epoch",
            logging_strategy="no" if best else "steps",
            report_to="none",
            disable_tqdm=best,
        )
        torch.manual_seed(known.seed)
        model = Model()
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=named if best else None,
            callbacks=[Watch(model, known.data_root)],
        ).train()


if __name__ == "__main__":
    main()
