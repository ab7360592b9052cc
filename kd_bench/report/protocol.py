"""By which protocol a trial was trained: all of it must agree before numbers may be averaged, some before compared.

A recipe may train a row by settings of its own, a learning rate that suits its method, say. Such rows are compared, and
a note says what is different. Rows that see other images, or more often, or whose accuracy is of other weights than
the last ones, are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kd_bench.config.trial import canonical

#: Settings of a trial that say what it is rather than how it is trained.
IDENTITY = frozenset({"model", "method", "teacher", "seed"})

#: What must agree before two lines may be compared: data, augmentation, length, and which weights are evaluated.
COMPARED = ("schema", "epochs", "dataset", "augment", "pipeline", "input", "ema")
_ADVERSARIAL = ("average", "second_view", "generated")

#: Differences that a sentence names.
NAMED = 3


def protocol(cell: Any, epochs: int | None) -> str:
    """The protocol of a planned trial, as JSON that is equal where protocols are.

    Args:
        cell: With ``trial``, its settings; of a cell without them only the epochs are known.
        epochs: The number that its result says, which goes before the planned one.
    """
    trial = getattr(cell, "trial", None)
    settings = {} if trial is None else {k: v for k, v in trial.settings().items() if k not in IDENTITY}
    if epochs is not None:
        settings["epochs"] = epochs
    return canonical(settings)


def comparable(ours: str, theirs: str) -> bool:
    """Whether what must agree between two protocols does."""
    return _decisive(ours) == _decisive(theirs)


def explain(ours: str, theirs: str) -> str:
    """In what a protocol differs from another, in words: the first few differences, the decisive ones first."""
    found = list(differences(_decisive(ours), _decisive(theirs)))
    found += [one for one in differences(json.loads(ours), json.loads(theirs)) if one not in found]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _decisive(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    kept = {key: settings[key] for key in COMPARED if key in settings}
    adversarial = settings.get("adversarial") or {}
    inner = {key: adversarial[key] for key in _ADVERSARIAL if adversarial.get(key) is not None}
    return kept | ({"adversarial": inner} if inner else {})


def differences(given: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A phrase a leaf that is not as wanted, one that is not wanted included."""
    for key in dict.fromkeys([*wanted, *given]):
        ours, theirs = given.get(key), wanted.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from differences(ours, theirs, f"{path}{key}.")
        elif ours != theirs:
            yield instead(f"{path}{key}", ours, theirs)


def instead(key: str, ours: Any, theirs: Any) -> str:
    """``epochs 60 instead of 240``."""
    return f"{key} {spelt(ours)} instead of {spelt(theirs)}"


def spelt(value: Any) -> str:
    """A setting's value in words."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {spelt(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
