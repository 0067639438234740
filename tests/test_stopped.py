"""A process that is stopped, not killed: the others leave in time, and it spoils nothing later."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from helpers.files import files_in, read_status, same_end, starts_of
from helpers.launching import as_words, launch, wait_for
from helpers.patches import before_step, watch_calls
from helpers.ranks import exit_codes, start_ranks
from helpers.training import EVERYTHING_ON, tiny_flags
from torch._C._distributed_c10d import TCPStore

from seqclf.cli.main import main
from seqclf.errors import UserError
from seqclf.run import fence
from seqclf.run.fence import begin_session, session_number, tell_for_main
from seqclf.run.records import Facts, Status

TIMEOUT_S = 8
SETTINGS = {**EVERYTHING_ON, "train.steps": 20, "distributed.timeout_s": TIMEOUT_S}
AT = 9
# Where a process is stopped, and the function that it is about to call there.
PLACES = {
    "import": "seqclf.training.start_runtime",
    "meeting": "seqclf.processes.start.meet",
    "second meeting": "seqclf.processes.start.Agreement",
    "data": "seqclf.training.find_data",
    "lock": "seqclf.run.directory.locked",
    "begin": "seqclf.run.directory.begin_session",
    "step": "",
    "save": "seqclf.run.checkpoint.write_file",
    "last evaluation": "seqclf.training.conclude",
    "result": "seqclf.run.directory.encode_tensors",
    "parting": "seqclf.processes.runtime.Runtime.close",
}
BEFORE_A_RUN = ("import", "meeting", "second meeting", "data", "lock")
WHILE_IT_ENDS = ("last evaluation", "result", "parting")


def train_here(folder: Path, name: str, **more: object) -> None:
    """Train as the command line does."""
    rank = os.environ.get("RANK", "0")
    os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    raise SystemExit(
        main(["train", *as_words(tiny_flags(SETTINGS, run_dir=folder / "run", **more))])
    )


def train_and_stop(folder: Path, place: str, who: str, launcher: tuple[int, int] | None) -> None:
    """Train as under a launcher, given its process and port; rank `who` or the launcher stops."""
    rank = os.environ["RANK"]
    if launcher is not None:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(launcher[1])}
    stopped = folder / "stopped"

    def stop(*_: object, **__: object) -> None:
        if not stopped.exists():
            stopped.touch()
            os.kill(launcher[0] if who == "launcher" and launcher else os.getpid(), signal.SIGSTOP)

    if who == rank or (who == "launcher" and rank == "0"):
        patch = pytest.MonkeyPatch()
        if PLACES[place]:
            watch_calls(patch, PLACES[place], stop)
        else:
            before_step(patch, {AT: stop})
    train_here(folder, "said")


def keep_store(file: Path) -> None:
    """Keep the store of a group, as torchrun does."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    file.with_suffix(".new").write_text(str(store.port))
    file.with_suffix(".new").rename(file)
    time.sleep(300)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The process and the port of a launcher."""
    process = multiprocessing.get_context("forkserver").Process(
        target=keep_store, args=(tmp_path / "port",)
    )
    process.start()
    wait_for((tmp_path / "port").exists)
    yield process.pid or 0, int((tmp_path / "port").read_text())
    process.kill()
    process.join()


def wake(process: ForkServerProcess) -> int | None:
    """Let a stopped process go on; return its exit code."""
    os.kill(process.pid or 0, signal.SIGCONT)
    [code] = exit_codes([process])
    return code


def stop_one(folder: Path, place: str, who: str, launcher: tuple[int, int] | None) -> None:
    """Stop one of two ranks, or their launcher; look at how the others leave and what they say."""
    ranks = start_ranks(2, train_and_stop, folder, place, who, launcher)
    try:
        wait_for((folder / "stopped").exists)
        began = time.monotonic()
        others = [rank for number, rank in enumerate(ranks) if str(number) != who]
        codes = exit_codes(others)
        took_s = time.monotonic() - began
        status_file = folder / "run" / "status.json"
        told = status_file.read_bytes() if status_file.exists() else b"{}"
        if who == "launcher" and place in ("step", *WHILE_IT_ENDS):  # a run needs none to go on
            assert codes == [0, 0]
            assert json.loads(told)["state"] == "finished"
            return
        if place == "parting":
            assert codes == [0]
            assert wake(ranks[int(who)]) == 0
            assert json.loads(told)["state"] == "finished"
            return
        assert codes == [1] * len(others)
        assert took_s < TIMEOUT_S + 2  # what a busy machine takes to start and to end a process
        if place in BEFORE_A_RUN:
            assert told == b"{}"
            said = "".join((folder / f"said-{n}").read_text() for n in (0, 1) if str(n) != who)
            assert "did not meet or part within 8 s" in said or "nothing happened" in said
        else:
            status = json.loads(told)
            assert status["state"] == "failed"
            assert f"rank {who}" in status["error"]
            assert "no answer: stopped" in status["error"]
        if who != "launcher":
            assert wake(ranks[int(who)]) == 1
            after = status_file.read_bytes() if status_file.exists() else b"{}"
            # Before its end is noticed, it may write the result of a run that was done.
            is_done = place == "result" and json.loads(after)["state"] == "finished"
            assert is_done or after == told
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.kill()
            rank.join()


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_rank_0_is_stopped(place: str, tmp_path: Path) -> None:
    stop_one(tmp_path, place, "0", None)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_rank_0_is_stopped_under_a_launcher(
    place: str, launcher: tuple[int, int], tmp_path: Path
) -> None:
    stop_one(tmp_path, place, "0", launcher)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["import", "meeting", "data", "step", "last evaluation"])
@pytest.mark.parametrize("launched", [True, False])
def test_rank_1_is_stopped(
    place: str, launched: bool, launcher: tuple[int, int], tmp_path: Path
) -> None:
    stop_one(tmp_path, place, "1", launcher if launched else None)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(p, marks=pytest.mark.slow)
        for p in ("second meeting", "import", "step", "parting")
    ],
)
def test_the_launcher_is_stopped(place: str, launcher: tuple[int, int], tmp_path: Path) -> None:
    stop_one(tmp_path, place, "launcher", launcher)


# ---- one that wakes up after its run was started again


def train_until(folder: Path, name: str, word: str) -> None:
    """Train; before a step make a file, and go on when another one is there."""

    def wait() -> None:
        (folder / name).touch()
        wait_for((folder / word).exists)

    before_step(pytest.MonkeyPatch(), {AT: wait})
    train_here(folder, f"said-{name}", distributed__timeout_s=60)


def train_without_locks(folder: Path, name: str) -> None:
    """Train as on a network disk, which drops the lock of a host that is silent."""
    pytest.MonkeyPatch().setattr("seqclf.run.lock.fcntl.lockf", lambda *_: None)
    train_here(folder, name)


def test_one_that_wakes_up_late_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    [old] = start_ranks(1, train_until, tmp_path, "old", "go on")
    wait_for((tmp_path / "old").exists)
    os.kill(old.pid or 0, signal.SIGSTOP)
    again = start_ranks(1, train_here, tmp_path, "refused")
    assert exit_codes(again) == [2]
    said = (tmp_path / "refused-0").read_text()
    assert f"process {old.pid}, which is stopped: kill -CONT {old.pid}" in said
    assert exit_codes(start_ranks(1, train_without_locks, tmp_path, "again")) == [0]
    assert starts_of(run) == [0, 7]
    left = files_in(run)
    (tmp_path / "go on").touch()
    assert wake(old) == 2
    assert "another start of the run has gone on there" in (tmp_path / "said-old-0").read_text()
    assert files_in(run) == left


@pytest.mark.slow
def test_another_rank_that_wakes_up_late_tells_nothing(tmp_path: Path) -> None:
    ranks = start_ranks(2, train_until, tmp_path, "old", "go on")
    wait_for((tmp_path / "old").exists)
    os.kill(ranks[1].pid or 0, signal.SIGSTOP)
    ranks[0].kill()
    ranks[0].join()
    assert read_status(tmp_path / "run").state == "running"
    [new] = start_ranks(1, train_until, tmp_path, "new", "go on, too")
    wait_for((tmp_path / "new").exists)
    told = (tmp_path / "run" / "status.json").read_bytes()
    (tmp_path / "go on").touch()
    assert wake(ranks[1]) == 1
    assert (tmp_path / "run" / "status.json").read_bytes() == told
    (tmp_path / "go on, too").touch()
    assert exit_codes([new]) == [0]
    assert read_status(tmp_path / "run").state == "finished"


@pytest.mark.parametrize(
    ("before", "began", "told"),
    [
        ("running", True, True),
        ("failed", True, False),
        ("finished", True, False),
        ("preempted", False, True),
        ("failed", False, True),
        ("finished", False, False),
        (None, False, True),
    ],
)
def test_who_tells_for_the_main_process_spoils_no_result(
    before: str | None, began: bool, told: bool, tmp_path: Path
) -> None:
    file = tmp_path / "status.json"
    if before is not None:
        old = Status.model_validate({"state": before, "step": 40, "metrics": {"a": 1.0}})
        file.write_text(old.model_dump_json())
    failed = Status(state="failed", step=9, metrics={}, error="rank 0: no answer")
    tell_for_main(tmp_path, failed, began=began)
    status = read_status(tmp_path)
    assert (status.error == "rank 0: no answer") is told
    assert status.state == ("failed" if told else before)
    # The steps of a session before this one are still there.
    assert status.step == (9 if told and (began or before is None) else 40)
    tell_for_main(tmp_path / "elsewhere", failed, began=began)
    assert not (tmp_path / "elsewhere").exists()


def test_a_start_that_another_rank_gave_up_does_not_begin(tmp_path: Path) -> None:
    """Rank 0 was stopped while it started, and wakes up when the others have told so."""
    facts = Facts(
        host="a", device="cpu", precision="fp32", world_size=2, threads=1, versions={"torch": "2"}
    )
    found = fence.read_status(tmp_path)
    assert begin_session(tmp_path, 0, facts, found) == session_number(tmp_path) > 0
    before = session_number(tmp_path)
    tell_for_main(tmp_path, Status(state="failed", step=0, metrics={}, error="silent"), began=False)
    with pytest.raises(UserError, match="another rank has given up this start"):
        begin_session(tmp_path, 0, facts, found)
    assert session_number(tmp_path) == before


def test_each_session_has_a_number_of_its_own(tmp_path: Path) -> None:
    assert session_number(tmp_path) == session_number(tmp_path / "none") == 0
    (tmp_path / "sessions.jsonl").write_text("{}\n")
    first = session_number(tmp_path)
    (tmp_path / "sessions.jsonl").write_text("{}\n{}\n")
    assert 0 < first < session_number(tmp_path)


WORKER = """
import os, signal, sys
from pathlib import Path
import pytest
sys.path.insert(0, sys.argv[1])
from helpers.patches import before_step
from seqclf.cli.main import main

stopped = Path(sys.argv[2])

def stop():
    if os.environ["RANK"] == "0" and not stopped.exists():
        stopped.touch()
        os.kill(os.getpid(), signal.SIGSTOP)

before_step(pytest.MonkeyPatch(), {9: stop})
sys.exit(main(["train", *sys.argv[3:]]))
"""


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_rank_0_was_stopped(tmp_path: Path) -> None:
    """torchrun sends SIGTERM, and 30 s later SIGKILL, which ends a stopped process, too."""
    (tmp_path / "worker.py").write_text(WORKER)
    flags = tiny_flags(SETTINGS, run_dir=tmp_path / "run", distributed__timeout_s=20)
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    program = [tmp_path / "worker.py", Path(__file__).parent, tmp_path / "stopped"]
    done = launch(*launcher, *program, *as_words(flags), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert starts_of(tmp_path / "run") == [0, 7]
    straight = tiny_flags(SETTINGS, run_dir=tmp_path / "straight", distributed__timeout_s=60)
    program = [tmp_path / "worker.py", Path(__file__).parent, tmp_path / "stopped"]
    done = launch(*launcher, *program, *as_words(straight), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert same_end(tmp_path / "run", tmp_path / "straight")
