"""Paths in settings and arguments: ~ and variables, names that are not UTF-8, other directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.files import read_status
from helpers.training import train_tiny

from seqclf.cli.main import main, parse
from seqclf.config.load import load_config, load_config_of_run
from seqclf.config.settings import Config, expand_path, settings_by_name
from seqclf.errors import UserError, printable, printable_lines

PATH_SETTINGS = ("run_dir", "data.root", "data.path", "init_from", "resume")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


def value_of(name: str, config: Config) -> object:
    return settings_by_name(config)[name]


@pytest.mark.parametrize("name", PATH_SETTINGS)
def test_home_and_variables_are_put_into_settings_that_are_paths(
    name: str, home: Path, tmp_path: Path
) -> None:
    cases = {
        "~/x y": f"{home}/x y",
        "~": str(home),
        "$SCRATCH/x": "/scratch/me/x",
        "${SCRATCH}x/$SCRATCH": "/scratch/mex//scratch/me",
        "a~b/~": "a~b/~",
        "cost $5 $": None,
    }
    for text, expected in cases.items():
        section, _, leaf = name.rpartition(".")
        file = tmp_path / "x.yaml"
        file.write_text(f"{section}:\n  {leaf}: '{text}'\n" if section else f"{leaf}: '{text}'\n")
        if expected is None:
            with pytest.raises(UserError, match=rf"{name}: \$5 is not set"):
                load_config(file)
            continue
        assert value_of(name, load_config(file)[0]) == expected
        assert value_of(name, load_config(None, {name: text})[0]) == expected
    assert Config(run_dir="~/x").run_dir == f"{home}/x"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "$NOT_SET/x",
            r"\$NOT_SET is not set; set it, or write the path out \(found \$NOT_SET/x\)",
        ),
        ("${NOT_SET}", r"\$NOT_SET is not set"),
        ("$EMPTY/x", r"\$EMPTY is not set"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name: no such user's home directory"),
        ("a\udcff", r"not UTF-8; rename the file or the folder \(found a.*udcff\)"),
    ],
)
@pytest.mark.parametrize("name", PATH_SETTINGS)
def test_what_is_no_path_is_named_in_one_line(
    name: str, text: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError, match=rf"^--{name}: .*{part}") as caught:
        load_config(None, {name: text})
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_other_text_is_left_as_it_is(home: Path) -> None:
    config, _ = load_config(None, {"tracking.name": "~/$SCRATCH", "tracking.notes": "$NOT_SET"})
    assert (config.tracking.name, config.tracking.notes) == ("~/$SCRATCH", "$NOT_SET")


def test_a_path_that_is_there_as_it_is_written_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$SCRATCH").mkdir()
    assert expand_path("$SCRATCH") == "$SCRATCH"
    (tmp_path / "~").mkdir()
    assert expand_path("~/x") == f"{home}/x"  # a shell would never mean the other


def test_arguments_that_are_paths_are_expanded(home: Path) -> None:
    arguments = parse(["predict", "~/run", "$SCRATCH/in.csv", "--out", "~/out.csv"])
    assert arguments.paths == [home / "run", Path("/scratch/me/in.csv")]
    assert arguments.out == home / "out.csv"
    assert parse(["report", "~/a", "b"]).run_dirs == [home / "a", Path("b")]
    assert parse(["predict", "x", "-"]).paths == [Path("x"), Path("-")]
    with pytest.raises(UserError, match=r"^out: \$NOT_SET is not set"):
        parse(["predict", "x", "y", "--out", "$NOT_SET/x.csv"])


def test_the_config_file_is_found_in_the_home_directory(home: Path) -> None:
    (home / "x.yaml").write_text("seed: 7\n")
    assert load_config("~/x.yaml")[0].seed == 7


@pytest.mark.timeout(30)
def test_a_pipe_is_no_config_and_an_endless_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"x\.yaml: cannot read it: a pipe"):
        load_config(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="/dev/zero: 16,777,216 characters; settings take at most"):
        load_config("/dev/zero")
    reading, writing = os.pipe()
    os.write(writing, b"seed: 7\n")
    os.close(writing)
    assert load_config(f"/dev/fd/{reading}")[0].seed == 7  # as of a shell's <(...)
    os.close(reading)


def test_a_file_whose_name_is_not_utf8_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xff")
    for command in (
        ["predict", name],
        ["predict", str(tmp_path), name],
        ["evaluate", name],
        ["describe", name],
        ["runs", name],
        ["checkpoints", name],
        ["report", name],
        ["prepare", name, "--out", str(tmp_path / "out")],
        ["prepare", str(tmp_path), "--out", name],
        ["train", "--config", name],
        ["train", "--run-dir", name],
        ["train", "--data.path", name],
        ["init", f"{name}/x.yaml"],
    ):
        code = main(command)
        captured = capsys.readouterr()
        if command[0] == "checkpoints" and code == 0:
            continue
        assert code == 2, command
        assert captured.err.startswith("error: "), command
        assert captured.err.count("\n") == 1, command
        captured.err.encode()


# ---- from another directory


def run_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(text)
    return path / "config.yaml"


@pytest.mark.parametrize(
    ("text", "setting", "folder"),
    [
        ("data:\n  path: prepared/x\n", "data.path", "prepared/x"),
        ("data:\n  name: mnist\n", "data.root", "data"),
        ("data:\n  name: kmnist\n  root: ../sets\n", "data.root", "../sets"),
    ],
)
def test_a_relative_path_of_a_run_that_leads_nowhere_is_named_with_its_remedy(
    text: str, setting: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = run_with(tmp_path / "run", text)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(UserError) as caught:
        load_config_of_run(file)
    assert str(caught.value) == (
        f"{file}: {setting} is '{folder}', relative to where the run was started, and there is "
        f"none in {tmp_path}/a/b; say where it is now: --{setting} FOLDER"
    )
    assert value_of(setting, load_config_of_run(file, {setting: "/else"})) == "/else"
    (tmp_path / "a" / "b" / folder).mkdir(parents=True)
    assert value_of(setting, load_config_of_run(file)) == folder


@pytest.mark.parametrize(
    "text", ["data:\n  name: digits\n", "data:\n  path: /absent\n", "seed: 1\n"]
)
def test_other_runs_may_be_used_from_anywhere(text: str, tmp_path: Path) -> None:
    assert load_config_of_run(run_with(tmp_path / "run", text))


def test_a_page_says_where_the_data_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_tiny(tmp_path / "run", {"train.steps": 4}) == 0
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("name: digits", "name: mnist\n  root: elsewhere"))
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if line != "  root: data") + "\n")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data.root is &#39;elsewhere&#39;, relative to where the run was started" in page


# ---- what is printed


def test_what_cannot_be_printed_is_escaped() -> None:
    text = "a\x1b[31mb\x07\u202ec\udcff ä中\t"
    assert printable(text) == r"a\x1b[31mb\x07\u202ec\udcff ä中\t"
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"


def test_an_error_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "\x1b[2Jabsent"]) == 2
    assert capsys.readouterr().err.startswith("error: \\x1b[2Jabsent: no such directory")


def test_an_error_of_the_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error", "/mnt/x")

    monkeypatch.setattr("seqclf.cli.main.COMMANDS", {"runs": failing})
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == "error: /mnt/x: Input/output error\n"


def test_a_run_directory_in_the_home_directory(home: Path) -> None:
    assert train_tiny("~/runs/x", {"train.steps": 2}) == 0
    assert read_status(home / "runs" / "x").state == "finished"
