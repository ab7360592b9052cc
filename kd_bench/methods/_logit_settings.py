"""The settings of a row that can be combined with any method that compares logits: which keys they are, and for whom.

A method with a hyper-parameter of the same name gets the key as its hyper-parameter. Functions import pydantic and
torch themselves, because methods can be listed without.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from kd_bench.utils.errors import UserError, prefix

if TYPE_CHECKING:
    from kd_bench.config.trial import LogitSettings
    from kd_bench.methods._registry import MethodInfo
    from kd_bench.methods.base import Family, Method

    #: What is known of a method, from its source or from its class.
    Kind: TypeAlias = MethodInfo | type[Method]

#: The fields of ``LogitSettings``.
NAMES = ("standardise", "entropy_weights")

#: What the methods of the other families do.
_OTHERS: dict[Family, str] = {
    "features": "compares features and not logits",
    "baseline": "distils nothing",
    "adversarial": "trains on perturbed images without a teacher",
}


def split(
    name: str,
    kind: Kind,
    parameters: Collection[str],
    values: Mapping[str, Any],
    infos: Iterable[MethodInfo],
    context: str = "",
) -> tuple[dict[str, Any], LogitSettings]:
    """Returns the hyper-parameters among the values of a row, which are not checked, and its logit settings.

    Args:
        name: The method's name.
        kind: The method.
        parameters: Names of its hyper-parameters.
        values: The row's values by key.
        infos: Descriptions of methods, of which an error names those that a setting can be combined with.
        context: Where the row was written, for error messages.

    Raises:
        UserError: If a logit setting has an invalid value, or cannot be combined with the method.
    """
    from kd_bench.config.trial import LogitSettings
    from kd_bench.config.validate import parse

    keys = [key for key in NAMES if key in values and key not in parameters]
    settings = parse(LogitSettings, {key: values[key] for key in keys}, context or name)
    for key in settings.logit_settings():
        obstacle = _obstacle(key, kind)
        if obstacle is not None:
            others = ", ".join(info.name for info in infos if _obstacle(key, info) is None)
            raise UserError(f"{prefix(context)}{key}: {name} {obstacle}; {key} can be combined with: {others}")
    return {key: value for key, value in values.items() if key not in keys}, settings


def combinable(info: MethodInfo) -> list[str]:
    """Returns the names of the logit settings that a method can be combined with."""
    parameters = {parameter.name for parameter in info.parameters}
    return [key for key in NAMES if key not in parameters and _obstacle(key, info) is None]


def apply(method: Method, settings: LogitSettings) -> None:
    """Lets a method that has just been built read standardised logits and weigh samples, if the settings say so."""
    from kd_bench.methods._standardise import standardise_inputs

    if settings.standardise:
        standardise_inputs(method)
    if settings.entropy_weights is not None:
        method.entropy_temperature = settings.entropy_weights


def _obstacle(key: str, kind: Kind) -> str | None:
    """Returns why a setting cannot be combined with a method, as the end of a sentence about it; None if it can."""
    if kind.family != "logits":
        return _OTHERS[kind.family]
    if not kind.needs_teacher:
        return "has no teacher"
    if key == "standardise" and kind.computes_logits:
        return "computes its logits itself"
    if key == "entropy_weights" and not kind.weighs_samples:
        return "does not weigh single samples"
    return None
