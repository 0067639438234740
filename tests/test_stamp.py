"""A page that is torn, or older than its run, is noticed and written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.files import change_json
from helpers.training import train_tiny

from seqclf.cli.main import main
from seqclf.errors import UserError
from seqclf.report.page import write_report
from seqclf.report.stamp import is_current


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train_tiny(path, {"train.steps": 4, "log.every": 2}) == 0
    write_report([path], None, {})
    return path


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "run"))


def cut(page: Path) -> None:
    page.write_bytes(page.read_bytes()[:100])


def lose_the_end(page: Path) -> None:
    content = page.read_bytes()
    page.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))


def forget(page: Path) -> None:
    page.write_bytes(bytes(1000))


def flip(page: Path) -> None:
    content = bytearray(page.read_bytes())
    content[len(content) // 2] ^= 1
    page.write_bytes(content)


def measure_again(page: Path) -> None:
    change_json(page.with_name("status.json"), step=3)


def evaluate_again(page: Path) -> None:
    change_json(page.parent / "evaluation" / "test.json", step=3)


def log_more(page: Path) -> None:
    with page.with_name("metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/loss": 1.0}\n')


def empty(page: Path) -> None:
    page.write_bytes(b"")


@pytest.mark.parametrize(
    "happens",
    [Path.unlink, cut, lose_the_end, forget, empty, flip, measure_again, evaluate_again, log_more],
)
def test_a_torn_or_stale_page_is_noticed_and_written_again(
    happens: Callable[[Path], None], run: Path
) -> None:
    page = run / "report.html"
    assert is_current(run)
    happens(page)
    os.utime(run, None)
    assert not is_current(run)
    assert main(["report", str(run)]) == 0
    assert is_current(run)
    assert page.read_text().count("<!-- seqclf ") == 1
    assert not list(run.rglob(".tmp-*"))


def test_where_it_lies_does_not_matter(run: Path) -> None:
    assert is_current(run.rename(run.with_name("elsewhere")))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name", ["report.html", pytest.param("report-figures/accuracy.svg", marks=pytest.mark.slow)]
)
def test_a_page_is_not_written_through_a_link_or_into_a_pipe(run: Path, name: str) -> None:
    names = sorted((run / "report-figures").glob("*.svg"))
    file = run / name if name == "report.html" else names[0]
    victim = run / "victim"
    victim.write_text('<meta content="seqclf">')
    file.unlink()
    file.symlink_to(victim)
    with pytest.raises(UserError, match="not a regular file"):
        write_report([run], None, {})
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="not a regular file"):
        write_report([run], None, {})
    assert victim.read_text() == '<meta content="seqclf">'


def test_somebody_elses_page_is_left_alone(run: Path) -> None:
    (run / "report.html").write_text("<!doctype html>mine")
    with pytest.raises(UserError, match="is there already and not ours"):
        write_report([run], None, {})


@pytest.mark.slow
def test_the_command_that_trained_the_run_writes_its_page_again(tmp_path: Path) -> None:
    settings = {"train.steps": 4, "log.every": 2, "report": True}
    assert train_tiny(tmp_path, settings) == 0
    page = tmp_path / "report.html"
    before = page.stat().st_mtime_ns
    assert train_tiny(tmp_path, settings) == 0
    assert page.stat().st_mtime_ns == before
    for happens in (Path.unlink, flip):
        happens(page)
        assert train_tiny(tmp_path, settings) == 0
        assert is_current(tmp_path)
