"""A run whose files were cut, flipped or deleted: it falls back and ends alike, or says what is
wrong, and deletes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.files import files_in, read_metrics, weights_of
from helpers.training import train_tiny

from seqclf.errors import UserError
from seqclf.run.checkpoint import FILES

SETTINGS = {
    "data.augment.shift": 1,
    "model.dropout": 0.3,
    "train.steps": 10,
    "train.batch_size": 50,
    "checkpoint.every": 4,
    "log.every": 3,
    "quiet": True,
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
