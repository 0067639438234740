"""The tables of README and benchmarks/README.md are those of benchmarks/results/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import archive
import peers
import results
import scaling


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


def test_results_are_whole() -> None:
    found = results.load("peers")
    names = {*(rival.name for rival in peers.RIVALS), *peers.OURS}
    assert set(found["found"]) | set(found["lacking"]) == names
    assert all(of["n"] == found["rounds"] for of in found["found"].values())
    measured = [row["set"] for row in results.load("archive")["rows"]]
    assert measured == [name for name in archive.SETS if name in measured]
    assert {row["batch"] for row in results.load("scaling")["rows"]} == set(scaling.BATCHES)


def test_a_rival_that_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results.load("peers")
    found["lacking"]["Other"] = "No package metadata was found"
    monkeypatch.setattr(results, "load", lambda name: found)
    for table in (results.peers_table, results.peers_short_table):
        assert "| Other | did not run: No package metadata" in table()
