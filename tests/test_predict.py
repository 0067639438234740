from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.model import Architecture, ImageOrder, LSTMClassifier, Pooling, permutation
from seqclf.prefixes import classify_prefixes, probabilities
from seqclf.run.checkpoint import encode_tensors
from seqclf.run.files import MAX_JSON_BYTES
from seqclf.run.weights import load_model
from seqclf.terminal import predictions_text, reading_text


class Adder(LSTMClassifier):
    """Logits are the sums of a sequence's features, or 0 and that of an image's pixels."""

    def __init__(self, weight: float = 1.0, read: ImageOrder = "rows") -> None:
        super().__init__(1, 1, read=read)
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.classify_prefixes(self.steps(values), None)[:, -1]

    def classify_prefixes(self, steps: Tensor, ends_BE: Tensor | None) -> Tensor:
        sums = steps.float().cumsum(1) * self.weight
        sums = sums if ends_BE is None else sums[:, ends_BE[0] - 1]
        return sums if sums.shape[2] > 1 else torch.cat([torch.zeros_like(sums), sums], 2)


DATA = Sequences(
    values=torch.tensor([[[3, 0, 0]], [[0, 4, 0]], [[0, 0, 2]], [[0, 1, 0]]], dtype=torch.uint8),
    labels=torch.tensor([0, 2, 2, 1]),
    classes=("t-shirt", "bag", "x"),
    scale=4.0,
)


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_every_prefix_is_classified_as_if_it_were_alone(
    bidirectional: bool, pooling: Pooling, num_layers: int
) -> None:
    torch.manual_seed(0)
    model = LSTMClassifier(
        4,
        3,
        bidirectional=bidirectional,
        pooling=pooling,
        hidden_size=8,
        num_layers=num_layers,
        dropout=0.5,
    )
    values = 3 * torch.randn(3, 6, 4)
    ends = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 1, 2, 2, 3, 4], [6, 5, 4, 3, 2, 1]])
    if model.attention is not None:
        model.attention.weight.data *= 200  # shares near 0 and near 1
    found = classify_prefixes(model, values, ends)
    assert model.training
    model.eval()
    for value, rows, row_ends in zip(values, found, ends.tolist(), strict=True):
        for chances, end in zip(rows, row_ends, strict=True):
            expected = model(value[None, :end]).softmax(1)[0]
            torch.testing.assert_close(chances, expected, rtol=0, atol=1e-6)
    whole = probabilities(model, values[:1])
    torch.testing.assert_close(found[:1, -1], whole, rtol=0, atol=1e-6)


def test_predictions_stand_over_the_truth_with_the_errors_marked() -> None:
    assert predictions_text(Adder(), DATA, 4).splitlines() == [
        "prediction  t-shirt     bag       x     bag",
        "truth       t-shirt       x       x     bag",
        "                          ^",
    ]
    assert predictions_text(Adder(), DATA, 1) == "prediction  t-shirt\ntruth       t-shirt"
    assert predictions_text(Adder(), DATA, 99) == predictions_text(Adder(), DATA, 4)


def test_many_predictions_are_broken_at_80_columns() -> None:
    many = DATA.select(torch.arange(4).repeat(5))
    lines = predictions_text(Adder(), many, 20).splitlines()
    assert [len(line) for line in lines] == [75, 75, 59, 75, 75, 59, 43, 43, 27]
    words = [line.split()[1:] for line in lines]
    assert words[0] + words[3] + words[6] == ["t-shirt", "bag", "x", "bag"] * 5
    assert words[1] + words[4] + words[7] == ["t-shirt", "x", "x", "bag"] * 5


def test_reading_draws_every_step_with_the_guess_so_far() -> None:
    sequences = Sequences(
        values=torch.tensor([[[0, 0], [1, 0], [0, 4], [9, 2]]], dtype=torch.uint8),
        labels=torch.tensor([0]),
        classes=("zero", "one"),
        scale=4.0,
    )
    assert reading_text(Adder(math.log(3)), sequences, 0).splitlines() == [
        "reading test example 0 (truth: zero), its guess after every row:",
        "|    |  zero   50% ██████████",
        "|::  |  zero   75% ███████████████",
        "|  @@|  one    96% ███████████████████",
        "|@@==|  zero   99% ████████████████████",
    ]


ORDER = permutation(6, torch.device("cpu")).tolist()


