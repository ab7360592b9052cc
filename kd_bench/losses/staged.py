"""Losses of methods that train the feature maps before the classifier: AB and FSP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_non_negative, check_shapes
from kd_bench.losses.maps import equal_sizes
from kd_bench.losses.precision import at_least_float32, matmul


def ab(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Activation boundary loss: how far the student is from the side of the teacher's activation, with a margin.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons" (2019):
    (margin - s)^2 where the teacher is positive and the student s is below the margin; (margin + s)^2 where the teacher
    is not positive and the student is above minus the margin; 0 elsewhere. Sum over channels and pixels, mean over the
    batch. Only the student has a gradient.

    Args:
        student: (B, C, H, W) pre-activations, after the connector.
        teacher: (B, C, H, W) pre-activations.
        margin: Margin of the boundary.

    >>> import torch
    >>> from kd_bench.losses import ab
    >>> teacher = torch.tensor([[2.0, 2.0, -1.0, -1.0]])
    >>> ab(torch.tensor([[3.0, -1.0, 0.5, -2.0]])[..., None, None], teacher[..., None, None]).item()  # 0 + 4 + 2.25 + 0
    6.25
    """
    check_shapes(student=(student, "B C H W"), teacher=(teacher, "B C H W"))
    check_non_negative(margin=margin)
    student = at_least_float32(student)
    excess = margin - torch.where(teacher > 0, student, -student)
    return F.relu(excess).square().sum() / len(student)


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of the flow matrices: inner products of the channels of two stages of one network.

    Yim et al., "A Gift from Knowledge Distillation" (2017), eq. 1 and 2, as released: mean over the entries of the
    matrices, and over the batch. Within a network the larger map is averaged to the smaller one's size. Both networks
    have a gradient.

    Args:
        student: Two feature maps, (B, C, H, W) and (B, D, H', W').
        teacher: Two feature maps with the same channels, (B, C, ...) and (B, D, ...).

    Raises:
        ValueError: If the channels differ.

    >>> import torch
    >>> from kd_bench.losses import fsp
    >>> maps, zeros = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)
    >>> fsp((maps, maps), (zeros, zeros)).item()
    1.0
    """
    channels = [tuple(maps.shape[1] for maps in network) for network in (student, teacher)]
    if channels[0] != channels[1]:
        raise ValueError(f"fsp compares equal channels, not {channels[0]} of the student and {channels[1]}")
    return F.mse_loss(_flow(*student), _flow(*teacher))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Returns (B, C, D)."""
    first, second = equal_sizes(first, second)
    pixels = first.shape[2] * first.shape[3]
    return matmul(first.flatten(2), second.flatten(2).mT) / pixels
