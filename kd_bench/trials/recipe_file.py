"""The recipe of a comparison that is in no file of the user's: it is kept beside the trials and found by its name."""

from __future__ import annotations

import json
from pathlib import Path

from kd_bench.config.load import find_recipe, packaged_recipes
from kd_bench.config.recipe import Recipe
from kd_bench.config.validate import question
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import is_file

_NAME = "recipe.yaml"

_HEAD = "# Written by kd-bench: the recipe of these trials. kd-bench table, status and report find it by its name.\n"


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Writes a recipe, with all settings, into the folder of its trials."""
    folder = out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML, and its texts are in quotes, so that none of them can be read as a number.
    content = json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / _NAME, f"{_HEAD}{content}\n")


def recipe_file(name: str, out: Path) -> Path | None:
    """Returns the file of the recipe that is kept in the folder ``name`` of ``out``; None if there is none."""
    file = out / name / _NAME
    return file if name and Path(name).name == name and is_file(file) else None


def find_recipe_in(name: str, out: Path) -> str:
    """Returns what names a recipe elsewhere: ``name`` itself, or the file that is kept in the folder of that name.

    Raises:
        UserError: If there is no such recipe.
    """
    try:
        find_recipe(name)
    except UserError:
        if file := recipe_file(name, out):
            return str(file)
        kept = kept_recipes(out)
        if not question(name, kept):
            raise
        raise UserError(f"{name}: there is no such recipe{question(name, [*kept, *packaged_recipes()])}") from None
    return name


def kept_recipes(out: Path) -> list[str]:
    """Returns the names of the folders with a recipe."""
    return sorted(file.parent.name for file in out.glob(f"*/{_NAME}"))
