"""`make gpu`, rehearsed on the CPU: every part runs, a failing one stops no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launching import ROOT, clean_environment

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import prove
import results
import sweep


@pytest.mark.slow
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
