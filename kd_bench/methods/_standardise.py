"""Gives standardised logits to a method, whatever it computes from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from kd_bench import losses
from kd_bench.types import Outputs


def standardise_inputs(method: nn.Module) -> None:
    """Lets ``method`` read standardised logits of teacher and student from now on, in both views.

    The raw logits are in ``Outputs.label_logits`` then, for the loss with the labels and for sample weights. The
    gradient of the student runs through the standardisation.
    """
    method.register_forward_pre_hook(_standardise_arguments)


def _standardise_arguments(method: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    student, teacher, *rest = arguments
    return (_standardised(student), None if teacher is None else _standardised(teacher), *rest)


def _standardised(outputs: Outputs) -> Outputs:
    return replace(
        outputs,
        logits=losses.logit_standardise(outputs.logits),
        label_logits=outputs.logits,
        second_view=None if outputs.second_view is None else _standardised(outputs.second_view),
    )
