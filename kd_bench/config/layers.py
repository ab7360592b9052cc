"""Settings in layers, of which each changes those before: of a recipe, a pair, a row, and a row in a pair."""

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


def build_from_layers(build: Callable[[Mapping[str, Any], str], T], layers: Sequence[Layer], context: str) -> T:
    """Returns what ``build`` makes of the merged changes.

    Args:
        build: Gets changes, and a context with which the messages of its errors begin.
        layers: The changes. The last layer has precedence.
        context: File of the settings that are changed.

    Raises:
        UserError: That of ``build``, with the context of the first layer with which it occurs, or ``context`` if it
            occurs without any.
    """
    try:
        return build(_merged(layers), layers[-1].context)
    except UserError as error:
        sentence = str(error).removeprefix(layers[-1].context)
    # A layer that would be invalid without a later one is not at fault, and has another sentence.
    cases = [(context, {}), *((layers[i].context, _merged(layers[: i + 1])) for i in range(len(layers) - 1))]
    at_fault = (place for place, changes in cases if _find_error(build, changes, place) == sentence)
    raise UserError(f"{next(at_fault, layers[-1].context)}{sentence}")


def _find_error(build: Callable[[Mapping[str, Any], str], object], changes: Mapping[str, Any], context: str) -> str:
    """Returns the message of the error without its context; empty if there is none."""
    try:
        build(changes, context)
    except UserError as error:
        return str(error).removeprefix(context)
    return ""


def _merged(layers: Sequence[Layer]) -> Mapping[str, Any]:
    """Returns the changes of all layers. A None that removes a key of an earlier layer is gone; others are kept."""
    merged = layers[-1].changes
    for layer in reversed(layers[:-1]):
        merged = merge(layer.changes, merged)
    return merged
