"""The types of hyper-parameters, and how a user's value is converted to its type.

A method annotates its keyword arguments with the number types below, or with ``float``, ``int``, ``bool``, ``str``,
``Literal[...]`` and any of them ``| None``. Annotations are resolved from their text, so that hyper-parameters can be
checked without importing the method's file.
"""

from __future__ import annotations

import ast
import math
import operator
from dataclasses import asdict
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval

from kd_bench.config import numbers
from kd_bench.config.numbers import Count, Fraction, NonNegative, Positive, PositiveCount, Search, Temperature, Weight

__all__ = [
    "Count",
    "Fraction",
    "NonNegative",
    "Positive",
    "PositiveCount",
    "Temperature",
    "Weight",
    "allowed",
    "coerce",
    "resolve",
    "search_range",
]

_TYPES: dict[str, Any] = {kind.__name__: kind for kind in (float, int, bool, str)} | {
    name: kind for name, kind in vars(numbers).items() if get_origin(kind) is Annotated
}
_WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}


def resolve(annotation: str) -> Any:
    """Returns the type that the text of an annotation names; nothing is imported or run.

    Raises:
        ValueError: If the type is none of those in the module's docstring; the message is the end of a sentence.

    >>> resolve("float | None") == float | None
    True
    """
    try:
        return _resolve(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, LookupError):
        raise ValueError(f"should be one of {', '.join(_TYPES)}, Literal[...], or one of these '| None'") from None


def _resolve(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _TYPES[name]
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=choices):
            nodes = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            if not all(isinstance(node, ast.Constant) for node in nodes):
                raise LookupError
            return Literal[tuple(node.value for node in nodes if isinstance(node, ast.Constant))]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_resolve(left), _resolve(right)]  # noqa: UP007 (None | None is no type)
    raise LookupError


def allowed(kind: Any) -> str:
    """Describes the values of a type.

    >>> allowed(NonNegative), allowed(Literal["sample", "class"])
    ('a finite number, at least 0', "'sample' or 'class'")
    """
    if get_origin(kind) is Annotated:
        base, interval = get_args(kind)[:2]
        return f"{_WORDS[base]}, {_bounds(interval)}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in {Union, UnionType}:
        return ", or ".join(map(allowed, get_args(kind)))
    return _WORDS[type(None) if kind is None else kind]


def _bounds(interval: Interval) -> str:
    if interval.ge is not None and interval.le is not None:
        return f"from {interval.ge} to {interval.le}"
    words = {"above": interval.gt, "at least": interval.ge, "below": interval.lt, "at most": interval.le}
    return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)


def search_range(kind: Any, default: Any) -> tuple[float, float] | None:
    """Returns the range in which tuning searches, on a logarithmic scale; None for a type without one.

    >>> search_range(Weight, 4.0), search_range(Temperature, 4.0), search_range(NonNegative, 1.0)
    ((0.5, 32.0), (1, 16), None)
    """
    search = next((mark for mark in get_args(kind)[2:] if isinstance(mark, Search)), None)
    return search.range(default) if search is not None and isinstance(default, (int, float)) else None


def coerce(kind: Any, value: Any) -> Any:
    """Returns ``value`` in the form that its type has, so that equal settings have equal hashes: 4 is 4.0 for a float.

    Args:
        kind: A type from ``resolve``.
        value: As read from YAML or passed by Python.

    Raises:
        ValueError: If the type does not allow it. Booleans and texts are not numbers; NaN and infinities are refused.

    >>> coerce(NonNegative, 4), coerce(Count, 20.0)
    (4.0, 20)
    """
    choices = get_args(kind)
    if get_origin(kind) is Annotated:
        number = coerce(choices[0], value)
        bounds = {name: bound for name, bound in asdict(choices[1]).items() if bound is not None}
        if all(getattr(operator, name)(number, bound) for name, bound in bounds.items()):
            return number
    elif get_origin(kind) is Literal:
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
    elif get_origin(kind) in {Union, UnionType}:
        for choice in choices:
            try:
                return coerce(choice, value)
            except ValueError:
                continue
    elif kind in {None, type(None)}:
        if value is None:
            return None
    elif kind in {float, int}:
        if not isinstance(value, bool) and isinstance(value, (int, float)):
            return _number(kind, value)
    elif type(value) is kind:
        return value
    raise ValueError(f"{value!r} is not {allowed(kind)}")


def _number(kind: type, value: float) -> Any:
    try:
        number = kind(value)
        exact = math.isfinite(number) and (kind is float or number == value)
    except (OverflowError, ValueError):  # int of NaN or an infinity, float of a huge int
        exact = False
    if not exact:
        raise ValueError(f"{value!r} is not {_WORDS[kind]}")
    return number + 0  # turns -0.0 into 0.0
