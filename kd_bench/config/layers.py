"""Settings in layers, of which each changes those before, e.g. of a recipe, a pair, a row, and a row in a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from kd_bench.config.load import merge
from kd_bench.utils.errors import UserError

T = TypeVar("T")


class Layer(NamedTuple):
    """Changes of settings.

    Attributes:
        context: File and key where they were written, for error messages.
        changes: The changed settings.
    """

    context: str
    changes: Mapping[str, Any]


def build_from_layers(
    build: Callable[[dict[str, Any], str], T], base: Mapping[str, Any], layers: Sequence[Layer], context: str
) -> T:
    """Returns what ``build`` makes of settings and their changes.

    Args:
        build: Gets the changed settings, and a context with which the messages of its errors begin.
        base: The settings.
        layers: The changes. The last layer has precedence.
        context: File of the settings.

    Raises:
        UserError: That of ``build``, with the context of the first layer with which it occurs, or ``context`` if it
            occurs without any.
    """
    contexts = [context, *(layer.context for layer in layers)]
    try:
        return build(merge_layers(base, layers), contexts[-1])
    except UserError as error:
        sentence = str(error).removeprefix(contexts[-1])
    # A layer that would be invalid without a later one is not at fault, and has another sentence.
    cases = ((contexts[count], merge_layers(base, layers[:count])) for count in range(len(layers)))
    at_fault = (context for context, settings in cases if _find_error(build, settings, context) == sentence)
    raise UserError(f"{next(at_fault, contexts[-1])}{sentence}")


def merge_layers(base: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
    """Returns settings with the changes of all layers.

    A null takes back what the nearest earlier layer sets, or, if none sets the key, what ``base`` sets.
    """
    changes: Mapping[str, Any] = {}
    for layer in reversed(layers):
        changes = merge(layer.changes, changes, keep_null=True)
    return merge(base, changes)


def _find_error(build: Callable[[dict[str, Any], str], object], settings: dict[str, Any], context: str) -> str:
    """Returns the message of the error without its context; empty if there is none."""
    try:
        build(settings, context)
    except UserError as error:
        return str(error).removeprefix(context)
    return ""
