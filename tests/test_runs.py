from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from helpers.ranks import run_ranks

from seqclf.cli.main import main
from seqclf.errors import UserError
from seqclf.run import listing
from seqclf.run.checkpoint import FILES, commit_checkpoint
from seqclf.run.records import State


def make(path: Path, state: str = "finished", *, age_s: float = 0, **words: object) -> Path:
    """Write what a list reads of a run."""
    path.mkdir(parents=True)
    seed, metrics = words.get("seed", 0), words.get("metrics", {"test/accuracy": 0.5})
    (path / "config.yaml").write_text(f"seed: {seed}\noptim:\n  lr: {words.get('lr', 0.01)}\n")
    facts = {"num_steps": 200, "data_fingerprint": words.get("data", "a")}
    (path / "run.json").write_text(json.dumps(facts))
    status = {"state": state, "step": 50, "epoch": 0.5, "metrics": metrics, "error": None}
    (path / "status.json").write_text(json.dumps(status))
    (path / ".lock").touch()
    then = time.time() - age_s
    os.utime(path / "status.json", (then, then))
    return path


def hold_and_list(root: Path) -> list[str]:
    """On rank 0 hold the lock as a training process does, and let rank 1 list the runs."""
    file = (root / "busy" / ".lock").open("a+")
    flag = root / "held"
    if os.environ["RANK"] == "0":
        fcntl.lockf(file, fcntl.LOCK_EX)
        flag.touch()
        while flag.exists():
            time.sleep(0.01)
        return []
    while not flag.exists():
        time.sleep(0.01)
    states = [f"{run.path.name} {run.state}" for run in listing.list_runs(root)]
    flag.unlink()
    return states


def test_a_list_is_one_line_per_run_the_latest_first(tmp_path: Path) -> None:
    make(tmp_path / "old", age_s=3 * 86_400 + 100, metrics={})
    make(tmp_path / "a" / "b", age_s=7_300, metrics={"val/accuracy": 0.12345, "test/loss": 2.0})
    make(tmp_path / "stopped", "preempted", age_s=125, metrics={"test/accuracy": 1.0})
    assert listing.runs_table(tmp_path).splitlines() == [
        f"state        step  val acc  test acc    age  run in {tmp_path}",
        "preempted  50/200            100.00%  2 min  stopped",
        "finished   50/200   12.35%              2 h  a/b",
        "finished   50/200                       3 d  old",
    ]


def test_the_list_has_the_settings_that_differ_and_marks_the_best(tmp_path: Path) -> None:
    for number, (lr, val, loss) in enumerate([(0.1, 0.5, 0.3), (0.2, 0.75, 0.2), (0.2, 0.75, 0.1)]):
        metrics = {"val/accuracy": val, "test/loss": loss}
        make(tmp_path / str(number), lr=lr, seed=number, age_s=number, metrics=metrics)
    make(tmp_path / "better", "preempted", lr=0.1, age_s=9, metrics={"val/accuracy": 1.0})
    assert listing.runs_table(tmp_path).splitlines()[:6] == [
        f"state        step    val acc  age  seed   lr  run in {tmp_path}",
        "finished   50/200   50.00%    0 s     0  0.1  0",
        "finished   50/200   75.00% *  1 s     1  0.2  1",
        "finished   50/200   75.00% *  2 s     2  0.2  2",
        "preempted  50/200  100.00%    9 s     0  0.1  better",
        "* the best val/accuracy of the finished runs",
    ]
    assert listing.runs_table(tmp_path, "test/loss").splitlines()[:5] == [
        f"state        step  val acc  test/loss  age  seed   lr  run in {tmp_path}",
        "finished   50/200   75.00%   0.1000 *  2 s     2  0.2  2",
        "finished   50/200   75.00%   0.2000    1 s     1  0.2  1",
        "finished   50/200   50.00%   0.3000    0 s     0  0.1  0",
        "preempted  50/200  100.00%             9 s     0  0.1  better",
    ]
    with pytest.raises(
        UserError, match=r"--sort loss: no run there has it; they have test/loss, v"
    ):
        listing.runs_table(tmp_path, "loss")


