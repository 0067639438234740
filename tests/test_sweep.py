"""seqclf sweep: what it expands to, how its runs start and end, and what its table says.

Most tests put a small program in place of `seqclf train`; the slow ones train.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.commands import Capture, call
from helpers.launching import LIMIT_S, ROOT, clean_environment, wait_for
from helpers.training import TINY, tiny_flags, train_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf import jobs
from seqclf.config.load import load_config
from seqclf.errors import UserError
from seqclf.processes.signals import Signals
from seqclf.sweep import choose_directory, plan, split_values, table

# Does what `seqclf train` does to a sweep: takes the lock, writes a status and ends.
STAND_IN = """
import fcntl, json, os, pathlib, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(flags["run_dir"])
lock = open(folder / ".lock", "a+")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
def tell(state):
    path = folder / "status.json"
    metrics = {"val/accuracy": float(flags["optim.lr"]), "test/accuracy": 0.5}
    status = {"state": state, "step": 5, "epoch": 1.0, "metrics": metrics}
    path.with_suffix(".tmp").write_text(json.dumps(status))
    path.with_suffix(".tmp").rename(path)
def stop(number, frame):
    tell("preempted")
    os._exit(143)
signal.signal(signal.SIGTERM, stop)
cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
with open(folder / "starts", "a") as starts:
    print(json.dumps([flags, os.environ.get("CUDA_VISIBLE_DEVICES"), cores]), file=starts)
print("note: a note")
if flags.get("seed") == "13":
    sys.exit("error: unlucky\\nsecond line")
if flags.get("seed") == "15":
    os.kill(os.getpid(), signal.SIGKILL)
if flags.get("seed") == "16":
    stop(None, None)
while (folder.parent.parent / "wait").exists():
    time.sleep(0.01)
tell("finished")
"""
FINISHED = '{"state": "finished", "step": 5, "metrics": {}}'
SWEEP = ("sweep", "--optim.lr", "0.1,0.2", "--data.val_fraction", "0.1")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a sweep whose runs are the stand-in's."""
    stand_in = tmp_path / "train.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(jobs, "TRAIN", (sys.executable, "-I", "-S", str(stand_in)))
    monkeypatch.setattr(jobs, "TICK_S", 0.01)
    monkeypatch.setattr("seqclf.data.idx.fetch", lambda *_: None)
    return tmp_path / "sweep"


def starts_of(run: Path) -> list[tuple[dict[str, str], str | None, list[int]]]:
    return [json.loads(line) for line in (run / "starts").read_text().splitlines()]


# ---- what is asked for


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 99), min_size=2, max_size=3, unique=True),
    st.lists(st.sampled_from(["auto", "64", "8"]), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=15, deadline=None)
def test_runs_are_the_product_of_the_values_and_their_names_are_unique(
    seeds: list[int], rates: list[int], sizes: list[str]
) -> None:
    flags = {
        "seed": ",".join(map(str, seeds)),
        "optim.lr": ",".join(str(rate / 100) for rate in rates),
        "model.hidden_size": ",".join(sizes),
    }
    runs = plan(None, flags)
    expected = {(seed, rate / 100, size) for seed in seeds for rate in rates for size in sizes}
    found = [(r.config.seed, r.config.optim.lr, str(r.config.model.hidden_size)) for r in runs]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert len({run.name for run in runs}) == len(runs)
    assert all(f"optim.lr={run.config.optim.lr}" in run.name for run in runs)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("seed", "0-2,7", ["0", "1", "2", "7"]),
        ("optim.lr", "1e-3, 0.1", ["1e-3", "0.1"]),
        ("optim.betas", "[0.8,0.9],[0.9,0.999]", ["[0.8,0.9]", "[0.9,0.999]"]),
        ("loss.class_weights", "balanced,[1,2]", ["balanced", "[1,2]"]),
        ("tracking.notes", "rates, 1-3", ["rates, 1-3"]),  # changes no result
        ("data.path", "data/1-3", ["data/1-3"]),  # a text
        ("data.path", "a,b", ["a", "b"]),
    ],
)
def test_what_a_flag_lists(name: str, text: str, values: list[str]) -> None:
    assert split_values(name, text) == values


