from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from seqclf.data.sequences import Sequences, spread_over_classes
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
        "prediction  t-shirt     bag     bag       x",  # the first of each class, then the second
        "truth       t-shirt     bag       x       x",
        "                                  ^",
    ]
    assert predictions_text(Adder(), DATA, 1) == "prediction  t-shirt\ntruth       t-shirt"
    assert predictions_text(Adder(), DATA, 99) == predictions_text(Adder(), DATA, 4)


def test_many_predictions_are_broken_at_80_columns() -> None:
    many = DATA.select(torch.arange(4).repeat(5))
    lines = predictions_text(Adder(), many, 20).splitlines()
    assert [len(line) for line in lines] == [75, 75, 35, 75, 75, 67, 43, 43, 35]
    words = [line.split()[1:] for line in lines]
    truths = [word for row in words[1::3] for word in row]
    assert truths == ["t-shirt", "bag", "x"] * 5 + ["x"] * 5
    # The first of each two examples of x is taken for a bag.
    guesses = [word for row in words[0::3] for word in row]
    assert guesses == ["t-shirt", "bag", "bag", "t-shirt", "bag", "x"] * 2 + [
        *["t-shirt", "bag", "bag"],
        *["x", "bag", "x", "bag", "x"],
    ]


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


def test_of_files_sorted_by_class_all_classes_are_shown() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    assert spread_over_classes(labels, 6).tolist() == [0, 50, 100, 150, 1, 51]
    assert spread_over_classes(torch.tensor([3, 3, 9, 3]), 9).tolist() == [0, 2, 1, 3]
    many = torch.arange(100)  # of more classes than are shown, in equal distances
    assert spread_over_classes(many.flip(0), 4).tolist() == [99, 74, 49, 24]


class Rising(Adder):
    """Says right where the first feature is above 0."""

    def classify_prefixes(self, steps: Tensor, ends_BE: Tensor | None) -> Tensor:
        sums = 2 * steps[..., :1]
        sums = sums if ends_BE is None else sums[:, ends_BE[0] - 1]
        return torch.cat([torch.zeros_like(sums), sums], 2)


def series() -> Sequences:
    """Return a series of two features over 40 steps, and one that is shorter."""
    rise = torch.arange(40.0)[:, None] / 10 - 2
    return Sequences(
        values=torch.cat([torch.cat([rise, -rise], 1), torch.zeros(3, 2)]),
        labels=torch.tensor([1, 0]),
        classes=("left", "right"),
        features=("rate", "a name that is long"),
        starts=torch.tensor([0, 40]),
        lengths=torch.tensor([40, 3]),
    )


def test_a_series_is_a_line_a_feature_with_the_guess_under_it() -> None:
    lines = reading_text(Rising(), series(), 0).splitlines()
    assert lines[0].endswith("(truth: right), 40 steps left to right:")
    rising = [round(7 * number / 40) for number in range(40)]  # from -2 to 1.9 deviations
    falling = [round(7 * (40 - number) / 40) for number in range(40)]
    assert lines[1] == "rate          " + "".join("▁▂▃▄▅▆▇█"[height] for height in rising)
    assert lines[2] == "a name that   " + "".join("▁▂▃▄▅▆▇█"[height] for height in falling)
    assert lines[3].startswith("guess         █")
    assert lines[3].endswith(f"█  right {1 / (1 + math.exp(-3.8)):.0%}")
    assert lines[4:] == ["its guess after every step: left after 1, right after 22"]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_drawing_fits_its_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqclf.terminal.sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", str(columns))
    image = torch.ones(1, 28, 28, dtype=torch.uint8)
    images = Sequences(image, torch.tensor([0]), ("pullover",) * 28, scale=1.0)
    texts = [reading_text(Adder(9.0), images, 0), reading_text(Rising(), series(), 0)]
    texts.append(predictions_text(Rising(), series(), 2))
    assert 36 <= max(len(line) for text in texts for line in text.splitlines()) <= columns


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
    title = " ".join(line for line in lines if "|" not in line)
    assert title == f"reading test example 0 (truth: one), its guess after every {unit}:"
    lines = [title, *(line for line in lines if "|" in line)]
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
