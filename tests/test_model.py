from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqclf.model import (
    Architecture,
    ImageOrder,
    LSTMClassifier,
    Pooling,
    permutation,
    read_images,
)


class Tutorial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(28, 64, 1, batch_first=True)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        r_out, _ = self.rnn(x, None)
        logits: Tensor = self.out(r_out[:, -1, :])
        return logits


def test_the_tutorials_weights_load_and_give_its_logits() -> None:
    torch.manual_seed(0)
    tutorial, ours = Tutorial(), LSTMClassifier(28, 10)
    assert list(ours.state_dict()) == list(tutorial.state_dict())
    ours.load_state_dict(tutorial.state_dict(), strict=True)
    values = torch.rand(7, 28, 28)
    torch.testing.assert_close(ours(values), tutorial(values), rtol=0, atol=1e-6)


def test_init_tutorial_draws_the_tutorials_weights() -> None:
    torch.manual_seed(3)
    tutorial = Tutorial()
    torch.manual_seed(3)
    ours = LSTMClassifier(28, 10, init="tutorial").state_dict()
    assert all(torch.equal(ours[name], w) for name, w in tutorial.state_dict().items())


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_logits_are_those_of_a_stacked_lstm(
    num_layers: int, bidirectional: bool, pooling: Pooling
) -> None:
    torch.manual_seed(1)
    stacked = nn.LSTM(5, 6, num_layers, batch_first=True, bidirectional=bidirectional)
    shape = {"hidden_size": 6, "num_layers": num_layers, "bidirectional": bidirectional}
    model = LSTMClassifier(5, 4, pooling=pooling, dropout=0.5, **shape).eval()  # type: ignore[arg-type]
    for depth, layer in enumerate([model.rnn, *model.upper]):
        names = {name: name.replace("_l0", f"_l{depth}") for name in layer.state_dict()}
        layer.load_state_dict({name: stacked.state_dict()[new] for name, new in names.items()})
    values = torch.randn(3, 9, 5)
    output, _ = stacked(values)
    pooled = {
        "last": torch.cat([output[:, -1, :6], output[:, 0, 6:]], 1),
        "mean": sum(output.unbind(1)) / 9,
        "max": output.max(dim=1).values,
    }[pooling]
    expected = pooled @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(model(values), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_acts_in_training_only(num_layers: int) -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(5, 4, num_layers=num_layers, hidden_size=8, dropout=0.5)
    values = torch.randn(3, 6, 5)
    output, (state, _) = model.rnn(values)
    for layer in model.upper:
        output, (state, _) = layer(output)
    assert torch.equal(model.eval()(values), model.out(state[0]))

    torch.manual_seed(7)
    output, (state, _) = model.rnn(values)
    for layer in model.upper:
        output, (state, _) = layer(F.dropout(output, 0.5))
    expected = model.out(F.dropout(state[0], 0.5))
    torch.manual_seed(7)
    assert torch.equal(model.train()(values), expected)
    assert not torch.equal(model.train()(values), expected)


def test_first_weights_are_orthogonal_with_an_open_forget_gate() -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(28, 10, hidden_size=16, num_layers=2, bidirectional=True)
    named = [item for layer in (model.rnn, *model.upper) for item in layer.named_parameters()]
    assert len(named) == 2 * 2 * 4
    for name, weight in named:
        gates = weight.data.chunk(4)
        if name.startswith("weight_hh"):
            for gate in gates:
                torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=0, atol=1e-5)
            assert not torch.equal(gates[0], gates[1])
        elif name.startswith("bias"):
            forget = 1.0 if name.startswith("bias_ih") else 0.0
            assert [set(gate.tolist()) for gate in gates] == [{0.0}, {forget}, {0.0}, {0.0}]


def test_chrono_gates_remember_over_the_length_of_the_data() -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(1, 10, hidden_size=400, init="chrono", init_steps=784)
    weights = {name: weight.data for name, weight in model.rnn.named_parameters()}
    entry, forget, cell, output = weights["bias_ih_l0"].chunk(4)
    spans = forget.exp()  # steps; uniform from 1 to 783
    assert 1 <= spans.min() < 10
    assert 770 < spans.max() <= 783.01
    assert 360 < spans.mean() < 424
    assert torch.equal(entry, -forget)
    for zero in (cell, output, weights["bias_hh_l0"]):
        assert not zero.any()
    gate = weights["weight_hh_l0"].chunk(4)[0]
    torch.testing.assert_close(gate @ gate.T, torch.eye(400), rtol=0, atol=1e-4)
    short = LSTMClassifier(1, 10, hidden_size=8, init="chrono", init_steps=1)
    assert all(weight.isfinite().all() for weight in short.parameters())


