"""Training on users' sequences keeps every promise: any world size, any kill, any input."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import toy_dataset, toy_rows, write_rows
from helpers.files import logged, read_metrics, read_status, same_end, weights_of
from helpers.launching import ROOT, launch
from helpers.ranks import run_ranks
from helpers.training import EVERYTHING_ON, train_tiny

from seqclf.cli import main
from seqclf.config.load import load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.data.prepared import open_dataset
from seqclf.data.sources import load
from seqclf.errors import UserError
from seqclf.prefixes import probabilities
from seqclf.run.weights import load_model
from seqclf.settle import settle

RAGGED = {
    **EVERYTHING_ON,
    "data.name": "files",
    "data.augment.shift": 0,
    "data.augment.noise": 0.5,
    "data.augment.crop": 0.6,
    "data.val_fraction": 0,
    "model.bidirectional": True,
    "model.pooling": "attention",
    "model.stack": 2,
    "loss.class_weights": "balanced",
    "train.batch_size": 16,
    "train.micro_batch_size": None,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_dataset(tmp_path_factory.mktemp("toy") / "toy"))


def train_on(path: str | Path, run_dir: Path, settings: Mapping[str, object] = {}) -> float:
    """Train on a prepared data set; return the accuracy on its test split."""
    files = {"data.name": "files", "data.path": path, "train.steps": 20}
    assert train_tiny(run_dir, {**files, **settings}) == 0
    accuracy = read_status(run_dir).metrics["test/accuracy"]
    assert accuracy is not None
    return accuracy


# ---- the same run at any world size, through any stop, with any workers


@pytest.mark.parametrize("bucket", [pytest.param(True, marks=pytest.mark.slow), False])
def test_losses_agree_between_world_sizes(bucket: bool, dataset: str, tmp_path: Path) -> None:
    settings = RAGGED | {
        "data.path": dataset,
        "data.bucket": bucket,
        "optim.lr": 0.001,
        "model.dropout": 0,
        "train.steps": 100,
        "log.every": 1,
    }
    for world_size in (1, 2):
        codes = run_ranks(world_size, train_tiny, tmp_path / str(world_size), settings)
        assert set(codes) == {0}
    one, two = (logged(tmp_path / name, "train/loss") for name in ("1", "2"))
    assert len(one) == 100
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_with_shards_the_bits_are_the_same_at_any_world_size(dataset: str, tmp_path: Path) -> None:
    settings = RAGGED | {"data.path": dataset, "train.shards": 4}
    settings |= {"data.max_steps_per_batch": 100, "data.max_length": 12, "data.keep": "last"}
    run_ranks(1, train_tiny, tmp_path / "one", settings)
    for world_size, stop_at in ((2, 20), (1, 41), (4, None)):
        run_ranks(world_size, train_tiny, tmp_path / "moved", settings, stop_at=stop_at)
    assert same_end(tmp_path / "moved", tmp_path / "one")


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_and_resumed_equals_uninterrupted(
    world_size: int, dataset: str, tmp_path: Path
) -> None:
    settings = RAGGED | {"data.path": dataset, "train.micro_batch_size": 5, "train.patience": 9}
    run_ranks(world_size, train_tiny, tmp_path / "straight", settings)
    for stop_at in (3, 13, 41, None):
        run_ranks(world_size, train_tiny, tmp_path / "broken", settings, stop_at=stop_at)
    assert same_end(tmp_path / "broken", tmp_path / "straight")


def test_workers_change_nothing(dataset: str, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        train_on(dataset, tmp_path / workers, {"data.workers": workers, "log.every": 1})
    assert weights_of(tmp_path / "0") == weights_of(tmp_path / "2")
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "2")


@pytest.mark.parametrize(
    ("row", "length", "count", "expected"),
    [
        ([0.5, 1.0], 256, 60, (4, 0.0, 5040)),
        ([0.5, 1.0], 20, 60, (1, 0.0, 5040)),
        ([0.5, 1.0], 100, 2600, (2, 0.0, 0)),  # many
        ([0.5, 1.0], 499, 2600, (6, 0.0, 0)),
        ([0.5, 1.0], 500, 2600, (6, 0.0, 5040)),  # many, and long
        ("ab ", 256, 60, (1, 0.0, 0)),  # bytes of text
    ],
)
def test_what_auto_means_depends_on_the_data(
    row: str | list[float],
    length: int,
    count: int,
    expected: tuple[int, float, int],
    tmp_path: Path,
) -> None:
    name, value = ("text", "ab " * length) if isinstance(row, str) else ("steps", [row] * length)
    line = json.dumps({name: value, "label": "x"}) + "\n"
    (tmp_path / "x.jsonl").write_text((line + line.replace('"x"', '"y"')) * (count // 2))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", Preparation(), print)
    recipe = ROOT / "configs" / "files.yaml"
    config = load_config(recipe, {"data.path": str(tmp_path / "data")})[0]
    settled = settle(config, load(config.data, seed=0)).config
    model = settled.model
    assert (model.stack, settled.data.augment.noise, model.rocket) == expected
    assert settled.data.augment.crop == 1.0  # these rows do not change


def test_choosing_needs_a_split_to_choose_by(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.jsonl", toy_rows(60))
    preparation = Preparation(fractions=(0.8, 0.0, 0.2))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", preparation, print)
    with pytest.raises(UserError, match="has no validation part to choose by"):
        train_on(tmp_path / "data", tmp_path / "run", {"train.patience": 2})


def test_another_data_set_in_the_same_place_is_refused(tmp_path: Path) -> None:
    folder = toy_dataset(tmp_path / "data")
    train_on(folder, tmp_path / "run")
    write_rows(tmp_path / "x.jsonl", toy_rows(120, 9))
    prepare([Input(tmp_path / "x.jsonl")], folder, Preparation(overwrite=True), print)
    with pytest.raises(UserError, match="data"):
        train_on(folder, tmp_path / "run", {"train.steps": 30})
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="data"):
        train_on(moved, tmp_path / "run", {"train.steps": 30})


def test_a_data_set_that_moved_is_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy_dataset(tmp_path / "data")
    train_on(folder, tmp_path / "run")
    train_on(folder.rename(tmp_path / "moved"), tmp_path / "run")
    assert "is finished: nothing to do" in capsys.readouterr().out


# ---- what it learns


def test_the_sign_of_a_sum_is_learnt_by_every_pooling(dataset: str, tmp_path: Path) -> None:
    for pooling in ("last", "mean", "max", "attention"):
        settings = {"model.pooling": pooling, "train.steps": 200, "train.batch_size": 16}
        assert train_on(dataset, tmp_path / pooling, settings) >= 0.85


def test_words_and_text_are_learnt_offline(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = ["it", "was", "a", "film"]
    praise = {"good": ["fine", "great"], "bad": ["dull", "poor"]}
    rows: list[tuple[str, list[str]]] = []
    for number in range(300):
        label = ["good", "bad"][number % 2]
        tokens = list(map(str, generator.choice(words, generator.integers(1, 9))))
        index = int(generator.integers(0, len(tokens) + 1))
        tokens.insert(index, str(generator.choice(praise[label])))
        rows.append((label, tokens))
    write_rows(tmp_path / "tokens.jsonl", [{"tokens": row, "label": label} for label, row in rows])
    texts = [{"text": " ".join(tokens), "label": label} for label, tokens in rows]
    write_rows(tmp_path / "text.jsonl", texts)
    for kind in ("tokens", "text"):
        prepare([Input(tmp_path / f"{kind}.jsonl")], tmp_path / kind, Preparation(), print)
        settings = {"train.steps": 300, "model.pooling": "max", "model.hidden_size": 32}
        assert train_on(tmp_path / kind, tmp_path / f"run-{kind}", settings) >= 0.95


def test_groups_stay_out_of_validation_together(tmp_path: Path) -> None:
    rows = [{**row, "group": f"p{i % 20}"} for i, row in enumerate(toy_rows(200))]
    write_rows(tmp_path / "x.jsonl", rows)
    preparation = Preparation(fractions=(0.8, 0, 0.2))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "d", preparation, print)
    whole = open_dataset(tmp_path / "d")
    flags = {"data.name": "files", "data.path": f"{tmp_path}/d", "data.val_fraction": "0.25"}
    config = load_config(None, flags)[0]
    splits = load(config.data, seed=config.seed)
    assert splits.validation is not None
    assert splits.train.starts is not None
    assert splits.validation.starts is not None
    starts, groups = whole.splits["train"].starts, whole.groups["train"]
    assert starts is not None
    group_of = dict(zip(starts.tolist(), groups.tolist(), strict=True))
    train_groups = {group_of[start] for start in splits.train.starts.tolist()}
    validation_groups = {group_of[start] for start in splits.validation.starts.tolist()}
    assert train_groups
    assert validation_groups
    assert not train_groups & validation_groups


# ---- predicting files


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train_on(dataset, run_dir, {"train.steps": 60, "model.bidirectional": True})
    return run_dir


def test_predictions_of_a_file_are_the_models_in_its_order(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = toy_rows(700, seed=3)
    write_rows(tmp_path / "new.jsonl", rows)
    for kind in ("csv", "jsonl"):
        words = [str(trained), f"{tmp_path}/new.jsonl", "--out", f"{tmp_path}/guesses.{kind}"]
        assert main.main(["predict", *words]) == 0
    table = list(csv.DictReader((tmp_path / "guesses.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "guesses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in table] == [row["id"] for row in rows]
    model, architecture = load_model(trained)
    hits = 0
    for row, line, parsed in zip(rows, table, lines, strict=True):
        alone = probabilities(model, torch.tensor([row["steps"]]))[0]  # C7
        assert parsed["class"] == line["class"] == architecture.classes[int(alone.argmax())]
        for name, chance in zip(architecture.classes, alone.tolist(), strict=True):
            assert parsed["probabilities"][name] == pytest.approx(chance, abs=1e-6)
            assert float(line[f"p({name})"]) == pytest.approx(chance, abs=1e-5)
        hits += line["class"] == row["label"]
    agreement = f"{hits / 700:.2%} of the 700 labels"
    assert f"700 predictions in {tmp_path}/guesses.csv; {agreement}" in capsys.readouterr().err


def test_bad_rows_are_named_by_number_and_the_others_predicted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[list[list[int | None]]] = [[[1, 2, 3]], [[1, 2]], [[None, 2, 3]]]
    rows = [{"steps": value} for value in steps]
    write_rows(tmp_path / "new.jsonl", [*rows, {"text": "a"}])
    assert main.main(["predict", str(trained), f"{tmp_path}/new.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["id", "0"]
    assert "new.jsonl:2: 2 features a step, where the model reads 3" in err
    assert "new.jsonl:3: step 1, feature 1: a missing value" in err
    assert "new.jsonl:4: text, where the model reads features" in err
    words = ["predict", str(trained), f"{tmp_path}/new.jsonl", "--on-bad-row", "skip"]
    assert main.main(words) == 0


def test_standard_input_is_predicted_as_well(trained: Path) -> None:
    text = "".join(json.dumps({"steps": row["steps"]}) + "\n" for row in toy_rows(5))
    words = [sys.executable, "-m", "seqclf", "predict", str(trained), "-", "--format", "jsonl"]
    done = subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True, check=True)
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 6


def test_labels_that_are_no_classes_are_pointed_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text('{"steps": [[1, 2, 3]], "label": "0.5"}\n')
    assert main.main(["predict", str(trained), f"{tmp_path}/x.jsonl"]) == 0
    assert (
        "none of the labels in 'label' is a class of the model, such as " in capsys.readouterr().err
    )


def test_columns_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, swapped = "id,a,b,label\n", "id,b,a\n"
    lines = "".join(f"{i},{i % 2},{-i},{'xy'[i % 2]}\n" for i in range(60))
    (tmp_path / "x.csv").write_text(header + lines)
    (tmp_path / "y.csv").write_text(swapped + "".join(f"{i},{-i},{i % 2}\n" for i in range(60)))
    (tmp_path / "z.csv").write_text("id,b,c\n1,2,3\n")
    assert main.main(["prepare", f"{tmp_path}/x.csv", "--id", "id", "--out", f"{tmp_path}/d"]) == 0
    train_on(f"{tmp_path}/d", tmp_path / "run")
    printed = []
    for name in ("x", "y", "z"):
        capsys.readouterr()
        main.main(["predict", f"{tmp_path}/run", f"{tmp_path}/{name}.csv", "--id", "id"])
        printed.append(capsys.readouterr())
    with_truth = list(csv.DictReader(io.StringIO(printed[0].out)))
    assert [row.pop("truth") for row in with_truth] == ["x", "y"] * 30
    assert with_truth == list(csv.DictReader(io.StringIO(printed[1].out)))
    assert "z.csv:1: no column 'a', which the model reads; found b, c" in printed[2].err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.jsonl", "--out", "y.txt"], "expected a name that ends in .csv or .jsonl"),
        (["gone.jsonl"], "cannot read it"),
        (["-"], "say what standard input holds"),
        (["x.jsonl", "--out", "/nowhere/y.csv"], "cannot write it"),
    ],
)
def test_mistakes_of_predict(
    words: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "x.jsonl").write_text('{"steps": [[1, 2, 3]]}\n')
    paths = [str(tmp_path / word) if word.endswith(("jsonl", "txt")) else word for word in words]
    assert main.main(["predict", str(trained), *paths]) == 2
    assert message in capsys.readouterr().err


# ---- the whole way, by the commands a user types


def test_prepare_train_predict_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "x.jsonl", toy_rows(150))
    data, run = tmp_path / "mine", tmp_path / "run"
    assert main.main(["prepare", f"{tmp_path}/x.jsonl", "--out", str(data)]) == 0
    assert "120 sequences" in capsys.readouterr().out
    flags = f"--config configs/files.yaml --data.path {data} --run-dir {run} --train.steps 20"
    done = launch("accelerate", "launch", "launch/train.py", *flags.split())
    assert done.returncode == 0, done.stderr
    assert "padding" in done.stdout
    assert (
        "auto        noise 0.0, crop 1.0, hidden_size 64, stack 1, rocket 5040, batch_size "
        in done.stdout
    )
    words = [str(run), f"{tmp_path}/x.jsonl", "--out", f"{tmp_path}/p.csv"]
    assert main.main(["predict", *words]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 151
    assert main.main(["evaluate", str(run)]) == 0
