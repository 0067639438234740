"""What only a GPU shows. Skipped where there is none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import read_metrics

from seqclf import checkpoint
from seqclf.config import Config, load_config
from seqclf.data.sequences import Batch
from seqclf.model import LSTMClassifier
from seqclf.runtime import start
from seqclf.train import train, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
FLAGS = {
    "device": "cuda",
    "data.name": "digits",
    "data.augment.shift": "1",
    "model.num_layers": "2",
    "model.dropout": "0.2",
    "train.steps": "200",
    "train.micro_batch_size": "24",
    "tracking.wandb": "disabled",
}


@pytest.mark.parametrize("resident", ["true", "false"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_in_every_precision(precision: str, resident: str, tmp_path: Path) -> None:
    flags = {"precision": precision, "data.on_device": resident, "run_dir": str(tmp_path)}
    assert train(load_config(None, FLAGS | flags)[0]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == precision
    assert json.loads((tmp_path / "status.json").read_text())["metrics"]["test/accuracy"] > 0.8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_deterministic_run_resumes_bit_for_bit(precision: str, tmp_path: Path) -> None:
    constant = {"optim.schedule": "constant", "optim.warmup": "0", "deterministic": "true"}
    weights = []
    for name, lengths in (("straight", [200]), ("grown", [90, 200])):
        for steps in lengths:
            flags = {"precision": precision, "run_dir": str(tmp_path / name)}
            flags |= {"train.steps": str(steps)}
            assert train(load_config(None, FLAGS | constant | flags)[0]) == 0
        content = (tmp_path / name / "model/model.safetensors").read_bytes()
        weights.append(hashlib.sha256(content).hexdigest())
    assert weights[0] == weights[1]
    losses = [
        {
            line["step"]: line["train/loss"]
            for line in read_metrics(tmp_path / name)
            if "train/loss" in line
        }
        for name in ("straight", "grown")
    ]
    assert losses[0].items() <= losses[1].items()


def test_flattened_weights_are_saved_whole(tmp_path: Path) -> None:
    model = LSTMClassifier(8, 10, num_layers=2, bidirectional=True).cuda()
    content = checkpoint.encode(model.state_dict())
    other = LSTMClassifier(8, 10, num_layers=2, bidirectional=True).cuda()
    checkpoint.put(content, other.state_dict(), "here")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    values = torch.rand(3, 5, 8, device="cuda")
    assert torch.equal(model.eval()(values), other.eval()(values))


def test_the_cpu_gives_the_same_gradients() -> None:
    values = torch.randint(0, 256, (6, 5, 4), dtype=torch.uint8)
    labels = torch.randint(0, 3, (6,))
    found = []
    for device in ("cpu", "cuda"):
        runtime = start(Config(device="cpu" if device == "cpu" else "cuda"))
        torch.manual_seed(0)
        model = LSTMClassifier(4, 3, scale=255.0).to(runtime.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        batch = Batch(values, labels, 0, 0, 6).to(runtime.device)
        stats = train_step(runtime, runtime.prepare(model), optimizer, batch, Config(), lr=0.0)
        found.append([stats.loss.item(), stats.norm.item()])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    runtime = start(Config(device="cuda"))
    model = LSTMClassifier(4, 3).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = torch.full((2, 5, 4), torch.nan, device="cuda")
    batch = Batch(values, torch.zeros(2, dtype=torch.int64, device="cuda"), 0, 0, 2)
    stats = train_step(runtime, runtime.prepare(model), optimizer, batch, Config(), lr=0.1)
    assert stats.bad.item() == 1.0
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
