from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from conftest import run_ranks

from seqclf import doctor
from seqclf.cli import main
from seqclf.config import load_config

FLAGS = {"device": "cpu", "train.threads": "1", "tracking.wandb": "disabled"}


def test_every_line_is_ok_or_a_warning_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for name, value in FLAGS.items() for word in (f"--{name}", value)]
    assert main(["doctor", *words, "--data.name", "mnist"]) == 0
    out, err = capsys.readouterr()
    *lines, blank, summary = out.splitlines()
    assert (err, blank) == ("", "")
    subjects = [line[8:20].strip() for line in lines if not line.startswith(" ")]
    assert subjects == [
        *("versions", "system", "device", "threads", "precision", "world size", "torch"),
        *("process 0", "speed", "disk", "data sets", "data", "wandb"),
    ]
    warned = [i for i, line in enumerate(lines) if line.startswith("warning ")]
    assert [lines[i + 1][:23] for i in warned] == [f"{'':<20}-> "] * len(warned)
    assert summary == f"{len(warned)} warning{'s' * (len(warned) != 1)}"
    data = next(line for line in lines if line.startswith("warning data"))
    assert data.startswith("warning data        'mnist' lacks train-images-idx3-ubyte, ")
    assert f"put them into {tmp_path}/data/MNIST/raw" in out
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_a_set_up_without_faults_has_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_step_time", lambda *_: iter(()))  # this machine may be busy
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 0)
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 0)
    assert doctor.check(load_config(None, FLAGS | {"data.name": "digits"})[0]) == 0
    out = capsys.readouterr().out
    assert "ok      data        digits: 1,438 train, 359 test, read whole" in out
    assert out.endswith("\nno warnings\n")


def check_on_ranks(folder: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        doctor.check(load_config(None, FLAGS | {"run_dir": folder, "data.name": "digits"})[0])
    return said.getvalue()


def test_several_processes_sum_up_and_the_main_one_speaks(tmp_path: Path) -> None:
    first, second = run_ranks(2, check_on_ranks, str(tmp_path))
    assert second == ""
    assert "world size  2 processes, DDP over gloo" in first
    assert "process 1" in first
    assert " KiB of gradients in " in first
