"""What only a GPU shows. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.files import logged, read_facts, read_status, sha256, weights_of

from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.data.sequences import Batch
from seqclf.model import LSTMClassifier
from seqclf.processes.start import start_runtime
from seqclf.run.checkpoint import encode_tensors, load_tensors
from seqclf.step import train_step
from seqclf.training import train

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
    "report": "false",
}


@pytest.mark.parametrize("resident", ["true", "false"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_in_every_precision(precision: str, resident: str, tmp_path: Path) -> None:
    flags = {"precision": precision, "data.on_device": resident, "run_dir": str(tmp_path)}
    assert train(load_config(None, FLAGS | flags)[0]) == 0
    assert read_facts(tmp_path)["precision"] == precision
    assert (read_status(tmp_path).metrics["test/accuracy"] or 0) > 0.8


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_deterministic_run_resumes_bit_for_bit(precision: str, tmp_path: Path) -> None:
    constant = {"optim.schedule": "constant", "optim.warmup": "0", "deterministic": "true"}
    weights = []
    for name, lengths in (("straight", [200]), ("grown", [90, 200])):
        for steps in lengths:
            flags = {"precision": precision, "run_dir": str(tmp_path / name)}
            flags |= {"train.steps": str(steps)}
            assert train(load_config(None, FLAGS | constant | flags)[0]) == 0
        weights.append(sha256(weights_of(tmp_path / name)))
    assert weights[0] == weights[1]
    straight, grown = (logged(tmp_path / name, "train/loss") for name in ("straight", "grown"))
    assert straight.items() <= grown.items()


def test_flattened_weights_are_saved_whole(tmp_path: Path) -> None:
    model = LSTMClassifier(8, 10, num_layers=2, bidirectional=True).cuda()
    content = encode_tensors(model.state_dict())
    other = LSTMClassifier(8, 10, num_layers=2, bidirectional=True).cuda()
    load_tensors(content, other.state_dict(), where="here")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    values = torch.rand(3, 5, 8, device="cuda")
    assert torch.equal(model.eval()(values), other.eval()(values))


def test_the_cpu_gives_the_same_gradients() -> None:
    values = torch.randint(0, 256, (6, 5, 4), dtype=torch.uint8)
    labels = torch.randint(0, 3, (6,))
    found = []
    for device in ("cpu", "cuda"):
        runtime = start_runtime(Config(device="cpu" if device == "cpu" else "cuda"))
        torch.manual_seed(0)
        model = LSTMClassifier(4, 3, scale=255.0).to(runtime.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        batch = Batch(values, labels, 0, 0, 6).to(runtime.device)
        stats = train_step(runtime, runtime.prepare(model), optimizer, batch, Config(), lr=0.0)
        found.append([stats.loss.item(), stats.norm.item()])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    runtime = start_runtime(Config(device="cuda"))
    model = LSTMClassifier(4, 3).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = torch.full((2, 5, 4), torch.nan, device="cuda")
    batch = Batch(values, torch.zeros(2, dtype=torch.int64, device="cuda"), 0, 0, 2)
    stats = train_step(runtime, runtime.prepare(model), optimizer, batch, Config(), lr=0.1)
    assert stats.skipped.item() == 1.0
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
