"""A folder appears when it is whole; of several writers one wins; the old one is never lost."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from seqclf.data.staging import staged
from seqclf.errors import UserError


def fill(folder: Path, text: str) -> None:
    (folder / "info").write_text(text)
    (folder / "values").write_text(text)


def content(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("info", "values")}


def make(out: Path, text: str) -> None:
    with staged(out, overwrite=True, info="info") as folder:
        fill(folder, text)


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "d"
    make(out, "old")
    with staged(out, overwrite=True, info="info") as folder:
        fill(folder, "new")
        assert content(out) == {"old"}
    assert content(out) == {"new"}
    with pytest.raises(ZeroDivisionError), staged(out, overwrite=True, info="info"):
        raise ZeroDivisionError
    assert content(out) == {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d"
    make(out, "old")
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == ".d.partial":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="cannot write it: Input/output error"):
        make(out, "new")
    assert content(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_kill_between_the_renames_is_mended_by_the_next_writer(tmp_path: Path) -> None:
    out = tmp_path / "d"
    make(out, "old")
    out.rename(tmp_path / ".d.old")
    (tmp_path / ".d.partial").mkdir()
    with (
        pytest.raises(UserError, match="exists already"),
        staged(out, overwrite=False, info="info"),
    ):
        pass
    assert content(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_others_files_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError), staged(tmp_path / "d", overwrite=overwrite, info="info"):
        pass
    assert (tmp_path / "d" / "thesis.tex").read_text() == "all of it"


def race(out: Path, text: str, delay_s: float, overwrite: bool) -> None:
    time.sleep(delay_s)
    try:
        with staged(out, overwrite=overwrite, info="info") as folder:
            (folder / "info").write_text(text)
            time.sleep(0.01)
            (folder / "values").write_text(text)
    except UserError:
        os._exit(2)
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_writers_one_wins_and_the_other_is_told(tmp_path: Path, overwrite: bool) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(30):
        out = tmp_path / f"{number}"
        writers = [
            fork.Process(target=race, args=(out, text, delay, overwrite))
            for text, delay in (("a", 0.0), ("b", number * 0.0007))
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(30)
        codes = [writer.exitcode for writer in writers]
        assert set(codes) <= {0, 2}
        assert 0 in codes
        assert overwrite or codes.count(0) == 1
        assert len(content(out)) == 1
        winners = {text for text, code in zip("ab", codes, strict=True) if code == 0}
        assert content(out) <= winners
        assert [path.name for path in tmp_path.glob(".*")] == []