def test_of_several_data_sets_each_has_its_best_run(tmp_path: Path) -> None:
    for name, data, lr, accuracy in (
        *[("a", "1", 0.1, 0.5), ("b", "1", 0.1, 0.6)],
        *[("c", "2", 0.2, 0.2), ("d", "2", 0.2, 0.1), ("e", "3", 0.3, 0.9)],
    ):
        make(tmp_path / name, lr=lr, data=data, metrics={"test/accuracy": accuracy})
    table = listing.runs_table(tmp_path)
    assert {line[-1] for line in table.splitlines() if " * " in line} == {"b", "c"}
    assert " lr " not in table.splitlines()[0]  # it differs with the data set only
    assert "* the best test/accuracy of the finished runs on the same data; settings are" in table


def test_data_of_one_name_have_their_fingerprint_and_settings_have_six_columns(
    tmp_path: Path,
) -> None:
    values: dict[str, dict[str, list[float]]] = {
        "optim": {"lr": [0.1, 0.2], "clip": [1, 2], "warmup": [0, 0.1]},
        "model": {"dropout": [0, 0.1], "num_layers": [1, 2], "hidden_size": [4, 8]},
    }
    for number, data in enumerate(("1" * 64, "1" * 64, "2" * 64)):
        path = make(tmp_path / str(number), age_s=number, data=data)
        settings = {
            section: {name: pair[number % 2] for name, pair in names.items()}
            for section, names in values.items()
        }
        (path / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    lines = listing.runs_table(tmp_path).splitlines()
    columns = ["hidden_size", "num_layers", "dropout", "lr", "warmup"]
    assert lines[0].split()[5:-3] == ["data", *columns]
    assert [line.split()[-7] for line in lines[1:4]] == ["11111111", "11111111", "22222222"]
    assert "1 more setting differs: seqclf report RUN RUN shows all" in lines
    # On a terminal the last ones that do not fit are left out, too, and no line is broken.
    longest = max(map(len, lines[:4]))
    assert listing.runs_table(tmp_path, width=longest).splitlines() == lines
    narrow = listing.runs_table(tmp_path, width=longest - 1).splitlines()
    assert narrow[0].split()[5:-3] == ["data", *columns[:-1]]
    assert "2 more settings differ: seqclf report RUN RUN shows all" in narrow
    least = listing.runs_table(tmp_path, width=10).splitlines()[0]
    assert least.split() == ["state", "step", "test", "acc", "age", "run", "in", str(tmp_path)]


def test_running_is_what_holds_its_lock(tmp_path: Path) -> None:
    make(tmp_path / "busy", "running")
    assert listing.list_runs(tmp_path)[0].state == "crashed"
    make(tmp_path / "killed", "running", age_s=60)
    _, states = run_ranks(2, hold_and_list, tmp_path)
    assert states == ["busy running", "killed crashed"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("status.json", ""),
        ("status.json", "[1]"),
        ("status.json", "[" * 100_000),
        ("status.json", '{"state": "' + "x" * 2**20 + '", "step": 1, "metrics": {}}'),
        ("status.json", '{"state": "finished", "step": "x", "metrics": {}}'),
        ("status.json", '{"state": "finished", "step": 1, "metrics": {"a": "x"}}'),
        ("run.json", "{}"),
    ],
)
def test_what_is_damaged_is_listed_as_such(name: str, text: str, tmp_path: Path) -> None:
    (make(tmp_path / "x") / name).write_text(text)
    [run] = listing.list_runs(tmp_path)
    assert (run.state, run.step, run.metrics) == ("damaged", 0, {})


def test_one_bad_status_does_not_end_the_list(tmp_path: Path) -> None:
    make(tmp_path / "good")
    for name in ("directory", "pipe", "link", "dangling", "endless", "deep", "binary"):
        (make(tmp_path / name) / "status.json").unlink()
    (tmp_path / "directory" / "status.json").mkdir()
    os.mkfifo(tmp_path / "pipe" / "status.json")
    (tmp_path / "link" / "status.json").symlink_to(tmp_path / "good" / "status.json")
    (tmp_path / "dangling" / "status.json").symlink_to("nowhere")
    (tmp_path / "endless" / "status.json").symlink_to("/dev/zero")
    (tmp_path / "deep" / "status.json").write_text("{" * 10**6)
    (tmp_path / "binary" / "status.json").write_bytes(bytes(range(256)))
    os.mkfifo(make(tmp_path / "settings") / "pipe")
    (tmp_path / "settings" / "pipe").replace(tmp_path / "settings" / "config.yaml")
    numbers = '{"state": "finished", "step": 1, "metrics": {"test/loss": 1e999}}'
    (make(tmp_path / "infinite") / "status.json").write_text(numbers)
    states = {run.path.name: run.state for run in listing.list_runs(tmp_path)}
    finished = {"good": "finished", "settings": "finished", "infinite": "finished"}
    damaged = ("pipe", "link", "dangling", "endless", "deep", "binary")
    assert states == finished | dict.fromkeys(damaged, "damaged")
    lines = listing.runs_table(tmp_path).splitlines()
    assert len([line for line in lines if line.startswith(("damaged ", "finished "))]) == len(
        states
    )


