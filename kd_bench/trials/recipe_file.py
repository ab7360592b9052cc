"""The recipe of a comparison that is in no file of the user's: it is kept beside the trials and found by its name."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from kd_bench.config.load import find_recipe, packaged_recipes, read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.config.validate import question
from kd_bench.trials.plan_without_weights import plan_from_results
from kd_bench.utils.errors import UserError, nearest
from kd_bench.utils.files import write_atomic
from kd_bench.utils.paths import is_file, is_folder

_NAME = "recipe.yaml"

_SUFFIXES = (".yaml", ".yml")

_HEAD = "# Written by kd-bench: the recipe of these trials. kd-bench table, status and report find it by its name.\n"


def write_recipe(recipe: Recipe, out: Path, planned: Iterable[PlannedTrial], data: Path | None = None) -> str | None:
    """Writes a recipe, with all settings, into the folder of its trials.

    A recipe that is there already, and has trials in the folder that the new one does not plan, is kept in a file
    beside it, so that its table can still be shown.

    Args:
        recipe: The recipe.
        out: The results folder.
        planned: The trials of the recipe.
        data: Folder of the data sets, which has the generated images; None for the default.

    Returns:
        A sentence about the recipe that was there; None if it has no other trials.
    """
    folder = out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML, and its texts are in quotes, so that none of them can be read as a number.
    content = json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    note = _keep_earlier(folder / _NAME, {cell.trial_id for cell in planned}, data)
    write_atomic(folder / _NAME, f"{_HEAD}{content}\n")
    return note


def _keep_earlier(file: Path, planned: set[str], data: Path | None) -> str | None:
    """Copies a recipe that will be replaced if it has trials that are not planned, and returns a sentence about it."""
    try:
        text = file.read_text(encoding="utf-8")
        earlier = plan_from_results(read_recipe(file), str(file), file.parent.parent, data=data)
        trials = {cell.trial_id for cell in earlier}
    except (OSError, ValueError, UserError):  # there is none; or it was damaged, or needs a plug-in that is gone
        return None
    others = sum((file.parent / name).is_dir() for name in trials - planned)
    if not others:
        return None
    copy = file.with_name(f"recipe-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml")
    write_atomic(copy, text)
    count = "1 trial that is" if others == 1 else f"{others} trials that are"
    command = f"kd-bench table {shlex.quote(str(copy))} --out {shlex.quote(str(file.parent.parent))}"
    return (
        f"this replaces the recipe of an earlier comparison with this name, which has {count} not in this "
        f"one; to show it: {command}"
    )


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
        if not name or is_folder(Path(name)):
            raise
        short = name.removeprefix("recipes/").removesuffix(".yaml")
        hint = _similar_file(Path(name)) or question(short, [*kept_recipes(out), *packaged_recipes()])
        is_plain = Path(name).name == name and Path(name).suffix not in _SUFFIXES
        also = f", and {out} has no comparison of this name" if is_plain and not hint else ""
        raise UserError(f"{name}: there is no such recipe{also}{hint}") from None
    return name


def _similar_file(path: Path) -> str:
    """Returns the end of a sentence that asks if the recipe beside ``path`` of a similar name was meant, or ""."""
    try:
        files = {file.stem: file.name for file in sorted(path.parent.iterdir()) if file.suffix in _SUFFIXES}
    except OSError:
        return ""
    # Without the suffix, which makes all names similar.
    similar = nearest(path.stem if path.suffix in _SUFFIXES else path.name, files)
    return f"; did you mean {str(path.with_name(files[similar]))!r}?" if similar else ""


def kept_recipes(out: Path) -> list[str]:
    """Returns the names of the folders with a recipe."""
    return sorted(file.parent.name for file in out.glob(f"*/{_NAME}"))
