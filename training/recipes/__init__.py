"""Configurations of published and small trainings, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def list_recipes() -> list[str]:
    """Names that `attnops train --config` takes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name_or_file: str) -> Path:
    """The file of a recipe, or the file itself.

    Raises:
        FileNotFoundError: neither a file nor a recipe.
    """
    path = Path(name_or_file)
    if path.is_file():
        return path
    recipe = FOLDER / f"{name_or_file}.yaml"
    if "/" not in name_or_file and recipe.is_file():
        return recipe
    close = difflib.get_close_matches(name_or_file, list_recipes(), 3, 0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "attnops train --help lists them."
    raise FileNotFoundError(f"--config {name_or_file}: neither a file nor a recipe; {hint}")


def about(name: str) -> str:
    """The first line of a recipe, which says what it is."""
    with open(FOLDER / f"{name}.yaml", encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
