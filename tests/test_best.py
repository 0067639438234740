"""Early stopping and best weights: the decisions, the result, and both after any interruption."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import read_metrics, run_ranks

from seqclf import checkpoint
from seqclf import train as train_module
from seqclf.checkpoint import State
from seqclf.config import UserError, load_config
from seqclf.evaluate import Metrics, evaluate_run
from seqclf.runtime import Runtime
from seqclf.train import choose, train

NUM_STEPS, EVERY = 120, 4
FLAGS = {
    "data.name": "digits",
    "data.val_fraction": "0.2",
    "model.hidden_size": "8",
    "optim.lr": "0.1",  # so high that it is often no better
    "optim.schedule": "constant",
    "optim.warmup": "0",
    "train.batch_size": "50",
    "train.steps": str(NUM_STEPS),
    "train.threads": "1",
    "eval.every": str(EVERY),
    "checkpoint.every": "7",
    "checkpoint.keep_last": "1",
    "log.every": "10",
    "tracking.wandb": "disabled",
}
PATIENT, IMPATIENT = {"train.patience": "3"}, {"train.patience": "1"}
KEPT = {"checkpoint.keep_best": "true"}
METRICS = ("val/accuracy", "val/macro_f1", "val/loss")


def run(run_dir: Path, flags: dict[str, str], stop_at: int | None = None) -> int:
    """Train, asking to stop at a step as a signal would; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "agree", lambda _, step, save: (step == stop_at, save))
        return train(load_config(None, FLAGS | {"run_dir": str(run_dir)} | flags)[0])


def curve(run_dir: Path, metric: str) -> dict[int, float]:
    return {int(line["step"]): line[metric] for line in read_metrics(run_dir) if metric in line}


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


def weights(run_dir: Path, step: int | None = None) -> bytes:
    folder = "model" if step is None else f"checkpoints/{checkpoint.directory_name(step)}"
    return (run_dir / folder / "model.safetensors").read_bytes()


def status(run_dir: Path) -> dict[str, object]:
    return checkpoint.read_json(run_dir / "status.json")


