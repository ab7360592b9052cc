"""Pairs the feature maps of two networks: the outputs of the stages after the stem, from the deepest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from kd_bench.methods._connectors import Map
from kd_bench.types import Pair
from kd_bench.utils.errors import UserError

T = TypeVar("T")


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Returns pairs of the stages after the stems, or of their shapes, shallowest first.

    The deepest stages form a pair, and so on. Stages that one of the networks has more than the other are left out.

    Args:
        student, teacher: All stages, stem first.
    """
    count = min(len(student), len(teacher)) - 1
    return list(zip(student[-count:], teacher[-count:], strict=True)) if count > 0 else []


def paired_shapes(method: str, pair: Pair, at_least: int = 1) -> list[tuple[Map, Map]]:
    """Returns the shapes, (C, H, W), of the pairs of stages that a method compares.

    Args:
        method: Its name, for the error.
        pair: The networks.
        at_least: Number of pairs that it needs.

    Raises:
        UserError: If a network has too few stages; names it.
    """
    assert pair.teacher is not None
    for name, shapes in ((pair.student_name, pair.student), (pair.teacher_name, pair.teacher)):
        if len(shapes.stages) <= at_least:
            raise UserError(
                f"{method}: {name} has {len(shapes.stages)} stages, the stem included, but {method} needs at least "
                f"{at_least + 1}; choose another network"
            )
    return paired(pair.student.stages, pair.teacher.stages)
