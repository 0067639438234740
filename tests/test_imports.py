"""Imports point one way, light modules stay light, private names private, files small."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.launching import ROOT

# The wings are the modules and packages of the first level. Each may import those before it only.
STORY = (
    "errors metrics config data rocket contradictions model prefixes stepwise loss optim console "
    "processes step evaluate calibrate auto settle run step_log tally predict average counts "
    "inputs stream hub classifier predictions measure export demo terminal baselines report "
    "tracking training examples fit estimator channels aeon sktime sweep jobs cli __main__ __init__"
)
WINGS = STORY.split()
TRACKING_MAY_IMPORT = ("tracking", "errors", "metrics", "config", "data.pictures", "run.records")
MOST_LINES, MOST_LINES_OF_A_CLASS = 440, 200
PACKAGE = sorted((ROOT / "seqclf").rglob("*.py"))
OTHERS = sorted(
    file for name in ("launch", "tests", "benchmarks") for file in (ROOT / name).rglob("*.py")
)


def path_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported(file: Path, *, for_types: bool = True) -> list[str]:
    """Return the names that a file imports from seqclf, such as `config.settings.Config`."""
    names = []
    nodes = list(ast.walk(ast.parse(file.read_text())))
    guards = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    only_for_types = {inner for guard in guards for inner in ast.walk(guard)}
    for node in nodes:
        if node in only_for_types and not for_types:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("seqclf.") for name in names if name.startswith("seqclf.")]


@pytest.mark.parametrize("file", PACKAGE, ids=path_of)
def test_a_wing_imports_only_those_before_it(file: Path) -> None:
    wing = file.relative_to(ROOT / "seqclf").parts[0].removesuffix(".py")
    allowed = WINGS[: WINGS.index(wing) + 1]
    assert {name.partition(".")[0] for name in imported(file)} <= set(allowed)
    if wing == "tracking":
        assert [name for name in imported(file) if not name.startswith(TRACKING_MAY_IMPORT)] == []


def test_no_imports_are_circular() -> None:
    names = {path_of(file).removeprefix("seqclf/").removesuffix(".py"): file for file in PACKAGE}
    files = {name.replace("/", "."): file for name, file in names.items()}
    graph = {
        module: {
            name if name in files else name.rpartition(".")[0]
            for name in imported(file, for_types=False)
        }
        for module, file in files.items()
    }
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


@pytest.mark.parametrize("file", [*PACKAGE, *OTHERS], ids=path_of)
def test_private_names_stay_in_their_file(file: Path) -> None:
    assert [name for name in imported(file) if name.rpartition(".")[2].startswith("_")] == []


@pytest.mark.parametrize("file", PACKAGE, ids=path_of)
def test_files_and_classes_are_small(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_CLASS, node.name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("seqclf", "torch accelerate wandb sklearn pydantic torchvision"),
        ("seqclf.cli.main", "torch accelerate wandb sklearn torchvision"),
        ("seqclf.run.records", "torch accelerate wandb sklearn torchvision"),
        ("seqclf.run.listing", "torch accelerate wandb sklearn torchvision"),
        ("seqclf.training", "wandb sklearn torchvision matplotlib"),
    ],
)
def test_nothing_heavy_is_imported_unless_used(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(heavy.split()) & set(done.stdout.split())
