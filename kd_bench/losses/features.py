"""Losses between feature maps: OFD's partial L2 loss and its margins, and ReviewKD's hierarchical context loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_shapes
from kd_bench.losses.maps import average_cells
from kd_bench.losses.precision import at_least_float32

#: Edges in pixels of the grids that ReviewKD's loss pools to, finest first.
_GRIDS = (4, 2, 1)


def partial_l2(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared differences of pre-activations, summed over channels and pixels, mean over the batch.

    Heo et al., "A Comprehensive Overhaul of Feature Distillation" (2019), eq. 2 and 3. The teacher's value is clamped
    below at the margin. If the teacher is not positive, a student at or below this value has no loss. Both feature maps
    have a gradient.

    Args:
        student: (B, C, H, W) pre-activations, after the connector.
        teacher: (B, C, H, W) pre-activations.
        margin: (C,) or (1, C, 1, 1), at most 0.

    >>> import torch
    >>> from kd_bench.losses import partial_l2
    >>> student, teacher = torch.tensor([[-3.0, 1.0, 1.0]]), torch.tensor([[-2.0, -2.0, 2.0]])
    >>> partial_l2(student[..., None, None], teacher[..., None, None], torch.full((3,), -1.0)).item()  # 0 + 2^2 + 1^2
    5.0
    """
    check_shapes(student=(student, "B C H W"), teacher=(teacher, "B C H W"))
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    target = torch.maximum(teacher, at_least_float32(margin).view(1, -1, 1, 1))
    # Elements without loss have themselves as target, which is one pass over memory; masking the squares is several.
    target = torch.where((teacher <= 0) & (student <= target), student.detach(), target)
    return F.mse_loss(student, target, reduction="sum") / len(student)


def ofd_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """The mean of the negative outputs of a batch norm, (C,), if its outputs are normally distributed.

    Heo et al. (2019), section 3.2 and supplement: m - s phi(m / s) / Phi(-m / s) for mean m and standard deviation s,
    and -3 s if less than a thousandth of the outputs is negative.

    Args:
        scale: (C,), the batch norm's weight, whose magnitude is s. If it is 0, the channel is constant, and the margin
            is min(m, 0).
        shift: (C,), its bias, m.

    >>> import torch
    >>> from kd_bench.losses import ofd_margin
    >>> ofd_margin(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 9.0]))
    tensor([-0.7979, -3.0000])
    """
    check_shapes(scale=(scale, "C"), shift=(shift, "C"))
    s, m = scale.double().abs(), shift.double()
    constant = s == 0
    ratio = m / torch.where(constant, torch.ones_like(s), s)
    below = torch.special.ndtr(-ratio)
    density = (-0.5 * ratio.square()).exp() / math.sqrt(2 * math.pi)
    margin = torch.where(below > 1e-3, m - s * density / below, -3 * s)
    return torch.where(constant, m.clamp(max=0), margin).to(scale.dtype)


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """ReviewKD's loss of a stage: mean squared errors at full size and averaged to grids of 4, 2 and 1 pixels.

    Chen et al., "Distilling Knowledge via Knowledge Review" (2021), section 3.3, HCL. Each coarser level has half the
    weight of the one before; the weights are divided by their sum. Grids that are not smaller than the maps are left
    out. Both feature maps have a gradient.

    Args:
        student: (B, C, H, W), after the fusion.
        teacher: (B, C, H, W).

    >>> import torch
    >>> from kd_bench.losses import hierarchical_context
    >>> round(hierarchical_context(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).item(), 6)
    1.0
    """
    check_shapes(student=(student, "B C H W"), teacher=(teacher, "B C H W"))
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    edges = student.shape[2:]
    # If the cells of the finest grid are equal, each grid can be pooled from the one before.
    nested = all(edge % _GRIDS[0] == 0 for edge in edges)
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    pooled = student, teacher
    for grid in _GRIDS:
        if grid >= edges[0]:
            continue
        weight /= 2
        total += weight
        source = pooled if nested else (student, teacher)
        pooled = average_cells(source[0], (grid, grid)), average_cells(source[1], (grid, grid))
        loss = loss + weight * F.mse_loss(*pooled)
    return loss / total
