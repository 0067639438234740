"""The tutorial this package began as: a plain PyTorch script, an image transformed at a time."""

import torch
from common import Report, options
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class RNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(28, 64, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        logits: Tensor = self.out(output[:, -1])
        return logits


def main() -> None:
    known = options(style=False)
    torch.manual_seed(known.seed)
    train = datasets.MNIST(known.data_root, train=True, transform=transforms.ToTensor())
    test = datasets.MNIST(known.data_root, train=False)
    test_x, test_y = test.data.float() / 255, test.targets
    loader = DataLoader(train, batch_size=64, shuffle=True)
    rnn = RNN()
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
    loss_func = nn.CrossEntropyLoss()

    def accuracy() -> float:
        with torch.no_grad():
            return float((rnn(test_x).argmax(1) == test_y).float().mean())

    report = Report()
    for _ in range(known.epochs):
        for x, y in loader:
            loss = loss_func(rnn(x.view(-1, 28, 28)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if report.epoch_ends(accuracy):
            break


if __name__ == "__main__":
    main()
