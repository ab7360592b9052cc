"""Variational information distillation: a bound of the mutual information of two feature maps."""

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_shapes
from kd_bench.losses.maps import equal_sizes


def vid(prediction: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's feature map, normally distributed around the student's prediction.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer" (2019), section 2.1, as released: the
    mean over images, channels and pixels of ((prediction - teacher)^2 / v + log v) / 2, where the paper has a sum over
    channels and pixels. If the sizes differ, the larger map is averaged to the smaller one's size. All three have a
    gradient.

    Args:
        prediction: (B, C, H, W), the regression of the teacher's map from the student's.
        teacher: (B, C, H', W').
        variance: (C,), v of each channel, above 0.

    >>> import torch
    >>> from kd_bench.losses import vid
    >>> vid(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0), torch.ones(3)).item()
    2.0
    """
    check_shapes(prediction=(prediction, "B C H W"), teacher=(teacher, "B C h w"), variance=(variance, "C"))
    prediction, teacher = equal_sizes(prediction, teacher)
    # Squares are averaged within a channel before they are divided by its variance, which is one pass less over them.
    squares = (prediction - teacher).square().mean((0, 2, 3))
    return torch.mean(squares / variance + variance.log()) / 2
