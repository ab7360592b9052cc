"""Losses of attention maps: how strongly each pixel of a feature map is activated, whatever the channels are.

The two feature maps may differ in channels and size. An attention map has one number per pixel: the mean of the squares
over the channels. It is flattened and divided by its L2 norm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.maps import equal_sizes, unit_vectors


def at(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the attention maps of student and teacher.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), eq. 2 with p = 2, as released: the square of
    the norm, divided by the number of pixels, mean over the batch. The larger feature map is averaged to the smaller
    one's size before the squares. Both feature maps have a gradient, and no second one.

    Args:
        student: (B, C, H, W).
        teacher: (B, D, H', W').

    >>> import torch
    >>> from kd_bench.losses import at
    >>> at(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, -3.0]], [[0.0, 4.0]]]])).item()  # the other pixel
    1.0
    """
    return F.mse_loss(*_attention_maps(student, teacher))


def ft(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference between the attention maps of the factors of student and teacher.

    Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer" (2018), as in RepDistiller. The
    paper divides the factors themselves by their norms, instead of their attention maps. If their sizes differ, the
    larger factor is averaged to the smaller one's size. Both factors have a gradient, and no second one.

    Args:
        student: (B, C, H, W), the translator's output.
        teacher: (B, D, H', W'), the paraphraser's output.

    >>> import torch
    >>> from kd_bench.losses import ft
    >>> ft(torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, -3.0]], [[0.0, 4.0]]]])).item()
    1.0
    """
    return F.l1_loss(*_attention_maps(student, teacher))


def _attention_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = equal_sizes(student, teacher)
    return _attention_map(student), _attention_map(teacher)


def _attention_map(maps: Tensor) -> Tensor:
    """Returns (B, H W) numbers for (B, C, H, W)."""
    squares: Tensor = _MeanSquare.apply(maps)
    return unit_vectors(squares.flatten(1))


class _MeanSquare(torch.autograd.Function):
    """Mean over the channels of the squares, (B, H, W); autograd's gradient takes three times as long."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        return maps.square().mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        gradient: Tensor = maps * (grads[0] * (2 / maps.shape[1]))[:, None]
        return gradient
