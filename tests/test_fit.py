"""seqclf.train: the weights of the command line, in a process that stays as it was."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers.data import toy_rows, write_rows
from helpers.patches import before_step, watch_steps
from helpers.process import take_snapshot
from tqdm import tqdm as std_bar

import seqclf
from seqclf import Result, UserError
from seqclf.cli.main import main
from seqclf.config.load import load_config
from seqclf.data.prepare import Input, Preparation, prepare
from seqclf.data.readers.rows import ReadOptions
from seqclf.run.checkpoint import MODEL_FILE
from seqclf.training import train as train_run

SETTINGS: dict[str, object] = {"train.steps": 12, "train.threads": 1, "model.hidden_size": 8}
ROWS = toy_rows(90)
X = [np.array(row["steps"]) for row in ROWS]
Y = [row["label"] for row in ROWS]
WORDS = [[f"w{round(abs(step[0])) % 4}" for step in values] for values in X]
TEXTS = [" ".join(words) for words in WORDS]
Data = tuple[Any, Any]
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:(test accuracy|the model names every)"
    ),  # of models that hardly trained
    pytest.mark.filterwarnings("ignore:.* shorter than a window"),
]


def fit(train: Data = (X[:60], Y[:60]), **options: Any) -> Result:
    return seqclf.train(SETTINGS | options.pop("settings", {}), train=train, **options)


def interrupt() -> None:
    """Send a Ctrl-C, and let the main thread, which alone receives it, run."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)


def weights(result: Result, folder: Path) -> bytes:
    result.model.save(folder)
    return (folder / MODEL_FILE).read_bytes()


