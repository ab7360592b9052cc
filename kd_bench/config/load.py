"""Reads recipes: YAML with ``extends``, overrides from the command line, and errors that name the key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kd_bench.config.base import nested_models
from kd_bench.config.optimizer import SGD, StepSchedule
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import Training
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.paths import package_path

Model = TypeVar("Model", bound=BaseModel)

#: Keys whose mapping is one of several kinds, selected by its ``name``, and the kind without a name.
_DEFAULT_NAMES = {"optimizer": SGD().name, "schedule": StepSchedule().name}

#: Keys of a row that are not hyper-parameters.
_ROW_KEYS = ("method", "training")

_TEACHER_KEYS = {*Training.model_fields, "seed", "weights"}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", node.start_mark)
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


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
        UserError: If the file is missing or not YAML, or if a key or value is invalid.
    """
    if isinstance(source, Mapping):
        context, content = str(source.get("name", "recipe")), _extended(dict(source), Path(), "recipe", ())
    else:
        path = find_recipe(str(source))
        context, content = str(path), _read_file(path, ())
        content.setdefault("name", path.stem)
    for override in overrides:
        content = merge(_with_names(content), _override(override, content))
    if trials is not None:
        content["trials"] = trials
        if content.get("seeds"):
            content["seeds"] = content["seeds"][:trials]
    if isinstance(content.get("methods"), dict):
        content["methods"] = {
            label: {"method": label} | entry if isinstance(entry, dict) else entry
            for label, entry in content["methods"].items()
        }
    return parse(Recipe, _with_names(content), context)


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: the path itself, else the packaged recipe of that name."""
    stripped = name.removeprefix("recipes/")
    packaged = (package_path("recipes", file) for file in (name, f"{name}.yaml", stripped))
    for path in (Path(name), *packaged):
        if path.is_file():
            return path
    question = _question(stripped.removesuffix(".yaml"), packaged_recipes())
    raise UserError(f"{name}: there is no such recipe{question}")


def packaged_recipes() -> list[str]:
    """Returns the names of the recipes in the package, without those that are only extended (``base``)."""
    root = package_path("recipes")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.endswith("base"))


def recipe_description(name: str) -> str:
    """Returns the description of a packaged recipe, without reading the recipes that it extends."""
    content = read_mapping(package_path("recipes", f"{name}.yaml"), "recipe")
    return " ".join(str(content.get("description", "")).split())


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with ``changes``, nested mappings merged.

    None removes a key. A mapping with another ``name`` (another optimiser, another schedule) replaces the old one,
    because the old settings have no meaning for the new kind.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            result[key] = dict(value) if renamed else merge(old, value)
        else:
            result[key] = value
    return result


def parse(model: type[Model], content: Any, context: str) -> Model:
    """Validates ``content`` as a ``model``.

    Raises:
        UserError: If it is invalid; one sentence names file, key and value of the first error.
    """
    try:
        # As JSON, because strict validation of Python values refuses a list for a tuple.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UserError(f"{context}: {_sentence(model, error)}") from None


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    # Every branch of a union reports an error. The one with the longest location is the branch that was meant.
    errors = error.errors(include_url=False)
    details = max(errors, key=lambda details: (details["type"] == "extra_forbidden", len(details["loc"])))
    kind, value = details["type"], details["input"]
    location = [str(part) for part in details["loc"] if not str(part).startswith(("constrained-", "function-"))]
    # pydantic also names the branch of a union (optimizer.sgd.lr), which is not in the file.
    keys = [part for parent, part in zip(["", *location], location, strict=False) if parent not in _DEFAULT_NAMES]
    key = ".".join(keys) or "the whole"
    if kind == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        return f"{key}: no such key{_question(location[-1], fields) or '; there are: ' + ', '.join(fields)}"
    if kind == "missing":
        return f"{key}: this key is missing"
    if kind in {"union_tag_invalid", "literal_error"}:
        expected = str(details["ctx"].get("expected_tags") or details["ctx"].get("expected"))
        value = details["ctx"].get("tag", value)
        question = _question(str(value), re.findall(r"'([^']+)'", expected))
        return f"{key}: {value!r} is none of {expected}{question}"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("an object", "a mapping")
    return f"{key}: {message} (it is {_shortened(value)})"


def _question(value: str, choices: Iterable[str]) -> str:
    hint = nearest(value, choices)
    return f"; did you mean {hint!r}?" if hint else ""


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Returns the keys that the mapping at ``location`` may have."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        nested = [model for field in fields for model in nested_models(field.annotation)]
        named = (model for model in models if "name" in model.model_fields)
        tagged = [model for model in named if part in get_args(model.model_fields["name"].annotation)]
        models = nested or tagged or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping. ``kind`` is what the file should be, for errors: "recipe".

    Raises:
        UserError: If the file cannot be read, is not YAML, or holds no mapping with text as keys.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}: is not valid YAML{position}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be a {kind}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: is not a {kind}: it should be a mapping of keys to values")
    return content


def _read_file(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(map(str, children))}")
    content = read_mapping(path, "recipe")
    return _extended(content, path.parent, str(path), (*children, path.resolve()))


def _extended(content: dict[str, Any], folder: Path, context: str, children: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the content of a recipe merged into that of the recipe that it extends."""
    base = content.pop("extends", None)
    _normalise(content, context)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{context}: extends: should be the path or the name of a recipe (it is {_shortened(base)})")
    parent = folder / base
    try:
        parent = parent if parent.is_file() else find_recipe(base)
    except UserError as error:
        raise UserError(f"{context}: extends: {error}") from None
    inherited = _read_file(parent, children)
    inherited.pop("name", None)
    return merge(inherited, content)


def _with_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the name of the default optimiser and schedule to settings without a name."""
    defaults = _DEFAULT_NAMES.items()
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
    context = f"--set {text}"
    if not equals or not all(path):
        raise UserError(f"{context}: should be KEY=VALUE, e.g. epochs=2 or optimizer.lr=0.1")
    try:
        value = yaml.load(raw, _Loader)
    except yaml.YAMLError:
        raise UserError(f"{context}: the value {raw!r} is not valid YAML") from None
    if path[0] not in Recipe.model_fields and path[0] != "extends":
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


def _changes_at(path: list[str], value: Any, node: Any, context: str) -> Any:
    """Returns the changes that set ``path`` below ``node`` to ``value``. A list is returned whole."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if not isinstance(node, (list, tuple)):
        return {key: _changes_at(rest, value, node.get(key) if isinstance(node, Mapping) else None, context)}
    if not key.isdigit() or int(key) >= len(node):
        raise UserError(f"{context}: {key!r} is not an index of a list of {len(node)}")
    entries, index = list(node), int(key)
    old, new = entries[index], _changes_at(rest, value, entries[index], context)
    entries[index] = merge(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return entries
