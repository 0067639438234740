"""Write docs/train.ipynb: two sections of docs/python.md as a notebook, run from the top.

python docs/make_notebook.py
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
NOTEBOOK = DOCS / "train.ipynb"
SECTIONS = ("Train", "scikit-learn")


def find_cells(page: str) -> list[tuple[str, str]]:
    """Return (kind, source) of each cell, in the order of the page."""
    cells = [("markdown", "# From Python\n\nMade of docs/python.md by docs/make_notebook.py.")]
    for title in SECTIONS:
        section = page[page.index(f"## {title}\n") :]
        section = section[: section.find("\n## ", 1)]
        for index, text in enumerate(re.split(r"```python\n(.*?)```\n", section, flags=re.S)):
            if text.strip():
                cells.append(("code" if index % 2 else "markdown", text.strip()))
    return cells


def make(page: str) -> nbformat.NotebookNode:
    """Return the notebook, not yet run."""
    notebook: nbformat.NotebookNode = nbformat.v4.new_notebook()
    for number, (kind, source) in enumerate(find_cells(page)):
        new_cell = getattr(nbformat.v4, f"new_{kind}_cell")
        notebook.cells.append(new_cell(source, id=f"cell-{number}"))
    return notebook


def run(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in an empty folder; raise what a cell raises."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what is left of progress bars says nothing
            cell.outputs = [one for one in cell.outputs if one.output_type != "stream"]


if __name__ == "__main__":
    notebook = make((DOCS / "python.md").read_text(encoding="utf-8"))
    run(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"wrote {NOTEBOOK}")
