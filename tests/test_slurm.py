"""launch/slurm*.sbatch as a job would run them, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.files import read_facts, read_metrics, read_status, same_end
from helpers.launching import LIMIT_S, PROGRAMS, ROOT, clean_environment, kill_tree, wait_for

from seqclf.cli.main import main

SCRIPT = ROOT / "launch" / "slurm.sbatch"
MULTI = ROOT / "launch" / "slurm-multi.sbatch"
LONG = ("--config", "configs/debug.yaml", "--train.steps", "1000", "--train.threads", "1")
# Answers the code it was told to at a SIGTERM, or at once if it is a failure of its own.
STAND_IN = """\
#!/bin/bash
echo "$(basename "$0") $* cpu=${ACCELERATE_USE_CPU:-}" > started
trap "exit $CODE" TERM
[ "$WHEN" = at_once ] && exit "$CODE"
for _ in {1..6000}; do sleep 0.01; done
"""
# Takes its time to save: leaves when it is told to, after any number of signals.
BUSY = """\
#!/bin/bash
trap "" TERM
touch started
for _ in {1..6000}; do [ -e leave ] && break; sleep 0.01; done
exit 143
"""
# Both nodes are this host. srun starts a task for each, and scancel signals the tasks alone.
SCONTROL = """\
#!/bin/bash
if [ "$1" = show ]; then printf 'localhost\\nother\\n'; else echo "$*" >> requeued; fi
"""
SRUN = """\
#!/bin/bash
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
echo "${tasks[@]}" > tasks
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit "${code:-0}"
"""
SCANCEL = """\
#!/bin/bash
echo "$*" >> scancelled
kill -TERM $(cat tasks)
"""
ON_NODE = """\
#!/bin/bash
trap "exit $CODE" TERM
echo "$* cpu=${ACCELERATE_USE_CPU:-}" > "started-$SLURM_NODEID"
[ "$WHEN" = at_once ] && exit "$CODE"
for _ in {1..6000}; do sleep 0.01; done
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm runs on Linux")


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    """A directory to submit from: the repository's files, and a scontrol that writes down."""
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    stub(tmp_path, "scontrol", '#!/bin/bash\necho "$*" >> requeued\n')
    yield tmp_path
    while STARTED:  # a job that outlives its failed test would disturb the tests after it
        kill_tree(STARTED.pop())


def stub(job: Path, name: str, text: str) -> None:
    program = job / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


