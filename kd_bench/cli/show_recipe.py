"""Describes a recipe for ``kd-bench show``: every setting of its trainings, and the file that it comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_bench.config.load import merge, read_recipe, recipe_files
from kd_bench.config.recipe import Recipe
from kd_bench.config.training_notes import training_notes
from kd_bench.config.trial import Training
from kd_bench.data import registry as datasets
from kd_bench.methods import _registry as methods
from kd_bench.trials.plan_without_weights import UNKNOWN_HASH, fill_image_checksums, plan_with_placeholders
from kd_bench.utils.paths import package_path
from kd_bench.utils.plugins import display_path
from kd_bench.utils.text import count

_DEFAULT = "default"

#: Least columns of text for values beside keys and sources.
_LEAST_SPACE = 12

Key = tuple[str, ...]


@dataclass(frozen=True)
class _Sourced:
    """A value of a recipe's file. Equal values are equal whatever file they are from, so that recipes can be merged."""

    value: Any
    file: str = field(compare=False)


@dataclass(frozen=True)
class _Line:
    """A line of the text: a key with its indentation, a value, and where the value comes from."""

    key: str
    value: str = ""
    source: str = ""


def describe_recipe(path: Path, width: int = 100) -> str:
    """Returns a text about the recipe in a file: pairs, rows and all settings, each with its source.

    Args:
        path: The file.
        width: Columns that the settings should fit in, if their values have spaces.

    Raises:
        UserError: If the recipe is invalid.
    """
    recipe, files = read_recipe(path), recipe_files(path)
    sources = _Sources(files)
    names = [_file_name(file) for file, _ in files]
    chain = f"{path}{''.join(f', which extends {name}' for name in names[1:])}"
    datasets.check(recipe.dataset, f"{path}: dataset")
    complete = fill_image_checksums(recipe, str(path), lambda _: UNKNOWN_HASH)
    planned, missing = plan_with_placeholders(complete, str(path))
    trials = len({cell.trial_id for cell in planned})
    lines = [*_comparison(recipe, sources), *_training(recipe, sources), *_teachers(recipe, sources)]
    head = [f"{recipe.name}: {' '.join(recipe.description.split())}".rstrip(" :"), chain, ""]
    notes = [line for note in (*training_notes(recipe, planned), *missing) for line in ("", note)]
    end = [
        "",
        f"{'This is' if trials == 1 else 'These are'} {count(trials, 'trial')}. The file itself is shown by --raw.",
    ]
    return "\n".join([*head, *_aligned(lines, width), *_switched_off(recipe, sources), *notes, *end])


