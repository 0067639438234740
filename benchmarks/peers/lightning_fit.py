"""Lightning: a LightningModule and Trainer.fit. At its best: tensors, nothing logged or saved."""

import logging
import warnings

import lightning
import torch
from common import Report, Whole, as_is, options
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from tutorial import RNN

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Classifier(lightning.LightningModule):
    def __init__(self, *, log: bool, test_x: Tensor, test_y: Tensor) -> None:
        super().__init__()
        self.model, self.told, self.test = RNN(), log, (test_x, test_y)
        self.report = Report()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x.view(-1, 28, 28)), y)
        if self.told:
            self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = None if self.told else True
        return torch.optim.Adam(self.parameters(), lr=0.01, fused=fused)

    def on_train_start(self) -> None:
        self.report.start()

    def on_train_epoch_end(self) -> None:
        if self.report.epoch_ends(self.accuracy):
            self.trainer.should_stop = True

    def accuracy(self) -> float:
        with torch.no_grad():
            return float((self.model(self.test[0]).argmax(1) == self.test[1]).float().mean())


def main() -> None:
    known = options()
    lightning.seed_everything(known.seed, verbose=False)
    test = datasets.MNIST(known.data_root, train=False)
    documented = known.style == "documented"
    if documented:
        train = datasets.MNIST(known.data_root, train=True, transform=transforms.ToTensor())
        loader = DataLoader(train, batch_size=64, shuffle=True)
    else:
        torch.set_flush_denormal(True)
        whole = datasets.MNIST(known.data_root, train=True)
        tensors = Whole(whole.data.float() / 255, whole.targets)
        loader = DataLoader(tensors, batch_size=64, shuffle=True, collate_fn=as_is)
    model = Classifier(log=documented, test_x=test.data.float() / 255, test_y=test.targets)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=known.epochs, accelerator="cpu", **({"logger": False} if documented else quiet)
    )
    trainer.fit(model, loader)


if __name__ == "__main__":
    main()
