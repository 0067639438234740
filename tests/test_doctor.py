from __future__ import annotations

import contextlib
import io
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers.patches import full_disk
from helpers.ranks import run_ranks

from seqclf.cli.doctor import check, check_disk
from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.processes.cgroups import GroupMemory

FLAGS = {"device": "cpu", "train.threads": "1", "tracking.wandb": "disabled"}


def test_every_line_is_ok_or_a_warning_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    words = [word for name, value in FLAGS.items() for word in (f"--{name}", value)]
    assert main(["doctor", *words, "--data.name", "mnist"]) == 0
    out, err = capsys.readouterr()
    *lines, blank, summary = out.splitlines()
    assert (err, blank) == ("", "")
    subjects = [line[8:20].strip() for line in lines if not line.startswith(" ")]
    assert subjects == [
        "versions",
        "system",
        "device",
        "threads",
        "precision",
        "world size",
        "launch",
        "torch",
        "process 0",
        "speed",
        "disk",
        "data sets",
        "data",
        "wandb",
    ]
    warned = [i for i, line in enumerate(lines) if line.startswith("warning ")]
    assert [lines[i + 1][:23] for i in warned] == [f"{'':<20}-> "] * len(warned)
    assert summary == f"{len(warned)} warning{'s' * (len(warned) != 1)}"
    data = next(line for line in lines if line.startswith("warning data"))
    assert data.startswith("warning data        'mnist' lacks train-images-idx3-ubyte, ")
    assert f"put them into {tmp_path}/data/MNIST/raw" in out
    assert "\nwarning launch      Slurm has 4 tasks, but each trains alone\n" in out
    assert f"\n{'':<20}-> start them with torchrun or accelerate launch (see README)\n" in out
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_a_set_up_without_faults_has_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seqclf.cli.doctor.check_speed", lambda *_: [])  # a test may be slowed down
    monkeypatch.setattr("seqclf.cli.doctor.LITTLE_SPACE", 0)
    monkeypatch.setattr("seqclf.cli.doctor.LITTLE_MEMORY", 0)
    assert check(load_config(None, FLAGS | {"data.name": "digits"})[0]) == 0
    out = capsys.readouterr().out
    assert "ok      data        digits: 1,438 train, 359 test, read whole" in out
    assert out.endswith("\nno warnings\n")


def test_a_disk_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    config = load_config(None, {"run_dir": str(tmp_path / "runs" / "mine")})[0]
    [finding] = check_disk(config, Mock(is_main=True))
    assert finding.text == f"{tmp_path}: cannot write there: No space left on device"
    assert finding.remedy == "choose a --run-dir that can be written to"
    assert list(check_disk(config, Mock(is_main=False))) == []


def check_on_ranks(folder: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        check(load_config(None, FLAGS | {"run_dir": folder, "data.name": "digits"})[0])
    return output.getvalue()


def test_of_several_processes_the_main_one_prints_a_line_each(tmp_path: Path) -> None:
    first, second = run_ranks(2, check_on_ranks, str(tmp_path))
    assert second == ""
    assert "world size  2 processes, DDP over gloo" in first
    assert [f"process {rank}" in first for rank in range(3)] == [True, True, False]


def test_limits_of_the_job_are_said_with_their_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("seqclf.processes.device.cpu_quota", lambda: 1.5)
    monkeypatch.setattr(
        "seqclf.processes.memory.group_memory", lambda: GroupMemory(2**29, 3 * 2**30)
    )
    monkeypatch.setattr("seqclf.cli.doctor.check_speed", lambda *_: ())  # of threads without cores
    flags = {name: value for name, value in FLAGS.items() if name != "train.threads"}
    assert check(load_config(None, flags | {"data.name": "digits"})[0]) == 0
    out = capsys.readouterr().out
    assert "\nok      threads     2 (8 cores, a CPU quota of 1.5, 1 process)\n" in out
    assert "memory free: 0.5 GiB (of the limit of 3.0 GiB of this job or container)\n" in out
    assert f"\n{'':<20}-> close other programs or ask for more memory\n" in out