def test_scale_divides_bytes() -> None:
    scaled, plain = (LSTMClassifier(6, 3, hidden_size=8, scale=scale) for scale in (255.0, 1.0))
    plain.load_state_dict(scaled.state_dict())
    values = torch.arange(2 * 5 * 6, dtype=torch.uint8).view(2, 5, 6)
    assert torch.equal(scaled(values), plain(values.float() / 255))
    assert not torch.allclose(scaled(values), plain(values))


def test_a_model_is_built_again_from_its_architecture() -> None:
    shape = {"hidden_size": 6, "num_layers": 2, "bidirectional": True, "dropout": 0.25}
    options = {"input_size": 5, "scale": 2.0, "read": "columns", "pooling": "max", **shape}
    architecture = Architecture.model_validate({"classes": ("a", "b", "c"), **options})
    again = Architecture.model_validate_json(architecture.model_dump_json())
    torch.manual_seed(0)
    expected = LSTMClassifier(num_classes=3, init="orthogonal", **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model, copy = architecture.build("orthogonal"), again.build()
    copy.load_state_dict(model.state_dict(), strict=True)
    values = torch.rand(2, 5, 4)
    assert again == architecture
    assert torch.equal(model.eval()(values), expected.eval()(values))
    assert torch.equal(copy.eval()(values), expected(values))
    assert copy.dropout.p == 0.25


@pytest.mark.parametrize(
    ("read", "steps"),
    [
        ("rows", [[1, 2, 3], [4, 5, 6]]),
        ("columns", [[1, 4], [2, 5], [3, 6]]),
        ("pixels", [[1], [2], [3], [4], [5], [6]]),
        ("permuted", [[place + 1] for place in permutation(6, torch.device("cpu")).tolist()]),
    ],
)
def test_what_is_read_step_by_step(read: ImageOrder, steps: list[list[int]]) -> None:
    images = torch.tensor([[[1, 2, 3], [4, 5, 6]]] * 2, dtype=torch.uint8)
    assert read_images(images, read).tolist() == [steps, steps]
    plain = LSTMClassifier(len(steps[0]), 4, scale=6.0)
    reading = LSTMClassifier(len(steps[0]), 4, scale=6.0, read=read)
    reading.load_state_dict(plain.state_dict())
    values = torch.tensor([steps, steps], dtype=torch.uint8)
    assert torch.equal(reading(images), plain(values))


def test_the_permutation_is_the_published_one() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5544)
        published = torch.randperm(784)
    with torch.inference_mode():
        ours = permutation(784, torch.device("cpu"))
    assert ours.tolist() == published.tolist()
    assert ours[:5].tolist() == [327, 72, 48, 129, 109]  # another torch might draw others
    image = torch.rand(1, 28, 28, requires_grad=True)
    read_images(image, "permuted")[0, 3].backward()  # kept since an evaluation, used in training
    assert image.grad is not None
    assert image.grad.flatten().nonzero().tolist() == [[int(published[3])]]


LENGTHS = torch.tensor([7, 1, 4, 7, 2])
POOLINGS: list[Pooling] = ["last", "mean", "max", "attention"]


def ragged_model(
    pooling: Pooling, bidirectional: bool, num_layers: int, stack: int = 1, rocket: int = 0
) -> LSTMClassifier:
    torch.manual_seed(2)
    model = LSTMClassifier(
        input_size=3,
        num_classes=4,
        hidden_size=6,
        num_layers=num_layers,
        bidirectional=bidirectional,
        pooling=pooling,
        mean=(0.5, 0.0, -1.0),
        std=(2.0, 1.0, 0.5),
        stack=stack,
        rocket=rocket,
        dilations=(1, 2) if rocket else (),
    )
    if model.rocket is not None:
        model.rocket.fit(lambda: [(model.embed(torch.randn(9, 7, 3)), None)])
    return model.eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("stack", "rocket"), [(1, 0), (2, 0), (9, 0), (1, 336), (2, 168)])