class _Sources:
    """Where the values of a recipe come from."""

    def __init__(self, files: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
        self._merged: dict[str, Any] = {}
        for file, content in reversed(files):
            self._merged.pop("name", None)
            self._merged = merge(self._merged, _marked(content, _file_name(file)))

    def __call__(self, *key: str) -> str:
        """Returns the file that a value is from, or "default"."""
        node: Any = self._merged
        for part in key:
            if not isinstance(node, Mapping):
                break
            node = node.get(part)
        return node.file if isinstance(node, _Sourced) else _DEFAULT


def _marked(value: Any, file: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _marked(inner, file) for key, inner in value.items()}
    return value if value is None else _Sourced(value, file)


def _file_name(path: Path) -> str:
    """Returns the name of a packaged recipe's file below ``recipes``, else the path."""
    root = package_path("recipes")
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else display_path(str(path))


def _comparison(recipe: Recipe, sources: _Sources) -> Iterator[_Line]:
    """Yields images, seeds, pairs and rows."""
    for key, value in _leaves(recipe.dataset):
        if value is not None:
            yield _Line(".".join(("dataset", *key)), _text(value), sources("dataset", *key))
    seeds = recipe.all_seeds()
    shown = ", ".join(map(str, seeds[:20])) + ", ..." * (len(seeds) > 20)
    yield _Line("seeds", shown, sources("trials" if recipe.seeds is None else "seeds"))
    for name in ("baseline", "published"):
        if (value := getattr(recipe, name)) is not None:
            yield _Line(name, value if isinstance(value, str) else ", ".join(value), sources(name))
    yield _Line("pairs")
    for pair in recipe.pairs:
        title = f"{pair.teacher} -> {pair.student}" if pair.teacher else pair.student
        yield _Line(f"  {title}", "", sources("pairs"))
        for name in ("training", "methods"):
            for key, value in _leaves(getattr(pair, name)):
                yield _Line(f"    {'.'.join((name, *key))}", _text(value), sources("pairs"))
        if pair.leave_out:
            yield _Line("    leave_out", ", ".join(pair.leave_out), sources("pairs"))
    yield _Line("methods")
    for label, row in recipe.methods.items():
        named = row.method != label
        yield _Line(f"  {label}", row.method if named else "", sources("methods", label, "method") if named else "")
        if row.untuned:
            yield _Line("    untuned", _text(row.untuned), sources("methods", label, "untuned"))
        values, logit_settings = methods.split_row(row.method, row.hyperparameters)
        hyperparameters = methods.check(row.method, values)
        for name, value in (hyperparameters | logit_settings.logit_settings()).items():
            yield _Line(f"    {name}", _text(value), sources("methods", label, "hyperparameters", name))
        for key, value in _leaves(row.training):
            yield _Line(f"    training.{'.'.join(key)}", _text(value), sources("methods", label, "training", *key))


def _training(recipe: Recipe, sources: _Sources) -> Iterator[_Line]:
    """Yields the settings of a training that are not switched off."""
    yield _Line("training")
    for key, value, source in _training_values(recipe, sources):
        if not _is_off(value, source):
            yield _Line(f"  {'.'.join(key)}", _text(value), source)


def _training_values(recipe: Recipe, sources: _Sources) -> Iterator[tuple[Key, Any, str]]:
    spec = datasets.resolve_spec(recipe.dataset)
    of_images = {("augment", "crop"): spec.crop, ("augment", "flip"): spec.flip}
    for name in Training.model_fields:
        if name == "augment" and recipe.pipeline is not None:
            continue
        for key, value in _leaves(getattr(recipe, name), (name,)):
            if value is None and key in of_images:
                yield key, of_images[key], "the data set"
            else:
                yield key, value, sources(*key)


def _is_off(value: Any, source: str) -> bool:
    return source == _DEFAULT and (value is None or value is False or value == 0)


def _switched_off(recipe: Recipe, sources: _Sources) -> list[str]:
    """Returns a sentence about the settings that ``_training`` leaves out."""
    names = [".".join(key) for key, value, source in _training_values(recipe, sources) if _is_off(value, source)]
    return ["", f"Off by default: {', '.join(names)}."] if names else []


def _teachers(recipe: Recipe, sources: _Sources) -> Iterator[_Line]:
    """Yields the settings that differ for teachers."""
    for name in ("teacher_training", "teachers"):
        leaves = list(_leaves(getattr(recipe, name)))
        if leaves:
            yield _Line(name)
        for key, value in leaves:
            yield _Line(f"  {'.'.join(key)}", _text(value), sources(name, *key))


def _leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yields the values within settings or a mapping with their keys."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*key, str(name)))


def _text(value: Any) -> str:
    """Returns a value as a recipe would have it."""
    return value if isinstance(value, str) else json.dumps(value)


def _aligned(lines: Sequence[_Line], width: int) -> Iterator[str]:
    """Yields lines of text in columns; without columns if these would leave too little space for the values."""
    keys, sources = max(len(line.key) for line in lines), max(len(line.source) for line in lines)
    space = width - keys - sources - 4
    if space < _LEAST_SPACE:
        yield from ("  ".join(filter(None, (line.key, line.value, line.source))) for line in lines)
        return
    values = max(_LEAST_SPACE, min(40, space, max(len(line.value) for line in lines)))
    for line in lines:
        first, *others = textwrap.wrap(line.value, values, break_long_words=False, break_on_hyphens=False) or [""]
        yield f"{line.key:{keys}}  {first:{values}}  {line.source}".rstrip()
        yield from (f"{'':{keys}}  {other}" for other in others)
