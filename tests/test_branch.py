"""A branch: a new run that goes on from another run's checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from helpers.files import (
    change_json,
    files_in,
    read_facts,
    read_sessions,
    result_of,
    same_end,
    starts_of,
    step_dir,
)
from helpers.patches import die_at_write
from helpers.training import GROWING, train_tiny

from seqclf.errors import UserError
from seqclf.run.checkpoint import commit_checkpoint, read_checkpoint

LONGER = {**GROWING, "train.steps": 36}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    path = tmp_path_factory.mktemp("runs") / "origin"
    assert train_tiny(path, GROWING) == 0
    return path


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was as long as the branches from the beginning."""
    path = tmp_path_factory.mktemp("runs") / "longer"
    assert train_tiny(path, LONGER) == 0
    return path


@pytest.fixture
def copy(origin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(origin, tmp_path / "copy"))


def test_a_branch_equals_the_straight_run(
    origin: Path, longer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_in(origin)
    branch = tmp_path / "branch"
    checkpoint = step_dir(origin, 12)
    assert train_tiny(branch, LONGER, resume=checkpoint) == 0
    assert f"branch      of {checkpoint}" in capsys.readouterr().out
    assert same_end(branch, longer)
    ours = (branch / "config.yaml").read_text()
    assert ours == (longer / "config.yaml").read_text()
    assert read_facts(branch)["branched_from"] == str(checkpoint)
    [session] = read_sessions(branch)
    assert (session.step, session.branched_from) == (12, str(checkpoint))
    assert files_in(origin) == before


def test_a_run_s_newest_whole_checkpoint_is_branched_off(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (step_dir(copy, 24) / "state.json").write_text("{}")
    assert train_tiny(tmp_path / "branch", LONGER, resume=copy) == 0
    assert starts_of(tmp_path / "branch") == [18]
    assert "checkpoint passed over" in capsys.readouterr().out


def test_a_requeued_branch_goes_on_from_its_own(
    copy: Path, longer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch, checkpoint = tmp_path / "branch", step_dir(copy, 12)
    assert train_tiny(branch, LONGER, resume=checkpoint, stop_at=20) == 143
    shutil.rmtree(copy)  # it is not needed any more
    capsys.readouterr()
    assert train_tiny(branch, LONGER, resume=checkpoint) == 0
    assert "has a run already, which goes on: not from" in capsys.readouterr().out
    assert same_end(branch, longer)
    assert starts_of(branch) == [12, 20]
    assert {each.branched_from for each in read_sessions(branch)} == {str(checkpoint)}
    assert read_facts(branch)["branched_from"] == str(checkpoint)


@pytest.mark.parametrize("writes", range(5))
def test_a_branch_killed_at_its_beginning_begins_again(
    writes: int, origin: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_at_write(patch, writes)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path, LONGER, resume=step_dir(origin, 12))
    assert train_tiny(tmp_path, LONGER, resume=step_dir(origin, 12)) == 0
    assert same_end(tmp_path, longer)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"model.hidden_size": 9}, "model.hidden_size: 8 there, 9 now"),
        ({"optim.lr": 0.02}, "the learning rate of step 0 was 0.01 and would be 0.02"),
        ({"optim.schedule": "linear"}, "the learning rate of step 1 was"),
        ({"train.steps": 11}, "12 steps are done there, more than the 11 that train.steps"),
    ],
)
def test_a_branch_with_another_past_is_refused(
    changes: Mapping[str, object], part: str, origin: Path, tmp_path: Path
) -> None:
    settings = {**GROWING, "resume": step_dir(origin, 12), **changes}
    with pytest.raises(UserError, match=part) as caught:
        train_tiny(tmp_path / "branch", settings)
    assert str(origin) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fact", ["data_fingerprint", "order", "precision"])
def test_a_branch_of_other_data_or_precision_is_refused(
    fact: str, copy: Path, tmp_path: Path
) -> None:
    change_json(copy / "run.json", **{fact: "other"})
    with pytest.raises(UserError, match=f"{fact}: 'other' there"):
        train_tiny(tmp_path / "branch", LONGER, resume=copy)
    assert list(tmp_path.iterdir()) == [copy]


def damage_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def lose_config(path: Path) -> None:
    (path.parent.parent / "config.yaml").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("named", "damage", "part"),
    [
        ("nowhere", None, "nowhere: no such directory; name a checkpoint"),
        ("copy/config.yaml", None, "no such directory"),
        ("copy/model", None, r"no checkpoint there that is whole\n.*manifest\.json: missing"),
        ("copy/checkpoints/step-00000012", damage_weights, r"whole\n.*model\.safetensors: damaged"),
        ("copy/checkpoints/step-00000012", lose_manifest, r"whole\n.*manifest\.json: missing"),
        ("copy/checkpoints/step-00000012", lose_config, "without the config.yaml of its run"),
    ],
)
def test_what_is_no_checkpoint_is_named_and_nothing_is_made(
    named: str, damage: Callable[[Path], None] | None, part: str, copy: Path, tmp_path: Path
) -> None:
    if damage:
        damage(step_dir(copy, 12))
    with pytest.raises(UserError, match=part) as caught:
        train_tiny(tmp_path / "branch", LONGER, resume=tmp_path / named)
    assert str(caught.value).startswith(f"--resume {tmp_path / named}: ")
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("metrics_bytes", [2**62, -1])
def test_an_impossible_length_of_the_metrics_takes_no_memory(
    metrics_bytes: int, copy: Path, longer: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(step_dir(copy, 24))
    state = json.loads(checkpoint.files["state.json"]) | {"metrics_bytes": metrics_bytes}
    files = checkpoint.files | {"state.json": json.dumps(state).encode()}
    commit_checkpoint(copy / "checkpoints", 24, files, world_size=1)
    branch, resume = tmp_path / "branch", step_dir(copy, 24)
    if metrics_bytes < 0:
        with pytest.raises(UserError, match=r"state\.json: missing or damaged \(metrics_bytes"):
            train_tiny(branch, LONGER, resume=resume)
    else:
        assert train_tiny(branch, LONGER, resume=resume) == 0
        assert result_of(branch) == result_of(longer)


def test_a_word_that_is_none_is_offered_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, meant in (("nevr", "never"), ("aut", "auto")):
        with pytest.raises(UserError) as caught:
            train_tiny("x", GROWING, resume=typed)
        assert str(caught.value) == (
            f"--resume {typed}: no such directory; did you mean '{meant}'?"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_from_its_own_newest_only(copy: Path) -> None:
    before = files_in(copy)
    for settings in (GROWING, LONGER):
        with pytest.raises(UserError, match=r"has newer checkpoints, .* another --run_dir"):
            train_tiny(copy, settings, resume=step_dir(copy, 12))
    assert train_tiny(copy, GROWING, resume=step_dir(copy, 24)) == 0  # finished: nothing to do
    assert files_in(copy) == before
    with pytest.raises(UserError, match="no such directory"):
        train_tiny(copy, GROWING, resume=step_dir(copy, 13))
    assert train_tiny(copy, LONGER, resume=copy) == 0
    assert starts_of(copy) == [0, 24]
    assert "branched_from" not in read_facts(copy)


def test_a_finished_run_is_never_overwritten_by_a_branch(origin: Path, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = files_in(copy)
    assert train_tiny(copy, GROWING, resume=step_dir(origin, 12)) == 0
    assert files_in(copy) == before
