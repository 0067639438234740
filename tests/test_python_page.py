"""The blocks of docs/python.md run, one after the other, and print what the page shows."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.commands import train
from helpers.launching import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.slow
def test_the_page_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        f"{i},{t},{i % 2 + t / 10},{8 + t},{'ab'[i % 2]}"
        for i in range(60)
        for t in range(1 + i % 5)
    ]
    for name in ("recordings", "new"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["recording,t,x,y,label", *lines]))
    run = train(tmp_path, tmp_path / "recordings.csv", "--id", "recording", "--time", "t")
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "mine")
    shutil.copytree(tmp_path / "runs" / "mine", tmp_path / "runs" / "one-way")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    capsys.readouterr()
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/python.md", "exec"), names)
        elif language == "py":  # needs a library that may not be here
            library = "aeon" if "aeon" in block else "sktime"
            if find_spec(library) is not None:
                exec(compile(block, "docs/python.md", "exec"), {})
        elif language != "sh":  # tests/test_docs.py runs commands
            assert language == ""
            assert capsys.readouterr().out.endswith(block)
    assert sum(language == "python" for language, _ in BLOCKS) >= 6
    assert {"classifier", "metrics", "found", "ids"} <= names.keys()