@pytest.fixture
def two_nodes(job: Path) -> Path:
    """A job of two nodes."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("scancel", SCANCEL)):
        stub(job, name, text)
    return job


def start(job: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """Start the batch script as slurmd does: by bash, in the directory of the sbatch command."""
    is_multi = "SLURM_JOB_NUM_NODES" in variables
    path = f"{job / 'bin'}:{PROGRAMS}:{os.environ['PATH']}"
    environment = clean_environment("SLURM") | {"PATH": path, "PYTHONPATH": str(ROOT)}
    with (job / "log").open("a") as log:
        process = subprocess.Popen(
            ["bash", str(MULTI if is_multi else SCRIPT), *words],
            cwd=job,
            env=environment | {"SLURM_JOB_ID": "7"} | variables,
            stdout=log,
            stderr=log,
            text=True,
        )
    STARTED.append(process)
    return process


def requeued(job: Path) -> list[str]:
    """Return what scontrol was told."""
    file = job / "requeued"
    return file.read_text().splitlines() if file.exists() else []


def stop_and_go_on(job: Path, run_dir: Path, told: str, code: int, **variables: str) -> None:
    """Send the warning before the time limit, then start the job again as Slurm would."""
    process = start(job, *LONG, **variables)
    wait_for(lambda: len(read_metrics(run_dir)) > 9)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(LIMIT_S) == code
    assert read_status(run_dir).state == "preempted"
    assert requeued(job) == [told]
    assert start(job, *LONG, SLURM_RESTART_COUNT="1", **variables).wait(LIMIT_S) == 0
    assert read_status(run_dir).state == "finished"
    assert requeued(job) == [told]
    assert re.findall(r"^== job (\S+) .*: start (\d)", (job / "log").read_text(), re.M) == [
        (told.split()[1], "1"),
        (told.split()[1], "2"),
    ]


@pytest.mark.slow
def test_at_its_time_limit_a_task_of_an_array_saves_and_is_requeued(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    run_dir = job / "runs" / "debug-seed=3-train.steps=1000"
    stop_and_go_on(job, run_dir, "requeue 7_3", 143, **task)
    monkeypatch.chdir(ROOT)
    assert main(["train", *LONG, "--seed=3", "--run-dir", str(job / "straight")]) == 0
    assert same_end(run_dir, job / "straight")


@pytest.mark.slow
def test_two_processes_save_at_the_time_limit(job: Path) -> None:
    run_dir = job / "runs" / "debug-train.steps=1000"
    two = {"SLURM_GPUS_ON_NODE": "2", "ACCELERATE_USE_CPU": "true"}
    stop_and_go_on(job, run_dir, "requeue 7", 1, **two)
    assert read_facts(run_dir)["world_size"] == 2
    again = start(job, *LONG, **two)
    assert again.wait(LIMIT_S) == 0
    assert "is finished: nothing to do" in (job / "log").read_text()
    straight = [*LONG, "--run-dir", str(job / "straight")]
    assert start(job, *straight, **two).wait(LIMIT_S) == 0
    assert same_end(run_dir, job / "straight")


def test_a_mistake_is_not_requeued(job: Path) -> None:
    assert start(job, "--optim.lr", "-1").wait(LIMIT_S) == 2
    assert "error: --optim.lr:" in (job / "log").read_text()
    assert requeued(job) == []


@pytest.mark.parametrize(
    ("when", "code", "restarts", "signals", "told"),
    [
        ("at_once", 0, 0, [], []),
        ("at_once", 1, 0, [], []),  # a failure
        ("later", 143, 0, [signal.SIGUSR1], ["requeue 7"]),
        ("later", 143, 48, [signal.SIGUSR1], ["requeue 7"]),
        ("later", 143, 49, [signal.SIGUSR1], []),  # not for ever
        ("later", 0, 0, [signal.SIGUSR1], []),  # it had just finished
    ],
)
def test_only_a_run_stopped_by_the_time_limit_is_requeued(
    job: Path, when: str, code: int, restarts: int, signals: list[int], told: list[str]
) -> None:
    stub(job, "python", STAND_IN)
    process = start(job, WHEN=when, CODE=str(code), SLURM_RESTART_COUNT=str(restarts))
    wait_for(lambda: (job / "started").read_text())
    for signum in signals:
        process.send_signal(signum)
    assert process.wait(LIMIT_S) == code
    assert requeued(job) == told
    assert ("not requeued after 50 starts" in (job / "log").read_text()) is (restarts == 49)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]])
def test_a_cancelled_job_waits_for_its_run_and_stays_away(job: Path, signals: list[int]) -> None:
    stub(job, "python", BUSY)
    process = start(job)
    wait_for((job / "started").exists)
    for signum in signals:
        process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    (job / "leave").touch()
    assert process.wait(LIMIT_S) == 143
    assert requeued(job) == []


@pytest.mark.parametrize(
    ("variables", "started"),
    [
        ({}, "python launch/train.py --seed 2 cpu=true"),
        ({"SLURM_GPUS_ON_NODE": "1"}, "python launch/train.py --seed 2 cpu="),
        (
            {"SLURM_GPUS_ON_NODE": "4", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"},
            "torchrun --standalone --nproc-per-node 4 launch/train.py --seed 0 --seed 2 cpu=",
        ),
    ],
)
def test_a_process_is_started_for_each_gpu(
    job: Path, variables: dict[str, str], started: str
) -> None:
    for name in ("python", "torchrun"):
        stub(job, name, STAND_IN)
    assert start(job, "--seed", "2", WHEN="at_once", CODE="0", **variables).wait(LIMIT_S) == 0
    assert (job / "started").read_text().strip() == started


TWO_NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}


@pytest.mark.slow
def test_two_nodes_save_at_the_time_limit(two_nodes: Path) -> None:
    run_dir = two_nodes / "runs" / "debug-train.steps=1000"
    stop_and_go_on(two_nodes, run_dir, "requeue 7", 1, **TWO_NODES)
    assert (two_nodes / "scancelled").read_text() == "--signal=TERM 7\n"
    assert read_facts(run_dir)["world_size"] == 2


@pytest.mark.parametrize(
    ("gpus", "processes", "cpu"), [({}, "1", "true"), ({"SLURM_GPUS_ON_NODE": "8"}, "8", "")]
)
def test_a_launcher_is_started_on_each_node(
    gpus: dict[str, str], processes: str, cpu: str, two_nodes: Path
) -> None:
    stub(two_nodes, "torchrun", ON_NODE)
    process = start(two_nodes, "--seed", "2", WHEN="at_once", CODE="0", **TWO_NODES, **gpus)
    assert process.wait(LIMIT_S) == 0
    for node in (0, 1):
        assert (two_nodes / f"started-{node}").read_text().strip() == (
            f"--nnodes 2 --node-rank {node} --nproc-per-node {processes} --master-addr localhost "
            f"--master-port 20007 launch/train.py --seed 2 cpu={cpu}"
        )


@pytest.mark.parametrize(
    ("when", "code", "restarts", "signals", "told"),
    [
        ("at_once", 1, 0, [], []),  # a failure
        ("later", 1, 0, [signal.SIGUSR1], ["requeue 7"]),
        ("later", 1, 49, [signal.SIGUSR1], []),  # not for ever
        ("later", 0, 0, [signal.SIGUSR1], []),  # it had just finished
        ("later", 1, 0, [signal.SIGUSR1, signal.SIGTERM], []),  # cancelled meanwhile
    ],
)
def test_only_the_time_limit_requeues_several_nodes(
    two_nodes: Path, when: str, code: int, restarts: int, signals: list[int], told: list[str]
) -> None:
    stub(two_nodes, "torchrun", ON_NODE)
    stopping = signal.SIGTERM in signals
    if stopping:  # the tasks take their time
        stub(two_nodes, "scancel", '#!/bin/bash\necho "$*" >> scancelled\n')
    variables = TWO_NODES | {"SLURM_RESTART_COUNT": str(restarts)}
    process = start(two_nodes, WHEN=when, CODE=str(code), **variables)
    wait_for(lambda: all((two_nodes / f"started-{node}").read_text() for node in (0, 1)))
    for signum in signals:
        process.send_signal(signum)
        if stopping and signum == signal.SIGUSR1:
            wait_for((two_nodes / "scancelled").exists)
    if stopping:  # Slurm's own comes to the tasks, too
        stub(two_nodes, "scancel", SCANCEL)
        subprocess.run([two_nodes / "bin/scancel"], cwd=two_nodes, check=True)
    assert process.wait(LIMIT_S) == code
    assert requeued(two_nodes) == told


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", [SCRIPT, MULTI], ids=["one node", "several"])
def test_the_script_is_clean(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
