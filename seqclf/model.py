"""LSTMClassifier: images, series or tokens -> steps -> LSTM layers -> pooling -> logits.

Features of fixed convolutions (rocket.py) may stand beside what the LSTM says.

Shapes: B batch, T steps, F features, H hidden (twice if bidirectional), E prefixes, C classes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from seqclf.contradictions import contradiction
from seqclf.data.reading import Count, Reading
from seqclf.rocket import RocketFeatures

Pooling = Literal["last", "mean", "max", "attention"]
Keep = Literal["first", "last"]
Init = Literal["orthogonal", "chrono", "tutorial"]
ImageOrder = Literal["rows", "columns", "pixels", "permuted"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PERMUTATION_SEED = 5544


def read_images(values: Tensor, read: ImageOrder) -> Tensor:
    """Turn images [B, rows, columns] into steps [B, T, F].

    The steps are the rows from the top, the columns from the left, or single pixels: row after row,
    or permuted, in one random order that is the same for every image and every run.
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
# An evaluation may fill the cache, and training cannot use an inference tensor.
@torch.inference_mode(False)
def permutation(length: int, device: torch.device) -> Tensor:
    """Return the order of permuted pixels: torch.manual_seed(5544); torch.randperm(length)."""
    generator = torch.Generator().manual_seed(PERMUTATION_SEED)
    return torch.randperm(length, generator=generator).to(device)


