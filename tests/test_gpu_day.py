"""`make gpu`, rehearsed on the CPU: every part runs, a failing one stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers.launching import ROOT, clean_environment

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import prove
import results
import sweep


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute where the cores are free
def test_every_part_runs_small_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "rehearsal.json"
    before = sorted(results.FOLDER.iterdir())
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", str(file)],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing failed" in done.stdout
    assert "REHEARSAL ON A CPU, no figures of a GPU." in done.stdout
    assert "issue" not in done.stdout
    assert sorted(results.FOLDER.iterdir()) == before
    found = json.loads(file.read_text())
    assert "gpu" not in found
    assert found["failed"] == []
    assert "all the same" in found["run_proof"]
    assert len(found["precisions"]) == 12
    assert all(row["accuracy"] >= gpu.LEARNS and row["finite"] for row in found["precisions"])
    assert [row["resident"] for row in found["speeds"]] == [True, False]
    assert all(row["seqclf"] > 0 < row["bare"] for row in found["speeds"])
    assert found["seeds_at_once"]["ratio"] > 0


def test_a_failing_part_stops_no_other_and_is_named_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the card is on fire")

    def leave(*_: object) -> None:
        sys.exit("a long log\nerror: a process failed")

    monkeypatch.setattr(gpu, "program", lambda words: (f"{Path(words[0]).name} broke", 1))
    monkeypatch.setattr(prove, "start_and_wait", leave)
    monkeypatch.setattr(prove, "FLAGS", dict(prove.FLAGS))
    monkeypatch.setattr(sweep, "compare", fail)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 1
    out = capsys.readouterr().out
    # tests, prove, 3 kinds x 2 precisions x 2 places, 2 speeds, seeds
    assert out.endswith("\n17 failed\n")
    for text in ("-m broke", "prove.py broke", "a long log", "the card is on fire"):
        assert text in out
    assert "Failed: tests; prove; images, fp32, resident; " in out


def test_on_a_gpu_all_is_saved_and_the_user_is_told_what_to_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, str]] = []
    saved: dict[str, Any] = {}

    def start(run: Path, size: int, function: object, kill_after_s: float, *args: Any) -> None:
        started.append(args[0])
        if function is gpu.time_rank:
            prove.log_of(run).write_text('a log\n{"seqclf": 1, "bare": 2, "ratio": 2, "blocks": 9}')

    def outcome(run: Path) -> dict[str, Any]:
        asked = next(name for name in ("fp32", "bf16", "fp16") if name in run.name)
        return {"state": "finished", "ran_in": asked, "accuracy": 0.9, "finite": True}

    def compare(common: list[str], **_: int) -> dict[str, Any]:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert "--train.threads" not in common
        return {"seconds": {"at once": 1.0, "one after the other": 3.0}, "ratio": 3.0, "all": {}}

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90000)
    monkeypatch.setattr(prove, "FLAGS", dict(prove.FLAGS))
    monkeypatch.setattr(prove, "start_and_wait", start)
    monkeypatch.setattr(gpu, "outcome", outcome)
    monkeypatch.setattr(sweep, "compare", compare)
    monkeypatch.setattr(gpu, "save", lambda name, found: saved.update({name: found}))
    monkeypatch.setattr(gpu, "program", lambda words: ("all the same\n11 skipped in 1 s", 0))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    out = capsys.readouterr().out
    assert left.value.code == 1  # tests that were skipped did not run
    assert [failure["what"] for failure in saved["gpu"]["failed"]] == ["tests"]
    assert "please open an issue of this repository and attach benchmarks/results/gpu.json" in out
    assert {flags["device"] for flags in started} == {"cuda"}
    assert prove.FLAGS["deterministic"] == "true"
    assert len(saved["gpu"]["precisions"]) == len(saved["gpu"]["speeds"]) == 18
    monkeypatch.setattr(results, "load", lambda name: saved[name])
    table = results.gpu_table()
    assert "| images | fp16 | streamed | 90.0 % | yes |" in table
    assert "| 1024 | 4096 | streamed | 1 | 2 | 2.000 |" in table
    assert "1.0 s at once, 3.0 s one after the other, 3.00 times as fast" in table
    assert "Failed: tests. Speed: medians of 9 / " in table
    assert "cuDNN 90000" in table


def test_the_time_between_cuda_events_is_in_seconds() -> None:
    start, end = Mock(), Mock()
    start.elapsed_time.side_effect = lambda other: 1500.0 if other is end else None
    assert results.seconds(start, end) == 1.5
    end.synchronize.assert_called_once()


def test_a_run_that_does_not_learn_fails() -> None:
    good = {"state": "finished", "accuracy": 0.9, "finite": True, "ran_in": "fp16"}
    gpu.check(good, expected="fp16")
    gpu.check(good | {"ran_in": "fp32"}, expected=None)
    bad: tuple[tuple[dict[str, Any], str], ...] = (
        ({"state": "running"}, "running, not finished"),
        ({"accuracy": 0.7}, "a test accuracy of 0.7, below 0.8"),
        ({"accuracy": None}, "a test accuracy of None, below 0.8"),
        ({"finite": False}, "a loss was not finite"),
        ({"ran_in": "fp32"}, "ran in fp32"),
    )
    for change, text in bad:
        with pytest.raises(RuntimeError, match=f"^{text}$"):
            gpu.check(good | change, expected="fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("no GPU: torch ")


def test_figures_of_a_cpu_are_no_table_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results.about(cpu_only=True) | {
        "run_tests": "12 passed",
        "precisions": [],
        "speeds": [],
        "seeds_at_once": {},
        "failed": [],
    }
    monkeypatch.setattr(results, "load", lambda name: found)
    with pytest.raises(ValueError, match="was not made on a GPU"):
        results.gpu_table()
    found["gpu"] = "a GPU"
    assert "REHEARSAL" not in results.gpu_table()
    assert "a GPU, " in results.gpu_table()
