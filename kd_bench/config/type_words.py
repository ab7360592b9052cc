"""Describes the types and defaults of settings in plain words. Code is within double backticks, as in docstrings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

#: The upper bound that "a number" has without words, because the page and the command line say it once.
LARGEST = 1e9

_PATTERNS = {"^[0-9a-f]{64}$": "a SHA-256 checksum of 64 hexadecimal digits"}


def allowed(annotation: Any, marks: Iterable[Any] = ()) -> str:
    """Describes the values of a field.

    Args:
        annotation: Its type.
        marks: The metadata of its type, as pydantic keeps them apart from it.

    Raises:
        TypeError: If there are no words for the type.

    >>> allowed(int, [Interval(ge=1, le=100_000)]), allowed(Literal["dataset", "network"] | None)
    ('a whole number from 1 to 100,000', '``dataset``, ``network`` or ``null``')
    """
    marks = list(_flat(marks))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(arguments[0], [*arguments[1:], *marks])
    if origin in {Union, UnionType}:
        return _union(arguments)
    if origin is Literal:
        return _choices(arguments)
    if origin is tuple:
        return _list(arguments, marks)
    if origin is dict:
        is_nested = get_origin(arguments[1]) is dict or _is_model(arguments[1])
        return "a mapping of mappings" if is_nested else "a mapping"
    if _is_model(annotation):
        return "a mapping"
    if annotation is bool:
        return _choices([True, False])
    if annotation in {int, float}:
        noun = "a whole number" if annotation is int else "a number"
        return noun + "".join(_bounds(mark, annotation) for mark in marks if isinstance(mark, Interval))
    if annotation is str:
        patterns = [mark.pattern for mark in marks if getattr(mark, "pattern", None) is not None]
        return _PATTERNS[patterns[0]] if patterns else "text"
    raise TypeError(f"there are no words for {annotation!r}; add them to {__name__}")


def default(value: Any) -> str:
    """Describes a default as a recipe would have it.

    >>> default(None), default((0.625, 4 / 3)), default({})
    ('null', '[0.625, 1.33333]', '{}')
    """
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return "{}" if name is None else f"{{name: {name}}}"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, tuple):
        return f"[{', '.join(map(default, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def _flat(marks: Iterable[Any]) -> Iterator[Any]:
    for mark in marks:
        yield from mark.metadata if isinstance(mark, FieldInfo) else [mark]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _union(branches: Sequence[Any]) -> str:
    if all(get_origin(branch) is Literal or branch is NoneType for branch in branches):
        return _choices([choice for branch in branches for choice in get_args(branch) or [None]])
    texts = ["``null``" if branch is NoneType else allowed(branch) for branch in branches]
    return ", or ".join(dict.fromkeys(texts))


def _choices(choices: Iterable[Any]) -> str:
    *others, last = (f"``{default(choice)}``" for choice in choices)
    return f"{', '.join(others)} or {last}" if others else last


def _list(entries: Sequence[Any], marks: Iterable[Any]) -> str:
    if entries[-1] is not ...:
        kinds = list(dict.fromkeys(map(allowed, entries)))
        return f"a list of {len(entries)} entries, each {' and '.join(kinds)}"
    least = next((mark.min_length for mark in marks if isinstance(mark, MinLen)), 0)
    most = next((mark.max_length for mark in marks if isinstance(mark, MaxLen)), None)
    length = f" of {least} to {most:,} entries" if most is not None else f" of at least {least} entry" if least else ""
    each = allowed(entries[0])
    return (
        f"a list{length}, each {each}"
        if length
        else "a list of texts"
        if each == "text"
        else f"a list, each entry {each}"
    )


def _bounds(interval: Interval, kind: type) -> str:
    """Returns the bounds of a number as the end of its description."""
    bounds = {"ge": interval.ge, "gt": interval.gt, "lt": interval.lt, "le": interval.le}
    shown: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
    if shown.get("le") == LARGEST:
        del shown["le"]
    texts = {name: f"{bound:,}" if kind is int else f"{bound:g}" for name, bound in shown.items()}
    if texts.keys() == {"ge", "le"}:
        return f" from {texts['ge']} to {texts['le']}"
    words = {"ge": "at least", "gt": "above", "lt": "below", "le": "at most"}
    text = " and ".join(f"{words[name]} {bound}" for name, bound in texts.items())
    return f", {text}" if text.startswith("at ") else f" {text}" if text else ""
