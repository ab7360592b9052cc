"""The feature maps of two networks: pairs of the stages after the stem, from the deepest, last maps and class maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from torch import Tensor

from kd_bench.methods._connectors import Map
from kd_bench.types import Outputs, Pair
from kd_bench.utils.errors import UserError

T = TypeVar("T")


def class_maps(outputs: Outputs) -> Tensor:
    """Returns the class maps, (B, K, H, W).

    Raises:
        ValueError: If the method's ``needs`` do not list them.
    """
    if outputs.class_maps is None:
        raise ValueError("the class maps were not asked for")
    return outputs.class_maps


def last_map(outputs: Outputs) -> Tensor:
    """Returns the last feature map, (B, C, H, W).

    Raises:
        ValueError: If the method's ``needs`` do not list it.
    """
    if outputs.features is None:
        raise ValueError("the last feature map was not asked for")
    return outputs.features


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Returns pairs of the stages after the stems, or of their shapes, shallowest first.

    The deepest stages form a pair, and so on. Stages that one of the networks has more than the other are left out.

    Args:
        student, teacher: All stages, stem first.
    """
    count = min(len(student), len(teacher)) - 1
    return list(zip(student[-count:], teacher[-count:], strict=True)) if count > 0 else []


def paired_shapes(
    method: str, pair: Pair, at_least: int = 1, of: Literal["stages", "preacts"] = "stages"
) -> list[tuple[Map, Map]]:
    """Returns the shapes, (C, H, W), of the pairs of stages that a method compares.

    Args:
        method: Its name, for the error.
        pair: The networks.
        at_least: Number of pairs that it needs.
        of: Which outputs of the stages it compares.

    Raises:
        UserError: If a network has too few stages; names it.
    """
    assert pair.teacher is not None
    student_shapes, teacher_shapes = getattr(pair.student, of), getattr(pair.teacher, of)
    for name, shapes in ((pair.student_name, student_shapes), (pair.teacher_name, teacher_shapes)):
        if len(shapes) <= at_least:
            raise UserError(
                f"{method}: {name} has {len(shapes)} stages, the stem included, but {method} needs at least "
                f"{at_least + 1}; choose another network"
            )
    return paired(student_shapes, teacher_shapes)
