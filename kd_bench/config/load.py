"""Reads recipes: YAML with ``extends``, overrides from the command line, and errors that name the key."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from kd_bench.config.optimizer import SGD, StepSchedule
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import Training
from kd_bench.utils.errors import UserError, nearest, unknown
from kd_bench.utils.paths import package_path

Model = TypeVar("Model", bound=BaseModel)

#: Keys whose mapping is one of several kinds, told apart by its ``name``, and the kind where it gives none.
_NAMED = {"optimizer": SGD().name, "schedule": StepSchedule().name}


#: Keys of a row that are no hyper-parameters.
_OF_A_ROW = ("method", "training")

#: Keys of a teacher.
_OF_A_TEACHER = {*Training.model_fields, "seed", "weights"}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key that is given twice."""

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
        source: A file; or the name of a packaged recipe (``demo``, ``cifar100/table6``), which a file of the same name
            in the working folder outranks; or a recipe's content.
        overrides: ``a.b=1`` each; the value is YAML, and null takes a key away.
        trials: Replaces the recipe's number of trials, and its list of seeds by its first so many.

    Raises:
        UserError: For a file that is missing or no YAML, and for every key or value that is not a recipe's.
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
    """The recipe's file: the path itself, else the packaged recipe of that name."""
    candidates = [Path(name), package_path("recipes", name), package_path("recipes", f"{name}.yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    stripped = name.removeprefix("recipes/")
    if package_path("recipes", stripped).is_file():
        return package_path("recipes", stripped)
    hint = nearest(stripped.removesuffix(".yaml"), packaged_recipes())
    raise UserError(f"{name}: there is no such recipe{f'; did you mean {hint!r}?' if hint else ''}")


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the suite; those that are only extended (``base``) are left out."""
    root = package_path("recipes")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.endswith("base"))


def recipe_description(name: str) -> str:
    """The description that stands in a packaged recipe."""
    content = yaml.load(package_path("recipes", f"{name}.yaml").read_text(encoding="utf-8"), _Loader)
    return " ".join(str(content.get("description", "")).split())


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid on top, mapping by mapping.

    None takes a key away. A mapping with another ``name`` (another optimiser, another schedule) replaces the whole one,
    since the settings of the old have no meaning for the new.
    """
    result = dict(base)
    for key, value in over.items():
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
    """Checks ``content`` against ``model``; the first fault becomes one sentence that names file, key and value."""
    try:
        # By way of JSON: strict about types, yet a list may stand for a tuple.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UserError(_sentence(model, error, context)) from None


def _sentence(model: type[BaseModel], error: ValidationError, context: str) -> str:
    # Of a union every branch complains: the one that got furthest is the one that was meant.
    fault = max(error.errors(include_url=False), key=lambda one: (one["type"] == "extra_forbidden", len(one["loc"])))
    location = [str(part) for part in fault["loc"] if not str(part).startswith(("constrained-", "function-"))]
    # pydantic also names the branch of a union (optimizer.sgd.lr), which stands nowhere in the file.
    written = [part for before, part in zip(["", *location], location, strict=False) if before not in _NAMED]
    key = ".".join(written) or "the whole"
    if fault["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        hint = nearest(location[-1], fields)
        return f"{context}: {key}: no such key{_question(hint) or '; there are: ' + ', '.join(fields)}"
    if fault["type"] == "missing":
        return f"{context}: {key}: this key is missing"
    if fault["type"] in {"union_tag_invalid", "literal_error"}:
        expected = fault["ctx"].get("expected_tags") or fault["ctx"].get("expected")
        value = fault["ctx"].get("tag", fault["input"])
        choices = re.findall(r"'([^']+)'", str(expected))
        return f"{context}: {key}: {value!r} is none of {expected}{_question(nearest(str(value), choices))}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("an object", "a mapping")
    return f"{context}: {key}: {message} (it is {_short(fault['input'])})"


def _question(hint: str | None) -> str:
    return f"; did you mean {hint!r}?" if hint else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    """Keys that the mapping at ``location`` may have."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        inner = [found for one in models if part in one.model_fields for found in _models_in(one.model_fields[part])]
        tagged = [
            one
            for one in models
            if "name" in one.model_fields and part in get_args(one.model_fields["name"].annotation)
        ]
        models = inner or tagged or models
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _models_in(field: Any) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    todo = [field.annotation]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and get_origin(one) is None and issubclass(one, BaseModel):
            found.append(one)
        elif get_origin(one) in {Union, types.UnionType, tuple, list, dict} or hasattr(one, "__metadata__"):
            todo.extend(get_args(one))
    return found


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: The file.
        kind: What it should be, for the error: "recipe".

    Raises:
        UserError: For a file that cannot be read, is no YAML, or holds no mapping of words.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}: is no YAML{place}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply to be a {kind}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: is no {kind}: it should be a mapping of keys to values")
    return content


def _read_file(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself, by way of {' and '.join(str(one) for one in seen)}")
    content = read_mapping(path, "recipe")
    return _extended(content, path.parent, str(path), (*seen, path.resolve()))


def _extended(content: dict[str, Any], folder: Path, context: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    base = content.pop("extends", None)
    _normalise(content, context)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{context}: extends: should be the path or the name of a recipe (it is {_short(base)})")
    parent = folder / base
    try:
        parent = parent if parent.is_file() else find_recipe(base)
    except UserError as error:
        raise UserError(f"{context}: extends: {error}") from None
    inherited = _read_file(parent, seen)
    inherited.pop("name", None)
    return merge(inherited, content)


def _with_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """With the name of the default optimiser and schedule where settings of one are given without a name."""
    named = {key: {"name": name} | content[key] for key, name in _NAMED.items() if isinstance(content.get(key), dict)}
    return {**content, **named}


def _normalise(content: dict[str, Any], context: str) -> None:
    """Brings the short forms (a set by its name, methods as a list) to the long one, so that files can be merged."""
    if isinstance(content.get("dataset"), str):
        content["dataset"] = {"name": content["dataset"]}
    methods = content.get("methods")
    if isinstance(methods, list):
        methods = {name: {} for name in methods} if all(isinstance(one, str) for one in methods) else None
        if methods is None:
            raise UserError(f"{context}: methods: should be names, or a mapping of labels to hyper-parameters")
    if not isinstance(methods, dict):
        return
    entries: dict[str, Any] = {}
    for label, settings in methods.items():
        if isinstance(settings, dict) and "hyperparameters" not in settings:
            rest = {key: value for key, value in settings.items() if key not in _OF_A_ROW}
            named = {key: settings[key] for key in _OF_A_ROW if key in settings}
            entries[label] = {**named, "hyperparameters": rest}
        else:
            entries[label] = settings
    content["methods"] = entries


def _override(text: str, content: Mapping[str, Any]) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {text}: should be KEY=VALUE, e.g. epochs=2 or optimizer.lr=0.1")
    try:
        value = yaml.load(raw, _Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {text}: the value {raw!r} is no YAML") from None
    if path[0] not in Recipe.model_fields and path[0] != "extends":
        raise unknown("key of a recipe", path[0], Recipe.model_fields, f"--set {text}")
    if path[0] == "methods" and len(path) > 2 and path[2] not in {*_OF_A_ROW, "hyperparameters"}:
        path.insert(2, "hyperparameters")
    if path[0] == "teachers":  # whose names may have dots, as resnet34.tv_in1k has
        end = next((place for place in range(2, len(path)) if path[place] in _OF_A_TEACHER), len(path))
        path[1:end] = [".".join(path[1:end])]
    if path == ["dataset"] and isinstance(value, str):
        value = {"name": value, "labels": None, "classes": None}
    patch: dict[str, Any] = _patch(content, path, value, text)
    _normalise(patch, f"--set {text}")
    return patch


def _patch(node: Any, path: list[str], value: Any, text: str) -> Any:
    """What to merge into ``node`` so that ``value`` stands at ``path``; a list is given whole."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if not isinstance(node, (list, tuple)):
        return {key: _patch(node.get(key) if isinstance(node, Mapping) else None, rest, value, text)}
    if not key.isdigit() or int(key) >= len(node):
        raise UserError(f"--set {text}: {key!r} is no place in a list of {len(node)}")
    entries = list(node)
    new = _patch(entries[int(key)], rest, value, text)
    old = entries[int(key)]
    entries[int(key)] = merge(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return entries
