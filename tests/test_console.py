from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.files import read_metrics, read_status, step_dir
from helpers.launching import LIMIT_S, ROOT, as_words, clean_environment, wait_for
from helpers.training import tiny_flags

from seqclf.cli.main import main
from seqclf.console import Console

COLUMNS = 80
TRAINING = {
    "train/loss": 0.00123456,
    "train/lr": 0.00987,
    "train/grad_norm": 1.5,
    "train/examples_per_s": 123_456.7,
}
TEST = {"test/accuracy": 0.98765, "test/loss": 0.0432}


def talk(console: Console) -> None:
    """What a run says, in the order of a run."""
    console.say("device      cpu (no GPU found)")
    console.open(99_990, 100_000)
    console.step()
    console.show(99_991, TEST)
    console.show(99_991, TRAINING)
    console.show(99_992, TRAINING)
    console.close()
    console.say("the result")


def on_a_terminal(
    action: Callable[[], None], monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8"
) -> str:
    """Return what an action writes to a terminal of 80 columns."""
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    with open(terminal, "w", encoding=encoding, errors="replace") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        action()
    written = b""
    with suppress(OSError):  # at the end, since nobody holds the terminal any more
        while part := os.read(main_end, 65_536):
            written += part
    os.close(main_end)
    return written.decode(encoding).replace("\r\n", "\n")


def test_a_terminal_shows_a_bar_that_fits_and_lines_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = on_a_terminal(lambda: talk(Console(enabled=True)), monkeypatch)
    drawn = re.split(r"[\r\n]", text)
    assert max(map(len, drawn)) < COLUMNS  # a full line would wrap
    bars = [line for line in drawn if "|" in line]
    assert bars[0].startswith("100% |")
    assert "99990/100000" in bars[0]
    assert bars[-1].endswith("left, loss 0.00123  lr 0.01  test 98.8%  123,457/s")
    assert drawn.count("step  99991/100000  test acc 98.77%  loss 0.0432") == 1
    training = "loss 0.0012  lr 9.87e-03  123,457 examples/s"
    assert drawn.count(f"step  99991/100000  {training}") == 1  # it stays on the terminal
    assert not any("99992/100000  loss" in line for line in drawn)  # not every one of them does
    assert drawn[0] == "device      cpu (no GPU found)"
    assert drawn[-2:] == ["the result", ""]
    assert drawn[-3].strip() == ""  # the bar is gone
    assert "\x1b[3" not in text  # no colour


def test_a_terminal_that_knows_ascii_only_shows_a_bar_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = on_a_terminal(lambda: talk(Console(enabled=True)), monkeypatch, "ascii")
    assert "100% |#" in text
    assert "?/" not in text


def test_elsewhere_every_log_point_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    talk(Console(enabled=True))
    assert capsys.readouterr() == (
        "device      cpu (no GPU found)\n"
        "step  99991/100000  test acc 98.77%  loss 0.0432\n"
        "step  99991/100000  loss 0.0012  lr 9.87e-03  123,457 examples/s\n"
        "step  99992/100000  loss 0.0012  lr 9.87e-03  123,457 examples/s\n"
        "the result\n",
        "",
    )


def test_an_output_that_is_no_file_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        sys, "stdout", SimpleNamespace(write=lambda text: said.append(text), flush=lambda: None)
    )
    talk(Console(enabled=True))
    assert "the result" in said
    monkeypatch.setattr(sys, "stdout", None)
    talk(Console(enabled=True))


def test_an_output_that_python_has_closed_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    talk(Console(enabled=True))


def test_escape_sequences_are_shown_as_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Console(enabled=True).say("run  a\x1b[31m\x07\r\u202eb\nc")
    assert capsys.readouterr().out == "run  a\\x1b[31m\\x07\\r\\u202eb\nc\n"
    assert main(["init", str(tmp_path / "a\x1b[31m.yaml")]) == 0
    assert "a\\x1b[31m.yaml" in capsys.readouterr().out


def test_quiet_is_the_path_of_the_model_and_warnings_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk_in_quiet() -> None:
        console = Console(enabled=True, quiet=True)
        talk(console)
        console.say("a table\nwarning: the clock stands still")
        console.say("stopped by a signal; saved at step 7")
        console.say("the result and more", if_quiet="runs/x/model")

    talk_in_quiet()
    warnings = "warning: the clock stands still\nstopped by a signal; saved at step 7\n"
    assert capsys.readouterr() == ("runs/x/model\n", warnings)
    assert on_a_terminal(talk_in_quiet, monkeypatch) == "runs/x/model\n"


def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    talk(Console(enabled=False))
    assert terminal.getvalue() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_log_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(enabled=True)
    stdout = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stdout)
    talk(console)
    assert not console.enabled
    with pytest.raises(OSError, match="No space left"):
        stdout.close()


def test_a_closed_pipe_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    console = Console(enabled=True)
    stdout = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    talk(console)
    assert not console.enabled
    with pytest.raises(BrokenPipeError):
        stdout.close()


def test_a_notebook_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stdout has neither a file descriptor nor a terminal."""

    class Notebook(io.TextIOBase):
        text = ""

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

    notebook = Notebook()
    monkeypatch.setattr(sys, "stdout", notebook)
    talk(Console(enabled=True))
    assert notebook.text.count("\n") == 5
    assert "\r" not in notebook.text


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-"])
def test_closed_streams_stop_nothing(closed: str, tmp_path: Path) -> None:
    """The numbers of closed streams are free: a file of the run could get one, and C's output."""
    run = tmp_path / "run"
    words = as_words(tiny_flags({"train.steps": 100_000, "log.every": 10}, run_dir=run))
    command = f"exec {shlex.join([sys.executable, 'launch/train.py', *words])} {closed}"
    process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, env=clean_environment())
    try:
        wait_for(lambda: len(read_metrics(run)) > 1)
        process.terminate()
        assert process.wait(LIMIT_S) == 143
    finally:
        process.kill()
        process.wait()
    status = read_status(run)
    assert status.state == "preempted"
    assert (step_dir(run, status.step) / "manifest.json").exists()
    read_metrics(run)
