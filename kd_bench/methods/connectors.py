"""The small trained networks that bring a student's features to the teacher's shape, as feature methods define them.

All sizes follow from the shapes of the pair; nothing is listed by hand.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.types import Outputs

#: (C, H, W) of a feature map.
Map = tuple[int, ...]

#: Edge in pixels of the smallest maps for which ``convolve_doubled`` has less to do; its border weighs more in others.
_DOUBLED_FROM = 4


def embedding(outputs: Outputs) -> Tensor:
    """(B, D): the pooled embedding, which a method has to have asked for."""
    if outputs.pooled is None:
        raise ValueError("the pooled embedding was not asked for")
    return outputs.pooled


class Regressor(nn.Module):
    """FitNet's regressor: a convolution to the teacher's channels and size, batch norm, and ReLU.

    As published where student and teacher are equally large or differ by a factor of two; the same kind of layer for
    any whole factor. A student that is larger by less than that gets a convolution without padding (as published); any
    other is first averaged, or repeated, to the teacher's size.

    Args:
        student: (C, H, W).
        teacher: (C, H, W).
    """

    def __init__(self, student: Map, teacher: Map) -> None:
        super().__init__()
        (ours, *size), (theirs, *wanted) = student, teacher
        self.resize: tuple[int, int] | None = None
        self.conv: nn.Module
        down, up = _factor(size, wanted), _factor(wanted, size)
        if down is not None and down > 1:
            half = down // 2
            self.conv = nn.Conv2d(ours, theirs, 2 * half + 1, down, padding=half)
        elif up is not None and up > 1:
            self.conv = nn.ConvTranspose2d(ours, theirs, up + 2 * (up // 2), up, padding=up // 2)
        else:
            excess = tuple(s - t for s, t in zip(size, wanted, strict=True))
            if any(over < 0 or over > t for over, t in zip(excess, wanted, strict=True)):
                self.resize, excess = (wanted[0], wanted[1]), (0, 0)
            self.conv = nn.Conv2d(ours, theirs, (1 + excess[0], 1 + excess[1]))
        self.norm = nn.BatchNorm2d(theirs)

    def forward(self, x: Tensor) -> Tensor:
        """The student's (B, C, H, W) to the teacher's."""
        if self.resize is not None:
            x = F.adaptive_avg_pool2d(x, self.resize)
        return F.relu(self.norm(self.conv(x)))


def _factor(larger: list[int], smaller: list[int]) -> int | None:
    """The whole number by which both edges of one map are those of the other; None where there is none."""
    factors = {a // b if a % b == 0 else None for a, b in zip(larger, smaller, strict=True)}
    return factors.pop() if len(factors) == 1 else None


class Connector(nn.Sequential):
    """OFD's connector: a 1x1 convolution to the teacher's channels, and batch norm.

    Args:
        in_chs: The student's channels.
        out_chs: The teacher's.
    """

    def __init__(self, in_chs: int, out_chs: int) -> None:
        conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / out_chs))
        super().__init__(conv, nn.BatchNorm2d(out_chs))


def convolve_doubled(x: Tensor, weight: Tensor) -> Tensor:
    """A 3x3 convolution, padded by one, of a map whose every pixel is repeated twice in both directions.

    Of the three rows of a kernel two always meet the same row of the small map, and so of the columns: four kernels of
    2x2, one for each place in a pixel's square, do it on the small map, with less than half of the products.

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
    kernels = folded(folded(weight, 2), 4)  # (column, row, O, C, 2, 2), by the place in the square
    found = F.conv2d(x, kernels.flatten(0, 2), padding=1)  # a row and a column more than a place has
    found = found.unflatten(1, kernels.shape[:3])
    columns = [torch.stack([found[:, b, a, :, a : a + height, b : b + width] for a in range(2)], 3) for b in range(2)]
    return torch.stack(columns, 5).flatten(4, 5).flatten(2, 3)


class Fusion(nn.Module):
    """ReviewKD's attention-based fusion (ABF) of a student's stage with what comes from the deeper ones.

    Maps that are only repeated in size stay small as long as they can: a convolution of 1x1 is made before, and one of
    3x3 is made of the small map where the size doubles. All of it is the published computation but for rounding.

    Args:
        in_chs: The student's channels at this stage.
        mid_chs: Channels of what is passed on.
        out_chs: The teacher's channels at this stage.
        size: (H, W) of the teacher's stage.
        deepest: Whether nothing comes from deeper stages.
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
        """This stage in the teacher's shape, and what is passed on to the next shallower stage.

        Args:
            x: (B, in_chs, h, w), the student's stage.
            deeper: (B, mid_chs, ...) from the stage below; None for the deepest.
        """
        x = self.reduce(x)
        size = (x.shape[2], x.shape[3])
        if self.attention is not None:
            if deeper is None:
                raise ValueError("only the deepest stage is fused with nothing")
            own, below = self.attention.weight.split(x.shape[1], 1)
            weights = F.conv2d(x, own, self.attention.bias) + _repeated(F.conv2d(deeper, below), size)
            weights = weights.sigmoid()
            x = x * weights[:, :1] + _repeated(deeper, size) * weights[:, 1:]
        convolution, norm = self.restore
        assert isinstance(convolution, nn.Conv2d)
        if self.size == (2 * size[0], 2 * size[1]) and min(size) >= _DOUBLED_FROM:
            # What is passed on is repeated where it is read; to double it twice is to repeat it four times.
            return norm(convolve_doubled(x, convolution.weight)), x
        x = _repeated(x, self.size)
        if self.size == (1, 1):  # where all of the kernel but its middle meets the padding
            return norm(F.conv2d(x, convolution.weight[:, :, 1:2, 1:2])), x
        return self.restore(x), x


def _repeated(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *size), the nearest pixel each."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="nearest")
