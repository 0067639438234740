"""LSTMClassifier: images -> steps -> LSTM layers -> pooling -> logits.

Shapes: B batch, T steps, F features, H hidden (times two if bidirectional), C classes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

Pooling = Literal["last", "mean", "max"]
Init = Literal["orthogonal", "tutorial"]
Read = Literal["rows", "columns", "pixels", "permuted"]
PERMUTATION_SEED = 5544


def read_images(values: Tensor, read: Read) -> Tensor:
    """Turn images [B, rows, columns] into what is read step by step, [B, T, F].

    Rows or columns are T steps from the top or the left; pixels are T = rows * columns steps of one
    feature, row after row, or permuted: the same random order for every image and run.
    """
    if read == "rows":
        return values
    if read == "columns":
        return values.mT
    pixels = values.flatten(1)
    if read == "permuted":
        pixels = pixels.index_select(1, permutation(pixels.shape[1], pixels.device))
    return pixels.unsqueeze(2)


@lru_cache
@torch.inference_mode(False)  # kept, and an inference tensor could never meet a gradient
def permutation(length: int, device: torch.device) -> Tensor:
    """Return the order of permuted pixels: torch.manual_seed(5544); torch.randperm(length)."""
    generator = torch.Generator().manual_seed(PERMUTATION_SEED)
    return torch.randperm(length, generator=generator).to(device)


class Architecture(BaseModel):
    """Everything that builds the model anew, and its classes' names: model/config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: int
    classes: tuple[str, ...]
    scale: float
    read: Read
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    pooling: Pooling

    def build(self, init: Init = "tutorial") -> LSTMClassifier:
        """Make a model with fresh weights."""
        arguments = self.model_dump(exclude={"classes"})
        return LSTMClassifier(num_classes=len(self.classes), init=init, **arguments)


class LSTMClassifier(nn.Module):
    """Name the class of a sequence.

    With one layer in one direction the parameters are named and shaped as the tutorial's:
    `rnn.weight_ih_l0`, ..., `out.weight`, `out.bias`. `read` makes steps of the raw input and
    `scale` divides them, so that bytes go to the device and prediction cannot forget either.
    """

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        *,
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: Pooling = "last",
        init: Init = "orthogonal",
        scale: float = 1.0,
        read: Read = "rows",
    ) -> None:
        super().__init__()
        width = hidden_size * (2 if bidirectional else 1)

        def layer(size: int) -> nn.LSTM:
            return nn.LSTM(size, hidden_size, batch_first=True, bidirectional=bidirectional)

        self.rnn = layer(input_size)
        self.upper = nn.ModuleList(layer(width) for _ in range(num_layers - 1))
        # Explicit, because the dropout inside cuDNN's LSTM ignores re-seeding.
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, num_classes)
        self.pooling = pooling
        self.scale = scale
        self.read = read
        if init == "orthogonal":
            for lstm in (self.rnn, *self.upper):
                _init_lstm(lstm)

    def forward(self, values: Tensor, num_steps: int | None = None) -> Tensor:
        """Map images [B, rows, columns], or sequences [B, T, F] where `read` is rows, to logits.

        They are of any real dtype; `num_steps` reads that many of the first steps only.
        """
        values_BTF = read_images(values, self.read)[:, :num_steps]
        output_BTH = values_BTF.to(self.out.weight.dtype) / self.scale
        output_BTH, (state_DBH, _) = self.rnn(output_BTH)
        for lstm in self.upper:
            output_BTH, (state_DBH, _) = lstm(self.dropout(output_BTH))
        if self.pooling == "last":
            # The final states, not output[:, -1]: its gradient needs no zero-filled [B, T, H], and
            # the backward direction ends at the first step.
            pooled_BH = state_DBH.transpose(0, 1).flatten(1)
        elif self.pooling == "mean":
            pooled_BH = output_BTH.mean(1)
        else:
            pooled_BH = output_BTH.amax(1)
        logits_BC: Tensor = self.out(self.dropout(pooled_BH))
        return logits_BC


@torch.no_grad()
def _init_lstm(lstm: nn.LSTM) -> None:
    """Make recurrent weights orthogonal per gate and the forget gate open (bias 1, others 0).

    Forget bias: Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures",
    ICML 2015. torch adds two biases, so only one of them is set.
    """
    for name, parameter in lstm.named_parameters():
        gates = parameter.chunk(4)  # input, forget, cell, output
        if name.startswith("weight_hh"):
            for gate in gates:
                nn.init.orthogonal_(gate)
        elif name.startswith("bias"):
            parameter.zero_()
            if name.startswith("bias_ih"):
                gates[1].fill_(1.0)
