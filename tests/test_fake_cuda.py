"""No tensor of the CPU meets one of a GPU: in a step and an evaluation, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.architectures import architectures
from helpers.fake_cuda import CUDA, fake_cuda
from helpers.training import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqclf.config.settings import Config
from seqclf.data.sequences import Sequences, Share
from seqclf.evaluate import evaluate
from seqclf.loss import summed_loss
from seqclf.model import Architecture
from seqclf.processes.runtime import Runtime
from seqclf.processes.start import start_runtime
from seqclf.step import train_step

COUNT = 5
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_gpu.py has a real GPU"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    """A process whose device is CUDA."""
    runtime = start_runtime(Config())
    runtime.__dict__["device"] = CUDA
    return runtime


def make_sequences(architecture: Architecture, *, on_device: bool) -> Sequences:
    """Return sequences of unequal lengths that an architecture reads; images are all alike."""
    longest = architecture.lengths[1] if architecture.lengths else 1
    labels = torch.arange(COUNT) % len(architecture.classes)
    classes, width = architecture.classes, architecture.input_size
    if architecture.scale != 1:
        shape = (longest, width) if architecture.read == "rows" else (width, longest)
        values = torch.zeros(COUNT, *shape, dtype=torch.uint8)
        sequences = Sequences(values, labels, classes, architecture.scale)
    else:
        lengths = torch.arange(COUNT) % longest + 1
        starts = lengths.cumsum(0) - lengths
        num_steps = int(lengths.sum())
        values = torch.zeros(num_steps, width)
        if architecture.num_tokens:
            values = torch.zeros(num_steps, dtype=torch.int64)
        std = architecture.std
        sequences = Sequences(values, labels, classes, std=std, starts=starts, lengths=lengths)
    return sequences.to(CUDA) if on_device else sequences


def settings_for(architecture: Architecture, shards: int | None) -> Config:
    """Return a config with all that a step can do with such data."""
    is_image = architecture.scale != 1
    has_noise = not is_image and not architecture.num_tokens
    return tiny_config(
        {
            "data.augment.shift": int(is_image),
            "data.augment.flip": is_image,
            "data.augment.noise": 0.1 * has_noise,
            "data.augment.crop": 1.0 if is_image else 0.5,
            "loss.label_smoothing": 0.1,
            "model.dropout": 0.5,
            "train.micro_batch_size": 2,
            "train.shards": shards,
        }
        | ({} if is_image else {"data.name": "files", "data.path": "data/mine"})
    )


def run_on_cuda(
    runtime: Runtime, architecture: Architecture, *, on_device: bool, shards: int | None
) -> None:
    """Make a step from what the loader gives, and an evaluation."""
    config = settings_for(architecture, shards)
    with fake_cuda(), pytest.MonkeyPatch.context() as patch:
        sequences = make_sequences(architecture, on_device=on_device)
        model = architecture.build().to(CUDA)

        def backward(_: Runtime, loss: Tensor, weight: Tensor) -> None:
            assert (loss * weight).device.type == "cuda"
            for parameter in model.parameters():  # autograd has no thread for the device
                parameter.grad = torch.zeros_like(parameter)

        patch.setattr(Runtime, "backward", backward)
        patch.setattr(Runtime, "seed_noise", lambda *_: None)  # of a generator on the GPU
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = sequences.__getitems__(Share(0, torch.arange(COUNT), 0, COUNT, 0)).to(CUDA)
        weights_C = torch.ones(len(architecture.classes), device=CUDA)
        stats = train_step(runtime, model, optimizer, batch, config, 0.01, weights_C)
        assert {tensor.device.type for tensor in (stats.loss, stats.norm)} == {"cuda"}
        model.temperature = architecture.temperature
        # All of it ran, up to the counts: those that come from the device are zeros.
        with pytest.raises(RuntimeError, match=f"evaluated 0 examples of {COUNT}"):
            evaluate(runtime, model, sequences, batch_size=2, shards=shards)


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_no_tensor_of_the_cpu_meets_one_of_the_gpu(runtime: Runtime, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(architectures(), st.booleans(), st.sampled_from([None, 3]))
    def check(architecture: Architecture, on_device: bool, shards: int | None) -> None:
        run_on_cuda(runtime, architecture, on_device=on_device, shards=shards)

    check()


def test_that_test_fails_where_two_devices_meet(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = summed_loss

    def forgetful(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        loss: Tensor = honest(logits, torch.zeros(len(labels), dtype=torch.int64), **options)
        return loss

    monkeypatch.setattr("seqclf.step.summed_loss", forgetful)
    architecture = Architecture.model_validate(
        {"input_size": 2, "classes": ("a", "b"), "scale": 16.0, "read": "rows", "hidden_size": 3}
        | {"num_layers": 1, "bidirectional": False, "dropout": 0.0, "pooling": "last"}
        | {"lengths": (4, 4)}
    )
    with pytest.raises(RuntimeError, match="tensors to be on the same device"):
        run_on_cuda(runtime, architecture, on_device=True, shards=None)
