"""The tables of README and benchmarks/README.md are those of benchmarks/results/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import results


@pytest.mark.parametrize(
    "document", results.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_tables_are_made_of_the_results(document: Path) -> None:
    text = document.read_text()
    assert results.with_tables(text) == text
    shown = [name for name in results.TABLES if f"<!-- {name}: " in text]
    assert len(shown) == text.count("<!-- /")
    for name in shown:
        file = results.FOLDER / f"{results.SOURCES.get(name, name)}.json"
        assert (results.TABLES[name]() if file.exists() else "Not run yet.") in text


def test_a_table_follows_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(results.TABLES, "startup", lambda: "new")
    old = "a\n<!-- startup: benchmarks/results.py -->\nold\n<!-- /startup -->\nb"
    assert results.with_tables(old) == old.replace("old", "new")
