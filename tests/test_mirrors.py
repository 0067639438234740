"""Mirrors are processes beside the training: theirs are their faults, and each line comes once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.files import read_metrics
from helpers.launching import LIMIT_S, wait_for
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
from seqclf.tracking.delivery import find_missing
from seqclf.tracking.mirrors import MIRROR_MODULE, Mirrors
from seqclf.tracking.trainer import follow

pytestmark = pytest.mark.usefixtures("no_wandb_account")


NOT_READY = "was not ready 1 s after the end (tracking.finish_s)"


def missing(run_dir: Path, kind: str, problem: str, num_lines: int = 9, num_all: int = 9) -> str:
    """Return what a run says at its end of a mirror that did not end by itself."""
    title = {"wandb": "W&B", "tensorboard": "TensorBoard"}[kind]
    return (
        f"warning: {title} {problem}: {num_lines} of {num_all} lines of metrics.jsonl may be "
        "missing there; the same command again sends them, and so does: "
        f"python -m seqclf.tracking.mirror {kind} {run_dir}"
    )


# ---- mirrors that fail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def init(**_): raise RuntimeError('no luck')", "failed"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import time; time.sleep(3600)", NOT_READY),
        ("import signal, os; os.kill(os.getpid(), signal.SIGSTOP)", NOT_READY),
        ("import signal, os; os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
    ],
    ids=["raises", "leaves", "blocks", "stops", "dies"],
)
def test_a_mirror_that_fails_leaves_the_training_alone(
    tmp_path: Path,
    code: str,
    said: str,
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
    seconds = "1" if said == NOT_READY else "30"  # to be waited for, or plenty
    assert train_mirrored(tmp_path / "run", tracking__finish_s=seconds) == 0
    warnings = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    why = ["warning: W&B failed and is left out from here on: no luck"] * ("no luck" in code)
    assert warnings == [*why, missing(tmp_path / "run", "wandb", said)]
    assert mirrors() == []
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "straight")
    hashes = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "straight")
    ]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "online"),
    [
        ("mirror", True),
        ("wandb-core", False),
        ("mirror", False),
        ("wandb-core", True),
        ("both", False),
        ("both", True),
    ],
)
def test_a_mirror_that_is_killed_is_said_and_sent_later(
    tmp_path: Path,
    victim: str,
    online: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Somebody kills it, or the kernel, because memory is short."""
    flags = {"tracking__wandb": "auto", "checkpoint__every": "60"}
    run_dir = tmp_path / "run"

    def kill() -> None:
        [mirror] = mirrors()
        wait_for(lambda: [child for child in mirror.children() if child.name() == "wandb-core"])
        time.sleep(1)  # it has sent something by then
        cores = [child for child in mirror.children() if child.name() == "wandb-core"]
        for process in {"mirror": [mirror], "wandb-core": cores, "both": [mirror, *cores]}[victim]:
            process.kill()

    with serving() as server:
        if online:
            monkeypatch.setenv("WANDB_BASE_URL", server.url)
            monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
        with monkeypatch.context() as patch:
            before_step(patch, {27: kill})
            assert train_mirrored(run_dir, **flags) == 0
        warnings = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
        problem = "failed" if victim == "wandb-core" else "was killed (SIGKILL)"
        assert warnings[-1] == missing(run_dir, "wandb", problem)
        assert len(warnings) == 1 + (victim == "wandb-core")  # which says why, before

        assert train_mirrored(run_dir, **flags) == 0
        said = capfd.readouterr().out
        assert "is finished: nothing to do" in said
        assert "warning" not in said
        lines = read_metrics(run_dir, timed=True)
        assert len(lines) == 9
        if online:
            [received] = server.runs.values()
            assert received.sent == list(range(len(received.sent)))
            assert lines_in(list(received.rows.values())) == lines
            assert received.exit_code == 0
        else:
            assert offline_lines(run_dir) == lines

    assert train_mirrored(run_dir, **flags) == 0  # now there is nothing to send
    assert "wandb " not in capfd.readouterr().out


