"""Imports point one way: cli -> train -> ... -> config; and light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

# Each module may import those before it only.
ORDER = [
    *("config", "watch", "data.sequences", "data.batches", "data.augment"),
    *("data.prepared", "data.splits", "data.sources", "data.readers", "data.prepare"),
    *("loss", "model", "optim", "checkpoint", "console", "figures", "tracking", "mirror"),
    *("hardware", "rendezvous", "runtime"),
    *(
        "predict",
        "evaluate",
        "resume",
        "run",
        "runs",
        "reading",
        "report",
        "train",
        "doctor",
        "reference",
        "cli",
        "__main__",
    ),
]


def imported(module: str) -> set[str]:
    path = ROOT / "seqclf" / (module.replace(".", "/") + ".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seqclf"):
            base = (node.module or "").removeprefix("seqclf").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                names.add(inner if inner in ORDER else base)
    return names


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module: str) -> None:
    assert imported(module) <= set(ORDER[: ORDER.index(module)])


def test_every_module_has_its_place() -> None:
    files = (ROOT / "seqclf").rglob("*.py")
    found = {".".join(f.relative_to(ROOT / "seqclf").with_suffix("").parts) for f in files}
    assert {name for name in found if not name.endswith("__init__")} == set(ORDER)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("seqclf", "torch accelerate wandb sklearn pydantic torchvision"),
        ("seqclf.cli", "torch accelerate wandb sklearn torchvision"),
        ("seqclf.train", "wandb sklearn torchvision matplotlib"),
    ],
)
def test_nothing_heavy_is_imported_unless_used(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(heavy.split()) & set(done.stdout.split())