def same_end(one: Path, other: Path) -> bool:
    """Say whether two runs came to the same weights, figures and checkpoint of the best."""
    assert status(one)["state"] == status(other)["state"] == "finished"
    return (weights(one), read_metrics(one), status(one)) == (
        *(weights(other), read_metrics(other), status(other)),
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to the last step that keeps the best."""
    path = tmp_path_factory.mktemp("runs") / "full"
    assert run(path, KEPT) == 0
    return path


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends early."""
    path = tmp_path_factory.mktemp("runs") / "early"
    assert run(path, PATIENT) == 0
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
    assert (status(run_dir)["state"], status(run_dir)["step"]) == ("finished", end)
    metrics = status(run_dir)["metrics"]
    assert metrics | {"step": best} == judged | measured  # type: ignore[operator]
    assert weights(run_dir) == weights(run_dir, best)
    again = evaluate_run(load_config(run_dir / "config.yaml")[0], run_dir)
    assert again == pytest.approx(metrics, rel=1e-6)  # by one process, whatever the run had


@pytest.mark.parametrize("metric", METRICS)
def test_it_ends_and_chooses_as_the_figures_say(
    metric: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = curve(full, metric)
    best, end = decide(values, metric, 3)
    assert EVERY < best < end < NUM_STEPS
    assert run(tmp_path, PATIENT | {"checkpoint.metric": metric}) == 0
    assert curve(tmp_path, metric) == {s: v for s, v in values.items() if s <= end}
    check_result(tmp_path, best, end)
    out = capsys.readouterr().out
    assert f"ended       at step {end} of 120: 3 evaluations in a row without a better" in out
    form = "{:.2%}" if metric == "val/accuracy" else "{:.4f}"
    assert f"best        step {best}: {metric} {form.format(values[best])}\n" in out
    assert f"val        {values[best]:9.2%} " in out or metric != "val/accuracy"


def test_without_patience_the_best_is_kept_beside_the_last(early: Path, tmp_path: Path) -> None:
    best, end = int(read_metrics(early)[-1]["step"]), int(str(status(early)["step"]))
    assert run(tmp_path, KEPT | {"train.steps": str(end)}) == 0
    kept = [checkpoint.step_of(path) for path in checkpoint.directories(tmp_path / "checkpoints")]
    assert kept == [end, best]  # keep_last is 1
    check_result(tmp_path, best, end)


def test_the_last_weights_are_the_result_where_nothing_is_chosen(
    full: Path, tmp_path: Path
) -> None:
    assert run(tmp_path, {}) == 0
    check_result(tmp_path, NUM_STEPS, NUM_STEPS)
    assert weights(tmp_path) == weights(full, NUM_STEPS)


def test_without_validation_the_last_evaluation_is_the_result(tmp_path: Path) -> None:
    assert run(tmp_path, {"data.val_fraction": "0", "train.steps": "8"}) == 0
    assert list(curve(tmp_path, "test/loss")) == [4, 8]
    lines = [line for line in read_metrics(tmp_path) if "test/loss" in line]
    assert len(lines) == 2
    assert lines[-1] == {"step": 8} | status(tmp_path)["metrics"]  # type: ignore[operator]


# ---- interruptions


def run_on_ranks(run_dir: str, stop_at: int | None, flags: dict[str, str]) -> tuple[int, str]:
    """Train on this rank; return the exit code and what was said."""
    with redirect_stdout(StringIO()) as said:
        return run(Path(run_dir), flags, stop_at), said.getvalue()


def test_stopped_at_every_evaluation_it_decides_alike(early: Path, tmp_path: Path) -> None:
    end = int(str(status(early)["step"]))
    for stop_at in range(EVERY, end + 1, EVERY):  # before the evaluation there
        assert run(tmp_path, PATIENT, stop_at) == 143
    assert run(tmp_path, PATIENT) == 0
    assert same_end(tmp_path, early)


def test_two_processes_decide_alike(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_ranks(2, run_on_ranks, str(straight), None, IMPATIENT)
    best, end = decide(curve(straight, "val/accuracy"), "val/accuracy", 1)
    assert (status(straight)["step"], weights(straight)) == (end, weights(straight, best))
    (code, _), _ = run_ranks(2, run_on_ranks, str(broken), best + 1, IMPATIENT)
    assert code == 143
    run_ranks(2, run_on_ranks, str(broken), None, IMPATIENT)
    assert same_end(broken, straight)
    again = evaluate_run(load_config(straight / "config.yaml")[0], straight)
    assert again == pytest.approx(status(straight)["metrics"], rel=1e-6)


@pytest.mark.parametrize("writes", range(5))
def test_killed_between_the_last_writes_it_does_them_again(
    writes: int, early: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "status.json").unlink()  # of what was killed before its end
    shutil.rmtree(copy / "model")
    dying(monkeypatch, 3 + writes)  # status.json, run.json and config.yaml at the start
    if writes < 4:
        with pytest.raises(KeyboardInterrupt):
            run(copy, PATIENT)
        monkeypatch.undo()
    assert run(copy, PATIENT) == 0
    assert same_end(copy, early)


@pytest.mark.parametrize("writes", range(4))
def test_a_finished_run_killed_as_it_goes_on_is_not_finished(
    writes: int, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"train.patience": "4"}
    dying(monkeypatch, writes)
    with pytest.raises(KeyboardInterrupt):
        run(copy, more)
    monkeypatch.undo()
    assert run(copy, more) == 0
    assert run(tmp_path / "straight", more) == 0
    assert same_end(copy, tmp_path / "straight")


def dying(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Kill the process at one of the files that it replaces."""
    honest, calls = checkpoint.replace_file, itertools.count()

    def replace(path: Path, content: bytes) -> checkpoint.FileEntry:
        if next(calls) >= writes:
            raise KeyboardInterrupt
        return honest(path, content)

    monkeypatch.setattr(checkpoint, "replace_file", replace)


# ---- a best that is not there


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_damaged_best_is_named_and_the_last_weights_are_the_result(
    world_size: int, early: Path, copy: Path
) -> None:
    step, end = (line["step"] for line in (read_metrics(early)[-1], read_metrics(early)[-2]))
    file = copy / "checkpoints" / checkpoint.directory_name(int(step)) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (copy / "status.json").unlink()
    answers = run_ranks(world_size, run_on_ranks, str(copy), None, PATIENT)
    assert [code for code, _ in answers] == [0] * world_size
    warning = f"warning: the result is the last weights, not the best: {file}: damaged"
    assert [said.count(warning) for _, said in answers] == [1, 0][:world_size]
    check_result(copy, int(end), int(end))
    file.write_bytes(content)  # what docs/troubleshooting.md says
    (copy / "status.json").unlink()
    assert run(copy, PATIENT) == 0
    assert same_end(copy, early)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_best_that_could_not_be_saved_is_not_the_best(
    resumed: bool,
    early: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = curve(early, "val/accuracy")
    best, _ = decide(values, "val/accuracy", 3)
    flags = KEPT | {"train.steps": str(best)}
    honest: Callable[..., Path] = checkpoint.commit

    def full_disk(root: Path, step: int, *arguments: object, **options: object) -> Path:
        if step == best:
            raise OSError(28, "No space left on device")
        return honest(root, step, *arguments, **options)

    monkeypatch.setattr(checkpoint, "commit", full_disk)
    if resumed:
        assert run(tmp_path, flags, stop_at=best - 1) == 143
    assert run(tmp_path, flags) == 0
    assert f"checkpoint of step {best} not saved" in capsys.readouterr().out
    assert curve(tmp_path, "val/accuracy")[best] == values.pop(best)
    before = {step: value for step, value in values.items() if step < best}
    check_result(tmp_path, decide(before, "val/accuracy", math.inf)[0], best)


# ---- figures that are equal or none


def chosen(metric: str, values: Iterable[float]) -> list[tuple[float | None, int, int, int]]:
    """Return the best, its step, the wait and the longest wait after each of some evaluations."""
    state, found = State(), []
    for step, value in enumerate(values, 1):
        state.step, state.metrics = step, {metric: value}
        choose(state, metric)
        found.append((state.best.get(metric), state.best_step, state.waited, state.longest_wait))
    return found


NAN = float("nan")


def test_neither_a_tie_nor_nan_is_better() -> None:
    assert chosen("val/accuracy", [0.5, 0.5, 0.4, 0.6, NAN, 0.6]) == [
        *((0.5, 1, 0, 0), (0.5, 1, 1, 1), (0.5, 1, 2, 2)),
        *((0.6, 4, 0, 2), (0.6, 4, 1, 2), (0.6, 4, 2, 2)),
    ]
    assert chosen("val/loss", [NAN, 2.0, 2.0, 3.0, 1.0]) == [
        *((None, 0, 1, 1), (2.0, 2, 0, 1), (2.0, 2, 1, 1), (2.0, 2, 2, 2), (1.0, 5, 0, 2)),
    ]


def test_nothing_but_nan_ends_with_the_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Metrics(NAN, torch.eye(10, dtype=torch.int64))
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: nothing)
    flags = PATIENT | {"checkpoint.metric": "val/loss"}
    assert run(tmp_path, flags, stop_at=2 * EVERY) == 143
    assert run(tmp_path, flags) == 0
    assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("finished", 3 * EVERY)
    assert "not the best: no evaluation with a val/loss that is a" in capsys.readouterr().out
    assert weights(tmp_path) == weights(tmp_path, 3 * EVERY)


def test_a_state_of_an_older_version_loads(tmp_path: Path) -> None:
    files = {"state.json": json.dumps({"step": 7, "judged": 4}).encode()}
    state = checkpoint.read_state(files, tmp_path)
    assert (state.best, state.best_step, state.waited, state.longest_wait) == ({}, 0, 0, 0)


# ---- settings


@pytest.mark.parametrize("flags", [PATIENT, KEPT])
def test_nothing_is_chosen_by_the_test_split(flags: dict[str, str]) -> None:
    [(name, value)] = flags.items()
    text = rf"--{name}: {value} contradicts data\.val_fraction: 0\.0 \(the default\): hold out"
    with pytest.raises(UserError, match=text):
        load_config(None, flags)


def test_a_finished_run_is_left_as_it_is(early: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f: f.read_bytes() for f in early.rglob("*") if f.is_file()}
    assert run(early, PATIENT) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert {f: f.read_bytes() for f in early.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    "flags",
    [
        {"train.patience": "5"},
        {"train.patience": "null"},
        PATIENT | {"train.steps": str(NUM_STEPS + 20)},
    ],
)
def test_it_goes_on_as_if_it_had_always_been_so(
    flags: dict[str, str], copy: Path, tmp_path: Path
) -> None:
    assert run(copy, flags) == 0
    assert run(tmp_path / "straight", flags) == 0
    assert same_end(copy, tmp_path / "straight")


def test_a_patience_that_no_wait_has_reached_may_come_later(early: Path, tmp_path: Path) -> None:
    waited = int(str(status(early)["step"])) - EVERY
    assert run(tmp_path, KEPT, stop_at=waited + 1) == 143
    with pytest.raises(UserError, match=f"up to step {waited} it waited for 2 evaluations in a ro"):
        run(tmp_path, KEPT | {"train.patience": "2"})
    assert run(tmp_path, KEPT | PATIENT) == 0
    assert same_end(tmp_path, early)


@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        (PATIENT, {"train.patience": "2"}, r"waited for 3 evaluations.*\n  train\.patience: 3 th"),
        (PATIENT, PATIENT | {"eval.every": "8"}, r"eval\.every: 4 there, 8 now"),
        (PATIENT, {"eval.every": "8"}, r"eval\.every: 4 there, 8 now"),
        (PATIENT, PATIENT | KEPT, r"checkpoint\.keep_best: False there, True now"),
        (PATIENT, PATIENT | {"checkpoint.metric": "val/loss"}, r"checkpoint\.metric: 'val/acc"),
        ({"train.steps": "8"}, {"train.steps": "8"} | PATIENT, "up to step 8 chose nothing"),
        (
            *(KEPT | {"train.steps": "9"}, KEPT | {"train.steps": "12"}),
            r"\(step 9 was evaluated as the last, and would not be\):\n  train\.steps: 9 there, 12",
        ),
    ],
)
def test_a_change_of_what_was_chosen_is_refused(
    first: dict[str, str], then: dict[str, str], named: str, tmp_path: Path
) -> None:
    run(tmp_path, first)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(UserError, match=named):
        run(tmp_path, then)
    assert {f: f.read_bytes() for f in before} == before


def test_where_nothing_is_chosen_evaluations_may_change(tmp_path: Path) -> None:
    assert run(tmp_path, {"train.steps": "8"}) == 0
    assert run(tmp_path, {"train.steps": "16", "eval.every": "5"}) == 0
    assert list(curve(tmp_path, "val/loss")) == [4, 8, 10, 15, 16]
