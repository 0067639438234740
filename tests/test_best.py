"""Early stopping and best weights: the decisions, the result, and both after any interruption."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
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

from seqclf.cli.predicting import evaluate_run
from seqclf.config.load import load_config
from seqclf.config.settings import Config
from seqclf.data import sources
from seqclf.errors import UserError
from seqclf.evaluate import Metrics
from seqclf.run.checkpoint import checkpoint_directories, commit_checkpoint, step_of
from seqclf.settle import settle

Settings = Mapping[str, object]

NUM_STEPS, EVERY, DECAY_STEPS = 120, 4, 12
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
CHOOSING = {**KEPT, "train.steps": 76}  # which is best some steps before its last
METRICS = ("val/accuracy", "val/macro_f1", "val/loss")


def decide(run_dir: Path, metric: str, patience: float) -> tuple[int, int]:
    """Return the best step and the last one by what the settings say, in another way than a run.

    The patience runs out at the first evaluation at which the latest `patience` hold nothing better
    than those before them. The run ends a tenth of its steps later.
    """
    losses = logged(run_dir, "val/loss")
    sign = -1 if metric == "val/loss" else 1
    values = {s: (sign * value, -losses[s]) for s, value in logged(run_dir, metric).items()}
    steps = list(values)
    end = steps[-1]
    for number, step in enumerate(steps, 1):
        if number > patience:
            before, latest = steps[: number - int(patience)], steps[number - int(patience) : number]
            if max(values[s] for s in latest) <= max(values[s] for s in before):
                end = min(NUM_STEPS, step + DECAY_STEPS)
                break
    best = max(values[s] for s in steps if s <= end)
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


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose result is not its last weights."""
    path = tmp_path_factory.mktemp("runs") / "choosing"
    assert train_tiny(path, CHOOSING) == 0
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


def test_a_branch_takes_the_best_weights_along(choosing: Path, tmp_path: Path) -> None:
    steps = [step_of(path) for path in checkpoint_directories(choosing / "checkpoints")]
    assert len(steps) == 2  # the last, and the best before it
    assert train_tiny(tmp_path / "branch", CHOOSING, resume=choosing) == 0
    assert same_end(tmp_path / "branch", choosing)


@pytest.mark.parametrize("metric", METRICS)
def test_it_ends_and_chooses_as_the_figures_say(
    metric: str, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path, PATIENT, checkpoint__metric=metric, log__every=1) == 0
    best, end = decide(tmp_path, metric, 3)
    stop = end - DECAY_STEPS
    assert EVERY < best <= end < NUM_STEPS
    values = logged(tmp_path, metric)
    assert list(values)[-1] == end
    assert {s: v for s, v in values.items() if s <= stop} == {
        s: v for s, v in logged(full, metric).items() if s <= stop
    }
    rates = logged(tmp_path, "train/lr")
    assert {rates[s] for s in range(1, stop + 1)} == {0.1}
    falling = [0.1 * (DECAY_STEPS - n) / DECAY_STEPS for n in range(DECAY_STEPS)]
    assert [rates[s] for s in range(stop + 1, end + 1)] == pytest.approx(falling)
    check_result(tmp_path, best, end)
    out = capsys.readouterr().out
    ended = f"ended       at step {end} of 120: 3 evaluations in a row up to step {stop} had no"
    assert ended in out
    form = "{:.2%}" if metric == "val/accuracy" else "{:.4f}"
    assert f"best        step {best}: {metric} {form.format(values[best])}\n" in out
    assert f"val   {values[best]:7.2%} " in out or metric != "val/accuracy"


def test_patience_may_be_a_share_of_the_run(early: Path, tmp_path: Path) -> None:
    assert train_tiny(tmp_path, PATIENT, train__patience=3 * EVERY / NUM_STEPS) == 0
    assert same_end(tmp_path, early)


