"""Convolutions that a CPU does faster in another way, with the same result but for rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Pixels of the smallest maps for which a product of matrices is the faster way, and of the largest for which the
#: other layout is; measured in float32 with AVX-512 (oneDNN 3), for forward and backward pass together.
_POINTWISE_FROM, _DEPTHWISE_TO = 64, 4


class PointwiseConv2d(nn.Conv2d):
    """A convolution of single pixels (1x1, in groups or not) as a product of matrices, where that is faster: there the
    library's own takes up to 2.7 times as long, most of all with few channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H, W)."""
        batch, channels, height, width = x.shape
        groups, pixels = self.groups, height * width
        # The gradient of the weights is summed up over a tensor of (B, O, C / groups), which is not to be larger than
        # the maps. A teacher's maps, which have another layout, are left to the library; and so are single images,
        # with which a network's graph is read.
        small = self.out_channels // groups <= 4 * pixels
        if not (small and batch > 1 and pixels >= _POINTWISE_FROM and x.is_contiguous() and _plain(x)):
            return super().forward(x)
        weight = self.weight.view(1, groups, self.out_channels // groups, channels // groups)
        found = torch.matmul(weight, x.view(batch, groups, channels // groups, pixels))
        found = found.view(batch, self.out_channels, height, width)
        return found if self.bias is None else found + self.bias.view(-1, 1, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, with the channels last where the maps have next to no pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        if x.shape[2] * x.shape[3] > _DEPTHWISE_TO or not (x.is_contiguous() and _plain(x)):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups).contiguous()


def use_fast_convs(network: nn.Module) -> nn.Module:
    """Lets a network's convolutions be done the faster way on a CPU; parameters and their names stay as they are.

    Args:
        network: Any; changed in place.

    Returns:
        The network.
    """
    for conv in network.modules():
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
            conv.__class__ = PointwiseConv2d
        elif conv.groups == conv.in_channels == conv.out_channels > 1:
            conv.__class__ = DepthwiseConv2d
    return network


def _plain(x: Tensor) -> bool:
    """Whether it is to be computed here and now, and exactly: not traced, not on a GPU, not in another precision."""
    here = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"
    return here and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
