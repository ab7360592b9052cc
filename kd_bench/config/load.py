"""Reads recipes: YAML with ``extends``, overrides from the command line, and errors that name the key."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kd_bench.config.recipe import Recipe
from kd_bench.config.teacher_start import TeacherStart
from kd_bench.config.trial import Training
from kd_bench.config.validate import DEFAULT_NAMES, nested_key, parse, question, shortened
from kd_bench.config.yaml_reader import MAX_DEPTH, YamlError, parse_yaml, read_mapping
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.paths import is_file, is_folder, package_path

#: The largest number of recipes that extend one another in a row.
_MAX_PARENTS = 20

#: Keys of a row that are not hyper-parameters.
_ROW_KEYS = ("method", "training", "untuned")

_TEACHER_KEYS = {*Training.model_fields, "seed", "seeds", "weights", *TeacherStart.model_fields}


def read_recipe(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), trials: int | None = None
) -> Recipe:
    """Reads and checks a recipe.

    Args:
        source: A file, the name of a packaged recipe (``demo``, ``cifar100/table6``), or a recipe's content. A file in
            the working folder has precedence over a packaged recipe of the same name.
        overrides: Settings to change, each ``a.b=1``. The value is YAML; null removes a key.
        trials: Number of trials; also shortens a list of seeds to this number.

    Raises:
        UserError: If the file is missing or not YAML, if a key or value is invalid, or if an override has no effect.
    """
    overrides = list(overrides)
    if isinstance(source, Mapping):
        context, content = str(source.get("name", "recipe")), _extended(dict(source), Path(), "recipe", ())
    else:
        path = find_recipe(str(source))
        context, content = recipe_context(str(source)), _read_file(path, ())
        content.setdefault("name", path.stem)
    for override in overrides:
        content = merge(_with_names(content), _override(override, content))
    if trials is not None:
        content["trials"] = trials
        if isinstance(content.get("seeds"), (list, tuple)):
            content["seeds"] = content["seeds"][:trials]
    if isinstance(content.get("methods"), dict):
        content["methods"] = {
            label: {"method": label} | entry if isinstance(entry, dict) else entry
            for label, entry in content["methods"].items()
        }
    recipe = parse(Recipe, _with_names(content), context)
    if not any(pair.teacher for pair in recipe.pairs):
        _refuse_settings_of_teachers(overrides, context)
    return recipe


def find_recipe(name: str, hint: str | None = None) -> Path:
    """Returns the file of a recipe: the path itself, else the packaged recipe of that name.

    Args:
        name: A path, or the name of a packaged recipe.
        hint: The end of the error's sentence; None asks for the packaged recipe with the most similar name.

    Raises:
        UserError: If there is no such recipe.
    """
    stripped = name.removeprefix("recipes/")
    packaged = (package_path("recipes", file) for file in (name, f"{name}.yaml", stripped))
    for path in (Path(name), *packaged):
        if is_file(path):
            return path
    if name and is_folder(Path(name)):
        raise UserError(f"{name}: is a folder; name a recipe's file, or a packaged recipe (see: kd-bench list recipes)")
    if hint is None:
        hint = question(stripped.removesuffix(".yaml"), packaged_recipes())
    raise UserError(f"{name or repr(name)}: there is no such recipe{hint}")


def recipe_context(name: str) -> str:
    """Returns what messages call a recipe: its file, or the name of a packaged recipe, which nobody should edit."""
    path = find_recipe(name)
    if path == Path(name):
        return str(path)
    return path.relative_to(package_path("recipes")).with_suffix("").as_posix()


def recipe_files(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Returns the file of a recipe and those that it extends, in this order, each with its own content in long form.

    Raises:
        UserError: If one of the files is missing or not YAML, or extends itself.
    """
    _read_file(path, ())
    files = []
    parent: Path | None = path
    while parent is not None:
        content = read_mapping(parent, "recipe")
        base = content.pop("extends", None)
        _normalise(content, str(parent))
        files.append((parent, content))
        parent = None if base is None else _find_parent(base, parent.parent, str(parent))
    return files


