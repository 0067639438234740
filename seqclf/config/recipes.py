"""The configs that come with seqclf: configs/ of a checkout, in an installation seqclf/recipes/."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOR_PREPARED_DATA = "files"


def recipe_names() -> list[str]:
    """Return what `--config` takes instead of a path."""
    return sorted(file.stem for file in _folder().glob("*.yaml"))


def find_recipe(name: str) -> Path | None:
    """Return the file of a recipe, None if no recipe has that name."""
    return _folder() / f"{name}.yaml" if name in recipe_names() else None


def _folder() -> Path:
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"