def test_padding_is_invisible(
    pooling: Pooling, bidirectional: bool, num_layers: int, stack: int, rocket: int
) -> None:
    model = ragged_model(pooling, bidirectional, num_layers, stack, rocket)
    values = torch.randn(5, 7, 3)
    alone = torch.cat([model(row[None, :n]) for row, n in zip(values, LENGTHS, strict=True)])
    assert (alone - alone.roll(1, 0)).abs().amax(1).min() > 1e-3  # they do differ
    for rows in (values, torch.cat([values, torch.full((5, 9, 3), 1e30)], 1)):
        torch.testing.assert_close(model(rows, LENGTHS), alone, rtol=0, atol=1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = model(values[order], LENGTHS[order])
    torch.testing.assert_close(turned, alone[order], rtol=0, atol=1e-6)
    pair = model(values[[1, 4], :2], LENGTHS[[1, 4]])
    torch.testing.assert_close(pair, alone[[1, 4]], rtol=0, atol=1e-6)
    shortest = model.classify_prefixes(values, LENGTHS.clamp(max=3)[:, None])[:, 0]
    shorter = model(values[:, :3], LENGTHS.clamp(max=3))
    torch.testing.assert_close(shortest, shorter, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("stack", "rocket"), [(1, 0), (3, 0), (3, 336)])
def test_padding_changes_no_gradient(
    pooling: Pooling, bidirectional: bool, stack: int, rocket: int
) -> None:
    model = ragged_model(pooling, bidirectional, 2, stack, rocket).double()
    values = torch.randn(5, 7, 3, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    for row, length in zip(values, LENGTHS, strict=True):
        model(row[None, :length]).pow(2).sum().backward()
    alone = gradients()
    model(values, LENGTHS).pow(2).sum().backward()
    together = gradients()
    assert len(alone) == len(list(model.parameters()))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_packed_sequence_agrees(pooling: Pooling, bidirectional: bool, num_layers: int) -> None:
    model = ragged_model(pooling, bidirectional, num_layers)
    values = torch.randn(5, 7, 3)
    packed = pack_padded_sequence(
        model.embed(values), LENGTHS, batch_first=True, enforce_sorted=False
    )
    for lstm in (model.rnn, *model.upper):
        packed, (state, _) = lstm(packed)
    output, lengths = pad_packed_sequence(packed, batch_first=True, padding_value=0.0)
    assert lengths.tolist() == LENGTHS.tolist()
    hidden = torch.arange(7) >= LENGTHS[:, None]
    pooled = {
        "last": state.transpose(0, 1).flatten(1),
        "mean": output.sum(1) / LENGTHS[:, None],
        "max": output.masked_fill(hidden[..., None], -torch.inf).amax(1),
    }[pooling]
    torch.testing.assert_close(model(values, LENGTHS), model.out(pooled), rtol=0, atol=1e-6)


def test_attention_is_a_weighted_mean() -> None:
    model = ragged_model("attention", False, 1)
    values = torch.randn(2, 5, 3)
    output, _ = model.rnn(model.embed(values))
    assert model.attention is not None
    weights = model.attention(output).exp()
    pooled = (weights * output).sum(1) / weights.sum(1)
    torch.testing.assert_close(model(values), model.out(pooled), rtol=0, atol=1e-6)


def test_features_are_normalised_by_mean_and_std() -> None:
    model = ragged_model("last", False, 1)
    values = torch.tensor([[[2.5, 3.0, -0.5]]])
    assert model.embed(values).tolist() == [[[1.0, 3.0, 1.0]]]
    assert "mean" not in model.state_dict()


def test_stacked_steps_are_read_side_by_side() -> None:
    stacked = ragged_model("last", False, 1, stack=3)
    plain = LSTMClassifier(9, 4, hidden_size=6).eval()
    plain.load_state_dict(stacked.state_dict())
    values = torch.randn(2, 7, 3)
    normal = stacked.embed(values)
    model_input = torch.stack(
        [
            torch.cat([normal[:, 0], normal[:, 1], normal[:, 2]], 1),
            torch.cat([normal[:, 3], normal[:, 4], normal[:, 5]], 1),
            torch.cat([normal[:, 6], torch.zeros(2, 6)], 1),
        ],
        1,
    )
    torch.testing.assert_close(stacked(values), plain(model_input), rtol=0, atol=1e-6)
    ends = torch.tensor([[1, 3, 4, 7], [2, 3, 6, 7]])
    found = stacked.classify_prefixes(values, ends)
    for row in range(2):
        for place, end in enumerate(ends[row].tolist()):
            alone = stacked(values[row, None, :end])[0]
            torch.testing.assert_close(found[row, place], alone, rtol=0, atol=1e-6)


def test_tokens_are_embedded() -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(1, 3, num_tokens=5, embedding_size=4, hidden_size=6).eval()
    assert model.embedding is not None
    tokens = torch.tensor([[4, 0, 2], [1, 1, 1]], dtype=torch.uint8)
    lengths = torch.tensor([3, 1])
    output, _ = model.rnn(model.embedding.weight[tokens.long()])
    expected = model.out(output[[0, 1], lengths - 1])
    torch.testing.assert_close(model(tokens, lengths), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 11])
@pytest.mark.parametrize(("stack", "rocket"), [(1, 0), (4, 0), (4, 168)])
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_an_architecture_counts_its_parameters(
    num_layers: int, bidirectional: bool, num_tokens: int, stack: int, rocket: int, pooling: Pooling
) -> None:
    architecture = Architecture(
        input_size=1 if num_tokens else 5,
        classes=("a", "b", "c"),
        scale=1.0,
        read="rows",
        hidden_size=7,
        num_layers=num_layers,
        bidirectional=bidirectional,
        num_tokens=num_tokens,
        embedding_size=4,
        pooling=pooling,
        dropout=0.0,
        stack=stack,
        rocket=0 if num_tokens else rocket,
        dilations=(1,) if rocket and not num_tokens else (),
    )
    assert architecture.num_parameters == sum(p.numel() for p in architecture.build().parameters())