@pytest.mark.slow
def test_a_killed_mirror_in_tensorboard_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = {"tracking__wandb": "disabled", "tracking__tensorboard": "true"}
    with monkeypatch.context() as patch:
        before_step(patch, {27: lambda: mirrors()[0].kill()})
        assert train_mirrored(tmp_path / "run", **flags) == 0
    problem = missing(tmp_path / "run", "tensorboard", "was killed (SIGKILL)")
    assert problem in capfd.readouterr().out.splitlines()
    for _ in range(2):
        assert train_mirrored(tmp_path / "run", **flags) == 0
        events = list((tmp_path / "run" / "tensorboard").iterdir())
        assert len(events) == 1
    assert "warning" not in capfd.readouterr().out
    assert find_missing(tmp_path / "run", "tensorboard") == (0, 9)


@pytest.mark.slow
def test_what_was_confirmed_before_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A session that was stopped has sent its lines; the next one's mirror is killed."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_step(patch, {27: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        assert train_mirrored(run_dir, checkpoint__every="1000") == 143
    num_sent = find_missing(run_dir, "wandb").num_all
    assert find_missing(run_dir, "wandb") == (0, num_sent)
    assert num_sent >= 3
    with monkeypatch.context() as patch:
        before_step(patch, {47: lambda: mirrors()[0].kill()})
        assert train_mirrored(run_dir, checkpoint__every="1000") == 0
    problem = missing(run_dir, "wandb", "was killed (SIGKILL)", num_lines=9 - num_sent)
    assert problem in capfd.readouterr().out.splitlines()


@pytest.mark.slow
def test_a_count_is_of_its_own_run_and_file_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train_mirrored(run_dir) == 0
    lock = run_dir / ".wandb.lock"
    assert find_missing(run_dir, "wandb") == (0, 9)
    for damaged in ("another 9\n", "9", "", "\0" * 5000, "x" * 5000):
        lock.write_text(damaged)
        assert find_missing(run_dir, "wandb") == (9, 9)
    command = [sys.executable, "-m", MIRROR_MODULE, "wandb", str(run_dir)]
    (tmp_path / "victim").write_text("precious")
    for kind in ("link", "pipe"):
        lock.unlink()
        if kind == "link":
            lock.symlink_to(tmp_path / "victim")
        else:
            os.mkfifo(lock)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        assert done.returncode == 2
        assert str(lock) in done.stdout
        assert find_missing(run_dir, "wandb") == (9, 9)
    assert (tmp_path / "victim").read_text() == "precious"


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
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stdout + done.stderr


@pytest.mark.slow
def test_a_refused_connection_leaves_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
    # W&B tries for half of this time; a busy machine takes most of a minute to start the mirror.
    assert train_mirrored(tmp_path / "run", tracking__wandb="auto", tracking__finish_s="200") == 0
    said = capfd.readouterr().out
    assert "warning: W&B cannot be reached (" in said
    assert f"to upload: wandb sync {tmp_path}/run/wandb/offline-run-*" in said
    assert offline_lines(tmp_path / "run") == read_metrics(tmp_path / "run", timed=True)


@pytest.mark.slow
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
        problem = NOT_READY.replace("1 s", "4 s")
        assert missing(tmp_path / "run", "wandb", problem) in capfd.readouterr().out.splitlines()
        lines = read_metrics(tmp_path / "run", timed=True)
        server.silent.clear()
        command = [sys.executable, "-m", "seqclf.tracking.mirror", "wandb", str(tmp_path / "run")]
        subprocess.run(command, check=True, timeout=LIMIT_S)
        [received] = server.runs.values()
        assert received.sent == list(range(len(received.sent)))
        assert lines_in(list(received.rows.values())) == lines


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["end", "never"])
def test_a_full_disk_under_wandb_is_said_and_sent_later(
    tmp_path: Path, tables: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """W&B's client does not say that its log is cut short; tables need a file each."""
    flags = {"tracking__tables": tables, "log__every": "1", "tracking__finish_s": "60"}
    run_dir = tmp_path / "run"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "size=32k")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("WANDB_DIR", str(disk))
            assert train_mirrored(run_dir, **flags) == 0
        assert mirrors() == []
        *_, why, problem = (x for x in capfd.readouterr().out.splitlines() if "warning" in x)
        assert "No space left" in why if tables == "end" else "is cut short" in why
        assert problem == missing(run_dir, "wandb", "failed", 63, 63)
    finally:
        unmount(disk)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
    assert train_mirrored(run_dir, **flags) == 0
    lines = read_metrics(run_dir, timed=True)
    assert len(lines) == 63
    assert offline_lines(run_dir) == lines


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
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
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
