"""Names in a run directory that are not what a run would make: links, pipes, others' files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.files import files_in, read_status, same_end
from helpers.training import CONSTANT_RATE, train_tiny

from seqclf.errors import UserError
from seqclf.run.listing import list_runs
from seqclf.run.lock import refuse_what_is_not_ours

SETTINGS = {**CONSTANT_RATE, "train.steps": 10, "checkpoint.every": 5, "quiet": True}
FILES = (".lock", "config.yaml", "run.json", "metrics.jsonl", "status.json", "sessions.jsonl")
FOLDERS = ("checkpoints", "evaluation", "model")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "straight"
    assert train_tiny(path, SETTINGS) == 0
    return path


@pytest.fixture
def copy(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "copy"))


def look(path: Path) -> dict[str, tuple[int, int, int]]:
    """Return what stands in a directory and below: inode, size and time of change of each name."""
    found = {str(file.relative_to(path)): file.lstat() for file in path.rglob("*")}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}


@pytest.mark.parametrize(
    "name",
    [
        ".tmp-status.json",
        ".tmp-run.json",
        ".tmp-config.yaml",
        "evaluation/.test.json",
        "model/.tmp-model.safetensors",
        "model/.tmp-config.json",
        "checkpoints/.tmp-step-00000005",
    ],
)
@pytest.mark.parametrize("kind", ["link to a file", "link to a directory", "link to nothing"])
def test_a_temporary_name_is_never_followed(
    name: str, kind: str, straight: Path, tmp_path: Path
) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    (run / name).parent.mkdir(parents=True)
    (run / ".lock").touch()  # a run has begun there
    (run / name).symlink_to(victim)
    if kind == "link to a file":
        victim.write_text("mine")
    elif kind == "link to a directory":
        victim.mkdir()
        (victim / "mine").write_text("mine")
    before = look(tmp_path / "victim") if victim.is_dir() else victim.exists()
    assert train_tiny(run, SETTINGS) == 0
    assert not os.path.lexists(run / name)
    assert same_end(run, straight)
    assert (look(victim) if victim.is_dir() else victim.exists()) == before
    if kind == "link to a file":
        assert victim.read_text() == "mine"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    other.write_text("{}")
    path.symlink_to(other)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


making = pytest.mark.parametrize("make", [make_pipe, Path.mkdir, make_link, make_dangling_link])


@making
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.timeout(60)
def test_a_file_that_is_none_is_refused_at_once(
    name: str, make: Callable[[Path], None], is_new: bool, copy: Path
) -> None:
    if is_new:
        shutil.rmtree(copy)
        copy.mkdir()
    (copy / name).unlink(missing_ok=True)
    make(copy / name)
    before = look(copy)
    with pytest.raises(UserError, match=rf"{name}: .*not a regular file") as caught:
        train_tiny(copy, SETTINGS, train__steps=20)
    assert "\n" not in str(caught.value)
    assert look(copy) == before


@pytest.mark.parametrize("make", [make_pipe, Path.touch, make_link, make_dangling_link])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_none_is_refused_before_training(
    name: str, make: Callable[[Path], None], copy: Path
) -> None:
    shutil.rmtree(copy / name)
    make(copy / name)
    before = look(copy)
    with pytest.raises(
        UserError, match=f"{name}: (not a directory; move it|cannot list the check)"
    ):
        train_tiny(copy, SETTINGS, train__steps=20)
    assert look(copy) == before


@pytest.mark.parametrize("name", [".", *FOLDERS])
def test_a_link_to_a_directory_is_followed(name: str, straight: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "runs" / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.parent.mkdir()
    if name == ".":
        run.symlink_to(elsewhere)
    else:
        run.mkdir()
        (run / ".lock").touch()
        (run / name).symlink_to(elsewhere)
    assert train_tiny(run, SETTINGS, stop_at=7) == 143
    assert train_tiny(run, SETTINGS) == 0
    assert same_end(run, straight)
    assert any(elsewhere.iterdir())
    assert [listed.path for listed in list_runs(run.parent)] == [run]


def test_links_in_a_circle_are_listed_once(copy: Path) -> None:
    (copy.parent / "again").symlink_to(copy.parent)
    (copy / "model" / "up").symlink_to(copy)
    assert len(list_runs(copy.parent)) == 1


# ---- others' directories


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"metrics.jsonl": "{}"}, "metrics.jsonl"),
        ({"status.json": "{}"}, "status.json"),
        ({"model/weights.bin": "x"}, "model"),
        ({"config.yaml": "seed: 1\n"}, "config.yaml"),  # settings, which the run would write over
        ({"config.yaml": "trainer: x\n", "run.json": "{}"}, None),
        ({"notes.csv": "", "a.log": ""}, "notes.csv"),
        ({"logs/1/stdout.log": "", "logs/events.json": ""}, "logs"),
    ],
)
def test_a_directory_of_somebody_else_is_refused_and_left_alone(
    content: dict[str, str], named: str | None, tmp_path: Path
) -> None:
    for name, text in content.items():
        file = tmp_path / "other" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    before = look(tmp_path / "other")
    part = "unknown key" if named is None else rf"other: no run of seqclf, and not empty \({named}"
    with pytest.raises(UserError, match=part):
        train_tiny(tmp_path / "other", SETTINGS)
    assert look(tmp_path / "other") == before


def test_logs_and_settings_may_lie_there_before_a_run_begins(
    straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    names = [
        "slurm-1.out",
        "job.err",
        "train.log",
        "logs/attempt_0/1/stdout.log",
        "my.yaml",
        ".env",
    ]
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    assert train_tiny(run, SETTINGS) == 0
    assert same_end(run, straight)
    assert [(run / name).read_text() for name in names] == names


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
        ">&- 2>&-",
    ],
)
def test_the_output_may_go_into_the_run_directory(closed: str, tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(UserError, match="not empty"):
        refuse_what_is_not_ours(tmp_path)
    code = "import sys, pathlib, seqclf.run.lock as lock;"
    code += "lock.refuse_what_is_not_ours(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" "$2" {closed or ">$2/output"}', sys.executable, code, tmp_path],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == (1 if closed == ">&- 2>&-" or closed == "2>&-" else 0)


@pytest.mark.parametrize("missing", [(), (".lock",), (".lock", "status.json", "sessions.jsonl")])
def test_a_run_that_was_made_before_goes_on(missing: tuple[str, ...], copy: Path) -> None:
    """A copy without hidden files has no lock."""
    for name in missing:
        (copy / name).unlink()
    assert train_tiny(copy, SETTINGS, train__steps=20) == 0
    assert read_status(copy).step == 20


def test_a_finished_run_stays_as_it_is(copy: Path) -> None:
    before = files_in(copy)
    assert train_tiny(copy, SETTINGS) == 0
    assert files_in(copy) == before
