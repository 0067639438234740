"""Folds: every training example is measured once, classes are alike, groups stay whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Capture, call
from helpers.files import read_status
from helpers.ranks import run_ranks
from helpers.reading import write
from helpers.training import tiny_config, train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf.config.load import load_config
from seqclf.data import sources
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.data.readers.rows import ReadOptions
from seqclf.data.sources import Splits
from seqclf.data.splits import deal_into_folds
from seqclf.errors import UserError
from seqclf.run.records import CONFIG
from seqclf.settle import settle
from seqclf.terminal import opening


def splits_of(settings: Mapping[str, object] = {}, **more: object) -> Splits:
    config = tiny_config(settings, **more)
    return sources.load(config.data, seed=config.seed)


def ids_of(splits: Splits, name: str) -> list[str]:
    sequences = getattr(splits, name)
    return [sequences.origins.ids[row] for row in sequences.origins.rows.tolist()]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.integers(2, 12), st.integers(0, 99))
def test_classes_and_folds_differ_by_one_example_at_most(
    labels: list[int], folds: int, seed: int
) -> None:
    found = deal_into_folds(torch.tensor(labels), folds, seed=seed)
    assert len(found) == len(labels)
    assert set(found.tolist()) <= set(range(folds))
    for label in [*set(labels), None]:
        members = [label is None or other == label for other in labels]
        counts = found[torch.tensor(members)].bincount(minlength=folds)
        assert int(counts.max() - counts.min()) <= 1
    again = deal_into_folds(torch.tensor(labels), folds, seed=seed)
    assert torch.equal(found, again)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=2, max_size=80),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_groups_are_never_split(pairs: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels, groups = map(torch.tensor, zip(*pairs, strict=True))
    found = deal_into_folds(labels, folds, seed=seed, groups=groups)
    assert set(found.tolist()) <= set(range(folds))
    for group in groups.unique():
        assert len(found[groups == group].unique()) == 1


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set of 60 sequences of 12 persons, with a test split of its own."""
    folder = tmp_path_factory.mktemp("folds")
    generator = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 8)):
        lines = ["id,person,label,x"]
        for number in range(count):
            for x in generator.normal(number % 2, 1, 4):
                lines.append(f"{name}{number},p{number % 12},{'ab'[number % 2]},{x:.3f}")
        write(folder, f"{name}.csv", "\n".join(lines))
    inputs = [Input(folder / f"{name}.csv", name) for name in ("train", "test")]
    options = ReadOptions(id="id", group="person")
    prepare(inputs, folder / "data", Preparation(options=options), print)
    return folder / "data"


@pytest.mark.parametrize("fraction", [0, 0.25])
def test_each_training_example_is_in_one_fold_and_persons_stay_whole(
    grouped: Path, fraction: float
) -> None:
    plain = {"data.name": "files", "data.path": grouped}
    everyone = ids_of(splits_of(plain), "train")
    measured: list[str] = []
    persons_of: list[set[str]] = []
    for fold in range(1, 5):
        splits = splits_of(plain, data__folds=4, data__fold=fold, data__val_fraction=fraction)
        parts = {name: ids_of(splits, name) for name in ("train", "test")}
        parts["validation"] = ids_of(splits, "validation") if fraction else []
        assert sorted(one for ids in parts.values() for one in ids) == sorted(everyone)
        persons = {
            name: {int(one.removeprefix("train")) % 12 for one in ids}
            for name, ids in parts.items()
        }
        assert not persons["train"] & persons["test"]
        assert not persons["validation"] & (persons["train"] | persons["test"])
        measured += parts["test"]
        persons_of.append({str(person) for person in persons["test"]})
        assert splits.fingerprint() == splits_of(plain).fingerprint()
    assert sorted(measured) == sorted(everyone)
    assert sum(map(len, persons_of)) == 12