class Architecture(BaseModel):
    """What it takes to build a model again, with its classes' names: model/config.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_size: Count
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    scale: Positive
    read: ImageOrder
    hidden_size: Count
    num_layers: Count
    bidirectional: bool
    dropout: Annotated[float, Field(ge=0, le=1)]
    pooling: Pooling
    num_tokens: Annotated[int, Field(ge=0)] = 0
    embedding_size: Count = 32
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[FiniteFloat, ...] = ()
    tokens: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    max_length: Count | None = None
    keep: Keep = "first"
    stack: Count = 1
    rocket: Annotated[int, Field(ge=0)] = 0
    dilations: tuple[Count, ...] = ()  # of the fixed convolutions
    reading: Reading = Reading()
    lengths: tuple[Count, Count] | None = None  # of the shortest and the longest training sequence
    temperature: Positive = 1.0  # what logits are divided by before they are probabilities

    @model_validator(mode="before")
    @classmethod
    def _forgets(cls, content: object) -> object:
        """Read a description of a version that had trained convolutions in place of fixed ones."""
        if not isinstance(content, dict) or "conv" not in content:
            return content
        if content["conv"] != 0:
            raise ValueError("conv: trained convolutions, which seqclf has no more; train it anew")
        return {name: value for name, value in content.items() if name != "conv"}

    @model_validator(mode="after")
    def _agrees(self) -> Architecture:
        if problem := contradiction(self):
            raise ValueError(problem)
        return self

    @property
    def num_parameters(self) -> int:
        """How many numbers training changes."""
        width = self.hidden_size * (1 + self.bidirectional)
        num_features = self.embedding_size if self.num_tokens else self.input_size
        inputs_of_layers = self.stack * num_features + width * (self.num_layers - 1)
        lstm = 4 * width * (inputs_of_layers + self.num_layers * (self.hidden_size + 2))
        attention = (width + 1) * (self.pooling == "attention")
        linear = (width + self.rocket + 1) * len(self.classes)
        embedding = self.num_tokens * self.embedding_size
        return lstm + attention + linear + embedding

    def build(self, init: Init = "tutorial", init_steps: int = 2) -> LSTMClassifier:
        """Build a model with fresh weights; `init_steps` is the length of the longest sequence."""
        for_people = {"classes", "tokens", "features", "max_length", "keep", "reading", "lengths"}
        arguments = self.model_dump(exclude=for_people | {"temperature"})
        model = LSTMClassifier(
            num_classes=len(self.classes), init=init, init_steps=init_steps, **arguments
        )
        model.temperature = self.temperature
        return model


class LSTMClassifier(nn.Module):
    """Classify sequences.

    With one layer in one direction the parameters have the tutorial's names and shapes:
    `rnn.weight_ih_l0`, ..., `out.weight`, `out.bias`. The model itself makes steps of images
    (`read`), divides pixel values by `scale`, and normalises features with `mean` and `std`: so raw
    numbers go to the device, and prediction cannot forget a conversion. With `num_tokens` the input
    is tokens below that number, and each becomes an embedding of `embedding_size` numbers. The LSTM
    takes `stack` steps at once (`stack_steps`). `rocket` features of fixed convolutions, which read
    single steps, stand beside its output.
    """

    mean: Tensor | None
    std: Tensor | None
    temperature = 1.0  # what divides the logits, which are raw, before they are probabilities

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
        read: ImageOrder = "rows",
        num_tokens: int = 0,
        embedding_size: int = 32,
        stack: int = 1,
        rocket: int = 0,
        dilations: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        width = hidden_size * (2 if bidirectional else 1)

        def layer(size: int) -> nn.LSTM:
            return nn.LSTM(size, hidden_size, batch_first=True, bidirectional=bidirectional)

        self.embedding = nn.Embedding(num_tokens, embedding_size) if num_tokens else None
        num_features = embedding_size if num_tokens else input_size
        self.rnn = layer(stack * num_features)
        self.upper = nn.ModuleList(layer(width) for _ in range(num_layers - 1))
        # A module of its own, because the dropout inside cuDNN's LSTM ignores re-seeding.
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Linear(width, 1) if pooling == "attention" else None
        self.rocket = RocketFeatures(num_features, dilations, rocket) if rocket else None
        self.out = nn.Linear(width + rocket, num_classes)
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
        """Map images [B, rows, columns], sequences [B, T, F] or tokens [B, T] to logits [B, C].

        The input has any real dtype. Steps beyond a row's length (`lengths`, int64 [B]) are padding
        and change nothing.
        """
        return self.classify(self.steps(values), lengths)

    def steps(self, values: Tensor) -> Tensor:
        """Return the input as steps: images in the order of `read`, all else as it is."""
        return values if values.ndim == 2 else read_images(values, self.read)

    def classify(self, steps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map steps [B, T, F], or tokens [B, T], to logits [B, C]."""
        if lengths is not None:
            lengths = lengths.to(steps.device, non_blocking=True)
        input_BTF = self.embed(steps)
        stacked_BTF, stacked_lengths = self.stack_steps(input_BTF, lengths)
        output_BTH, final_BH = self.run_layers(stacked_BTF, stacked_lengths)
        pooled_BH = final_BH if self.pooling == "last" else self.pool(output_BTH, stacked_lengths)
        pooled_BH = self.dropout(pooled_BH)
        if self.rocket is not None:
            pooled_BH = torch.cat([pooled_BH, self.rocket(input_BTF, lengths)], 1)
        logits_BC: Tensor = self.out(pooled_BH)
        return logits_BC

    def run_layers(self, output_BTH: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the last layer's outputs, [B, T, H], and its final states, [B, H]."""
        for number, lstm in enumerate((self.rnn, *self.upper)):
            output_BTH = self.dropout(output_BTH) if number else output_BTH
            output_BTH, final_BH = run_lstm(lstm, output_BTH, lengths)
        return output_BTH, final_BH

    def classify_prefixes(self, steps: Tensor, ends_BE: Tensor) -> Tensor:
        """Return the logits of each row's first `ends_BE` steps alone, [B, E, C]."""
        if self.reads_prefixes_anew:
            prefixes = [
                self.classify(steps[:, : int(ends_B.max())], ends_B) for ends_B in ends_BE.unbind(1)
            ]
            return torch.stack(prefixes, 1)
        pooled_BTH = self.pool_prefixes(self.run_layers(self.embed(steps), None)[0])
        rows = torch.arange(len(steps), device=steps.device)[:, None]
        logits_BEC: Tensor = self.out(pooled_BTH[rows, ends_BE.to(steps.device) - 1])
        return logits_BEC

    @property
    def reads_prefixes_anew(self) -> bool:
        """Whether each prefix takes a pass of its own.

        A second direction starts at its end, and so do stacks; convolutions look ahead.
        """
        return self.rnn.bidirectional or self.stack > 1 or self.rocket is not None

    def pool_prefixes(self, output_BTH: Tensor) -> Tensor:
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
        # A running mean: each step moves it towards its output, by its share of the steps so far.
        mean_BH = torch.zeros_like(output_BTH[:, 0])
        means = []
        for step_BH, share_B1 in zip(output_BTH.unbind(1), share_BT1.unbind(1), strict=True):
            mean_BH = mean_BH + share_B1 * (step_BH - mean_BH)
            means.append(mean_BH)
        return torch.stack(means, 1)

    def embed(self, values: Tensor) -> Tensor:
        """Turn tokens, or features as the data have them, into the LSTM's input, [B, T, F]."""
        if self.embedding is not None:
            embedded_BTF: Tensor = self.embedding(values.int())
            return embedded_BTF
        values_BTF = values.to(self.out.weight.dtype) / self.scale
        if self.mean is None or self.std is None:
            return values_BTF
        return (values_BTF - self.mean) / self.std

    def stack_steps(
        self, values_BTF: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Put every `stack` steps side by side, [B, ceil(T / stack), stack * F], padded with zeros.

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
        """Return the mean, the maximum or a learned weighted mean of each row's outputs, [B, H]."""
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


def run_lstm(lstm: nn.LSTM, input_BTF: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return an LSTM's outputs, [B, T, H], and the final states of all its directions, [B, H].

    Outputs beyond a row's length mean nothing. No PackedSequence is used: it would keep the fused
    kernels from running.
    """
    if lengths is None:
        output_BTH, (state_DBH, _) = lstm(input_BTF)
        # The final states, not output[:, -1]: its gradient needs no zero-filled [B, T, H], and the
        # backward direction ends at the first step.
        return output_BTH, state_DBH.transpose(0, 1).flatten(1)
    rows = torch.arange(len(lengths), device=lengths.device)
    last = lengths - 1
    if not lstm.bidirectional:
        output_BTH = lstm(input_BTF)[0]
        return output_BTH, output_BTH[rows, last]
    # Each direction runs by itself, the backward one over rows that are reversed within their
    # length, so that padding comes last in both.
    steps_T = torch.arange(input_BTF.shape[1], device=lengths.device)
    reversed_BT = torch.where(steps_T < lengths[:, None], lengths[:, None] - 1 - steps_T, steps_T)
    forward_BTH = _run_direction(lstm, input_BTF, suffix="")
    backward_BTH = _run_direction(lstm, _reorder(input_BTF, reversed_BT), suffix="_reverse")
    final_BH = torch.cat([forward_BTH[rows, last], backward_BTH[rows, last]], 1)
    return torch.cat([forward_BTH, _reorder(backward_BTH, reversed_BT)], 2), final_BH


def _run_direction(lstm: nn.LSTM, input_BTF: Tensor, *, suffix: str) -> Tensor:
    """Return the outputs of one direction alone; `suffix` is that of its weights' names."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(lstm, f"{name}_l0{suffix}") for name in names]
    zeros = input_BTF.new_zeros(1, len(input_BTF), lstm.hidden_size)
    output_BTH, *_ = torch.lstm(
        input_BTF, (zeros, zeros), weights, True, 1, 0.0, lstm.training, False, True
    )
    return output_BTH


def _reorder(values_BTF: Tensor, order_BT: Tensor) -> Tensor:
    """Return each row's steps in the row's own order."""
    return values_BTF.gather(1, order_BT[..., None].expand(-1, -1, values_BTF.shape[2]))


@torch.no_grad()
def _init_lstm(lstm: nn.LSTM) -> None:
    """Make recurrent weights orthogonal per gate, and open the forget gate (bias 1, others 0).

    Forget bias: Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures",
    ICML 2015. torch adds two biases, so this sets only one of them.
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
    """Spread the time that units remember over 1 to `num_steps` steps; they take in as slowly.

    Tallec and Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            gates = parameter.chunk(4)  # input, forget, cell, output
            gates[1].uniform_(1, max(2, num_steps - 1)).log_()
            gates[0].copy_(-gates[1])
