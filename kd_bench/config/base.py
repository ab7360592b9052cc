"""Base of all settings: strict pydantic models, and marks of fields."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

_SHARED: Final = "shared by the trials of a cohort"
_PER_TRIAL: Final = "of one trial"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
NonEmpty = Annotated[str, Field(min_length=1)]

#: A setting that must be equal in all trials of a cohort, because it changes the batches or the teacher's outputs.
Shared = Annotated[T, _SHARED]
#: A setting that may differ between the trials of a cohort.
PerTrial = Annotated[T, _PER_TRIAL]


class Settings(BaseModel):
    """Base of everything read from outside: unknown keys, wrong types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class KeptContent(BaseModel):
    """Base of file contents that kd-bench writes and reads again. Ignores the keys that other versions have added."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


def added_field(default: Any = None) -> Any:
    """Returns a field that is left out of dumps, and so of hashes, if it has its default.

    For fields that were added after the first release: earlier trials keep their identity. The default must mean what
    was done before the field existed.
    """
    return Field(default=default, exclude_if=lambda value: value == default)


def shared_fields(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the fields marked ``Shared``, as the argument ``include`` of ``model_dump``.

    Raises:
        TypeError: If a field has no mark, and is no model whose fields are marked.
    """
    include: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if _SHARED in field.metadata:
            include[name] = True
        elif _PER_TRIAL not in field.metadata:
            models = nested_models(field.annotation)
            if not models:
                raise TypeError(f"{model.__name__}.{name} is marked neither Shared nor PerTrial")
            include[name] = {key: value for nested in models for key, value in shared_fields(nested).items()}
    return include


def nested_models(annotation: Any) -> list[type[BaseModel]]:
    """Returns the models that are named in the annotation of a field."""
    if get_origin(annotation) is None and isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in nested_models(argument)]