@pytest.mark.parametrize(
    ("read", "unit", "order"),
    [
        ("columns", "column", [0, 3, 1, 4, 2, 5]),
        ("pixels", "3 pixels", [0, 1, 2, 3, 4, 5]),
        ("permuted", "3 pixels in permuted order", ORDER),
    ],
)
def test_an_image_is_drawn_as_it_is_read(read: ImageOrder, unit: str, order: list[int]) -> None:
    image = torch.tensor([[0, 1, 2], [3, 4, 9]], dtype=torch.uint8)
    sequences = Sequences(image[None], torch.tensor([1]), ("zero", "one"), scale=9.0)
    model = Adder(0.1, read)
    lines = reading_text(model, sequences, 0).splitlines()
    assert lines[0] == f"reading test example 0 (truth: one), its guess after every {unit}:"
    drawn = "".join(line.split("|")[1] for line in lines[1:])
    assert drawn == "".join(" .:-=+*#%@"[int(image.flatten()[i])] * 2 for i in order)
    per_line = 2 if read == "columns" else 3
    sums = [sum(int(image.flatten()[i]) for i in order[:n]) for n in range(per_line, 7, per_line)]
    if read != "columns":  # logits 0 and 0.1 * sum
        shown = [line.split()[-2] if "█" in line else line.split()[-1] for line in lines[1:]]
        assert shown == [f"{1 / (1 + math.exp(-0.1 * total)):.0%}" for total in sums]
    assert len(lines) == 1 + len(sums)


def test_a_wide_image_with_long_names_fits_80_columns() -> None:
    for read in ("rows", "pixels"):
        image = torch.ones(1, 28, 28, dtype=torch.uint8)
        sequences = Sequences(image, torch.tensor([0]), ("pullover",) * 28, scale=1.0)
        lines = reading_text(Adder(9.0, read), sequences, 0).splitlines()
        assert len(lines) == 29
        assert max(map(len, lines)) <= 80
    assert lines[-1] == f"|{'@' * 56}|  pullover  100% █████"


def test_a_model_that_diverged_can_still_be_shown() -> None:
    assert reading_text(Adder(math.nan), DATA, 0).splitlines()[1].startswith("|##    |  t-shirt")
    assert predictions_text(Adder(math.nan), DATA, 2).startswith("prediction")


SHAPE = {"hidden_size": 5, "num_layers": 1, "bidirectional": False, "pooling": "last"}
ARCHITECTURE = Architecture.model_validate(
    {
        "input_size": 3,
        "classes": DATA.classes,
        "scale": 4.0,
        "dropout": 0.5,
        "read": "rows",
        **SHAPE,
    }
)


def save(run_dir: Path, architecture: str, weights: bytes) -> None:
    (run_dir / "model").mkdir()
    (run_dir / "model" / "config.json").write_text(architecture)
    (run_dir / "model" / "model.safetensors").write_bytes(weights)


def test_a_result_is_loaded_ready_to_predict(tmp_path: Path) -> None:
    model = ARCHITECTURE.build("orthogonal").eval()
    save(tmp_path, ARCHITECTURE.model_dump_json(), encode_tensors(model.state_dict()))
    for run_dir in (tmp_path, str(tmp_path)):
        loaded, architecture = load_model(run_dir)
        assert architecture == ARCHITECTURE
        assert torch.equal(loaded(DATA.values), model(DATA.values))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no trained model there"),
        ("{", r"config\.json: damaged"),
        pytest.param(
            ARCHITECTURE.model_dump_json() + " " * MAX_JSON_BYTES,
            r"config\.json: damaged: .* at most 67,108,864",
            id="long",
        ),
        (ARCHITECTURE.model_dump_json().replace("pooling", "poling"), r"config\.json: damaged"),
        (
            ARCHITECTURE.model_dump_json().replace('"hidden_size":5', '"hidden_size":6'),
            "this model's is",
        ),
        (
            ARCHITECTURE.model_dump_json().replace('"num_layers":1', '"num_layers":2'),
            "other tensors",
        ),
    ],
)
def test_a_missing_or_damaged_result_is_named(
    tmp_path: Path, content: str | None, part: str
) -> None:
    if content is not None:
        save(tmp_path, content, encode_tensors(ARCHITECTURE.build().state_dict()))
    with pytest.raises(UserError, match=part) as caught:
        load_model(tmp_path)
    assert str(tmp_path / "model") in str(caught.value)


def test_a_link_is_no_result(tmp_path: Path) -> None:
    save(tmp_path, ARCHITECTURE.model_dump_json(), b"")
    file = tmp_path / "model" / "config.json"
    file.symlink_to(file.rename(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"no trained model there \(not a regular file\)"):
        load_model(tmp_path)
