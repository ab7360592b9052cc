"""Convolutions that a CPU computes faster in another way, with the same result except for rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Fewest pixels of a map for which a matrix product is faster, and most pixels for which channels last is faster;
#: measured in float32 with AVX-512 (oneDNN 3), for forward and backward pass together.
_POINTWISE_MIN, _DEPTHWISE_MAX = 64, 4


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, in groups or not, computed as a matrix product if that is faster.

    The library's convolution takes up to 2.7 times as long, most of all with few channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, O, H, W)."""
        batch, channels, height, width = x.shape
        groups, pixels = self.groups, height * width
        # The gradient of the weights is summed over a tensor of (B, O, C / groups), which must not be larger than the
        # maps. The library convolves a teacher's maps, which have another layout, and single images, which serve to
        # record a network's graph.
        small = self.out_channels // groups <= 4 * pixels
        if not (small and batch > 1 and pixels >= _POINTWISE_MIN and x.is_contiguous() and _is_plain(x)):
            return super().forward(x)
        weight = self.weight.view(1, groups, self.out_channels // groups, channels // groups)
        out = torch.matmul(weight, x.view(batch, groups, channels // groups, pixels))
        out = out.view(batch, self.out_channels, height, width)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, computed with channels last if the maps have very few pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H', W')."""
        if x.shape[2] * x.shape[3] > _DEPTHWISE_MAX or not (x.is_contiguous() and _is_plain(x)):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups).contiguous()


def use_fast_convs(network: nn.Module) -> nn.Module:
    """Replaces a network's convolutions, in place, by those that are faster on a CPU; returns the network.

    Parameters and their names do not change.
    """
    for conv in network.modules():
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
            conv.__class__ = PointwiseConv2d
        elif conv.groups == conv.in_channels == conv.out_channels > 1:
            conv.__class__ = DepthwiseConv2d
    return network


def _is_plain(x: Tensor) -> bool:
    """Returns whether x is computed eagerly on the CPU in its own precision: not traced, compiled or under autocast."""
    on_cpu = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"
    return on_cpu and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