def test_names_are_safe_to_look_at(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = tmp_path / f"\x1b[2J{seed}"
        make(path, seed=seed, metrics={"test/\x1b]0;x\x07": 0.5, "test/accuracy": 0.5})
    table = listing.runs_table(tmp_path)
    assert "\x1b" not in table
    assert "  \\x1b[2J0\n" in table
    assert "test/\\x1b]0;x\\x07" in table


def test_a_model_that_diverged_is_listed(tmp_path: Path) -> None:
    for seed in (0, 1):
        make(tmp_path / str(seed), seed=seed, metrics={"test/accuracy": 0.1, "test/loss": None})
    assert [run.state for run in listing.list_runs(tmp_path)] == ["finished", "finished"]
    assert "  test/loss      nan ± nan" in listing.runs_table(tmp_path)


def test_a_config_of_another_version_is_listed_but_in_no_group(tmp_path: Path) -> None:
    for seed in (1, 2):
        (make(tmp_path / str(seed)) / "config.yaml").write_text(f"seed: {seed}\nnew: 1\n")
    assert [run.state for run in listing.list_runs(tmp_path)] == ["finished", "finished"]
    assert "±" not in listing.runs_table(tmp_path)


def test_runs_that_differ_in_their_seed_only_show_mean_and_deviation(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.5), (1, 0.7), (2, 0.9)):
        metrics = {"test/accuracy": accuracy, "test/loss": 1.0} | ({"a": 1.0} if seed else {})
        make(tmp_path / f"x-seed={seed}", seed=seed, metrics=metrics)
    make(tmp_path / "x-again", seed=2, age_s=9, metrics={"test/accuracy": 0.9, "test/loss": 1.0})
    make(tmp_path / "x-seed=3", "preempted", seed=3, metrics={"test/accuracy": 0.0})
    make(tmp_path / "other-rate", seed=4, lr=0.5)
    make(tmp_path / "other-data", seed=5, data="b")
    _, _, group = listing.runs_table(tmp_path).partition("seed only: mean ± standard deviation\n")
    assert group.splitlines() == [
        f"{tmp_path}/x-again and 2 more, n = 3",
        "  test/accuracy  0.7000 ± 0.2000",
        "  test/loss      1.0000 ± 0.0000",
    ]


def test_the_same_seed_twice_is_no_group(tmp_path: Path) -> None:
    make(tmp_path / "a"), make(tmp_path / "b")
    assert "±" not in listing.runs_table(tmp_path)


def test_checkpoints_are_listed_newest_first_with_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "x") / "checkpoints"
    for step, metrics in (
        (5, {}),
        (20, {"val/accuracy": 0.98765, "test/accuracy": 0.5}),
        (100, {}),
    ):
        state = State(step=step, metrics=metrics).model_dump_json().encode()
        content = dict(zip(FILES, (bytes(900_000), bytes(step), state), strict=True))
        path = commit_checkpoint(root, step, content, world_size=1)
        if step == 100:
            (path / "state.json").unlink()
        then = time.time() - step * 3_600
        os.utime(path, (then, then))
    (root / "step-00000005" / "model.safetensors").write_bytes(bytes(100_000) + b"1")
    (root / ".tmp-step-00000101").mkdir()
    assert main(["checkpoints", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "    step     age       size  val acc  test acc  verified",
        f"     100     4 d    0.90 MB                     {root}/step-00000100/state.json: "
        "cannot read it (No such file or directory)",
        "      20    20 h    0.90 MB   98.77%    50.00%  ok",
        f"       5     5 h    0.10 MB                     {root}/step-00000005/model.safetensors: "
        "damaged (its size or sha256 is not the manifest's)",
    ]


def test_a_run_without_checkpoints_has_an_empty_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoints", str(make(tmp_path / "x"))]) == 0
    assert capsys.readouterr().out == f"no checkpoints in {tmp_path}/x/checkpoints\n"


def test_nothing_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    with pytest.raises(UserError, match=r"absent: no such directory; runs are under runs/"):
        listing.list_runs(tmp_path / "absent")
