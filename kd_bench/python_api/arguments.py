"""Checks what Python passes for recipes, methods, selections and folders, and brings it into one form."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user


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
    names = [name for name in methods.split(",") if name.strip()] if isinstance(methods, str) else listed(methods)
    for name in names:
        if isinstance(name, type):
            raise UserError(
                f"{context}: methods: {name.__name__} is trained in another process, which reads it from a file; write "
                f"the class to a file and name it as FILE.py:{name.__name__}"
            )
        if not isinstance(name, str | os.PathLike):
            raise UserError(f"{context}: methods: should be names of methods (one is {name!r:.60})")
    return [str(name).strip() for name in names]


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
    return [f"{key}={','.join(map(str, listed(value)))}" for key, value in only.items()]


def listed(value: Any) -> Sequence[Any]:
    """Returns the values as a list; one value, or a text, is a list of its own."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]


@contextmanager
def named_as_in_python() -> Iterator[None]:
    """Replaces the option at the beginning of an error's message, such as "--device", by the argument's name."""
    try:
        yield
    except UserError as error:
        message = re.sub(r"^--([a-z-]+)", lambda option: option[1].replace("-", "_"), str(error))
        raise UserError(message) from None
