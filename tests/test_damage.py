"""A run whose files were cut, flipped or deleted: it falls back and ends alike, or says what is
wrong, and deletes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.files import change_json, files_in, read_metrics, weights_of
from helpers.training import train_tiny

from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.errors import UserError
from seqclf.run.checkpoint import FILES
from seqclf.run.weights import damage_of, load_model
from seqclf.training import train

SETTINGS = {
    "data.augment.shift": 1,
    "model.dropout": 0.3,
    "train.steps": 10,
    "train.batch_size": 50,
    "checkpoint.every": 4,
    "log.every": 3,
}
NEWEST, OLDER = "checkpoints/step-00000008", "checkpoints/step-00000004"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "straight"
    assert train_tiny(path, SETTINGS) == 0
    return path


@pytest.fixture(scope="module")
def stopped(straight: Path) -> Path:
    """A run that was stopped at step 8."""
    path = straight.with_name("stopped")
    assert train_tiny(path, SETTINGS, stop_at=8) == 143
    return path


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 16  # of a tensor's values, and of what no JSON may do without
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


damaging = pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
Damage = Callable[[Path], None]


@damaging
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_it_goes_on_from_the_checkpoint_before(
    copy: Path, straight: Path, name: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy / NEWEST / name)
    assert train_tiny(copy, SETTINGS) == 0
    out = capsys.readouterr().out
    [warning] = [line for line in out.splitlines() if "passed over" in line]
    assert f"{NEWEST}/{name}" in warning
    assert "resumed     step 4 " in out
    assert weights_of(copy) == weights_of(straight)
    assert read_metrics(copy) == read_metrics(straight)


@damaging
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_no_good_checkpoint_is_an_error_that_names_them_and_nothing_is_deleted(
    copy: Path, name: str, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (NEWEST, OLDER):
        damage(copy / step / name)
    (copy / "checkpoints" / ".tmp-step-00000009").mkdir()
    before = files_in(copy)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train_tiny(copy, SETTINGS)
    out = capsys.readouterr().out
    assert all(f"{step}/{name}" in out for step in (NEWEST, OLDER))
    assert files_in(copy) == before


@damaging
@pytest.mark.parametrize("name", ["status.json", "run.json", "config.yaml", "sessions.jsonl"])
def test_other_files_do_no_harm_or_are_named(
    copy: Path, straight: Path, name: str, damage: Damage
) -> None:
    damage(copy / name)
    before = files_in(copy)
    refusal = ""
    try:
        train_tiny(copy, SETTINGS)
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert str(copy) in refusal  # and what differs, if what is left of it can be read
        assert files_in(copy) == before
    else:
        assert weights_of(copy) == weights_of(straight)
        assert read_metrics(copy) == read_metrics(straight)


# ---- a result that is not the one that was written


def flip_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight
    path.write_bytes(content)


def rename_a_class(path: Path) -> None:
    path.write_text(path.read_text().replace('"3"', '"x"', 1))


result_damage = pytest.mark.parametrize(
    ("name", "damage", "part"),
    [
        ("model.safetensors", flip_middle, r"damaged \(its sha256 is not the one in "),
        ("model.safetensors", truncate, "not a safetensors file"),
        ("config.json", rename_a_class, r"damaged \(it is not the architecture in "),
    ],
)


@pytest.fixture
def whole(straight: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in a folder whose name a shell would split."""
    return Path(shutil.copytree(straight, tmp_path / "my runs" / "whole"))


@result_damage
def test_a_damaged_result_is_refused_wherever_it_is_read(
    whole: Path,
    tmp_path: Path,
    name: str,
    damage: Damage,
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(whole / "model" / name)
    (tmp_path / "input.csv").write_text("a\n1\n")
    words = [
        ["predict", str(whole), "--count", "3"],
        ["predict", str(whole / "model"), str(tmp_path / "input.csv")],
        ["evaluate", str(whole)],
    ]
    for command in words:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert re.search(f"model/{name}: .*{part}", error), error
        remedy = f"seqclf train --config '{whole}'/config.yaml --run-dir '{whole}'"
        assert error.endswith(f"; the command that trained it makes it anew: {remedy}\n")
    with pytest.raises(UserError, match=part):
        load_model(whole)
    with pytest.raises(UserError, match=f"^init_from: .*{part}"):
        train_tiny(tmp_path / "new", SETTINGS, init_from=whole)
    assert part.partition(" (")[0].replace("\\", "") in str(damage_of(whole / "model"))
    assert main(["report", str(whole)]) == 0  # a page without what the model says
    assert f"model/{name}" in (whole / "report.html").read_text()


@pytest.mark.parametrize("damage", [flip_middle, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("best", [False, True])
def test_the_same_command_makes_a_damaged_result_anew(
    name: str, damage: Damage, best: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "data.val_fraction": 0.1, "checkpoint.keep_best": best}
    run = tmp_path / "my run"
    assert train_tiny(run, settings) == 0
    before = files_in(run)
    damage(run / "model" / name)
    capsys.readouterr()
    command = str(damage_of(run / "model"))
    config, _ = load_config(run / "config.yaml", {"run_dir": str(run)})  # as the message says
    assert train(config) == 0
    said = capsys.readouterr().out
    assert f"warning: {command}; it is made anew from the last checkpoint\n" in said
    after = files_in(run)
    assert after.keys() == before.keys()
    for file in ("model/model.safetensors", "model/config.json", "run.json", "status.json"):
        assert after[file] == before[file], file
    assert read_metrics(run)[-1]["step"] in (10, 8, 4)
    assert damage_of(run / "model") is None


def test_a_result_without_a_checkpoint_to_make_it_from_is_left_to_the_user(whole: Path) -> None:
    shutil.rmtree(whole / "checkpoints")
    assert train_tiny(whole, SETTINGS) == 0  # nothing to do
    flip_middle(whole / "model" / "model.safetensors")
    before = files_in(whole)
    with pytest.raises(UserError, match="no checkpoint is left to make it from"):
        train_tiny(whole, SETTINGS)
    assert files_in(whole) == before


def test_a_bare_model_and_one_of_a_run_that_goes_on_are_not_compared(
    whole: Path, tmp_path: Path
) -> None:
    flip_middle(whole / "model" / "model.safetensors")
    bare = shutil.copytree(whole / "model", tmp_path / "bare")
    assert load_model(bare)
    change_json(whole / "run.json", weights_sha256=None)
    assert load_model(whole)


def test_in_the_folder_of_the_model_it_is_compared(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_middle(whole / "model" / "model.safetensors")
    monkeypatch.chdir(whole / "model")
    with pytest.raises(UserError, match="damaged"):
        load_model(".")
