"""The executable specification: what seqclf computes in one process, in plain torch.

Trains the default recipe on MNIST, or on what is given, and returns the weights. tests/test_bare.py
holds that the package gives these very bits; benchmarks/loop.py times the package against it.

    python benchmarks/bare.py data 1876
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seed_of(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


class Classifier(nn.Module):
    def __init__(self, features: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes)
        with torch.no_grad():
            _, recurrent, bias, other_bias = self.rnn.parameters()
            for gate in recurrent.chunk(4):
                nn.init.orthogonal_(gate)
            bias.zero_()[hidden : 2 * hidden] = 1.0  # the forget gate
            other_bias.zero_()

    def forward(self, values: Tensor) -> Tensor:
        _, (state, _) = self.rnn(values)
        logits: Tensor = self.out(state[-1])
        return logits


def train_steps(
    images: Tensor,
    labels: Tensor,
    num_steps: int,
    *,
    batch_size: int = 64,
    hidden: int = 64,
    seed: int = 0,
    scale: float = 255.0,
) -> Iterator[Classifier]:
    """Train on images uint8 [N, T, F] and labels int64 [N]; yield the model after every step."""
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    model = Classifier(images.shape[2], 10, hidden).to(images.device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)
    steps_per_epoch = -(-len(images) // batch_size)
    warmup = round(0.1 * num_steps)
    for step in range(num_steps):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
            order = torch.randperm(len(images), generator=generator).to(images.device)
        ids = order[index * batch_size : (index + 1) * batch_size]
        logits = model(images.index_select(0, ids).float() / scale)
        loss = F.cross_entropy(logits, labels.index_select(0, ids), reduction="sum") / len(ids)
        loss.backward()
        norm = torch.linalg.vector_norm(
            torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        )
        # the fused kernel divides gradients by it
        optimizer.grad_scale = norm.clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.param_groups[0]["lr"] = 0.01 * (
            (step + 1) / (warmup + 1)
            if step < warmup
            else (num_steps - step) / (num_steps - warmup)
        )
        optimizer.step()
        optimizer.zero_grad()
        yield model


if __name__ == "__main__":
    folder = Path(sys.argv[1]) / "MNIST" / "raw"

    def read(name: str, header: int) -> Tensor:
        return torch.frombuffer(bytearray((folder / name).read_bytes()[header:]), dtype=torch.uint8)

    images, test_images = (
        read(f"{split}-images-idx3-ubyte", 16).view(-1, 28, 28) for split in ("train", "t10k")
    )
    labels, test_labels = (
        read(f"{split}-labels-idx1-ubyte", 8).long() for split in ("train", "t10k")
    )
    started = time.perf_counter()
    *_, model = train_steps(images, labels, int(sys.argv[2]))
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        hits = (model(test_images.float() / 255).argmax(1) == test_labels).sum()
    print(f"{seconds:.2f} s, test accuracy {int(hits) / len(test_labels):.4f}")
