"""Curriculum temperature: a learned temperature that maximises the distillation loss."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.arguments import check_non_negative, check_whole


def reverse_gradient(values: Tensor, strength: float) -> Tensor:
    """Returns ``values``; their gradient is multiplied by - ``strength``.

    Li et al., "Curriculum Temperature for Knowledge Distillation" (2023): what is computed before this
    function ascends the loss that all else descends.

    Args:
        values: Any shape.
        strength: lambda, 0 for no gradient.

    >>> import torch
    >>> from kd_bench.losses import reverse_gradient
    >>> theta = torch.tensor(3.0, requires_grad=True)
    >>> reverse_gradient(theta, 0.5).square().backward()
    >>> theta.grad
    tensor(-3.)
    """
    check_non_negative(strength=strength)
    reversed_values: Tensor = _ReverseGradient.apply(values, strength)
    return reversed_values


def reversal_strength(epoch: int, ramp_epochs: int) -> float:
    """lambda of ``reverse_gradient``: (1 - cos(pi E / ramp_epochs)) / 2 in the first epochs, then 1.

    Li et al. (2023); E is the epoch counted from 1. The temperature starts to learn slowly.

    Args:
        epoch: Counted from 0.
        ramp_epochs: First epoch with strength 1, counted from 1; 0 for strength 1 at once.

    >>> from kd_bench.losses import reversal_strength
    >>> [round(reversal_strength(epoch, ramp_epochs=10), 4) for epoch in (0, 4, 9, 20)]
    [0.0245, 0.5, 1.0, 1.0]
    >>> reversal_strength(0, ramp_epochs=0)
    1.0
    """
    check_whole(0, epoch=epoch, ramp_epochs=ramp_epochs)
    return 1.0 if epoch + 1 >= ramp_epochs else (1 - math.cos(math.pi * (epoch + 1) / ramp_epochs)) / 2


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None