def refusal(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        fit(**options)
    return str(caught.value)


def train_by_command(
    folder: Path, rows: list[dict[str, Any]], options: Preparation, **flags: str
) -> Path:
    """Prepare files of the first 60 rows and of the others, train, and return the run directory."""
    inputs = [
        Input(write_rows(folder / "train.jsonl", rows[:60]), "train"),
        Input(write_rows(folder / "test.jsonl", rows[60:]), "test"),
    ]
    prepare(inputs, folder / "data", options, print)
    names = {name: str(value) for name, value in SETTINGS.items()}
    names |= {"data.path": str(folder / "data"), "run_dir": str(folder / "run")} | flags
    config, _ = load_config("files", names | {"tracking.wandb": "disabled", "report": "false"})
    assert train_run(config) == 0
    return folder / "run"


FORMS: dict[str, tuple[Any, str, Preparation, dict[str, Any]]] = {
    "numbers": (X, "steps", Preparation(), {}),
    "one number": ([x[:, 0] for x in X], "steps", Preparation(), {}),
    "far from zero": ([x + 1e9 for x in X], "steps", Preparation(), {}),
    "words": (WORDS, "tokens", Preparation(ReadOptions(tokens="tokens")), {}),
    "texts": (TEXTS, "text", Preparation(ReadOptions(text="text")), {}),
    "windows": (X, "steps", Preparation(window=4, stride=2), {"window": 4, "stride": 2}),
    "gaps": (
        [np.where(x > 2, np.nan, x) for x in X],
        "steps",
        Preparation(ReadOptions(fill_missing=True)),
        {"fill_missing": True},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_of_the_command_line(form: str, tmp_path: Path) -> None:
    values, key, preparation, options = FORMS[form]
    rows = [
        {key: one.tolist() if isinstance(one, np.ndarray) else one, "label": label}
        for one, label in zip(values, Y, strict=True)
    ]
    text = json.dumps(rows).replace("NaN", "null")
    run = train_by_command(tmp_path, json.loads(text), preparation, **{"data.val_fraction": "0.2"})
    test = (values[60:], Y[60:])
    result = fit((values[:60], Y[:60]), test=test, validation=0.2, **options)
    assert weights(result, tmp_path / "saved") == (run / "model" / MODEL_FILE).read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def measured(history: list[Any]) -> list[Any]:
        return [line for line in history if "test/loss" in line or "val/loss" in line]

    assert measured(result.history) == measured(lines) != []
    assert result.metrics["test/accuracy"] == lines[-1]["test/accuracy"]
    predictions = result.model.predict(values[60:])
    if not preparation.window:
        accuracy = np.mean(predictions == np.array(Y[60:]))
        assert accuracy == pytest.approx(result.metrics["test/accuracy"])
    else:  # which is measured by window
        assert set(predictions) <= {"up", "down"}


def test_evaluations_change_no_weight_and_neither_does_where_a_run_is_kept(tmp_path: Path) -> None:
    alone = fit(run_dir=tmp_path / "kept", settings={"tracking.wandb": "disabled", "report": False})
    measured = fit(test=(X[60:], Y[60:]), validation=(X[70:], Y[70:]))
    assert weights(alone, tmp_path / "a") == weights(measured, tmp_path / "b")
    assert (alone.metrics, alone.evaluations, alone.path) == ({}, {}, tmp_path / "kept")
    assert measured.path is None
    assert {*measured.evaluations} == {"val", "test"}
    assert sum(map(sum, measured.evaluations["test"].confusion)) == 30


def test_a_run_that_is_kept_goes_on_and_keeps_its_data(tmp_path: Path) -> None:
    options: dict[str, Any] = {"run_dir": tmp_path / "run", "test": (X[60:], Y[60:])}
    kept = {"tracking.wandb": "disabled", "report": False, "checkpoint.every": 4}
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, {6: interrupt})
        with pytest.raises(KeyboardInterrupt):
            fit(settings=kept, **options)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted"
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        watch_steps(patch, lambda batch: steps.append(batch.step))
        resumed = fit(settings=kept, **options)
    assert steps[0] == status["step"] < 12  # it had saved where the signal found it
    assert weights(resumed, tmp_path / "a") == weights(fit(), tmp_path / "b")
    config, _ = load_config(tmp_path / "run" / "config.yaml", {"run_dir": str(tmp_path / "run")})
    assert train_run(config) == 0  # there is nothing to do, and its data are found
    assert "holds a run on other data" in refusal(
        train=(X[:50], Y[:50]), settings=kept, run_dir=tmp_path / "run"
    )
    assert "no run of seqclf, and not empty" in refusal(settings=kept, run_dir=tmp_path)


def test_a_run_without_test_examples_is_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"tracking.wandb": "disabled"}
    fit(settings=kept, run_dir=tmp_path / "alone")
    fit(settings=kept, run_dir=tmp_path / "watched", validation=0.2)
    alone, watched = (
        (tmp_path / name / "report.html").read_text() for name in ("alone", "watched")
    )
    assert " split, step" not in alone
    assert "Validation split, step" in watched
    assert "Test split, step" not in watched
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "watched")]) == 0
    assert "val/accuracy" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "alone")]) == 2
    assert "have no examples to measure it with" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "alone")]) == 2
    assert "--split test: the data of" in capsys.readouterr().err
    both = [str(tmp_path / "alone"), str(tmp_path / "watched")]
    assert main(["report", *both, "--out", str(tmp_path / "both.html")]) == 0
    assert main(["runs", str(tmp_path)]) == 0


# ---- the process


