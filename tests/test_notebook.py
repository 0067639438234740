"""docs/train.ipynb is docs/python.md, and it runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from helpers.launching import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the extra dev")
SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))
NOTEBOOK: Path = SCRIPT["NOTEBOOK"]
PAGE = (ROOT / "docs" / "python.md").read_text()


def test_the_notebook_is_that_of_the_page_and_was_run() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert cells == SCRIPT["find_cells"](PAGE)  # else: python docs/make_notebook.py
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("<svg" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert NOTEBOOK.stat().st_size < 500_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    SCRIPT["run"](SCRIPT["make"](PAGE))
    assert not list(tmp_path.iterdir())