def packaged_recipes() -> list[str]:
    """Returns the names of the recipes in the package, without those that are only extended (``base``)."""
    root = package_path("recipes")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.endswith("base"))


@cache
def recipes_by_folder() -> Mapping[str, Sequence[str]]:
    """Returns the names of the packaged recipes by the name of their results folder."""
    names: dict[str, list[str]] = {}
    for name in packaged_recipes():
        names.setdefault(read_recipe(name).name, []).append(name)
    return names


def find_published(name: str, context: str) -> Path:
    """Returns the file of published numbers that a recipe names: a path, or a name in ``results/published/``.

    Raises:
        UserError: If there is no such file.
    """
    path = Path(name) if is_file(Path(name)) else package_path("results", "published", f"{name}.yaml")
    if not is_file(path):
        files = package_path("results", "published").glob("*.yaml")
        names = [file.stem for file in files if not file.stem.endswith("base")]
        raise unknown("file of published numbers", name, names, context)
    return path


def recipe_description(name: str) -> str:
    """Returns the description of a packaged recipe, without reading the recipes that it extends."""
    content = read_mapping(package_path("recipes", f"{name}.yaml"), "recipe")
    return " ".join(str(content.get("description", "")).split())


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], *, keep_null: bool = False) -> dict[str, Any]:
    """Returns ``base`` with ``changes``, nested mappings merged.

    None removes a key. A mapping with another ``name`` (another optimiser, another schedule) replaces the old one,
    because the old settings have no meaning for the new kind.

    Args:
        base, changes: The mappings.
        keep_null: Whether the result has None for a key that ``base`` does not have, because it is to be merged into
            other settings.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if value is None and not (keep_null and old is None):
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            result[key] = dict(value) if renamed else merge(old, value, keep_null=keep_null)
        else:
            result[key] = value
    return result


def _read_file(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(map(str, children))}")
    if len(children) == _MAX_PARENTS:
        raise UserError(f"{children[0]}: extends: this recipe is below more than {_MAX_PARENTS} others")
    content = read_mapping(path, "recipe")
    return _extended(content, path.parent, str(path), (*children, path.resolve()))


def _extended(content: dict[str, Any], folder: Path, context: str, children: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the content of a recipe merged into that of the recipe that it extends."""
    base = content.pop("extends", None)
    _normalise(content, context)
    if base is None:
        return content
    inherited = _read_file(_find_parent(base, folder, context), children)
    inherited.pop("name", None)
    return merge(inherited, content)


def _find_parent(base: Any, folder: Path, context: str) -> Path:
    """Returns the file that a recipe in ``folder`` extends."""
    if not isinstance(base, str):
        raise UserError(f"{context}: extends: should be the path or the name of a recipe (it is {shortened(base)})")
    parent = folder / base
    if is_file(parent):
        return parent
    try:
        return find_recipe(base, hint="")
    except UserError as error:
        raise UserError(f"{context}: extends: {error}{_question(base, folder, context)}") from None


def _question(base: str, folder: Path, context: str) -> str:
    """Returns ``question`` about the packaged recipe, or the file in ``folder``, whose name is similar to ``base``."""
    root = package_path("recipes")
    files = [path.relative_to(root) for path in root.rglob("*.yaml")]
    files += [Path(path.name) for path in folder.glob("*.yaml") if str(path) != context]
    suffix = ".yaml" if base.endswith(".yaml") else ""
    names = {path.with_suffix("").as_posix(): path.with_suffix(suffix).as_posix() for path in files}
    hint = nearest(base.removesuffix(suffix), names)
    return f"; did you mean {names[hint]!r}?" if hint else ""