@pytest.fixture
def strange_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process in which a user has set everything to something unusual."""
    fit()  # what is imported at first use is imported
    before = torch.get_num_threads(), random.getstate(), np.random.get_state()
    handler = signal.getsignal(signal.SIGTERM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True, warn_only=True)
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        signal.signal(signal.SIGTERM, lambda *_: None)
        Accelerator(cpu=True, gradient_accumulation_steps=3)
        yield
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
    torch.set_num_threads(before[0])
    random.setstate(before[1])
    np.random.set_state(before[2])
    signal.signal(signal.SIGTERM, handler)
    AcceleratorState._reset_state(reset_partial_state=True)


def fail() -> None:
    raise RuntimeError("in the middle")


@pytest.mark.usefixtures("strange_process")
@pytest.mark.parametrize(
    ("action", "error"),
    [
        (None, None),
        (fail, RuntimeError),
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
    ],
    ids=["whole", "failing", "interrupted"],
)
def test_the_process_stays_as_it_was(
    action: Any, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # other tests fit at the same time
    before = take_snapshot()
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, {5: action} if action else {})
        if error is None:
            fit(settings={"deterministic": True}, validation=0.1)
        else:
            with pytest.raises(error):
                fit(settings={"train.threads": 2, "deterministic": True})
    assert take_snapshot() == before


@pytest.mark.usefixtures("strange_process")
def test_a_strange_process_trains_the_same_weights(tmp_path: Path) -> None:
    with torch.inference_mode():
        strange = weights(fit(), tmp_path / "strange")
    torch.set_default_dtype(torch.float32)
    assert weights(fit(), tmp_path / "usual") == strange


def test_a_refusal_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fit()
    before = take_snapshot()
    refusal(train=([*X[:59], X[0][:, :2]], Y[:60]))
    refusal(settings={"model.hidden_size": 2**20})
    assert take_snapshot() == before


def test_fits_in_threads_take_turns(tmp_path: Path) -> None:
    def one(number: int) -> bytes:
        seeded = {"seed": number % 2, "model.dropout": 0.5}
        return weights(fit(settings=seeded), tmp_path / str(number))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    assert found[0] == found[2] != found[1] == found[3]
    assert found == [one(4), one(5)] * 2


def test_an_exception_of_a_handler_waits_for_the_training(tmp_path: Path) -> None:
    class TookTooLongError(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise TookTooLongError

    handler = signal.signal(signal.SIGALRM, raise_it)
    try:
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, {5: lambda: os.kill(os.getpid(), signal.SIGALRM)})
            with pytest.raises(TookTooLongError):
                fit()
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert not any(thread.name == "seqclf" for thread in threading.enumerate())
    fit()


def test_one_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refusal()
    assert "train in one process, and this is one of a launcher's group" in message
    assert "\n" not in message


def test_a_warning_of_the_run_is_a_warning_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("seqclf.run.saves.commit_checkpoint", full)
    with pytest.warns(UserWarning, match="checkpoint of step 12 not saved: no room"):
        fit()


def test_the_import_is_light_and_the_name_is_the_function() -> None:
    code = (
        "import sys, seqclf; assert 'torch' not in sys.modules; import seqclf.training; "
        "assert callable(seqclf.train); from seqclf import train; assert train is seqclf.train; "
        "assert seqclf.SequenceClassifier().get_params()['lr'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verbose_says_as_much_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (0, 1):
        fit(verbose=verbose)
        assert capsys.readouterr() == ("", "")
    fit(verbose=2, test=(X[60:], Y[60:]))
    said = capsys.readouterr().out
    assert "data        data: 60 train, 30 test" in said
    assert "threads     1 (train.threads" in said
    assert "note        no example is in val" in said


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": (X[:3], Y[:2])}, "train X and y: 3 or more sequences, 2 labels; give as many"),
        ({"train": (X[:2], Y[:3])}, "train X and y: 2 sequences, 3 labels; give as many"),
        (
            {"train": X[:3]},
            "train: a list, where a pair (X, y) of sequences and labels is expected",
        ),
        ({"train": ([], [])}, "train X: no sequence"),
        ({"train": (X, "updown")}, "train y: a str, where a list of labels is expected"),
        ({"train": (X[:2], ["up", None])}, "train y[1]: no label"),
        ({"train": (X[:2], ["up", ["x"]])}, "train y[1]: label: a list, expected a text or a num"),
        ({"train": (X[:9], ["up"] * 9)}, "train y: one class alone, 'up'"),
        ({"train": (X, range(90))}, "train y: 90 different labels, of which 90 have one example"),
        (
            {"train": ([*X[:2], X[3][:, :2]], ["a", "b", "a"])},
            "train X[2]: 2 features, where rows before have 3",
        ),
        (
            {"train": ([X[0], [[1, np.inf, 0]]], ["a", "b"])},
            "train X[1][0, 1]: inf is not finite; training reads arrays [T, 3] of T steps",
        ),
        (
            {"train": ([X[0], [[1, np.nan, 0]]], ["a", "b"])},
            "train X[1][0, 1]: a missing value (NaN); fill_missing=True fills it from its neigh",
        ),
        (
            {"train": ([X[14], X[14].T], ["a", "b"])},
            "train X[1]: shape (3, 15): is it features x steps? give its transpose",
        ),
        ({"train": (["text", 5], ["a", "b"])}, "train X[1]: a int, where a text is expected"),
        ({"train": ("text", ["a"])}, "train X: one text, where a list of sequences is expected"),
        ({"train": (7, ["a", "b"])}, "train X: a int, where sequences are expected"),
        (
            {"train": (np.zeros((4, 5, 6, 3)), ["a", "b"] * 2)},
            "train X: one array of shape (4, 5, 6, 3), where sequences [N, T, F] are expected",
        ),
        ({"test": (X[:2], ["up", "dwon"])}, "test y[1]: label 'dwon', which no training example"),
        (
            {"validation": ([x[:, :2] for x in X[:2]], ["up", "down"])},
            "validation X[0]: 2 features, where rows before have 3",
        ),
        ({"validation": 0.7}, "settings: data.val_fraction: must be less than or equal to 0.5"),
        ({"settings": {"train.patience": 3}}, "needs validation examples to choose by"),
        ({"settings": {"optim.lrr": 3}}, "settings: optim.lrr: unknown key; did you mean 'lr'?"),
        ({"settings": {"optm.lr": 3}}, "settings: optm.lr: unknown key; did you mean"),
        ({"settings": {"report": True}}, "report: True: needs run_dir: without it nothing is kept"),
        ({"settings": {"data.path": "x"}}, "data.path: x: the data are those of `train`"),
        ({"settings": {"data.read": "pixels"}}, "data.read: pixels contradicts data.path"),
        ({"settings": {"data.augment.shift": 1}}, "data.augment.shift: 1 contradicts data.path"),
        ({"stride": 2}, "stride: 2: needs window"),
        ({"window": 0}, "window: 0: must be at least 1"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    assert message in refusal(**options)


def test_a_config_or_a_recipe_may_say_the_settings(tmp_path: Path) -> None:
    config, _ = load_config("files", {"data.path": "x", **{k: str(v) for k, v in SETTINGS.items()}})
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": None})})
    by_config = seqclf.train(config, train=(X[:60], Y[:60]))
    assert weights(by_config, tmp_path / "a") == weights(fit(), tmp_path / "b")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("train: {steps: 3, threads: 1}\n")
    assert seqclf.train(recipe, train=(X[:60], Y[:60])).history[-1]["step"] == 3
    with pytest.raises(UserError, match="recipes that come with seqclf"):
        seqclf.train("fils", train=(X, Y))


def test_numbers_of_numpy_are_settings() -> None:
    assert fit(settings={"optim.lr": np.float32(0.5), "train.steps": np.int64(2)}).history


def test_nothing_to_keep_may_be_said_without_a_directory() -> None:
    assert fit(settings={"report": False, "tracking.wandb": "disabled"}).history


def test_images_are_sequences_of_their_rows() -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8)).astype(np.uint8)
    result = fit((images, np.arange(40) % 2))
    assert "arrays [T, 8] of T steps" in result.model.summary()
    assert result.model.predict_proba(images).shape == (40, 2)


@pytest.mark.filterwarnings("error")
def test_no_warning_is_shown() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(validation=0.2)


def test_a_result_draws_itself_in_a_notebook() -> None:
    names = ["<script>up</script>" if label == "up" else "d&wn" for label in Y]
    result = fit((X[:60], names[:60]), test=(X[60:], names[60:]), validation=0.2)
    shown = result._repr_html_() + result.model._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "d&amp;wn" in shown
    # The confusion matrix of test, and the loss; a picture of a mistake is a series.
    assert shown.count("<svg") - shown.count('<svg class="series"') == 2
    accuracy = result.metrics["test/accuracy"]
    assert accuracy is not None
    assert f"{100 * accuracy:.2f} %" in shown
    assert len(set(re.findall(r' id="([^"]+)"', shown))) == len(re.findall(r' id="', shown))
    assert "<table>" in fit()._repr_html_()  # where nothing was measured


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []

    class Bar(std_bar):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            drawn.append(options)
            super().__init__(**options | {"file": io.StringIO()})

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    fit()
    assert [one["total"] for one in drawn] == [12]
    fit(verbose=0)
    assert len(drawn) == 1
