"""A disk that fails at any system call: one message, a state that loads, and the same end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.failing import KINDS, Attempt, attempts, compile_shim
from helpers.files import read_metrics, weights_of
from helpers.patches import before_step
from helpers.training import train_tiny

from seqclf.errors import UserError
from seqclf.run.files import FileEntry, append_line, write_file
from seqclf.run.metrics_log import MetricsLog


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = compile_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("needs gcc, on Linux")
    return library


def messages(attempt: Attempt) -> list[str]:
    lines = attempt.text.splitlines()
    return [line for line in lines if re.match(r"warning: |error: ", line)]


def what_is_wrong(attempt: Attempt, *, lasting: bool) -> list[str]:
    """Return what a run and the same command after it did wrong."""
    said = messages(attempt)
    wrong = []
    if "Traceback" in attempt.text + attempt.text_after:
        wrong.append("a traceback")
    if attempt.exit_code not in (0, 2):
        wrong.append(f"exit code {attempt.exit_code}")
    if attempt.exit_code == 2 and not any(line.startswith("error: ") for line in said):
        wrong.append("no message")
    if not lasting and len(said) > 1:
        wrong.append("more than one message")
    if attempt.loads:
        wrong.append(f"what is left does not load: {attempt.loads}")
    if not attempt.ends_alike:
        wrong.append(f"another end; the second exit code is {attempt.exit_code_after}")
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [(), ("resumed",), ("lasting",)], ids=" ".join)
def test_every_call_of_a_kind_may_fail(
    kind: str, mode: tuple[str, ...], shim: Path, tmp_path: Path
) -> None:
    tried = attempts(shim, tmp_path, kind, *mode)
    assert tried
    wrong = {
        f"{attempt.number} {attempt.path}": [problems, messages(attempt)]
        for attempt in tried
        if (problems := what_is_wrong(attempt, lasting="lasting" in mode))
    }
    assert wrong == {}


# ---- the best step


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_best_step_that_could_not_be_saved_is_tried_again(
    patience: int | None,
    failures: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {
        "data.val_fraction": 0.1,
        "train.steps": 24,
        "eval.every": 4,
        "log.every": 4,
        "checkpoint.every": 2,
        "checkpoint.keep_best": True,
        "train.patience": patience,
        "optim.lr": 0.05,
    }
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert train_tiny(straight, settings) == 0
    best = next(line["step"] for line in reversed(read_metrics(straight)) if "test/loss" in line)
    left = failures

    def failing(path: Path, content: bytes) -> FileEntry:
        nonlocal left
        if left and run in path.parents and path.name == "model.safetensors":
            left -= step >= best
            if step >= best:
                raise OSError(5, "Input/output error", str(path))
        return write_file(path, content)

    step = 0

    def count() -> None:
        nonlocal step
        step += 1

    monkeypatch.setattr("seqclf.run.checkpoint.write_file", failing)
    before_step(monkeypatch, dict.fromkeys(range(24), count))
    assert train_tiny(run, settings) == 0
    assert capsys.readouterr().out.count("not saved") == failures
    assert weights_of(run) == weights_of(straight)
    assert read_metrics(run) == read_metrics(straight)


# ---- single files


def test_a_line_of_a_session_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"step": 0}\n{"st')
    append_line(path, '{"step": 1}')
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_an_error_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        log.flush()
    with pytest.raises(OSError, match=r"x\.json"):
        write_file(tmp_path / "x.json", b"")
    log.close()


def test_a_lock_that_the_disk_does_not_know_is_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with pytest.raises(UserError, match=r"cannot write the run directory: No locks available \("):
        train_tiny(tmp_path / "run")
