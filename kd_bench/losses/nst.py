"""Neuron selectivity transfer: the distribution of the channels' activation patterns.

The published code computes the kernel of every pair of channels, (B, C, D) numbers from (B, C, D, H W) products. For a
polynomial kernel of degree 2 the sums over all pairs are norms of products of (C, H W) and (D, H W) matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.maps import equal_sizes, unit_vectors


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels of two feature maps, with the kernel k(a, b) = (a . b)^2.

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017), section 4: a channel
    is a vector of pixels of norm 1; mean k(t, t) + mean k(s, s) - 2 mean k(s, t) over all pairs of channels, mean over
    the batch. If the sizes differ, the larger map is averaged to the smaller one's size. Only the student has a
    gradient, and no second one.

    With A (C, N) the student's channels and B (D, N) the teacher's, the mean of k(s, t) is |A B^T|^2 / (C D), and the
    loss is |A^T A / C - B^T B / D|^2. The form with fewer operations is computed.

    Args:
        student: (B, C, H, W).
        teacher: (B, D, H', W').

    >>> import torch
    >>> from kd_bench.losses import nst
    >>> nst(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])).item()
    2.0
    """
    student, teacher = equal_sizes(student, teacher)
    loss: Tensor = _Discrepancy.apply(unit_vectors(student.flatten(2)), unit_vectors(teacher.detach().flatten(2)))
    return loss


class _Discrepancy(torch.autograd.Function):
    """The loss of channels of norm 1, (B, C, N) and (B, D, N).

    Computes the gradient in the forward pass, because autograd's saved tensors need more memory, and because it
    multiplies by a symmetric matrix twice.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):  # the products would be in half precision
            channels, pixels, others = student.shape[1], student.shape[2], teacher.shape[1]
            over_pixels = pixels * (channels + others) <= channels**2 + others**2 + channels * others
            loss, slope = (_over_pixels if over_pixels else _over_channels)(student, teacher, ctx.needs_input_grad[0])
            if slope is not None:
                ctx.save_for_backward(slope.mul_(4 / (len(student) * channels)))
            return loss / len(student)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None


def _over_pixels(student: Tensor, teacher: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the sum of the images' losses, and its gradient times C / 4, from (B, N, N) products."""
    # In place, because these are the largest tensors.
    difference = student.mT @ student
    difference.baddbmm_(teacher.mT, teacher, alpha=-student.shape[1] / teacher.shape[1]).div_(student.shape[1])
    return _squared_norm(difference), student @ difference if with_slope else None


def _over_channels(student: Tensor, teacher: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the same as ``_over_pixels``, from (B, C, C), (B, D, D) and (B, C, D) products."""
    of_student, of_teacher, of_both = student @ student.mT, teacher @ teacher.mT, student @ teacher.mT
    of_student.div_(student.shape[1])
    of_both.div_(teacher.shape[1])
    loss = _squared_norm(of_student) + _squared_norm(of_teacher.div_(teacher.shape[1]))
    loss = loss - 2 * _squared_norm(of_both) * teacher.shape[1] / student.shape[1]
    return loss, (of_student @ student).baddbmm_(of_both, teacher, alpha=-1) if with_slope else None


def _squared_norm(values: Tensor) -> Tensor:
    """Returns the sum of the squares, without a tensor of them."""
    return values.flatten().dot(values.flatten())