def test_known_sets_have_folds_too() -> None:
    whole = splits_of()
    tests = [splits_of(data__folds=5, data__fold=fold) for fold in range(1, 6)]
    counts = torch.stack([one.test.labels.bincount(minlength=10) for one in tests])
    assert counts.sum(0).tolist() == whole.train.labels.bincount().tolist()
    assert int((counts.amax(0) - counts.amin(0)).max()) <= 1
    assert {len(one.train) + len(one.test) for one in tests} == {len(whole.train)}
    assert len({one.fingerprint() for one in tests}) == 1
    assert len({one.fingerprint_of(one.test) for one in tests}) == 5
    other = splits_of(data__folds=5, data__fold=1, seed=1)
    assert not torch.equal(other.test.values, tests[0].test.values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.folds": 5}, "data.folds: 5 contradicts data.fold: null"),
        ({"data.fold": 1}, "data.fold: 1 contradicts data.folds: null"),
        ({"data.folds": 5, "data.fold": 6}, "data.fold: 6 contradicts data.folds: 5"),
        ({"data.folds": 1, "data.fold": 1}, "--data.folds: must be greater than or equal to 2"),
        ({"data.folds": 5, "data.fold": 0}, "--data.fold: must be greater than 0"),
    ],
)
def test_settings_that_name_no_fold_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny_config(settings)
    assert message in str(caught.value)


def test_more_folds_than_groups_are_refused_and_rare_classes_noted(grouped: Path) -> None:
    plain = {"data.name": "files", "data.path": grouped, "data.fold": 1}
    with pytest.raises(UserError, match="13 folds of 12 groups: one of them would be empty"):
        splits_of(plain, data__folds=13)
    config = tiny_config(data__folds=200, data__fold=3)
    splits = sources.load(config.data, seed=0)
    lines = opening(settle(config, splits), Path("runs/x"))
    assert any(line.startswith("fold        3 of 200: ") for line in lines)
    note = next(line for line in lines if line.startswith("note"))
    assert "0, 1, 2, 3" in note
    assert note.endswith(": fewer examples than folds, so some folds have none")


def test_the_list_has_the_mean_over_folds(tmp_path: Path, capsys: Capture) -> None:
    settings = {"train.steps": 3, "data.folds": 3}
    for fold, seed in ((1, 0), (2, 0), (1, 1)):
        run = tmp_path / f"run-{fold}-{seed}"
        assert train_tiny(run, settings, data__fold=fold, seed=seed) == 0
        assert load_config(run / CONFIG)[0].data.fold == fold
    found = call(capsys, "runs", tmp_path)[1]
    values = [read_status(tmp_path / f"run-{k}-0").metrics["test/accuracy"] for k in (1, 2)]
    mean, spread = np.mean(values), np.std(values, ddof=1)  # type: ignore[arg-type]
    after = found.partition("folds of one config: mean ± standard deviation\n")[2].splitlines()
    assert after[0] == f"{tmp_path}/run-2-0 and 1 more, n = 2, without fold 3 of 3"
    assert f"  test/accuracy  {mean:.4f} ± {spread:.4f}" in after
    seeds = found.partition("differ in their seed only")[2].partition("folds of one")[0]
    assert "n = 2\n" in seeds


def test_a_resume_refuses_another_fold(tmp_path: Path) -> None:
    settings = {"train.steps": 8, "data.folds": 3}
    assert train_tiny(tmp_path / "run", settings, data__fold=1, stop_at=4) == 143
    with pytest.raises(UserError, match=r"data\.fold"):
        train_tiny(tmp_path / "run", settings, data__fold=2)
    assert train_tiny(tmp_path / "run", settings, data__fold=1) == 0


def test_all_processes_have_the_same_fold(tmp_path: Path) -> None:
    settings = {"train.steps": 4, "data.folds": 3, "data.fold": 2}
    settings |= {"train.shards": 2, "train.threads": 1}
    runs = [tmp_path / str(world_size) for world_size in (1, 2)]
    for world_size, run in zip((1, 2), runs, strict=True):
        assert set(run_ranks(world_size, train_tiny, run, settings)) == {0}
    one, two = (read_status(run).metrics for run in runs)
    assert one == two
