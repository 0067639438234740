"""Mirrors are processes beside the training: theirs are their faults, and each line comes once."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.files import read_metrics
from helpers.mirrored import (
    FLAGS,
    KEY,
    lines_in,
    mirrors,
    offline_lines,
    train_and_die,
    train_mirrored,
    train_words,
)
from helpers.mounts import mount, unmount
from helpers.patches import before_step
from helpers.ranks import run_mortal_ranks
from helpers.wandb_server import serving

from seqclf.cli.main import main
from seqclf.config.settings import Tracking as Options
from seqclf.run.records import ClassRow, Evaluation, class_table
from seqclf.tracking.mirrors import Mirrors
from seqclf.tracking.trainer import follow

pytestmark = pytest.mark.usefixtures("no_wandb_account")


# ---- mirrors that fail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def init(**_): raise RuntimeError('no luck')", "failed and is left out"),
        ("import sys; sys.exit(3)", None),
        ("import time; time.sleep(3600)", "was not ready 1 s after the end"),
        ("import signal, os; os.kill(os.getpid(), signal.SIGSTOP)", "was not ready 1 s after"),
    ],
    ids=["raises", "leaves", "blocks", "stops"],
)
def test_a_mirror_that_fails_leaves_the_training_alone(
    tmp_path: Path,
    code: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert train_mirrored(tmp_path / "straight", tracking__wandb="disabled") == 0
    capfd.readouterr()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(
        f"class Settings:\n    def __init__(self, **_): 0\n{code}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    seconds = "1" if said and "not ready" in said else "30"  # to be waited for, or plenty
    assert train_mirrored(tmp_path / "run", tracking__finish_s=seconds) == 0
    warnings = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
    assert mirrors() == []
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
    hashes = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "straight")
    ]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]


def test_nobody_waits_for_a_mirror_where_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_mirrored(tmp_path / "run", tracking__wandb="disabled") == 0
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text("import time; time.sleep(3600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    tracking = Mirrors(print, enabled=True)
    tracking.open(Options(wandb="offline", finish_s=3600), tmp_path / "run")
    mirror = tracking._mirrors["wandb"]
    tracking.close(1, waits=False)
    assert mirror.poll() is None
    mirror.kill()
    mirror.wait()


def test_a_mirror_by_hand_says_what_is_wrong(tmp_path: Path) -> None:
    for words in (["wandb", str(tmp_path / "none")], ["wandb"], ["else", str(tmp_path)]):
        command = [sys.executable, "-m", "seqclf.tracking.mirror", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout + done.stderr


def test_a_refused_connection_leaves_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
    assert train_mirrored(tmp_path / "run", tracking__wandb="auto", tracking__finish_s="20") == 0
    said = capfd.readouterr().out
    assert "warning: W&B cannot be reached (" in said
    assert f"to upload: wandb sync {tmp_path}/run/wandb/offline-run-*" in said
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)


def test_a_network_that_is_lost_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server goes silent in the middle; the run ends, and what is lacking is sent later."""
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])

        def fall_silent() -> None:
            while not server.runs:
                time.sleep(0.05)
            server.silent.set()

        before_step(monkeypatch, {27: fall_silent})
        assert (
            train_mirrored(tmp_path / "run", tracking__wandb="online", tracking__finish_s="4") == 0
        )
        assert "W&B was not ready 4 s after the end" in capfd.readouterr().out
        lines = read_metrics(tmp_path / "run", timed=True)
        assert len(lines) == 9
        server.silent.clear()
        command = [sys.executable, "-m", "seqclf.tracking.mirror", "wandb", str(tmp_path / "run")]
        subprocess.run(command, check=True, timeout=60)
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == lines


def test_a_full_disk_under_wandb_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "size=16k")
    try:
        monkeypatch.setenv("WANDB_DIR", str(disk))
        assert train_mirrored(tmp_path / "run", tracking__finish_s="10") == 0
        assert mirrors() == []
    finally:
        unmount(disk)
    assert len(read_metrics(tmp_path / "run")) == 9
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


# ---- TensorBoard


def test_tensorboard_holds_every_value(tmp_path: Path) -> None:
    flags = FLAGS | {"tracking.wandb": "disabled", "tracking.tensorboard": "true"}
    assert run_mortal_ranks(1, train_and_die, tmp_path / "run", flags, 27, False, {}) == [-9]
    assert main(train_words(tmp_path / "run", flags)) == 0
    code = (
        "import json, sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1]); events.Reload()\n"
        "print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)]"
        " for tag in events.Tags()['scalars']}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / "tensorboard")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    wanted: dict[str, list[list[float]]] = {}
    for line in read_metrics(tmp_path / "run", timed=True):
        for name, value in line.items():
            if name != "step":
                wanted.setdefault(name, []).append([line["step"], float(np.float32(value))])
    assert json.loads(done.stdout) == wanted


def test_follow_yields_each_line_once_until_the_end(tmp_path: Path) -> None:
    file, ended = tmp_path / "lines", threading.Event()
    seen: list[int] = []
    reader = follow(file, ended)
    thread = threading.Thread(target=lambda: seen.extend(line.step for line in reader))
    thread.start()
    with file.open("a", buffering=1) as growing:
        for n in range(4):
            growing.write(f'{{"step": {n}')
            time.sleep(0.2)
            growing.write("}\n")
    ended.set()
    thread.join(10)
    assert seen == [0, 1, 2, 3]


def test_follow_reads_again_what_was_rewritten(tmp_path: Path) -> None:
    file, ended = tmp_path / "lines", threading.Event()
    file.write_text('{"step": 0}\n{"step": 1}\n')
    reader = follow(file, ended)
    assert [next(reader).step for _ in range(2)] == [0, 1]
    file.write_text('{"step": 0}\n{"step": 7}\n{"step": 8}\n')
    ended.set()
    assert [line.step for line in reader] == [0, 7, 8]


def test_a_class_that_nothing_decides_scores_zero() -> None:
    def table(confusion: list[list[int]]) -> list[ClassRow]:
        content = {"step": 0, "metrics": {}, "calibration": [], "mistakes": []}
        content |= {"classes": ("a", "b"), "confusion": confusion}
        return class_table(Evaluation.model_validate(content))

    assert table([[0, 3], [0, 0]]) == [("a", 0, 0, 0, 3), ("b", 0, 0, 0, 0)]
    assert math.isclose(table([[1, 1], [0, 2]])[1].precision, 2 / 3)
