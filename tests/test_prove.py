"""make prove, in small: what it finds the same is the same, and a changed byte is found."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from helpers.launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import prove


@pytest.mark.slow
def test_it_shows_what_is_the_same_and_finds_a_byte_that_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = prove.prove(tmp_path, random.Random(0), steps=120, kills=1, sizes=(2,))
    straight = runs[prove.STRAIGHT]
    assert set(prove.outcome(straight)) >= {"weights", "moments", "metrics"}
    assert prove.compare(runs)
    assert prove.count(straight, 2)
    printed = capsys.readouterr().out
    assert printed.count("SIGKILL") >= 3
    assert "flipped bit" in printed
    assert "359 of 359" in printed

    status = straight / "status.json"
    status.write_text(status.read_text().replace('"test/loss": ', '"test/loss": 1'))
    assert not prove.count(straight, 2)
    for name, old, new in (
        ("model/model.safetensors", b"out.bias", b"out.bjas"),
        ("metrics.jsonl", b'"step": 100', b'"step": 101'),
    ):
        file = runs["2 processes, straight"] / name
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new))
        assert not prove.compare(runs)
        file.write_bytes(content)
    assert prove.compare(runs)
