"""Accelerate's examples: prepare, accelerator.backward. At its best: tensors, batched fetches."""

import torch
from accelerate import Accelerator
from common import Report, Whole, as_is, options
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from tutorial import RNN


def main() -> None:
    known = options()
    torch.manual_seed(known.seed)
    test = datasets.MNIST(known.data_root, train=False)
    test_x, test_y = test.data.float() / 255, test.targets
    if known.style == "documented":
        train = datasets.MNIST(known.data_root, train=True, transform=transforms.ToTensor())
        loader = DataLoader(train, batch_size=64, shuffle=True)
    else:
        torch.set_flush_denormal(True)
        whole = datasets.MNIST(known.data_root, train=True)
        tensors = Whole(whole.data.float() / 255, whole.targets)
        loader = DataLoader(tensors, batch_size=64, shuffle=True, collate_fn=as_is)
    accelerator = Accelerator(cpu=True)
    model = RNN()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.01, fused=True if known.style == "best" else None
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def accuracy() -> float:
        model.eval()
        with torch.no_grad():
            found = float((model(test_x).argmax(1) == test_y).float().mean())
        model.train()
        return found

    report = Report()
    for _ in range(known.epochs):
        x: Tensor
        for x, y in loader:
            logits = model(x.view(-1, 28, 28))
            loss = F.cross_entropy(logits, y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if report.epoch_ends(accuracy):
            break


if __name__ == "__main__":
    main()