def _with_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the name of the default optimiser and schedule to settings without a name."""
    defaults = DEFAULT_NAMES.items()
    named = {key: {"name": name} | content[key] for key, name in defaults if isinstance(content.get(key), dict)}
    return {**content, **named}


def _normalise(content: dict[str, Any], context: str) -> None:
    """Replaces short forms (a data set by its name, methods as a list) by long ones, so that files can be merged."""
    if isinstance(content.get("dataset"), str):
        content["dataset"] = {"name": content["dataset"]}
    methods = content.get("methods")
    if isinstance(methods, list):
        if not all(isinstance(name, str) for name in methods):
            raise UserError(f"{context}: methods: should be names, or a mapping of labels to hyper-parameters")
        for name in methods:
            if methods.count(name) > 1:
                raise UserError(
                    f"{context}: methods: {name!r} is named twice; give one of them a label: LABEL: {{method: {name}}}"
                )
        methods = {name: {} for name in methods}
    if isinstance(methods, dict):
        content["methods"] = {label: _normalised_row(settings) for label, settings in methods.items()}


def _normalised_row(settings: Any) -> Any:
    """Collects the hyper-parameters of a row under one key."""
    if not isinstance(settings, dict) or "hyperparameters" in settings:
        return settings
    row = {key: settings[key] for key in _ROW_KEYS if key in settings}
    return {**row, "hyperparameters": {key: value for key, value in settings.items() if key not in row}}


def _override(text: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes that an override makes to the content of a recipe."""
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    context = f"--set {text if len(text) <= 100 else f'{text[:97]}...'}"
    if not equals or not all(path):
        raise UserError(f"{context}: should be KEY=VALUE, e.g. epochs=2 or optimizer.lr=0.1")
    if not raw.strip():
        raise UserError(f"{context}: the value is missing; write null to go back to the default")
    try:
        value = parse_yaml(raw)
    except YamlError as error:
        raise UserError(f"{context}: the value {shortened(raw)} {error}") from None
    if path[0] == "extends":
        raise UserError(f"{context}: extends belongs in the recipe's file; name that recipe instead, or set its keys")
    if len(path) > MAX_DEPTH:
        raise UserError(f"{context}: the key has {len(path)} parts; no key of a recipe has as many")
    if path[0] not in Recipe.model_fields:
        if hint := nested_key(Recipe, path[0]):
            raise UserError(f"{context}: no key of a recipe is called {path[0]!r}; did you mean {hint!r}?")
        raise unknown("key of a recipe", path[0], Recipe.model_fields, context)
    if path[0] == "methods" and len(path) > 2 and path[2] not in {*_ROW_KEYS, "hyperparameters"}:
        path.insert(2, "hyperparameters")
    if path[0] == "teachers" and len(path) > 1:  # names of teachers may have dots, e.g. resnet34.tv_in1k
        end = next((i for i in range(2, len(path)) if path[i] in _TEACHER_KEYS), len(path))
        path[1:end] = [".".join(path[1:end])]
    if path == ["dataset"] and isinstance(value, str):
        value = {"name": value, "labels": None, "classes": None}
    changes: dict[str, Any] = _changes_at(path, value, content, context)
    _normalise(changes, context)
    return changes


def _refuse_settings_of_teachers(overrides: Iterable[str], context: str) -> None:
    """Raises a UserError if an override sets ``teacher_training``, in a recipe without teachers."""
    for text in overrides:
        key, _, value = text.partition("=")
        parent, _, name = key.strip().partition(".")
        if parent != "teacher_training":
            continue
        value = value.strip()
        seeds = {"seed": f"seeds=[{value}]", "seeds": f"{'seeds' if value.startswith('[') else 'trials'}={value}"}
        setting = seeds.get(name, f"{name}={value}")
        is_shared = name.partition(".")[0] in {*Training.model_fields, "seed", "seeds"}
        advice = f"; for the networks of its pairs write: --set {shlex.quote(setting)}" if is_shared else ""
        raise UserError(f"--set {text}: changes nothing, because no pair of {context} has a teacher{advice}")


def _changes_at(path: list[str], value: Any, node: Any, context: str) -> Any:
    """Returns the changes that set ``path`` below ``node`` to ``value``. A list is returned whole."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if not isinstance(node, (list, tuple)):
        return {key: _changes_at(rest, value, node.get(key) if isinstance(node, Mapping) else None, context)}
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(node):
        raise UserError(f"{context}: {key!r} is not an index of a list of {len(node)}")
    entries, index = list(node), int(key)
    old, new = entries[index], _changes_at(rest, value, entries[index], context)
    entries[index] = merge(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return entries