@pytest.mark.parametrize("keep_best", [False, True])
def test_few_validation_examples_choose_no_weights(
    keep_best: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They only wait, unless the config itself asks for the best."""
    settings = {**SETTINGS, "data.val_fraction": 0.02, "train.steps": 100}
    settings["checkpoint.keep_best"] = keep_best
    assert train_tiny(tmp_path, settings, train__patience=9) == 0
    end = "" if keep_best else ", and the last weights are the result"
    said = f"weighs 3.3%: so train.patience waits for 15 evaluations{end}; hold out 50 or more\n"
    assert f"note        one of the 30 validation examples {said}" in capsys.readouterr().out
    best, last = decide(tmp_path, "val/accuracy", 15)
    assert best < last == read_status(tmp_path).step
    check_result(tmp_path, best if keep_best else last, last)


def test_without_patience_few_validation_examples_need_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SETTINGS, "data.val_fraction": 0.02, "train.steps": 8}
    assert train_tiny(tmp_path, settings) == 0
    assert "validation examples weighs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "patience", "waits"),
    [
        (143, 3, 3),
        (50, 3, 3),
        (49, 3, 4),
        (10, 3, 15),
        (1, 1, 50),
        (8, 0.25, 32),
        (60, 0.25, 5),
        (8, None, math.inf),
    ],
)
def test_few_validation_examples_have_to_agree_for_longer(
    count: int, patience: float | None, waits: float
) -> None:
    settings: dict[str, object] = {"data": {"name": "digits"}, "eval": {"every": 100}}
    settings["train"] = {"steps": 2000, "patience": patience}
    config = Config.model_validate(settings)
    splits = sources.load(config.data, seed=0)
    setup = settle(config, replace(splits, validation=splits.train.first(count)))
    assert setup.patience == waits


def test_a_gain_of_one_example_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "note        one of the 287 validation examples weighs 0.35%: the last step may be as"
    for gain, is_said in ((2, False), (1, True), (0, False)):
        hits = iter([150 + gain, 150, 150])  # of two evaluations, and of the test split

        def evaluate(*_: object, hits: Iterator[int] = hits, **__: object) -> Metrics:
            confusion = torch.zeros(10, 10, dtype=torch.int64)
            confusion[0, 0] = next(hits)
            confusion[0, 1] = 287 - confusion[0, 0]
            return Metrics(1.0, confusion)

        with monkeypatch.context() as patch:
            patch.setattr("seqclf.training.evaluate", evaluate)
            assert train_tiny(tmp_path / str(gain), {**KEPT, "train.steps": 8}) == 0
        assert (note in capsys.readouterr().out) == is_said


def test_without_patience_the_best_is_kept_beside_the_last(choosing: Path) -> None:
    best, end = decide(choosing, "val/accuracy", math.inf)
    assert best < end
    kept = [step_of(path) for path in checkpoint_directories(choosing / "checkpoints")]
    assert kept == [end, best]  # keep_last is 1
    check_result(choosing, best, end)


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


@pytest.mark.slow
def test_two_processes_decide_alike(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_ranks(2, train_on_rank, straight, IMPATIENT)
    best, end = decide(straight, "val/accuracy", 1)
    assert (read_status(straight).step, weights_of(straight)) == (end, weights_of(straight, best))
    (code, _), _ = run_ranks(2, train_on_rank, broken, IMPATIENT, stop_at=end - 5)
    assert code == 143
    run_ranks(2, train_on_rank, broken, IMPATIENT)
    assert same_end(broken, straight)
    again = evaluate_run(load_config(straight / "config.yaml")[0], straight)
    assert again == pytest.approx(read_status(straight).metrics, rel=1e-6)


@pytest.mark.parametrize("writes", range(7))
def test_killed_between_the_last_writes_it_does_them_again(
    writes: int, early: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "status.json").unlink()  # of what was killed before its end
    shutil.rmtree(copy / "model")
    die_at_write(monkeypatch, 3 + writes)  # status.json, run.json and config.yaml at the start
    if writes < 6:
        with pytest.raises(KeyboardInterrupt):
            train_tiny(copy, PATIENT)
        monkeypatch.undo()
    assert train_tiny(copy, PATIENT) == 0
    assert same_end(copy, early)


SHORT = {**KEPT, "train.steps": 60}


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 7])  # 3 to 6 are of the first checkpoint
def test_a_finished_run_killed_as_it_goes_on_is_not_finished(
    writes: int, full: Path, tmp_path: Path
) -> None:
    assert train_tiny(tmp_path, SHORT) == 0
    with pytest.MonkeyPatch.context() as patch:
        die_at_write(patch, writes)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path, KEPT)
    assert train_tiny(tmp_path, KEPT) == 0
    assert same_end(tmp_path, full)


# ---- a best that is not there


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_damaged_best_is_named_and_the_last_weights_are_the_result(
    world_size: int, choosing: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(choosing, tmp_path / "copy"))
    best, end = (
        int(line["step"]) for line in (read_metrics(choosing)[-1], read_metrics(choosing)[-2])
    )
    file = step_dir(copy, best) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (copy / "status.json").unlink()
    answers = run_ranks(world_size, train_on_rank, copy, CHOOSING)
    assert [code for code, _ in answers] == [0] * world_size
    warning = f"warning: the result is the last weights, not the best: {file}: damaged"
    assert [said.count(warning) for _, said in answers] == [1, 0][:world_size]
    check_result(copy, end, end)
    file.write_bytes(content)  # what docs/troubleshooting.md says
    (copy / "status.json").unlink()
    assert train_tiny(copy, CHOOSING) == 0
    assert same_end(copy, choosing)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_best_that_could_not_be_saved_is_still_the_result(
    resumed: bool,
    choosing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = logged(choosing, "val/accuracy")
    best = int(read_metrics(choosing)[-1]["step"])
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
    assert weights_of(tmp_path) == weights_of(choosing, best)
    assert read_status(tmp_path).metrics["val/accuracy"] == values[best]


def test_nothing_but_nan_ends_with_the_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Metrics(math.nan, torch.eye(10, dtype=torch.int64))
    monkeypatch.setattr("seqclf.training.evaluate", lambda *_, **__: nothing)
    settings = {**PATIENT, "checkpoint.metric": "val/loss"}
    assert train_tiny(tmp_path, settings, stop_at=2 * EVERY) == 143
    assert train_tiny(tmp_path, settings) == 0
    status = read_status(tmp_path)
    assert (status.state, status.step) == ("finished", 3 * EVERY + DECAY_STEPS)
    assert "not the best: no evaluation with a val/loss that is a" in capsys.readouterr().out
    assert weights_of(tmp_path) == weights_of(tmp_path, 3 * EVERY + DECAY_STEPS)


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


OTHER_ENDS = [
    {"train.patience": 5},
    {"train.patience": None},
    {"train.patience": 3, "train.steps": NUM_STEPS + 20},
]


@pytest.mark.parametrize("changes", OTHER_ENDS)
def test_what_no_decay_has_reached_may_change(changes: Settings, tmp_path: Path) -> None:
    settings = {**SETTINGS, "checkpoint.keep_best": True, **changes}
    assert train_tiny(tmp_path / "x", {**KEPT, "train.patience": 3}, stop_at=9) == 143
    assert train_tiny(tmp_path / "x", settings) == 0
    assert train_tiny(tmp_path / "straight", settings) == 0
    assert same_end(tmp_path / "x", tmp_path / "straight")


@pytest.mark.parametrize("changes", OTHER_ENDS)
def test_after_a_decay_the_run_has_ended(changes: Settings, copy: Path) -> None:
    before = files_in(copy)
    begin = read_status(copy).step - DECAY_STEPS
    with pytest.raises(UserError, match=f"the rate falls since step {begin}, because the patience"):
        train_tiny(copy, {**SETTINGS, **changes})
    assert files_in(copy) == before


def test_a_patience_that_no_wait_has_reached_may_come_later(early: Path, tmp_path: Path) -> None:
    waited = read_status(early).step - DECAY_STEPS - EVERY
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
            r"the rate falls since step \d+, .*\n  train\.patience: 3 th",
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
