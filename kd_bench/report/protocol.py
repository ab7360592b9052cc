"""The protocol of a trial: the settings that must agree before results are averaged, and those before they are
compared.

A recipe may train a row with its own settings, such as a learning rate that suits its method. Such rows are compared,
and a note names the difference. Rows that see other images or more epochs, or whose accuracy is of other weights than
the last ones, are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import canonical

if TYPE_CHECKING:
    from kd_bench.config.trial import Trial

#: Settings that identify a trial and are not part of its protocol.
IDENTITY = frozenset({"model", "method", "teacher", "seed"})

#: Settings that must agree before two rows are compared: data, augmentation, epochs, and the evaluated weights.
COMPARED = ("schema", "epochs", "dataset", "augment", "second_view", "pipeline", "input", "ema")
_ADVERSARIAL = ("average", "second_view", "generated")

#: Number of differences that a sentence names.
_NAMED = 3


def protocol(trial: Trial | None, epochs: int | None) -> str:
    """Returns the protocol of a trial as JSON, which is equal for equal protocols.

    Args:
        trial: The trial; None if only the epochs are known.
        epochs: Number of epochs in the trial's result, which replaces the planned one; None if there is no result.
    """
    settings = {} if trial is None else {key: value for key, value in trial.settings().items() if key not in IDENTITY}
    if epochs is not None:
        settings["epochs"] = epochs
    return canonical(settings)


def comparable(protocol: str, other: str) -> bool:
    """Whether two protocols agree in the settings that must agree before rows are compared."""
    return _compared(protocol) == _compared(other)


def explain(protocol: str, other: str) -> str:
    """Returns the first few differences between two protocols in words, those that prevent a comparison first."""
    phrases = dict.fromkeys(differences(_compared(protocol), _compared(other)))
    return first_few(list(phrases | dict.fromkeys(differences(json.loads(protocol), json.loads(other)))))


def _compared(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    compared = {key: settings[key] for key in COMPARED if key in settings}
    adversarial = settings.get("adversarial") or {}
    inner = {key: adversarial[key] for key in _ADVERSARIAL if adversarial.get(key) is not None}
    return compared | ({"adversarial": inner} if inner else {})


def differences(settings: Mapping[str, Any], others: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields a phrase for each setting in which nested settings differ, or which only one of them has."""
    for key in dict.fromkeys([*others, *settings]):
        value, other = settings.get(key), others.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from differences(value, other, f"{path}{key}.")
        elif key == "second_view" and value is not None:
            yield f"a second view of the images ({_steps(value) or 'not augmented'})"
        elif key == "second_view" and other is not None:
            yield "no second view of the images"
        elif value is None and isinstance(other, Mapping):
            yield f"without {path}{key}"
        elif other is None and isinstance(value, Mapping):
            yield f"with {path}{key} ({format_value(value)})"
        elif value != other:
            yield f"{path}{key} {format_value(value)} instead of {format_value(other)}"


def _steps(augmentation: Mapping[str, Any]) -> str:
    """Returns the steps of an augmentation that are switched on, e.g. "crop 4, cutout 8, randaugment"."""
    return ", ".join(
        key if value is True or isinstance(value, Mapping) else f"{key} {format_value(value)}"
        for key, value in augmentation.items()
        if value and key != "own_source"
    )


def first_few(phrases: Sequence[str]) -> str:
    """Returns the first phrases and the number of the others."""
    more = f" and {len(phrases) - _NAMED} more" if len(phrases) > _NAMED else ""
    return ", ".join(phrases[:_NAMED]) + more


def format_value(value: Any) -> str:
    """Returns the value of a setting in words."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(inner)}" for key, inner in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