def test_all_mistakes_are_told_before_anything_starts(capsys: Capture, root: Path) -> None:
    words = ("--seed", "4-0", "--optim.lr", "fast,0.1,-1", "--train.steps", "5,x")
    code, _, err = call(capsys, "sweep", *words, "--run-dir", root)
    assert code == 2
    assert err.splitlines() == [
        "error: --seed: 4-0 counts down; write 0-4",
        "--optim.lr: expected a number (found fast)",
        "--train.steps: expected a whole number, or null (found x)",
        "--optim.lr: must be greater than 0 (found -1)",
    ]
    assert not root.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": "0"}, "nothing differs between runs; give a setting several values"),
        ({"optim.lr": "0.01,1e-2"}, "--optim.lr: of 2 values two are the same"),
        ({"seed": "0,,1"}, "--seed: nothing stands between two commas"),
        ({"seed": "0-1000"}, "--seed: 0-1000 are more than 1,000 values"),
        (
            {"seed": "0-30", "optim.lr": "0.1,-1", "eval.every": "1-20"},
            "^31 x 2 x 20 = 1,240 runs; a sweep has at most 1,000\n--optim.lr: must be greater",
        ),
        ({"optim.betas": "0.8,0.9"}, r"--optim.betas: expected a list like \[0.9, 0.999\]"),
        ({"data.folds": "3", "data.fold": "1-4"}, "--data.fold: 4 contradicts data.folds: 3"),
    ],
)
def test_a_mistake_names_the_value_and_the_remedy(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(None, flags)


def test_directories_are_named_after_what_differs() -> None:
    flags = {"optim.lr": "0.01,0.02", "seed": "0-4", "data.val_fraction": "0.1"}
    place = choose_directory("mnist_fast", flags, plan("mnist_fast", flags))
    assert str(place) == "runs/sweep-mnist_fast-data.val_fraction=0.1-optim.lr=0.01,0.02-seed=0-4"
    flags = {"optim.betas": "[0.8, 0.9],[0.9,0.999]"}
    place = choose_directory("digits", flags, plan("digits", flags))
    assert str(place) == "runs/sweep-digits-optim.betas=0.8,0.9,0.9,0.999"
    assert [run.name for run in plan(None, {"data.path": "a/x,b/y"})] == [
        "data.path=x",
        "data.path=y",
    ]
    assert len({run.name for run in plan(None, {"data.path": "a/x,b/x"})}) == 2


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("--jobs", "0"), {}, "--jobs 0: must be at least 1"),
        (("--resume", "never"), {}, "--resume never: a sweep goes on where it stopped"),
        ((), {"WANDB_SWEEP_ID": "a"}, "the variable WANDB_SWEEP_ID is set, which is for one run"),
        (("--config", "{root}.pipe"), {}, "a pipe, which each run reads; save a file"),
        (("--run_dir", "{root}.full"), {}, "no sweep, and not empty (file); choose another"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused(
    capsys: Capture,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    variables: dict[str, str],
    message: str,
) -> None:
    os.mkfifo(f"{root}.pipe")
    Path(f"{root}.full").mkdir()
    Path(f"{root}.full", "file").touch()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given_words = (word.format(root=root) for word in words)
    code, _, err = call(capsys, *SWEEP, "--run_dir", root, *given_words)
    assert code == 2
    assert message in err


# ---- how runs start and end


def test_a_failed_run_stops_no_other_and_the_same_command_tries_it_again(
    capsys: Capture, root: Path
) -> None:
    words = ("sweep", "--optim.lr", "0.1", "--seed", "12-14", "--run-dir", root, "--jobs", "2")
    code, out, _ = call(capsys, *words)
    assert code == 1
    lines = out.splitlines()
    assert f"failed      seed=13: unlucky (log: {root}/seed=13/train.log)" in lines
    assert "note: a note (3 of 3 runs)" in lines
    assert "   2 of 3  0.1000 ± 0.0000  0.5000 ± 0.0000" in lines
    assert lines[-1] == f"runs        seqclf runs {root}"  # a report takes whole runs only
    code, out, _ = call(capsys, *words, "--quiet")
    assert code == 1
    # A worker of the tests may have one core, and then the sweep says that two runs share it.
    assert [line for line in out.splitlines() if "share 1 core" not in line] == [
        "note: a note (3 of 3 runs)",
        "mean ± standard deviation over seed",
        "   n       val/accuracy     test/accuracy",
        "   2 of 3  0.1000 ± 0.0000  0.5000 ± 0.0000",
        f"failed      seed=13: unlucky (log: {root}/seed=13/train.log)",
    ]
    assert [len(starts_of(root / f"seed={seed}")) for seed in (12, 13, 14)] == [1, 2, 1]
    # What a run says is in its log all the same.
    assert not load_config(root / "base.yaml")[0].quiet
    assert "quiet" not in starts_of(root / "seed=13")[1][0]


def test_a_run_that_is_killed_or_stopped_by_others_is_told(capsys: Capture, root: Path) -> None:
    words = ("sweep", "--optim.lr", "0.1", "--seed", "15,16", "--run-dir", root, "--jobs", "2")
    code, out, _ = call(capsys, *words, "--quiet")
    assert code == 1
    killed = f"killed by SIGKILL, often for want of memory (log: {root}/seed=15/train.log)"
    assert f"failed      seed=15: {killed}" in out.splitlines()
    assert f"stopped     seed=16 (log: {root}/seed=16/train.log)" in out.splitlines()


def test_runs_are_stopped_if_the_sweep_fails(root: Path) -> None:
    (root.parent / "wait").touch()
    (run,) = plan(None, {"optim.lr": "0.1,0.2"})[:1]

    started: list[jobs.Job] = []

    def watch(under_way: Sequence[jobs.Job]) -> None:
        started.extend(under_way)
        wait_for((root / run.name / "starts").exists)
        raise OSError("no space left")

    slots = jobs.deal(1, 1, sorted(os.sched_getaffinity(0)), [])
    with pytest.raises(OSError, match="no space left"):
        jobs.run_all(root, [run], slots, [], Signals(), watch, lambda *_: None)
    process = started[0].process
    assert process is not None
    assert process.wait(LIMIT_S) == 143


def test_a_stopped_sweep_waits_for_no_run_of_an_earlier_start(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals()
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        assert not sleeps, "it waits"
        sleeps.append(seconds)
        signals.requested = signal.SIGINT

    monkeypatch.setattr(jobs, "is_running", lambda _: True)
    monkeypatch.setattr("seqclf.jobs.time.sleep", sleep)
    runs, slots = plan(None, {"optim.lr": "0.1,0.2"}), jobs.deal(1, 1, [0], [])
    assert jobs.run_all(root, runs, slots, [], signals, lambda _: None, lambda *_: None) == {}


def test_how_far_a_run_is_that_has_measured_much(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "train/loss": 1 / step}) for step in range(1, 1001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1001, "tra']))
    assert (tmp_path / "metrics.jsonl").stat().st_size > jobs.MOST_READ
    assert jobs.how_far(tmp_path) == (1000, 0, {"train/loss": 0.001})


def test_a_run_that_ends_at_once_is_told(
    capsys: Capture, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.Job, "has_ended", lambda job: job.process.wait() is not None)
    code, out, _ = call(capsys, *SWEEP, "--run-dir", root, "--jobs", "1")
    assert code == 0
    assert re.findall("^(?:started|finished) .*=...", out, re.M) == [
        "started     optim.lr=0.1",
        "finished    optim.lr=0.1",
        "started     optim.lr=0.2",
        "finished    optim.lr=0.2",
    ]
    assert out.splitlines()[-1] == f"runs        seqclf runs {root}; seqclf report {root}/*/"


def test_each_run_gets_cores_threads_and_a_group_of_its_own(capsys: Capture, root: Path) -> None:
    assert call(capsys, *SWEEP, "--seed", "0-1", "--run-dir", root, "--jobs", "2")[0] == 0
    given_flags = {}
    for run in root.glob("*/"):
        ((given_flags[run.name], _, cores),) = starts_of(run)
        slots = jobs.deal(2, 1, sorted(os.sched_getaffinity(0)), [])
        assert tuple(cores) in {slot.cores for slot in slots}
    assert given_flags["optim.lr=0.2-seed=1"] == {
        "config": f"{root}/base.yaml",
        "train.threads": str(max(1, len(os.sched_getaffinity(0)) // 2)),
        "report": "false",
        "tracking.group": "sweep",
        "seed": "1",
        "data.val_fraction": "0.1",
        "optim.lr": "0.2",
        "run_dir": f"{root}/optim.lr=0.2-seed=1",
    }


def test_a_run_is_not_bound_to_fewer_cores_than_it_has_threads(
    capsys: Capture, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs.deal(2, 2, [0, 1], []) == [jobs.Slot(cores=(0, 1)), jobs.Slot(cores=(0, 1))]
    assert jobs.deal(2, 1, [0, 1], []) == [jobs.Slot(cores=(0,)), jobs.Slot(cores=(1,))]
    monkeypatch.setattr("seqclf.processes.device.usable_cores", lambda: (4, "4 cores"))
    words = (*SWEEP, "--run-dir", root)
    assert "1 at once, 4 threads" in call(capsys, *words, "--jobs", "1")[1]
    # A later start has the threads of the first one, and so no more jobs than these leave room for.
    assert "1 at once, 4 threads" in call(capsys, *words)[1]
    more = (*SWEEP, "--run-dir", f"{root}-2", "--train.threads", "3")
    assert "1 at once, 3 threads" in call(capsys, *more)[1]
    shards = (*SWEEP, "--run-dir", f"{root}-3", "--train.shards", "2", "--jobs", "1")
    assert "1 at once, 2 threads" in call(capsys, *shards)[1]


def test_a_config_that_is_edited_meanwhile_changes_no_run(
    capsys: Capture, root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model:\n  dropout: 0.25\n")
    words = (*SWEEP, "--config", config, "--run-dir", root)
    assert call(capsys, *words)[0] == 0
    ((flags, _, _),) = starts_of(root / "optim.lr=0.1")
    assert load_config(flags["config"])[0].model.dropout == 0.25
    config.write_text("model:\n  dropout: 0.5\n")
    error = call(capsys, *words)[2]
    assert "model.dropout was 0.25, is 0.5" in error
    assert " --model.dropout=0.25), or" in error
    assert call(capsys, *words, "--model.dropout=0.25")[0] == 0
    assert load_config(flags["config"])[0].model.dropout == 0.25


def test_gpus_are_dealt(capsys: Capture, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert call(capsys, *SWEEP, "--run-dir", root)[0] == 0
    assert not any("tracking.group" in starts_of(run)[0][0] for run in root.glob("*/"))
    found = {starts_of(run)[0][1] for run in root.glob("*/")}
    assert found == {"5", "GPU-7"}


def test_other_values_in_the_same_directory_are_refused(capsys: Capture, root: Path) -> None:
    assert call(capsys, *SWEEP, "--run-dir", root)[0] == 0
    changed = ("sweep", "--optim.lr", "0.1,0.3", "--model.hidden_size", "8", "--run-dir", root)
    code, _, err = call(capsys, *changed)
    assert code == 2
    assert (
        f"{root}: holds another sweep: data.val_fraction was 0.1, is 0.0; model.hidden_size was "
        "64, is 8; optim.lr was 0.1, 0.2, is 0.1, 0.3; the command of that one goes on (seqclf "
        f"sweep --run_dir={root} --data.val_fraction=0.1 --optim.lr=0.1,0.2)"
    ) in err


def start_sweep(root: Path, **variables: str) -> subprocess.Popen[str]:
    """Start a sweep of two runs of the stand-in, as a process of its own; wait for their starts."""
    program = (
        "import sys; from seqclf import jobs; from seqclf.cli.main import main;"
        f"jobs.TRAIN = (sys.executable, '-I', '-S', {str(root.parent / 'train.py')!r});"
        "sys.exit(main())"
    )
    words = [*SWEEP, "--data.name", "digits", "--run-dir", str(root), "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(root.glob("*/starts"))) == 2)
    return process


def test_ctrl_c_stops_all_runs_and_says_how_to_go_on(capsys: Capture, root: Path) -> None:
    (root.parent / "wait").touch()
    process = start_sweep(root)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert out.splitlines()[-1] == (
        "stopped by a signal; 0 of 2 runs are finished; the same command goes on with the others"
    )
    states = [json.loads(file.read_text())["state"] for file in root.glob("*/status.json")]
    assert states == ["preempted"] * 2
    (root.parent / "wait").unlink()
    assert call(capsys, *SWEEP, "--data.name", "digits", "--run-dir", root)[0] == 0
    assert [len(starts_of(run)) for run in root.glob("*/")] == [2, 2]


def test_runs_outlive_a_killed_sweep_and_the_next_start_waits_for_them(
    capsys: Capture, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = root.parent / "wait"
    wait.touch()
    process = start_sweep(root)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    monkeypatch.setattr("seqclf.jobs.time.sleep", lambda _: wait.unlink(missing_ok=True))
    code, out, _ = call(capsys, *SWEEP, "--data.name", "digits", "--run-dir", root, "--jobs", "1")
    assert code == 0
    assert "started     optim.lr=0.1 (it runs already)" in out
    assert [len(starts_of(run)) for run in root.glob("*/")] == [1, 1]


def test_a_run_that_an_earlier_start_was_about_to_begin_is_waited_for(
    capsys: Capture, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = root / "seed=13"  # its stand-in ends as a run does whose lock is taken

    def is_running(path: Path) -> bool:
        return path == unlucky and (path / "starts").exists() and not jobs.is_finished(path)

    def sleep(_: float) -> None:
        log, status = unlucky / "train.log", unlucky / "status.json"
        if is_running(unlucky) and "unlucky" in log.read_text() and not status.exists():
            status.write_text(FINISHED)

    monkeypatch.setattr(jobs, "is_running", is_running)
    monkeypatch.setattr("seqclf.jobs.time.sleep", sleep)
    words = ("sweep", "--optim.lr", "0.1", "--seed", "12,13", "--run-dir", root, "--jobs", "2")
    assert call(capsys, *words)[0] == 0
    assert len(starts_of(unlucky)) == 1


# ---- the table


def finish(run: Path, state: str = "finished", **metrics: float | None) -> None:
    named = {name.replace("_", "/"): value for name, value in metrics.items()}
    run.mkdir(parents=True)
    status = {"state": state, "step": 5, "metrics": named}
    (run / "status.json").write_text(json.dumps(status))


def test_the_best_is_that_of_the_validation_split_and_of_whole_groups(tmp_path: Path) -> None:
    runs = plan(None, {"optim.lr": "0.1,0.2,0.3", "seed": "0-1", "data.val_fraction": "0.1"})
    for name, val, test in (
        ("optim.lr=0.1-seed=0", 0.6, 0.9),
        ("optim.lr=0.1-seed=1", 0.7, 0.9),
        ("optim.lr=0.2-seed=0", 0.8, 0.5),
        ("optim.lr=0.2-seed=1", 0.7, 0.7),
        ("optim.lr=0.3-seed=1", 0.99, 0.99),
    ):
        finish(tmp_path / name, val_accuracy=val, test_accuracy=test)
    finish(tmp_path / "optim.lr=0.3-seed=0", "preempted", val_accuracy=0.99, test_accuracy=0.99)
    assert table(tmp_path, runs).splitlines() == [
        "mean ± standard deviation over seed",
        "   optim.lr  n       val/accuracy     test/accuracy",
        "   0.1       2       0.6500 ± 0.0707  0.9000 ± 0.0000",
        "*  0.2       2       0.7500 ± 0.0707  0.6000 ± 0.1414",
        "   0.3       1 of 2  0.9900           0.9900",
        "* the best: highest mean val/accuracy; 1 not compared, with a run that has no result",
    ]


def test_of_equal_means_the_lower_loss_is_the_best(tmp_path: Path) -> None:
    # 140 and 138 of 143 are in the mean as many as twice 139, but for the last bit of a sum.
    runs = plan(None, {"optim.lr": "0.1,0.2,0.3", "seed": "0-1", "data.val_fraction": "0.1"})
    counts, losses = (139, 139, 140, 138, 138, 139), (0.1, 0.2, 0.3, 0.4, 0.01, 0.01)
    for run, count, loss in zip(runs, counts, losses, strict=True):
        finish(tmp_path / run.name, val_accuracy=count / 143, val_loss=loss)
    assert [line.split()[1] for line in table(tmp_path, runs).splitlines() if line[:1] == "*"] == [
        "0.1",
        "the",
    ]


def test_the_lowest_loss_is_the_best_where_it_chooses_and_folds_are_repetitions(
    tmp_path: Path,
) -> None:
    flags = {"optim.lr": "0.1,0.2", "data.folds": "2", "data.fold": "1-2"}
    flags |= {"data.val_fraction": "0.1", "checkpoint.keep_best": "true"}
    runs = plan(None, flags | {"checkpoint.metric": "val/loss"})
    for run, loss in zip(runs, (0.5, 0.7, 0.1, 0.3), strict=True):
        finish(tmp_path / run.name, val_loss=loss, val_accuracy=1 - loss)
    assert table(tmp_path, runs).splitlines() == [
        "mean ± standard deviation over data.fold",
        "   optim.lr  n  val/loss",
        "   0.1       2  0.6000 ± 0.1414",
        "*  0.2       2  0.2000 ± 0.1414",
        "* the best: lowest mean val/loss",
    ]


def test_the_best_is_one_of_each_data_set(tmp_path: Path) -> None:
    flags = {"data.name": "digits,mnist", "optim.lr": "0.1,0.2", "data.val_fraction": "0.1"}
    runs = plan(None, flags)
    for run, val in zip(runs, (0.6, 0.5, 0.9, 0.95), strict=True):
        finish(tmp_path / run.name, val_accuracy=val)
    lines = table(tmp_path, runs).splitlines()
    assert [line.split()[1:3] for line in lines if line.startswith("*  ")] == [
        [str(run.config.data.name), str(run.config.optim.lr)] for run in (runs[0], runs[3])
    ]
    assert lines[-1] == "* the best on each data set: highest mean val/accuracy"
    runs = [runs[0], runs[2]]
    assert table(tmp_path, runs).splitlines()[-1] == (
        "none is marked as the best: fewer than two on one data set have val/accuracy of all their "
        "runs"
    )


def test_without_a_validation_split_none_is_the_best(tmp_path: Path) -> None:
    runs = plan(None, {"optim.lr": "0.1,0.2"})
    finish(tmp_path / "optim.lr=0.1", test_accuracy=0.5, test_loss=None)
    finish(tmp_path / "optim.lr=0.2", test_accuracy=0.75, test_loss=1.0)
    assert table(tmp_path, runs).splitlines() == [
        "one run a line",
        "   optim.lr  n  test/accuracy  test/loss",
        "   0.1       1  0.5000         nan",
        "   0.2       1  0.7500         1.0000",
        "none is marked as the best: there is no validation split, and the test split chooses "
        "nothing; hold out a part: --data.val-fraction 0.1",
    ]


# ---- real runs


REAL = {**TINY, "train.steps": 60, "checkpoint.every": 5, "data.val_fraction": 0.1}
WORDS = [f"--{name}={text}" for name, text in tiny_flags(REAL).items()]
PROGRAM = [sys.executable, "-m", "seqclf", "sweep", *WORDS, "--seed=0-1", "--optim.lr=0.01,0.02"]


def sweep(root: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, f"--run_dir={root}", "--jobs=2", *words],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_killed_and_stopped_gives_the_weights_of_runs_alone(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    process = sweep(root)
    wait_for(lambda: list(root.glob("*/checkpoints/step-*")))
    process.kill()  # its runs go on
    process.communicate(timeout=LIMIT_S)
    process = sweep(root)
    wait_for(lambda: len(list(root.glob("*/metrics.jsonl"))) > 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, out
    process = sweep(root, "--quiet")
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, out
    assert "highest mean val/accuracy" in out
    for seed in (0, 1):
        for lr in (0.01, 0.02):
            alone = tmp_path / f"alone-{seed}-{lr}"
            assert train_tiny(alone, REAL, seed=seed, optim__lr=lr) == 0
            swept = root / f"optim.lr={lr}-seed={seed}"
            file = Path("model", "model.safetensors")
            assert (swept / file).read_bytes() == (alone / file).read_bytes()
