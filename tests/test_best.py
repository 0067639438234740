"""Early stopping and best weights: the decisions, the result, and both after any interruption."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from helpers.files import (
    files_in,
    logged,
    read_metrics,
    read_status,
    step_dir,
    weights_of,
)
from helpers.patches import die_at_write
from helpers.ranks import run_ranks
from helpers.training import CONSTANT_RATE, train_tiny

from seqclf.cli.commands import evaluate_run
from seqclf.config.load import load_config
from seqclf.errors import UserError
from seqclf.evaluate import Metrics
from seqclf.run.checkpoint import checkpoint_directories, commit_checkpoint, step_of

Settings = Mapping[str, object]

NUM_STEPS, EVERY = 120, 4
SETTINGS = {
    **CONSTANT_RATE,
    "data.val_fraction": 0.2,
    "optim.lr": 0.1,  # so high that it is often no better
    "train.batch_size": 50,
    "train.steps": NUM_STEPS,
    "eval.every": EVERY,
    "checkpoint.every": 7,
    "checkpoint.keep_last": 1,
    "log.every": 10,
}
PATIENT, IMPATIENT = {**SETTINGS, "train.patience": 3}, {**SETTINGS, "train.patience": 1}
KEPT = {**SETTINGS, "checkpoint.keep_best": True}
METRICS = ("val/accuracy", "val/macro_f1", "val/loss")


def decide(values: dict[int, float], metric: str, patience: float) -> tuple[int, int]:
    """Return the best step and the last one by what the settings say, in another way than a run.

    The end is the first evaluation at which the latest `patience` hold nothing better than those
    before them.
    """
    better = min if metric == "val/loss" else max
    steps = list(values)
    end = steps[-1]
    for number, step in enumerate(steps, 1):
        if number > patience:
            before, latest = steps[: number - int(patience)], steps[number - int(patience) : number]
            best = better(values[s] for s in before)
            if better([best, *(values[s] for s in latest)]) == best:
                end = step
                break
    best = better(values[s] for s in steps if s <= end)
    return next(s for s in steps if values[s] == best), end


def same_end(one: Path, other: Path) -> bool:
    """Say whether two runs came to the same weights, figures and checkpoint of the best."""
    assert read_status(one).state == read_status(other).state == "finished"
    ends = [(weights_of(path), read_metrics(path), read_status(path)) for path in (one, other)]
    return ends[0] == ends[1]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to the last step that keeps the best."""
    path = tmp_path_factory.mktemp("runs") / "full"
    assert train_tiny(path, KEPT) == 0
    return path


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends early."""
    path = tmp_path_factory.mktemp("runs") / "early"
    assert train_tiny(path, PATIENT) == 0
    return path


@pytest.fixture
def copy(early: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(early, tmp_path / "copy"))


def check_result(run_dir: Path, best: int, end: int) -> None:
    """Assert that all that a run says of its result is about the weights of one step."""
    lines = read_metrics(run_dir)
    keys = [(line["step"], key) for line in lines for key in line if key != "step"]
    assert len(keys) == len(set(keys))
    [measured] = [line for line in lines if "test/loss" in line]
    assert measured == lines[-1]
    assert measured["step"] == best
    [judged] = [line for line in lines if line["step"] == best and "val/loss" in line]
    status = read_status(run_dir)
    assert (status.state, status.step) == ("finished", end)
    metrics = status.metrics
    assert metrics | {"step": best} == judged | measured
    assert weights_of(run_dir) == weights_of(run_dir, best)
    again = evaluate_run(load_config(run_dir / "config.yaml")[0], run_dir)
    assert again == pytest.approx(metrics, rel=1e-6)  # by one process, whatever the run had


def test_a_branch_takes_the_best_weights_along(early: Path, tmp_path: Path) -> None:
    steps = [step_of(path) for path in checkpoint_directories(early / "checkpoints")]
    assert len(steps) == 2  # the last, and the best before it
    assert train_tiny(tmp_path / "branch", PATIENT, resume=early) == 0
    assert same_end(tmp_path / "branch", early)


@pytest.mark.parametrize("metric", METRICS)
def test_it_ends_and_chooses_as_the_figures_say(
    metric: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = logged(full, metric)
    best, end = decide(values, metric, 3)
    assert EVERY < best < end < NUM_STEPS
    assert train_tiny(tmp_path, PATIENT, checkpoint__metric=metric) == 0
    assert logged(tmp_path, metric) == {s: v for s, v in values.items() if s <= end}
    check_result(tmp_path, best, end)
    out = capsys.readouterr().out
    assert f"ended       at step {end} of 120: 3 evaluations in a row without a better" in out
    form = "{:.2%}" if metric == "val/accuracy" else "{:.4f}"
    assert f"best        step {best}: {metric} {form.format(values[best])}\n" in out
    assert f"val        {values[best]:9.2%} " in out or metric != "val/accuracy"


def test_without_patience_the_best_is_kept_beside_the_last(early: Path, tmp_path: Path) -> None:
    best, end = int(read_metrics(early)[-1]["step"]), read_status(early).step
    assert train_tiny(tmp_path, KEPT, train__steps=end) == 0
    kept = [step_of(path) for path in checkpoint_directories(tmp_path / "checkpoints")]
    assert kept == [end, best]  # keep_last is 1
    check_result(tmp_path, best, end)


def test_the_last_weights_are_the_result_where_nothing_is_chosen(
    full: Path, tmp_path: Path
) -> None:
    assert train_tiny(tmp_path, SETTINGS) == 0
    check_result(tmp_path, NUM_STEPS, NUM_STEPS)
    assert weights_of(tmp_path) == weights_of(full, NUM_STEPS)


def test_without_validation_the_last_evaluation_is_the_result(tmp_path: Path) -> None:
    assert train_tiny(tmp_path, SETTINGS, data__val_fraction=0, train__steps=8) == 0
    assert list(logged(tmp_path, "test/loss")) == [4, 8]
    lines = [line for line in read_metrics(tmp_path) if "test/loss" in line]
    assert len(lines) == 2
    assert lines[-1] == {"step": 8} | read_status(tmp_path).metrics


# ---- interruptions


def train_on_rank(
    run_dir: Path, settings: Settings, *, stop_at: int | None = None
) -> tuple[int, str]:
    """Train on this rank; return the exit code and what was printed."""
    with redirect_stdout(StringIO()) as printed:
        return train_tiny(run_dir, settings, stop_at=stop_at), printed.getvalue()


def test_stopped_at_every_evaluation_it_decides_alike(early: Path, tmp_path: Path) -> None:
    end = read_status(early).step
    for stop_at in range(EVERY, end + 1, EVERY):  # before the evaluation there
        assert train_tiny(tmp_path, PATIENT, stop_at=stop_at) == 143
    assert train_tiny(tmp_path, PATIENT) == 0
    assert same_end(tmp_path, early)


def test_two_processes_decide_alike(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_ranks(2, train_on_rank, straight, IMPATIENT)
    best, end = decide(logged(straight, "val/accuracy"), "val/accuracy", 1)
    assert (read_status(straight).step, weights_of(straight)) == (end, weights_of(straight, best))
    (code, _), _ = run_ranks(2, train_on_rank, broken, IMPATIENT, stop_at=best + 1)
    assert code == 143
    run_ranks(2, train_on_rank, broken, IMPATIENT)
    assert same_end(broken, straight)
    again = evaluate_run(load_config(straight / "config.yaml")[0], straight)
    assert again == pytest.approx(read_status(straight).metrics, rel=1e-6)


@pytest.mark.parametrize("writes", range(5))
def test_killed_between_the_last_writes_it_does_them_again(
    writes: int, early: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "status.json").unlink()  # of what was killed before its end
    shutil.rmtree(copy / "model")
    die_at_write(monkeypatch, 3 + writes)  # status.json, run.json and config.yaml at the start
    if writes < 4:
        with pytest.raises(KeyboardInterrupt):
            train_tiny(copy, PATIENT)
        monkeypatch.undo()
    assert train_tiny(copy, PATIENT) == 0
    assert same_end(copy, early)


MORE_PATIENT = {**SETTINGS, "train.patience": 4}


@pytest.fixture(scope="module")
def more_patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "more_patient"
    assert train_tiny(path, MORE_PATIENT) == 0
    return path


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 7])  # 3 to 6 are of the first checkpoint
def test_a_finished_run_killed_as_it_goes_on_is_not_finished(
    writes: int, copy: Path, more_patient: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        die_at_write(patch, writes)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(copy, MORE_PATIENT)
    assert train_tiny(copy, MORE_PATIENT) == 0
    assert same_end(copy, more_patient)


# ---- a best that is not there


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_damaged_best_is_named_and_the_last_weights_are_the_result(
    world_size: int, early: Path, copy: Path
) -> None:
    best, end = (int(line["step"]) for line in (read_metrics(early)[-1], read_metrics(early)[-2]))
    file = step_dir(copy, best) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (copy / "status.json").unlink()
    answers = run_ranks(world_size, train_on_rank, copy, PATIENT)
    assert [code for code, _ in answers] == [0] * world_size
    warning = f"warning: the result is the last weights, not the best: {file}: damaged"
    assert [said.count(warning) for _, said in answers] == [1, 0][:world_size]
    check_result(copy, end, end)
    file.write_bytes(content)  # what docs/troubleshooting.md says
    (copy / "status.json").unlink()
    assert train_tiny(copy, PATIENT) == 0
    assert same_end(copy, early)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_best_that_could_not_be_saved_is_still_the_result(
    resumed: bool,
    early: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = logged(early, "val/accuracy")
    best, _ = decide(values, "val/accuracy", 3)
    settings = {**KEPT, "train.steps": best}
    honest: Callable[..., Path] = commit_checkpoint

    def full_disk(root: Path, step: int, *arguments: object, **options: object) -> Path:
        if step == best:
            raise OSError(28, "No space left on device")
        return honest(root, step, *arguments, **options)

    monkeypatch.setattr("seqclf.run.saves.commit_checkpoint", full_disk)
    if resumed:
        assert train_tiny(tmp_path, settings, stop_at=best - 1) == 143
    assert train_tiny(tmp_path, settings) == 0
    assert f"checkpoint of step {best} not saved" in capsys.readouterr().out
    assert logged(tmp_path, "val/accuracy")[best] == values[best]
    assert weights_of(tmp_path) == weights_of(early, best)
    assert read_status(tmp_path).metrics["val/accuracy"] == values[best]


def test_nothing_but_nan_ends_with_the_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Metrics(math.nan, torch.eye(10, dtype=torch.int64))
    monkeypatch.setattr("seqclf.train.evaluate", lambda *_, **__: nothing)
    settings = {**PATIENT, "checkpoint.metric": "val/loss"}
    assert train_tiny(tmp_path, settings, stop_at=2 * EVERY) == 143
    assert train_tiny(tmp_path, settings) == 0
    status = read_status(tmp_path)
    assert (status.state, status.step) == ("finished", 3 * EVERY)
    assert "not the best: no evaluation with a val/loss that is a" in capsys.readouterr().out
    assert weights_of(tmp_path) == weights_of(tmp_path, 3 * EVERY)


# ---- settings


@pytest.mark.parametrize(
    ("name", "value"), [("train.patience", "3"), ("checkpoint.keep_best", "true")]
)
def test_nothing_is_chosen_by_the_test_split(name: str, value: str) -> None:
    text = rf"--{name}: {value} contradicts data\.val_fraction: 0\.0 \(the default\): hold out"
    with pytest.raises(UserError, match=text):
        load_config(None, {name: value})


def test_a_finished_run_is_left_as_it_is(early: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in(early)
    assert train_tiny(early, PATIENT) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert files_in(early) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"train.patience": 5},
        {"train.patience": None},
        {"train.patience": 3, "train.steps": NUM_STEPS + 20},
    ],
)
def test_it_goes_on_as_if_it_had_always_been_so(
    changes: Settings, copy: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, **changes}
    assert train_tiny(copy, settings) == 0
    assert train_tiny(tmp_path / "straight", settings) == 0
    assert same_end(copy, tmp_path / "straight")


def test_a_patience_that_no_wait_has_reached_may_come_later(early: Path, tmp_path: Path) -> None:
    waited = read_status(early).step - EVERY
    assert train_tiny(tmp_path, KEPT, stop_at=waited + 1) == 143
    with pytest.raises(UserError, match=f"up to step {waited} it waited for 2 evaluations in a ro"):
        train_tiny(tmp_path, KEPT, train__patience=2)
    assert train_tiny(tmp_path, KEPT, train__patience=3) == 0
    assert same_end(tmp_path, early)


@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        (
            {"train.patience": 3},
            {"train.patience": 2},
            r"waited for 3 evaluations.*\n  train\.patience: 3 th",
        ),
        (
            {"train.patience": 3},
            {"train.patience": 3, "eval.every": 8},
            r"eval\.every: 4 there, 8 now",
        ),
        ({"train.patience": 3}, {"eval.every": 8}, r"eval\.every: 4 there, 8 now"),
        (
            {"train.patience": 3},
            {"train.patience": 3, "checkpoint.keep_best": True},
            r"checkpoint\.keep_best: False there, True now",
        ),
        (
            {"train.patience": 3},
            {"train.patience": 3, "checkpoint.metric": "val/loss"},
            r"checkpoint\.metric: 'val/acc",
        ),
        (
            {"train.steps": 8},
            {"train.steps": 8, "train.patience": 3},
            "up to step 8 chose nothing",
        ),
        (
            {"train.steps": 9, "checkpoint.keep_best": True},
            {"train.steps": 12, "checkpoint.keep_best": True},
            r"\(step 9 was evaluated as the last, and would not be\):\n  train\.steps: 9 there, 12",
        ),
    ],
)
def test_a_change_of_what_was_chosen_is_refused(
    first: Settings, then: Settings, named: str, tmp_path: Path
) -> None:
    train_tiny(tmp_path, {**SETTINGS, **first})
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=named):
        train_tiny(tmp_path, {**SETTINGS, **then})
    assert files_in(tmp_path) == before


def test_where_nothing_is_chosen_evaluations_may_change(tmp_path: Path) -> None:
    assert train_tiny(tmp_path, SETTINGS, train__steps=8) == 0
    assert train_tiny(tmp_path, SETTINGS, train__steps=16, eval__every=5) == 0
    assert list(logged(tmp_path, "val/loss")) == [4, 8, 10, 15, 16]
