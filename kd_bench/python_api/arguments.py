"""Checks what Python passes for recipes, methods, selections and folders, and brings it into one form."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user

#: A command in an error's message, whose options are no arguments; and "--set", which has no argument of its name.
_COMMAND = re.compile(r"\b(kd-bench [a-z]|pip |hf |python )|--set ")


def results_folder(out: Any, context: str) -> Path:
    """Returns the path of the results folder.

    Raises:
        UserError: If it is no path, or empty.
    """
    if not isinstance(out, str | os.PathLike):
        raise UserError(f"{context}: out: should be the path of a folder (it is {out!r:.60})")
    if os.fspath(out) == "":
        raise UserError(f"{context}: out: is empty; write . for the working folder")
    return expand_user(os.fspath(out))


def text(value: Any, key: str, context: str) -> str:
    """Returns a name or a path as text.

    Raises:
        UserError: If it is neither.
    """
    if hasattr(value, "named_parameters"):  # a network, whose text has many lines
        raise UserError(
            f"{context}: {key}: {type(value).__name__} is trained in another process, which builds it by name; name "
            "it, as FILE.py:NAME if it is your own, or pass it to kd_bench.distiller"
        )
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{context}: {key}: should be text (it is {value!r:.60})")
    return os.fspath(value)


def method_names(methods: Any, context: str) -> list[str]:
    """Returns names of methods; a text may have several with commas between them, as on the command line.

    Raises:
        UserError: If one of them is no text.
    """
    if isinstance(methods, Mapping):  # whose hyper-parameters would be lost
        raise UserError(
            f"{context}: methods: should be names of methods; for a row with hyper-parameters pass to kd_bench.run "
            '**{"methods.LABEL": {"method": "kd", "temperature": 2}}'
        )
    names = [name for name in methods.split(",") if name.strip()] if isinstance(methods, str) else listed(methods)
    for name in names:
        if isinstance(name, type):
            raise _unnamed_class(name, f"{context}: methods")
        if not isinstance(name, str | os.PathLike):
            raise UserError(f"{context}: methods: should be names of methods (one is {name!r:.60})")
    return [str(name).strip() for name in names]


def plain(value: Any) -> Any:
    """Returns a number of NumPy or PyTorch as Python's; all other values as they are."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def json_text(value: Any, context: str) -> str:
    """Returns a setting as JSON; paths become text, and numbers of NumPy those of Python.

    Raises:
        UserError: If the value, or a value in it, has no form in JSON.
    """

    def convert(part: Any) -> Any:
        if isinstance(part, os.PathLike):
            return os.fspath(part)
        if isinstance(part, type):
            raise _unnamed_class(part, context)
        if plain(part) is part:
            raise TypeError
        return plain(part)

    try:
        return json.dumps(value, default=convert)
    except (TypeError, ValueError):
        raise UserError(f"{context}: should be made of mappings, lists, text, numbers, true, false and null") from None


def plain_mapping(content: Mapping[str, Any], context: str) -> dict[str, Any]:
    """Returns a mapping, such as the content of a recipe, as it would be read from a file.

    Raises:
        UserError: As ``json_text``.
    """
    mapping: dict[str, Any] = json.loads(json_text(dict(content), context))
    return mapping


def _unnamed_class(kind: type, context: str) -> UserError:
    return UserError(
        f"{context}: {kind.__name__} is trained in another process, which reads it from a file; write the class to a "
        f"file and name it as FILE.py:{kind.__name__}"
    )


def recipe_names(recipes: Any, context: str) -> list[str] | None:
    """Returns names or files of recipes, of which there may be a single one; None for all recipes.

    Raises:
        UserError: If one of them is neither text nor a path.
    """
    if recipes is None:
        return None
    names: Sequence[Any] = [recipes] if isinstance(recipes, str | os.PathLike | Mapping) else listed(recipes)
    for name in names:
        if not isinstance(name, str | os.PathLike):
            raise UserError(f"{context}: recipes: should be files or names of recipes (one is {name!r:.60})")
    return [os.fspath(name) for name in names]


def conditions(only: Any, context: str) -> list[str]:
    """Returns the conditions of a selection in the form of the command line, ``key=value[,value...]``.

    Args:
        only: Values by key, each one value or several.
        context: The function they were passed to.

    Raises:
        UserError: If they are no mapping.
    """
    if only is None:
        return []
    if not isinstance(only, Mapping):
        raise UserError(
            f'{context}: only: should be a mapping, e.g. {{"method": ["kd", "dkd"], "seed": 0}} (it is {only!r:.60})'
        )
    for key, value in only.items():
        if not listed(value):
            raise UserError(f"{context}: only: {key}: should have at least one value")
    return [f"{key}={','.join(map(str, listed(value)))}" for key, value in only.items()]


def listed(value: Any) -> Sequence[Any]:
    """Returns the values as a list; one value, or a text, is a list of its own."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]


@contextmanager
def named_as_in_python() -> Iterator[None]:
    """Replaces options in an error's message, such as "--device", by the arguments' names, except in commands."""
    try:
        yield
    except UserError as error:
        options = r"^--([a-z-]+)" if _COMMAND.search(str(error)) else r"(?<![\w-])--([a-z][a-z-]*)"
        raise UserError(re.sub(options, _argument_name, str(error))) from None


def _argument_name(option: re.Match[str]) -> str:
    name = option[1].replace("-", "_")
    return {"executor_option": "executor_options"}.get(name, name)
