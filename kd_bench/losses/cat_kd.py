"""Class attention transfer: the loss between class activation maps, one map per class."""

import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_shapes, check_whole
from kd_bench.losses.maps import average_cells, unit_vectors
from kd_bench.losses.precision import at_least_float32


def cat_kd(student_maps: Tensor, teacher_maps: Tensor, resolution: int, normalise: bool) -> Tensor:
    """Mean squared error between the class activation maps of student and teacher.

    Guo et al., "Class Attention Transfer Based Knowledge Distillation" (2023), as released. Both networks' maps are
    averaged to ``resolution`` x ``resolution`` pixels first, whatever their sizes. Both sides have a gradient.

    Args:
        student_maps: (B, K, H, W), the classifier applied to each pixel of the last feature map.
        teacher_maps: (B, K, H', W').
        resolution: Pixels per edge that are compared.
        normalise: Whether each map of an image and a class is divided by its L2 norm over the pixels.

    >>> import torch
    >>> from kd_bench.losses import cat_kd
    >>> student, teacher = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    >>> round(cat_kd(student, teacher, resolution=1, normalise=False).item(), 4)  # (0.5 - 3.5)^2
    9.0
    >>> round(cat_kd(student, teacher, resolution=1, normalise=True).item(), 4)  # of one pixel, only the sign is left
    0.0
    """
    check_shapes(student_maps=(student_maps, "B K H W"), teacher_maps=(teacher_maps, "B K h w"))
    check_whole(1, resolution=resolution)
    student, teacher = (
        average_cells(at_least_float32(maps), (resolution, resolution)) for maps in (student_maps, teacher_maps)
    )
    if normalise:
        student, teacher = unit_vectors(student.flatten(2)), unit_vectors(teacher.flatten(2))
    return F.mse_loss(student, teacher)
