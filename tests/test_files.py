"""Training on users' sequences keeps every promise: any world size, any kill, any input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, launch, read_metrics, run_ranks, toy_dataset, toy_rows
from test_resume import hashes, run_until

from seqclf import cli
from seqclf.config import UserError, load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.data.prepared import open_parts
from seqclf.data.sources import load
from seqclf.predict import load_model, probabilities
from seqclf.train import fit, train

RAGGED = {
    "data.name": "files",
    "data.augment.shift": "0",
    "data.augment.noise": "0.5",
    "data.val_fraction": "0",
    "model.bidirectional": "true",
    "model.pooling": "attention",
    "model.stack": "2",
    "loss.class_weights": "balanced",
    "train.batch_size": "16",
    "train.micro_batch_size": "null",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_dataset(tmp_path_factory.mktemp("toy") / "toy"))


def train_on(path: str, run_dir: Path, **flags: str) -> dict[str, float]:
    always = {"data.path": path, "run_dir": str(run_dir), "tracking.wandb": "disabled"}
    small = {"model.hidden_size": "8", "train.threads": "1", "train.steps": "20"}
    assert train(load_config(None, always | small | flags)[0]) == 0
    metrics: dict[str, float] = json.loads((run_dir / "status.json").read_text())["metrics"]
    return metrics


# ---- the same run at any world size, through any stop, with any workers


@pytest.mark.parametrize("bucket", ["true", "false"])
def test_losses_agree_between_world_sizes(bucket: str, dataset: str, tmp_path: Path) -> None:
    flags = RAGGED | {
        "data.path": dataset,
        "data.bucket": bucket,
        "optim.lr": "0.001",
        "model.dropout": "0",
        "train.steps": "100",
        "log.every": "1",
    }
    for world_size in (1, 2):
        assert set(run_ranks(world_size, run_until, f"{tmp_path}/{world_size}", None, flags)) == {0}
    one, two = (
        [line["train/loss"] for line in read_metrics(tmp_path / name) if "train/loss" in line]
        for name in ("1", "2")
    )
    assert len(one) == 100
    assert two == pytest.approx(one, rel=1e-5)


def test_with_shards_the_bits_are_the_same_at_any_world_size(dataset: str, tmp_path: Path) -> None:
    flags = RAGGED | {"data.path": dataset, "train.shards": "4"}
    flags |= {"data.max_steps_per_batch": "100", "data.max_length": "12", "data.keep": "last"}
    run_ranks(1, run_until, f"{tmp_path}/one", None, flags)
    for world_size, stop_at in ((2, 20), (1, 41), (4, None)):
        run_ranks(world_size, run_until, f"{tmp_path}/moved", stop_at, flags)
    assert len(hashes(tmp_path / "one")) == 4
    assert hashes(tmp_path / "moved") == hashes(tmp_path / "one")
    assert read_metrics(tmp_path / "moved") == read_metrics(tmp_path / "one")


@pytest.mark.parametrize("world_size", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(
    world_size: int, dataset: str, tmp_path: Path
) -> None:
    flags = RAGGED | {"data.path": dataset, "train.micro_batch_size": "5", "train.patience": "9"}
    run_ranks(world_size, run_until, f"{tmp_path}/straight", None, flags)
    for stop_at in (3, 13, 41, None):
        run_ranks(world_size, run_until, f"{tmp_path}/broken", stop_at, flags)
    assert len(hashes(tmp_path / "straight")) == 4
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "straight")
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "straight")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where cores are few
def test_workers_change_nothing(dataset: str, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        train_on(dataset, tmp_path / workers, **{"data.workers": workers, "log.every": "1"})
    models = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("0", "2")]
    assert models[0] == models[1]
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "2")


@pytest.mark.parametrize(
    ("row", "length", "count", "expected"),
    [
        ([0.5, 1.0], 256, 60, (4, 0.2)),
        ([0.5, 1.0], 20, 60, (1, 0.2)),
        ([0.5, 1.0], 100, 2600, (2, 0.0)),  # many
        ("ab ", 256, 60, (1, 0.0)),  # bytes of text
    ],
)
def test_what_auto_means_depends_on_the_data(
    row: str | list[float], length: int, count: int, expected: tuple[int, float], tmp_path: Path
) -> None:
    name, value = ("text", "ab " * length) if isinstance(row, str) else ("steps", [row] * length)
    line = json.dumps({name: value, "label": "x"}) + "\n"
    (tmp_path / "x.jsonl").write_text((line + line.replace('"x"', '"y"')) * (count // 2))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", Preparation(), print)
    recipe = ROOT / "configs" / "files.yaml"
    config = load_config(recipe, {"data.path": str(tmp_path / "data")})[0]
    settled = fit(config, load(config.data, seed=0))
    assert (settled.model.stack, settled.data.augment.noise) == expected


def test_choosing_needs_a_part_to_choose_by(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(60)))
    how = Preparation(fractions=(0.8, 0.0, 0.2))
    prepare([Input(tmp_path / "x.jsonl")], tmp_path / "data", how, print)
    with pytest.raises(UserError, match="has no validation part to choose by"):
        train_on(f"{tmp_path}/data", tmp_path / "run", **{"train.patience": "2"})


def test_another_data_set_in_the_same_place_is_refused(tmp_path: Path) -> None:
    folder = toy_dataset(tmp_path / "data")
    train_on(str(folder), tmp_path / "run")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(120, 9)))
    prepare([Input(tmp_path / "x.jsonl")], folder, Preparation(overwrite=True), print)
    with pytest.raises(UserError, match="data"):
        train_on(str(folder), tmp_path / "run", **{"train.steps": "30"})
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="data"):
        train_on(str(moved), tmp_path / "run", **{"train.steps": "30"})


def test_a_data_set_that_moved_is_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy_dataset(tmp_path / "data")
    train_on(str(folder), tmp_path / "run")
    train_on(str(folder.rename(tmp_path / "moved")), tmp_path / "run")
    assert "is finished: nothing to do" in capsys.readouterr().out


# ---- what it learns


def test_the_sign_of_a_sum_is_learnt_by_every_pooling(dataset: str, tmp_path: Path) -> None:
    for pooling in ("last", "mean", "max", "attention"):
        flags = {"model.pooling": pooling, "train.steps": "200", "train.batch_size": "16"}
        assert train_on(dataset, tmp_path / pooling, **flags)["test/accuracy"] >= 0.85


def test_words_and_text_are_learnt_offline(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words, praise = ["it", "was", "a", "film"], {"good": ["fine", "great"], "bad": ["dull", "poor"]}
    rows = []
    for number in range(300):
        label = ["good", "bad"][number % 2]
        tokens = list(generator.choice(words, generator.integers(1, 9)))
        tokens.insert(
            int(generator.integers(0, len(tokens) + 1)), str(generator.choice(praise[label]))
        )
        rows.append((label, [str(token) for token in tokens]))
    for kind in ("tokens", "text"):
        source = tmp_path / f"{kind}.jsonl"
        source.write_text(
            "".join(
                json.dumps({kind: tokens if kind == "tokens" else " ".join(tokens), "label": label})
                + "\n"
                for label, tokens in rows
            )
        )
        prepare([Input(source)], tmp_path / kind, Preparation(), print)
        flags = {"train.steps": "300", "model.pooling": "max", "model.hidden_size": "32"}
        metrics = train_on(str(tmp_path / kind), tmp_path / f"run-{kind}", **flags)
        assert metrics["test/accuracy"] >= 0.95


def test_groups_stay_out_of_validation_together(tmp_path: Path) -> None:
    rows = [row | {"group": f"p{i % 20}"} for i, row in enumerate(toy_rows(200))]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(
        [Input(tmp_path / "x.jsonl")], tmp_path / "d", Preparation(fractions=(0.8, 0, 0.2)), print
    )
    _, parts, groups = open_parts(tmp_path / "d")
    flags = {"data.name": "files", "data.path": f"{tmp_path}/d", "data.val_fraction": "0.25"}
    config = load_config(None, flags)[0]
    splits = load(config.data, seed=config.seed)
    assert splits.validation is not None
    assert splits.train.starts is not None
    assert splits.validation.starts is not None
    assert parts["train"].starts is not None
    owner = dict(zip(parts["train"].starts.tolist(), groups["train"].tolist(), strict=True))
    kept = {owner[start] for start in splits.train.starts.tolist()}
    held = {owner[start] for start in splits.validation.starts.tolist()}
    assert kept
    assert held
    assert not kept & held


# ---- predicting files


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train_on(dataset, run_dir, **{"train.steps": "60", "model.bidirectional": "true"})
    return run_dir


def test_predictions_of_a_file_are_the_models_in_its_order(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = toy_rows(700, seed=3)
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("csv", "jsonl"):
        words = [str(trained), f"{tmp_path}/new.jsonl", "--out", f"{tmp_path}/found.{kind}"]
        assert cli.main(["predict", *words]) == 0
    table = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["id"] for line in table] == [row["id"] for row in rows]
    model, card = load_model(trained)
    hits = 0
    for row, line, parsed in zip(rows, table, lines, strict=True):
        alone = probabilities(model, torch.tensor([row["steps"]]))[0]  # C7
        assert parsed["class"] == line["class"] == card.classes[int(alone.argmax())]
        for name, chance in zip(card.classes, alone.tolist(), strict=True):
            assert parsed["probabilities"][name] == pytest.approx(chance, abs=1e-6)
            assert float(line[f"p({name})"]) == pytest.approx(chance, abs=1e-5)
        hits += line["class"] == row["label"]
    said = capsys.readouterr().err
    assert f"700 predictions in {tmp_path}/found.csv; {hits / 700:.2%} of the 700 labels" in said


def test_bad_rows_are_told_by_number_and_the_others_predicted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"steps": [[1, 2, 3]]}, {"steps": [[1, 2]]}, {"steps": [[None, 2, 3]]}, {"text": "a"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["predict", str(trained), f"{tmp_path}/new.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert [line.split(",")[0] for line in out.splitlines()] == ["id", "1"]
    assert "new.jsonl:2: 2 features a step, where the model reads 3" in err
    assert "new.jsonl:3: step 1, feature 1: a missing value" in err
    assert "new.jsonl:4: text, where the model reads features" in err
    words = ["predict", str(trained), f"{tmp_path}/new.jsonl", "--on-bad-row", "skip"]
    assert cli.main(words) == 0


def test_standard_input_is_predicted_as_well(trained: Path) -> None:
    import subprocess
    import sys

    text = "".join(json.dumps({"steps": row["steps"]}) + "\n" for row in toy_rows(5))
    words = [sys.executable, "-m", "seqclf", "predict", str(trained), "-", "--format", "jsonl"]
    done = subprocess.run(words, cwd=ROOT, input=text, capture_output=True, text=True, check=True)
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 6


def test_labels_that_are_no_classes_are_pointed_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text('{"steps": [[1, 2, 3]], "label": "0.5"}\n')
    assert cli.main(["predict", str(trained), f"{tmp_path}/x.jsonl"]) == 0
    assert "none of the labels in the input is a class of the model" in capsys.readouterr().err


def test_columns_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, swapped = "id,a,b,label\n", "id,b,a\n"
    lines = "".join(f"{i},{i % 2},{-i},{'xy'[i % 2]}\n" for i in range(60))
    (tmp_path / "x.csv").write_text(header + lines)
    (tmp_path / "y.csv").write_text(swapped + "".join(f"{i},{-i},{i % 2}\n" for i in range(60)))
    (tmp_path / "z.csv").write_text("id,b,c\n1,2,3\n")
    assert cli.main(["prepare", f"{tmp_path}/x.csv", "--id", "id", "--out", f"{tmp_path}/d"]) == 0
    train_on(f"{tmp_path}/d", tmp_path / "run")
    found = []
    for name in ("x", "y", "z"):
        capsys.readouterr()
        cli.main(["predict", f"{tmp_path}/run", f"{tmp_path}/{name}.csv", "--id", "id"])
        found.append(capsys.readouterr())
    assert found[0].out == found[1].out
    assert "no feature a, which the model was trained on" in found[2].err


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
    places = [str(tmp_path / word) if word.endswith(("jsonl", "txt")) else word for word in words]
    assert cli.main(["predict", str(trained), *places]) == 2
    assert message in capsys.readouterr().err


# ---- the whole way, by the commands a user types


def test_prepare_train_predict_by_command(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(150)))
    data, run = tmp_path / "mine", tmp_path / "run"
    prepared = launch("seqclf", "prepare", tmp_path / "x.jsonl", "--out", data)
    assert prepared.returncode == 0, prepared.stderr
    assert "120 sequences" in prepared.stdout
    words: list[str | Path] = [
        "--config",
        "configs/files.yaml",
        "--data.path",
        data,
        "--run-dir",
        run,
    ]
    done = launch("accelerate", "launch", "launch/train.py", *words, "--train.steps", "20")
    assert done.returncode == 0, done.stderr
    assert "padding" in done.stdout
    assert "auto        noise 0.2, hidden_size 64, stack 1, batch_size " in done.stdout
    done = launch("seqclf", "predict", run, tmp_path / "x.jsonl", "--out", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 151
    evaluated = launch("seqclf", "evaluate", run)
    assert evaluated.returncode == 0, evaluated.stderr
