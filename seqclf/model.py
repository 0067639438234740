"""LSTMClassifier: images, series or tokens -> steps -> LSTM layers -> pooling -> logits.

Shapes: B batch, T steps, F features, H hidden (times two if bidirectional), C classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

Pooling = Literal["last", "mean", "max", "attention"]
Keep = Literal["first", "last"]
Init = Literal["orthogonal", "chrono", "tutorial"]
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
    num_tokens: int = 0
    embedding_size: int = 32
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    max_length: int | None = None
    keep: Keep = "first"
    stack: int = 1

    @property
    def num_parameters(self) -> int:
        """Numbers that training moves."""
        width = self.hidden_size * (1 + self.bidirectional)
        features = self.embedding_size if self.num_tokens else self.input_size
        inputs = self.stack * features + width * (self.num_layers - 1)  # of all layers together
        lstm = 4 * width * (inputs + self.num_layers * (self.hidden_size + 2))
        rows = len(self.classes) + (self.pooling == "attention")  # of linear layers
        return lstm + (width + 1) * rows + self.num_tokens * self.embedding_size

    def build(self, init: Init = "tutorial", init_steps: int = 2) -> LSTMClassifier:
        """Make a model with fresh weights; `init_steps` are those of the longest sequence."""
        arguments = self.model_dump(exclude={"classes", "tokens", "features", "max_length", "keep"})
        return LSTMClassifier(
            num_classes=len(self.classes), init=init, init_steps=init_steps, **arguments
        )


class LSTMClassifier(nn.Module):
    """Name the class of a sequence.

    With one layer in one direction the parameters are named and shaped as the tutorial's:
    `rnn.weight_ih_l0`, ..., `out.weight`, `out.bias`. `read` makes steps of the raw input, and
    `scale` divides them, or `mean` and `std` normalise each feature, so that raw numbers go to the
    device and prediction cannot forget either. With `num_tokens` the input is tokens below it, each
    step an embedding of `embedding_size` numbers. The LSTM takes `stack` steps at once (`join`).
    """

    mean: Tensor | None
    std: Tensor | None

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
        init_steps: int = 2,
        scale: float = 1.0,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        read: Read = "rows",
        num_tokens: int = 0,
        embedding_size: int = 32,
        stack: int = 1,
    ) -> None:
        super().__init__()
        width = hidden_size * (2 if bidirectional else 1)

        def layer(size: int) -> nn.LSTM:
            return nn.LSTM(size, hidden_size, batch_first=True, bidirectional=bidirectional)

        self.embedding = nn.Embedding(num_tokens, embedding_size) if num_tokens else None
        self.rnn = layer(stack * (embedding_size if num_tokens else input_size))
        self.upper = nn.ModuleList(layer(width) for _ in range(num_layers - 1))
        # Explicit, because the dropout inside cuDNN's LSTM ignores re-seeding.
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Linear(width, 1) if pooling == "attention" else None
        self.out = nn.Linear(width, num_classes)
        self.pooling = pooling
        self.scale = scale
        self.read = read
        self.stack = stack
        for name, numbers in (("mean", mean), ("std", std)):
            value = torch.tensor(numbers) if numbers else None
            self.register_buffer(name, value, persistent=False)
        for lstm in (self.rnn, *self.upper):
            if init != "tutorial":
                _init_lstm(lstm)
            if init == "chrono":
                _init_chrono(lstm, init_steps)

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map images [B, rows, columns], sequences [B, T, F] or tokens [B, T] to logits.

        They are of any real dtype. Steps beyond a row's length, int64 [B], are padding, which
        changes nothing.
        """
        return self.classify(self.steps(values), lengths)

    def steps(self, values: Tensor) -> Tensor:
        """Return what is read step by step: images as `read` says, sequences and tokens as is."""
        return values if values.ndim == 2 else read_images(values, self.read)

    def classify(self, steps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map steps [B, T, F], or tokens [B, T], to logits [B, C]."""
        if lengths is not None:
            lengths = lengths.to(steps.device, non_blocking=True)
        joined_BTF, lengths = self.join(self.embed(steps), lengths)
        output_BTH, final_BH = self.states(joined_BTF, lengths)
        pooled_BH = final_BH if self.pooling == "last" else self.pool(output_BTH, lengths)
        logits_BC: Tensor = self.out(self.dropout(pooled_BH))
        return logits_BC

    def states(self, output_BTH: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the last layer's outputs, [B, T, H], and final states, [B, H]."""
        for number, lstm in enumerate((self.rnn, *self.upper)):
            output_BTH = self.dropout(output_BTH) if number else output_BTH
            output_BTH, final_BH = run(lstm, output_BTH, lengths)
        return output_BTH, final_BH

    def along(self, steps: Tensor, ends_BE: Tensor) -> Tensor:
        """Return the logits of prefixes, [B, E, C]: of each row's first `ends_BE` steps alone.

        In one pass, but where a second direction, or a step of several, reads every prefix anew.
        """
        if self.reads_prefixes_anew:
            prefixes = [
                self.classify(steps[:, : int(ends_B.max())], ends_B) for ends_B in ends_BE.unbind(1)
            ]
            return torch.stack(prefixes, 1)
        running_BTH = self.pool_along(self.states(self.embed(steps), None)[0])
        rows = torch.arange(len(steps), device=steps.device)[:, None]
        logits_BEC: Tensor = self.out(running_BTH[rows, ends_BE.to(steps.device) - 1])
        return logits_BEC

    @property
    def reads_prefixes_anew(self) -> bool:
        """Whether what is said of a prefix takes a pass of its own."""
        return self.rnn.bidirectional or self.stack > 1

    def pool_along(self, output_BTH: Tensor) -> Tensor:
        """Pool the outputs up to each step, [B, T, H]."""
        if self.pooling == "last":
            return output_BTH
        if self.pooling == "max":
            return output_BTH.cummax(1).values
        count_T1 = torch.arange(1, output_BTH.shape[1] + 1, device=output_BTH.device)[:, None]
        share_BT1 = (1 / count_T1).to(output_BTH.dtype).expand(len(output_BTH), -1, -1)
        if self.attention is not None:
            scores_BT1 = self.attention(output_BTH).float()
            share_BT1 = (scores_BT1 - scores_BT1.logcumsumexp(1)).exp()
        mixed_BH, running = torch.zeros_like(output_BTH[:, 0]), []  # each step's share moves it
        for now_BH, share_B1 in zip(output_BTH.unbind(1), share_BT1.unbind(1), strict=True):
            mixed_BH = mixed_BH + share_B1 * (now_BH - mixed_BH)
            running.append(mixed_BH)
        return torch.stack(running, 1)

    def embed(self, values: Tensor) -> Tensor:
        """Turn tokens, or features as they are in the data, into what the LSTM reads, [B, T, F]."""
        if self.embedding is not None:
            embedded_BTF: Tensor = self.embedding(values.int())
            return embedded_BTF
        values_BTF = values.to(self.out.weight.dtype) / self.scale
        if self.mean is None or self.std is None:
            return values_BTF
        return (values_BTF - self.mean) / self.std

    def join(self, values_BTF: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put every `stack` steps side by side, [B, ceil(T / stack), stack * F]; zeros fill up.

        Frame stacking: Sak et al., "Fast and Accurate Recurrent Neural Network Acoustic Models for
        Speech Recognition", Interspeech 2015; here without overlap.
        """
        if self.stack == 1:
            return values_BTF, lengths
        num_rows, num_steps, num_features = values_BTF.shape
        if lengths is not None:
            padded_BT = torch.arange(num_steps, device=lengths.device) >= lengths[:, None]
            values_BTF = values_BTF.masked_fill(padded_BT[..., None], 0)
            lengths = (lengths + self.stack - 1) // self.stack
        values_BTF = F.pad(values_BTF, (0, 0, 0, -num_steps % self.stack))
        return values_BTF.reshape(num_rows, -1, self.stack * num_features), lengths

    def pool(self, output_BTH: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the mean, the maximum or a learnt weighted mean of each row's outputs, [B, H]."""
        padded_BT1 = None
        if lengths is not None:
            steps_T = torch.arange(output_BTH.shape[1], device=lengths.device)
            padded_BT1 = (steps_T >= lengths[:, None])[..., None]
        if self.pooling == "max":
            if padded_BT1 is not None:
                output_BTH = output_BTH.masked_fill(padded_BT1, -math.inf)
            return output_BTH.amax(1)
        if self.attention is not None:
            scores_BT1 = self.attention(output_BTH).float()
            if padded_BT1 is not None:
                scores_BT1 = scores_BT1.masked_fill(padded_BT1, -math.inf)
            weighted_BTH: Tensor = output_BTH * scores_BT1.softmax(1)
            return weighted_BTH.sum(1)
        if lengths is None or padded_BT1 is None:
            return output_BTH.mean(1)
        return output_BTH.masked_fill(padded_BT1, 0).sum(1) / lengths[:, None]


def run(lstm: nn.LSTM, input_BTF: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return an LSTM's outputs, [B, T, H], and its final states, [B, H], both directions' together.

    Never through a PackedSequence: that keeps the fused kernels from running. What outputs hold
    beyond a row's length means nothing.
    """
    if lengths is None:
        output_BTH, (state_DBH, _) = lstm(input_BTF)
        # The final states, not output[:, -1]: its gradient needs no zero-filled [B, T, H], and the
        # backward direction ends at the first step.
        return output_BTH, state_DBH.transpose(0, 1).flatten(1)
    rows = torch.arange(len(lengths), device=lengths.device)
    if not lstm.bidirectional:
        output_BTH = lstm(input_BTF)[0]
        return output_BTH, output_BTH[rows, lengths - 1]
    # Each direction by itself, the second over rows that are turned round within their length, so
    # that padding comes after both.
    steps_T = torch.arange(input_BTF.shape[1], device=lengths.device)
    turned_BT = torch.where(steps_T < lengths[:, None], lengths[:, None] - 1 - steps_T, steps_T)
    outputs = []
    for suffix, order_BT in (("", None), ("_reverse", turned_BT)):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(lstm, f"{name}_l0{suffix}") for name in names]
        ordered = input_BTF if order_BT is None else _reorder(input_BTF, order_BT)
        zeros = ordered.new_zeros(1, len(lengths), lstm.hidden_size)
        output, *_ = torch.lstm(
            ordered, (zeros, zeros), weights, True, 1, 0.0, lstm.training, False, True
        )
        outputs.append(output)
    ahead_BTH, back_BTH = outputs
    last = lengths - 1
    final_BH = torch.cat([ahead_BTH[rows, last], back_BTH[rows, last]], 1)
    return torch.cat([ahead_BTH, _reorder(back_BTH, turned_BT)], 2), final_BH


def _reorder(values_BTF: Tensor, order_BT: Tensor) -> Tensor:
    """Return each row's steps in its own order."""
    return values_BTF.gather(1, order_BT[..., None].expand(-1, -1, values_BTF.shape[2]))


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


@torch.no_grad()
def _init_chrono(lstm: nn.LSTM, num_steps: int) -> None:
    """Make units forget over 1 to `num_steps` steps, and take in as slowly.

    Tallec and Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            gates = parameter.chunk(4)  # input, forget, cell, output
            gates[1].uniform_(1, max(2, num_steps - 1)).log_()
            gates[0].copy_(-gates[1])
