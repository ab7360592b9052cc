"""The types of hyper-parameters, and how a value that a user gave is brought to its type.

A method annotates its keyword arguments with these, or with ``float``, ``int``, ``bool``, ``str``, ``Literal[...]`` and
any of them ``| None``. The registry knows the annotations by their text, so a method's file need not be imported to
check what is asked of it.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Bounds:
    """The interval that a number must lie in."""

    text: str
    """In words, e.g. "at least 0"."""
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    """Whether ``low`` itself is excluded."""

    def allow(self, value: float) -> bool:
        """Whether ``value`` lies in the interval."""
        return (value > self.low if self.above_low else value >= self.low) and value <= self.high


NonNegative = Annotated[float, Bounds("at least 0", low=0)]
Positive = Annotated[float, Bounds("above 0", low=0, above_low=True)]
Fraction = Annotated[float, Bounds("from 0 to 1", low=0, high=1)]
Count = Annotated[int, Bounds("at least 0", low=0)]
PositiveCount = Annotated[int, Bounds("at least 1", low=1)]

_KNOWN: dict[str, Any] = {
    "float": float,
    "int": int,
    "bool": bool,
    "str": str,
    "None": None,
    "NonNegative": NonNegative,
    "Positive": Positive,
    "Fraction": Fraction,
    "Count": Count,
    "PositiveCount": PositiveCount,
}

_WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}


def resolve(annotation: str) -> Any:
    """The type that an annotation's text means; nothing is imported or run.

    Raises:
        ValueError: With the end of a sentence, if it is none of the types that this module tells of.

    >>> resolve("float | None") == float | None
    True
    """
    try:
        return _resolve(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, LookupError):
        known = ", ".join(name for name in _KNOWN if name != "None")
        raise ValueError(f"should be one of {known}, Literal[...], or one of these '| None'") from None


def _resolve(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _KNOWN[name]
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=choices):
            nodes = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            if not all(isinstance(one, ast.Constant) for one in nodes):
                raise LookupError
            return Literal[tuple(one.value for one in nodes if isinstance(one, ast.Constant))]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_resolve(left), _resolve(right)]  # noqa: UP007 (None | None is no type)
    raise LookupError


def allowed(kind: Any) -> str:
    """What a type allows, in words.

    >>> allowed(NonNegative), allowed(Literal["sample", "class"])
    ('a finite number, at least 0', "'sample' or 'class'")
    """
    if get_origin(kind) is Annotated:
        base, bounds = get_args(kind)
        return f"{_WORDS[base]}, {bounds.text}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in {Union, UnionType}:
        return ", or ".join(allowed(one) for one in get_args(kind))
    return _WORDS[type(None) if kind is None else kind]


def coerce(kind: Any, value: Any) -> Any:
    """``value`` as the one form that its type has, so that equal settings have equal hashes: 4 is 4.0 for a float.

    Args:
        kind: A type from ``resolve``.
        value: As read from YAML or given by Python.

    Raises:
        ValueError: If the type does not allow it. Truth values and texts are not numbers; NaN and infinities are not
            allowed.

    >>> coerce(NonNegative, 4), coerce(Count, 20.0)
    (4.0, 20)
    """
    if get_origin(kind) is Annotated:
        base, bounds = get_args(kind)
        number = coerce(base, value)
        if bounds.allow(number):
            return number
    elif get_origin(kind) is Literal:
        for choice in get_args(kind):
            if type(choice) is type(value) and choice == value:
                return choice
    elif get_origin(kind) in {Union, UnionType}:
        for one in get_args(kind):
            try:
                return coerce(one, value)
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
        exact = kind(value)
        good = math.isfinite(exact) and (kind is float or exact == value)
    except (OverflowError, ValueError):  # NaN and infinities as a whole number, whole numbers too large for a float
        good = False
    if not good:
        raise ValueError(f"{value!r} is not {_WORDS[kind]}")
    return exact + 0  # the only effect is that -0.0 becomes 0.0
