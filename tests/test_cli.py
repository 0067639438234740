from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from helpers.launching import ROOT

from seqclf.cli.main import main
from seqclf.config.settings import Config, fields
from seqclf.processes.signals import Signals

Calls = list[tuple[Config, str | None, list[str]]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Collect what training would be called with."""
    calls: Calls = []

    def train(config: Config, path: str | None, flagged: list[str], signals: Signals) -> int:
        calls.append((config, path, flagged))
        return 143

    monkeypatch.setattr(import_module("seqclf.training"), "train", train)
    return calls


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "unknown command 'trian'; did you mean train? See seqclf --help"),
        (["run"], "unknown command 'run'; did you mean train or runs? See seqclf --help"),
        (["xyz"], "unknown command 'xyz'; see seqclf --help"),
        (["--seed", "1"], "--seed: stands before the command; write seqclf train --seed ..."),
        (["train", "--log", "5"], "unknown argument --log; did you mean --log.every?"),
        (["train", "--loss", "5"], "mean --loss.label_smoothing, --loss.class_weights?"),
        (["train", "--data", "digits"], "argument --data; did you mean --data.name digits?"),
        (["train", "--data=empty"], "argument --data; did you mean --data.path empty?"),
        (
            ["train", "--train.stpes=1"],
            "unknown argument --train.stpes; did you mean --train.steps?",
        ),
        (["train", "--optim.l", "1"], "unknown argument --optim.l"),
        (["train", "stray"], "unknown argument stray"),
        (
            ["train", "--model.conv", "64"],
            "unknown argument --model.conv; seqclf has fixed convolutions now: --model.rocket auto",
        ),
        (["train", "--optim.lr"], "--optim.lr: expected one argument"),
        (
            ["train", "--optim.lr", "fast"],
            "--optim.lr: expected a number (found fast)",
        ),
        (["train", "--optim.lr", "-1"], "--optim.lr: must be greater than 0 (found -1)"),
        (["train", "--deterministic=maybe"], "--deterministic: "),
        (["train", "--config", "absent.yaml"], "absent.yaml: cannot read it: No such file"),
        (["train", "--config", "."], "--config .: cannot read it: Is a directory"),
        (["evaluate"], "required: RUN_DIR"),
        (["evaluate", "absent"], "absent: no run there"),
        (["evaluate", "empty"], "empty: no run there"),
        (["evaluate", "untrained"], "no trained model there"),
        (["evaluate", "broken"], "config.yaml:1:1: sede: unknown key; did you mean 'seed'?"),
        (["checkpoints"], "required: run_dir"),
        (["checkpoints", "empty"], "empty: no run there (config.yaml is missing)"),
        (["predict", "untrained"], "neither a trained model nor a whole checkpoint there"),
        (["predict", "untrained", "--count", "0"], "--count 0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_error_and_exit_code_2(
    arguments: Sequence[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    for name, content in (("empty", None), ("untrained", "seed: 1\n"), ("broken", "sede: 1\n")):
        Path(name).mkdir()
        if content:
            Path(name, "config.yaml").write_text(content)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert part in err


def test_other_ranks_let_rank_0_speak_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", slept.append)
    assert main(["train", "--optim.lr", "fast"]) == 2
    assert capsys.readouterr() == (
        "",
        "error: rank 1: --optim.lr: expected a number (found fast)\n",
    )
    assert [seconds > 0 for seconds in slept] == [True]


def test_no_command_asks_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
    alone, asked = capsys.readouterr().out.split("usage: ")[1:]
    assert alone == asked
    assert "train a classifier; the same command resumes" in alone


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"]])
def test_help_lists_every_setting_with_its_default(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0
    assert text.startswith("usage: seqclf ")
    if command == ["train"]:
        for name, _, description in fields():
            assert f"--{name} " in text
            assert f"{description} [" in text.replace("- ", "-")  # wrapped at a hyphen
        assert "Peak learning rate. [0.01]" in text


@pytest.mark.parametrize(
    "words",
    [
        ["--train.batch-size", "32", "--run-dir", "a-b"],
        ["--train.batch_size", "32", "--run_dir", "a-b"],
        ["--train.batch-size=32", "--run_dir=a-b"],
    ],
)
def test_dashes_and_underscores_mean_the_same(words: list[str], trained: Calls) -> None:
    assert main(["train", *words]) == 143
    [(config, path, flagged)] = trained
    assert (config.train.batch_size, config.run_dir, path) == (32, "a-b", None)
    assert sorted(flagged) == ["run_dir", "train.batch_size"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--deterministic"], (True, "auto")),
        (["--deterministic", "--data.on-device"], (True, True)),
        (["--deterministic", "true", "--data.on_device", "auto"], (True, "auto")),
        (["--deterministic=false", "--data.on-device=false"], (False, False)),
    ],
)
def test_a_switch_may_stand_alone(
    words: list[str], expected: tuple[bool, bool | str], trained: Calls
) -> None:
    main(["train", *words])
    assert (trained[0][0].deterministic, trained[0][0].data.on_device) == expected


def test_file_and_flags_reach_training(tmp_path: Path, trained: Calls) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\noptim: {lr: 0.5}\n")
    assert main(["train", "--config", str(path), "--optim.lr=1e-3"]) == 143
    [(config, given_path, flagged)] = trained
    assert (config.seed, config.optim.lr) == (5, 0.001)
    assert (given_path, flagged) == (str(path), ["optim.lr"])


def test_several_mistakes_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--optim.lr", "0", "--seed", "x", "--train.stpes", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: unknown argument --train.stpes; did you mean --train.steps?\n"
    )
    assert main(["doctor", "--optim.lr", "0", "--seed", "x"]) == 2
    assert sorted(capsys.readouterr().err.removeprefix("error: ").splitlines()) == [
        "--optim.lr: must be greater than 0 (found 0)",
        "--seed: expected a whole number (found x)",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_settings_and_their_words(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("doctor", "optim.lr", "fashion_mnist"):
        assert word in script
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_help_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["train"], ["doctor"], ["advise"], ["runs"], ["init"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EPIPE, 1, ""),
        (
            errno.ENOSPC,
            2,
            "error: cannot write the output: No space left on device; make room\n",
        ),
        (errno.EDQUOT, 2, "error: cannot write the output: Disk quota exceeded; make room\n"),
        (errno.EFBIG, 2, "error: cannot write the output: File too large; make room\n"),
    ],
)
def test_an_output_that_is_gone_or_full_is_no_traceback(
    number: int,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

        def fileno(self) -> int:
            return spare.fileno()

    with (tmp_path / "spare").open("w") as spare:
        monkeypatch.setattr("sys.stdout", Gone())
        assert main(["train", "--print-config"]) == code
        assert os.path.samestat(os.fstat(spare.fileno()), os.stat(os.devnull))
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("start", [["launch/train.py"], ["-m", "seqclf", "train"]])
def test_without_its_packages_seqclf_says_how_to_get_them(start: list[str]) -> None:
    words = [sys.executable, "-S", *start]  # -S: without site-packages
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: No module named '\w+'; .*install seqclf .*\n", done.stderr)


def test_a_package_that_a_command_lacks_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed.elastic.multiprocessing.errors", None)
    assert main(["train"]) == 2
    assert "lacks what seqclf needs" in capsys.readouterr().err


def test_what_an_encoding_lacks_is_written_in_plain_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("seqclf.run.listing.runs_table", lambda *_, **__: "██ 0.5 ± 0.1 ü")
    assert main(["runs"]) == 0
    assert written.getvalue() == b"## 0.5 +- 0.1 ?\n"


def test_openmp_spins_briefly_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert main(["train", "--print-config"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert main(["train", "--print-config"]) == 0
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["train", "--print-config"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
