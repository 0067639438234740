"""Tensors as the bytes of a file: exact, reproducible, and refused if they do not fit."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from torch import Tensor

from seqclf.errors import UserError
from seqclf.model import LSTMClassifier
from seqclf.run.checkpoint import encode_tensors, load_tensors


def weights() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "c": torch.tensor(5.0)}


def test_tensors_survive_exactly() -> None:
    source = {"x": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]), **weights()}
    target = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
    load_tensors(encode_tensors(source), target, where="f")
    for name, tensor in source.items():
        assert target[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_the_same_tensors_are_the_same_bytes() -> None:
    first = encode_tensors(weights())
    strided = weights() | {"a": weights()["a"].T.contiguous().T}
    assert first == encode_tensors(strided)
    assert first == encode_tensors(dict(reversed(weights().items())))
    assert first != encode_tensors(weights() | {"c": torch.tensor(6.0)})


def header(size: int = 24, **changes: object) -> bytes:
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, size]} | changes})
    return struct.pack("<Q", len(text)) + text.encode() + bytes(size)


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
ONES = {name: torch.ones_like(tensor) for name, tensor in weights().items()}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (encode_tensors(ONES | {"d": torch.ones(1)}), r"missing \[\], unknown \['d'\]"),
        (encode_tensors({"a": ONES["a"], "b": ONES["b"]}), r"missing \['c'\], unknown \[\]"),
        (
            encode_tensors(ONES | {"c": torch.ones(1)}),
            r"c is \(1,\) torch.float32, .* is \(\)",
        ),
        (
            encode_tensors(ONES | {"b": torch.ones(2)}),
            r"b is \(2,\) torch.float32, .* torch.int64",
        ),
        *((junk, "not a safetensors file") for junk in (b"", b"\xff" * 8, b"{}", bytes(100))),
        (encode_tensors(ONES)[:-1], "not a safetensors file"),
        *(
            (junk, "not a safetensors file")
            for junk in (
                struct.pack("<Q", 2**63) + b"{}",  # headers longer than the file, or than 100 MB
                struct.pack("<Q", 10**8 + 1) + b" " * 10**6,
                struct.pack("<Q", len(DEEP)) + DEEP,
                header(shape=[2**62, 4]),
                header(0, shape=[2**63, 0]),
                header(dtype="F4"),
                header(dtype="F6_E2M3", shape=[32]),
                header(data_offsets=[8, 32]),
                header(data_offsets=[24, 0]),
            )
        ),
        (header(), r"missing \['b', 'c'\], unknown \[\]"),
    ],
)
def test_other_tensors_are_refused_and_change_nothing(content: bytes, part: str) -> None:
    target = weights()
    with pytest.raises(UserError, match=f"^place: .*{part}"):
        load_tensors(content, target, where="place")
    assert encode_tensors(target) == encode_tensors(weights())


def test_weights_that_are_views_of_one_buffer_survive() -> None:
    torch.manual_seed(0)
    model, fresh = (LSTMClassifier(5, 3, hidden_size=4, num_layers=2) for _ in range(2))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layer in (model.rnn, *model.upper):
        flat = torch.cat([weight.data.flatten() for weight in layer.parameters()])
        sizes = [weight.numel() for weight in layer.parameters()]
        for weight, part in zip(layer.parameters(), flat.split(sizes), strict=True):
            weight.data = part.view(weight.shape)
    assert len({w.untyped_storage().data_ptr() for w in model.rnn.parameters()}) == 1
    content = encode_tensors(model.state_dict())
    assert content == encode_tensors(expected)
    for weight in model.parameters():
        weight.data.zero_()
    for each in (model, fresh):
        load_tensors(content, each.state_dict(), where="f")
        assert all(torch.equal(w, expected[name]) for name, w in each.state_dict().items())
