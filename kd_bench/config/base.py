"""Base of all settings: strict pydantic models, bounded numbers, and fields that do not change identities."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of everything read from outside: unknown keys, wrong types and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def added_field(default: Any = None) -> Any:
    """A field that came after the first release: where it has its default it is left out of what is hashed.

    So trials from before it keep their identity. The default must mean what was done before the field came.
    """
    return Field(default=default, exclude_if=lambda value: value == default)
