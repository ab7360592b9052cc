"""The small trained networks with which feature methods map a student's features to the teacher's shape.

All sizes follow from the shapes of the pair.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.losses.maps import average_cells
from kd_bench.types import Outputs

#: (C, H, W) of a feature map.
Map = tuple[int, ...]

#: Smallest edge in pixels from which on ``convolve_doubled`` needs fewer operations; in smaller maps its border costs
#: more.
_MIN_DOUBLED_EDGE = 4


def embedding(outputs: Outputs) -> Tensor:
    """Returns the pooled embedding, (B, D).

    Raises:
        ValueError: If the method's ``needs`` do not list it.
    """
    if outputs.pooled is None:
        raise ValueError("the pooled embedding was not asked for")
    return outputs.pooled


class Regressor(nn.Module):
    """FitNet's regressor: a convolution to the teacher's channels and size, batch norm, and ReLU or none.

    It is the published layer if the sizes are equal or differ by a factor of two, and the same kind of layer for any
    integer factor. If the student's map is larger by at most the teacher's edge, the convolution has no padding, as
    published. Any other map is first averaged, or repeated, to the teacher's size.

    Args:
        student, teacher: (C, H, W) of the maps.
        relu: Whether there is a ReLU at the end; none for pre-activations.
    """

    def __init__(self, student: Map, teacher: Map, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        (in_chs, *size), (out_chs, *target) = student, teacher
        self.resize: tuple[int, int] | None = None
        self.conv: nn.Module
        down, up = _factor(size, target), _factor(target, size)
        if down is not None and down > 1:
            self.conv = nn.Conv2d(in_chs, out_chs, 2 * (down // 2) + 1, down, padding=down // 2)
        elif up is not None and up > 1:
            self.conv = nn.ConvTranspose2d(in_chs, out_chs, up + 2 * (up // 2), up, padding=up // 2)
        else:
            excess = tuple(s - t for s, t in zip(size, target, strict=True))
            if any(over < 0 or over > t for over, t in zip(excess, target, strict=True)):
                self.resize, excess = (target[0], target[1]), (0, 0)
            self.conv = nn.Conv2d(in_chs, out_chs, (1 + excess[0], 1 + excess[1]))
        self.norm = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the student's (B, C, H, W) to the teacher's shape."""
        if self.resize is not None:
            x = average_cells(x, self.resize)
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


def _factor(larger: list[int], smaller: list[int]) -> int | None:
    """Returns the integer that divides both edges of ``larger`` into those of ``smaller``; None if there is none."""
    factors = {a // b if a % b == 0 else None for a, b in zip(larger, smaller, strict=True)}
    return factors.pop() if len(factors) == 1 else None


class Connector(nn.Sequential):
    """OFD's connector: a 1x1 convolution to the teacher's channels, and batch norm.

    Args:
        in_chs, out_chs: Channels of the student and of the teacher.
    """

    def __init__(self, in_chs: int, out_chs: int) -> None:
        conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / out_chs))
        super().__init__(conv, nn.BatchNorm2d(out_chs))


def convolve_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """Doubles a map by repeating its pixels and convolves it with a 3x3 kernel, padded by one, without the large map.

    Two of a kernel's three rows always read the same row of the small map; the same holds for columns. So four 2x2
    kernels, one for each position in a pixel's 2x2 square, compute the result from the small map, with less than half
    of the products.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3).

    Returns:
        (B, O, 2 H, 2 W).
    """

    def folded(kernel: Tensor, dim: int) -> Tensor:
        first, middle, last = kernel.unbind(dim)
        return torch.stack([torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)])

    height, width = x.shape[2:]
    kernels = folded(folded(weight, 2), 4)  # (column, row, O, C, 2, 2), column and row in the square
    maps = F.conv2d(x, kernels.flatten(0, 2), padding=1)  # one row and one column too many for each position
    maps = maps.unflatten(1, kernels.shape[:3])
    columns = [torch.stack([maps[:, b, a, :, a : a + height, b : b + width] for a in range(2)], 3) for b in range(2)]
    return torch.stack(columns, 5).flatten(4, 5).flatten(2, 3)


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion (ABF) of a student's stage with the deeper stages.

    Maps that are enlarged by repetition are convolved while they are small: 1x1 convolutions run before the
    enlargement, and so do 3x3 convolutions if the size doubles. The results equal the published computation except for
    rounding.

    Args:
        in_chs, mid_chs, out_chs: Channels of the student's stage, of the fused map, and of the teacher's stage.
        size: (H, W) of the teacher's stage.
        deepest: Whether this is the deepest stage.
    """

    def __init__(self, in_chs: int, mid_chs: int, out_chs: int, size: tuple[int, int], deepest: bool) -> None:
        super().__init__()
        self.size = size
        self.reduce = nn.Sequential(nn.Conv2d(in_chs, mid_chs, 1, bias=False), nn.BatchNorm2d(mid_chs))
        self.restore = nn.Sequential(nn.Conv2d(mid_chs, out_chs, 3, padding=1, bias=False), nn.BatchNorm2d(out_chs))
        for layer in (self.reduce[0], self.restore[0]):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.attention = None if deepest else nn.Conv2d(2 * mid_chs, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns this stage in the teacher's shape, and the fused map for the next shallower stage.

        Args:
            x: (B, in_chs, h, w), the student's stage.
            deeper: (B, mid_chs, ...), the fused map of the next deeper stage; None for the deepest stage.
        """
        x = self.reduce(x)
        size = (x.shape[2], x.shape[3])
        if self.attention is not None:
            if deeper is None:
                raise ValueError("only the deepest stage has no deeper map")
            kernel, deeper_kernel = self.attention.weight.split(x.shape[1], 1)
            weights = F.conv2d(x, kernel, self.attention.bias) + _enlarged(F.conv2d(deeper, deeper_kernel), size)
            weights = weights.sigmoid()
            x = x * weights[:, :1] + _enlarged(deeper, size) * weights[:, 1:]
        convolution, norm = self.restore
        assert isinstance(convolution, nn.Conv2d)
        if self.size == (2 * size[0], 2 * size[1]) and min(size) >= _MIN_DOUBLED_EDGE:
            # The fused map is returned small, because the next stage enlarges it: doubling twice equals repeating by 4.
            return norm(convolve_doubled(x, convolution.weight)), x
        x = _enlarged(x, self.size)
        if self.size == (1, 1):  # all of the kernel except its centre reads padding
            return norm(F.conv2d(x, convolution.weight[:, :, 1:2, 1:2])), x
        return self.restore(x), x


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes (B, C, H, W) to (B, C, *size) by nearest-neighbour interpolation."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")
