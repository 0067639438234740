"""The parts of a run's page: examples, cells, curves, settings, and words about them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import train_tiny
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import seqclf
from seqclf.config.load import config_from
from seqclf.data import sources
from seqclf.data.pictures import Picture
from seqclf.data.sequences import Sequences
from seqclf.model import LSTMClassifier
from seqclf.prefixes import probabilities
from seqclf.report.compare import curves_by_setting
from seqclf.report.compare_figures import draw_settings
from seqclf.report.curves import PANELS, curves_of_run, draw_panel
from seqclf.report.evaluation import show_evaluation
from seqclf.report.figures import INK
from seqclf.report.matrix import DARK, LIGHT, draw_confusion, ramp, text_on
from seqclf.report.overview import (
    changed_settings,
    command_again,
    links_to_files,
    loss_note,
    role_of_validation,
    split_rows,
)
from seqclf.report.page import page_of_run, show_baselines
from seqclf.report.reading import (
    choose_columns,
    choose_evenly,
    examples_of_cells,
    played_picture,
    read_example,
)
from seqclf.report.render import inline_figure, render
from seqclf.report.run_record import RunRecord, read_run
from seqclf.report.thumbnails import scaled, thumbnail
from seqclf.run.weights import load_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    assert train_tiny(run_dir, {"train.steps": 30, "log.every": 10, "quiet": True}) == 0
    return run_dir


def test_what_is_played_is_what_the_model_says_of_each_prefix(digits: Path) -> None:
    run, (model, _) = read_run(digits), load_model(digits)
    test = sources.load(run.config.data, seed=run.config.seed).test
    example, _ = read_example(model, test, 5, "right")
    assert example.played["ends"] == list(range(1, 9))
    for end, chances in enumerate(example.played["chances"], start=1):
        expected = probabilities(model, test[5][0][None, :end])[0]
        assert np.array(chances) == pytest.approx(1e4 * expected.numpy(), abs=0.6)
    assert example.truth == str(int(test.labels[5]))


def test_the_examples_of_a_cell_have_its_truth_and_its_guess(digits: Path) -> None:
    run, (model, _) = read_run(digits), load_model(digits)
    test = sources.load(run.config.data, seed=run.config.seed).test
    chances = probabilities(model, *test.rows(slice(None)))
    cells = examples_of_cells(test, torch.arange(359), chances)
    assert sum(map(len, cells.values())) <= 60
    is_right = [truth == guess for truth, guess in cells]
    assert is_right == sorted(is_right)  # the mistakes are first
    confusion = run.evaluations["test"].confusion
    for (truth, guess), examples in cells.items():
        assert 1 <= len(examples) <= confusion[truth][guess]
        for one in examples:
            index = int(one.title.split()[-1])
            assert (int(test.labels[index]), int(chances[index].argmax())) == (truth, guess)
            assert one.picture.values == test[index][0].tolist()


@pytest.mark.parametrize("count", [1, 2, 100])
def test_a_page_of_any_number_of_classes(digits: Path, count: int) -> None:
    matrix = [[(i == j) * 9 + (i == 3) * (j == 5) * 4 for j in range(count)] for i in range(count)]
    names = tuple(f"class-{number}" for number in range(count))
    test = read_run(digits).evaluations["test"]
    changed = test.model_copy(update={"confusion": matrix, "classes": names, "mistakes": []})
    section = show_evaluation(changed, "test")
    assert section.accuracy == pytest.approx(9 * count / (9 * count + 4 * (count > 5)))
    assert [row.name for row in section.classes[:2]] == (
        ["class-3", "class-5"] if count > 30 else list(names[:2])
    )
    assert section.pairs == ([(4, "class-3", "class-5")] if count > 5 else [])
    cells = re.findall(
        r"<title>truth class-(\d+), guess class-(\d+): (\d+)", draw_confusion(names, matrix)
    )
    assert cells == [
        (str(i), str(j), str(matrix[i][j]))
        for i in range(count)
        for j in range(count)
        if matrix[i][j]
    ]


def test_an_evaluation_shows_its_most_frequent_mistakes_first(digits: Path) -> None:
    test = read_run(digits).evaluations["test"]
    section = show_evaluation(test, "test")
    wrong = np.array(test.confusion) * (1 - np.eye(10, dtype=int))
    assert [count for count, *_ in section.pairs] == sorted(wrong[wrong > 0])[:-11:-1]
    recorded = {(one.truth, one.guess) for one in test.mistakes}
    assert {(cell.truth, cell.guess) for cell in section.cells} == recorded
    counts = [cell.num_examples for cell in section.cells]
    assert counts == sorted(counts, reverse=True)
    # Gaps of 2 and 2 of 10 examples, one to either side.
    bins = test.model_copy(update={"calibration": [[4, 4.0, 2.0], [6, 1.0, 3.0]]})
    assert show_evaluation(bins, "test").calibration_error == pytest.approx(0.4)
    diverged = {
        f"{split}/{name}": None for split in ("test", "val") for name in ("loss", "macro_f1")
    }
    broken = test.model_copy(update={"metrics": diverged})
    assert "diverged" in (show_evaluation(broken, "test").doubt or "")
    assert show_evaluation(broken, "val").doubt is None  # it is no result anyway


def test_a_cell_lies_at_its_truth_and_guess_and_has_the_shade_of_its_share() -> None:
    svg = draw_confusion(("a", "b"), [[800, 200], [0, 1]])
    cells = re.findall(r'guess (.): \d+</title><rect class="m(\d+)" x="([\d.]+)" y="([\d.]+)"', svg)
    (first, second, last) = [(name, int(level), float(x), float(y)) for name, level, x, y in cells]
    assert [first[0], second[0], last[0]] == ["a", "b", "b"]
    assert (first[3], first[2] < second[2]) == (second[3], True)  # a row is one truth
    assert (second[2], second[3] < last[3]) == (last[2], True)
    assert second[1] < first[1] < last[1] == 10  # of its truth, not of all examples


def test_numbers_in_cells_have_contrast_on_both_maps() -> None:
    def luminance(colour: str) -> float:  # the formula of WCAG 2
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for ends in (LIGHT, DARK):
        levels = [luminance(colour) for colour in ramp(ends)]
        assert levels == sorted(levels, reverse=ends == LIGHT)
        for colour, level in zip(ramp(ends), levels, strict=True):
            low, high = sorted((level, luminance(text_on(colour))))
            assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_a_figure_loses_no_digit_of_a_name() -> None:
    svg = draw_confusion(("0.12345", "b"), [[1, 2], [3, 4]], [(0, 1)])
    inlined = inline_figure("test-confusion", svg, '"> 0.98765')
    assert inlined.count("0.12345") == svg.count("0.12345")
    assert 'aria-label="&#34;&gt; 0.98765"' in inlined
    assert 'href="#test-confusion-cell-0-1"' in inlined
    assert INK in svg
    assert INK not in inlined  # the page's colour of text is there in its place


def test_pictures_show_a_whole_sequence_and_all_its_features() -> None:
    rows = [[float(step >= 50), 1.0] for step in range(100)]
    rising, flat = scaled(rows, 40, 60)
    assert len(rising) == len(flat) <= 40
    assert (rising[0], rising[-1], rising) == (0, 60, sorted(rising))
    tops = [
        int(y)
        for y in re.findall(r'd="M\d+ (\d+)', thumbnail(Picture(kind="series", values=rows), "a"))
    ]
    assert len(tops) == 2
    assert tops[0] < 30 < tops[1]  # a lane each
    columns = Picture(kind="image", values=[[1, 2, 3], [4, 5, 6]])  # of three pixels
    assert played_picture(columns, across=True, is_text=False)["size"] == [2, 3]
    assert played_picture(columns, across=False, is_text=False)["size"] == [3, 2]


def test_of_many_classes_the_truth_and_the_guess_are_always_shown() -> None:
    chances = torch.full((2, 30), 0.01)
    chances[:, 10:18] = 0.05
    assert choose_columns(chances, always=[3, 29]) == [3, *range(10, 18), 29]
    assert choose_columns(chances[:, :10], always=[3, 5]) == list(range(10))


def test_the_band_of_a_setting_reaches_from_its_lowest_to_its_highest_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bands: list[tuple[list[float], ...]] = []
    monkeypatch.setattr(Axes, "fill_between", lambda _, *ends, **style: bands.append(ends))
    draw_settings({"lr 1": [[(1, 2.0), (2, 3.0)], [(1, 4.0), (2, 1.0)]], "lr 2": [[(1, 1.0)]]}, "y")
    assert bands == [([1, 2], [2.0, 1.0], [4.0, 3.0])]


def test_runs_that_share_one_point_have_no_panel_of_it(digits: Path) -> None:
    run = read_run(digits)
    last = run.points("test/accuracy")[-1]
    lines = [line for line in run.metric_lines if "test/accuracy" not in line]
    lines.append({"step": last[0], "test/accuracy": last[1]})
    figures = curves_by_setting([replace(run, metric_lines=lines)] * 2)
    assert "train-loss" in figures
    assert "test-accuracy" not in figures
    assert "test-accuracy" in curves_by_setting([run, run])


def test_a_curve_marks_where_a_run_went_on_and_what_it_skipped(digits: Path) -> None:
    run = read_run(digits)
    assert not {"resumed", "skipped steps"} & set(re.findall(r">([^<]+)</text>", loss_of(run)))
    again = run.sessions[0].model_copy(update={"step": 20})
    lines: list[dict[str, float | None]] = [
        {"step": 20, "train/skipped": 1.0},
        {"step": 30, "train/skipped": 1.0},
    ]
    told = loss_of(
        replace(run, sessions=[*run.sessions, again], metric_lines=[*run.metric_lines, *lines])
    )
    assert {"resumed", "skipped steps"} < set(re.findall(r">([^<]+)</text>", told))


def loss_of(run: RunRecord) -> str:
    points = {name: run.points(name) for name in PANELS["loss"].metrics}
    return draw_panel(PANELS["loss"], points, run)


def test_curves_need_two_points_and_no_accuracy_lies_above_1(digits: Path) -> None:
    run = read_run(digits)
    assert "accuracy" not in curves_of_run(replace(run, metric_lines=run.metric_lines[:1]))
    lines: list[dict[str, float | None]] = [
        {"step": step, "val/accuracy": 1.0} for step in range(1, 10)
    ]
    figures = curves_of_run(replace(run, metric_lines=[*lines, {"step": 9, "test/accuracy": 1.0}]))
    assert list(figures) == ["accuracy"]
    numbers = re.findall(r">(\d\.\d+)</text>", figures["accuracy"])
    assert max(map(float, numbers)) == 1
    assert "validation" in figures["accuracy"]
    assert "test, at the end" in figures["accuracy"]


def test_what_drives_training_is_one_figure_of_rows(digits: Path) -> None:
    run = read_run(digits)
    figures = curves_of_run(run)
    assert "drivers" in figures
    titles = re.findall(r">([^<]+)</text>", figures["drivers"])
    assert {"learning rate", "gradient norm, before clipping", "examples per second"} < set(titles)
    lines = [
        {key: value for key, value in line.items() if key != "train/grad_norm"}
        for line in run.metric_lines
    ]
    fewer = curves_of_run(replace(run, metric_lines=lines))["drivers"]
    assert "gradient norm" not in fewer
    assert "learning rate" in fewer


def test_a_page_says_what_was_run(digits: Path) -> None:
    run = read_run(digits)
    changed = {row.name: (row.value, row.default) for row in changed_settings(run.config)}
    assert changed["train.steps"] == ("30", "null")
    assert changed["data.name"] == ('"digits"', '"auto"')
    assert "optim.lr" not in changed
    splits = sources.load(run.config.data, seed=run.config.seed)
    rows = {row.name: row for row in split_rows(splits)}
    counts = np.bincount(splits.train.labels)
    assert set(rows) == {"training", "test"}
    assert rows["training"].num_examples == 1438
    most = int(counts.argmax())
    assert rows["training"].most == f"{most}: {counts[most]} ({100 * counts[most] / 1438:.1f} %)"
    fewest = int(counts.argmin())
    assert (
        rows["training"].fewest
        == f"{fewest}: {counts[fewest]} ({100 * counts[fewest] / 1438:.1f} %)"
    )
    assert rows["training"].steps == "8 x 8 pixels"
    [majority] = show_baselines(run.config, splits)
    assert majority.title == f"majority class ({most})"
    assert majority.accuracy == float((splits.test.labels == most).double().mean())
    assert command_again("a b", 4) == "seqclf train --config 'a b/config.yaml' --seed 5"
    [address] = [link[0] for link in links_to_files(digits, digits.parent) if link[1] == "run.json"]
    assert (digits.parent / address).samefile(digits / "run.json")


def test_what_raises_the_training_loss_above_the_others_is_said_where_it_lies_there(
    digits: Path,
) -> None:
    run = read_run(digits)

    def note(train: float, test: float, crop: float = 1.0, **changes: float) -> str | None:
        loss = run.config.loss.model_copy(update=changes)
        model = run.config.model.model_copy(update={"dropout": 0.2})
        augment = run.config.data.augment.model_copy(update={"crop": crop})
        data = run.config.data.model_copy(update={"augment": augment})
        config = run.config.model_copy(update={"loss": loss, "model": model, "data": data})
        lines: list[dict[str, float | None]] = [
            {"step": 8, "train/loss": 2.0},
            {"step": 9, "train/loss": train, "test/loss": test},
        ]
        return loss_note(replace(run, config=config, metric_lines=lines))

    both = "The training loss lies above the others: it alone is taken with "
    assert note(0.5, 0.2, label_smoothing=0.1) == f"{both}label smoothing and dropout."
    assert note(0.5, 0.2) == f"{both}dropout."
    assert note(0.5, 0.2, crop=0.5) == f"{both}dropout and augmentation."
    assert note(0.1, 0.2) is None


@pytest.mark.parametrize(
    ("settings", "num_examples", "is_calibrated", "role"),
    [
        ({"checkpoint.keep_best": True}, 49, False, "chose the weights"),
        ({"train.patience": 3}, 50, True, "chose the weights and fitted the temperature"),
        # Too few to choose weights by: the last ones are taken.
        ({"train.patience": 3}, 49, False, "decided when training ends"),
        ({}, 50, True, "fitted the temperature"),
        ({}, 50, False, "watched training"),
    ],
)
def test_a_page_says_what_the_validation_examples_did(
    settings: dict[str, object], num_examples: int, is_calibrated: bool, role: str
) -> None:
    config = config_from({**settings, "data.val_fraction": 0.1}, None, "the test")
    said = role_of_validation(config, num_examples, is_calibrated=is_calibrated)
    assert said == f"{role}, so it is no result"


def test_fixed_convolutions_are_part_of_what_a_reading_takes() -> None:
    """So of the same examples fewer are read with them."""
    test = Sequences(torch.randn(500, 300, 1), torch.zeros(500).long(), ("a", "b"))
    alone, beside = (
        LSTMClassifier(1, 2, hidden_size=64, rocket=rocket, dilations=dilations)
        for rocket, dilations in ((0, ()), (5040, (1, 2, 4, 8, 16, 32)))
    )
    counts = [len(choose_evenly(model, test, anew=True)) for model in (alone, beside)]
    assert counts[0] > 2 * counts[1]


def test_a_run_of_one_step_without_a_test_split_has_a_page(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    data = images.reshape(-1, 8, 8), labels
    settings = {"train.steps": 1, "train.threads": 1, "model.hidden_size": 8, "model.rocket": 84}
    seqclf.train(
        {**settings, "tracking.wandb": "disabled"},
        train=(data[0][:100], data[1][:100]),
        validation=(data[0][100:160], data[1][100:160]),
        run_dir=tmp_path / "run",
        verbose=0,
    )
    page = page_of_run(read_run(tmp_path / "run"), {})
    assert list(page.evaluations) == ["val"]
    assert page.validation_role == "fitted the temperature, so it is no result"
    assert page.no_early_because == "the data have no test examples"
    assert (page.headline, page.reading, page.baselines, page.curves) == (None, None, [], {})
    assert page.loss_note is None  # one point is no curve
    assert dict(page.overview)["model"].startswith(
        "LSTM, 1 layer of 8, both directions, 84 features of fixed convolutions beside it, "
        "pooling max: "
    )
    assert [row.name for row in page.splits] == ["training", "validation"]
    assert "No curve: nothing was logged twice." in render(page)
