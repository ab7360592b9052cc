"""Convolutions that a CPU or a GPU computes faster in another way, with the same result except for rounding."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.models.conv_product import conv_product

#: How a 1x1 convolution is computed. ``library``: by the library's convolution. ``product``: by a matrix product for
#: each image and group. ``merged``: by a matrix product for each group, over the pixels of all images. ``split``: by
#: the library's convolution, once for each group.
PointwiseWay = Literal["library", "product", "merged", "split"]

#: Measured in float32 with AVX-512 (oneDNN 3), for forward and backward pass together: fewest pixels of a map for which
#: a matrix product is faster; most pixels of a depthwise convolution for which channels last is faster; most pixels,
#: and fewest channels of a group, for which one convolution for each group is faster than a product; and the number of
#: channels of which those of a group must be a multiple for the library's fast kernel of grouped convolutions.
_POINTWISE_MIN, _DEPTHWISE_MAX, _SPLIT_MAX, _SPLIT_CHANNELS, _LIBRARY_CHANNELS = 64, 4, 144, 32, 16


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution, in groups or not, computed in the way that is fastest on its device.

    On a CPU, the library's convolution takes up to 2.7 times as long, most of all with few channels. On a GPU, cuDNN's
    grouped convolution transposes its maps: this took 3 of the 11 ms of a step of ShuffleNet-V1 on an H200.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, O, H, W)."""
        batch, channels, height, width = x.shape
        groups, pixels = self.groups, height * width
        device = _device(x)
        # The library convolves maps of another layout, which is a teacher's, and single images, which serve to record
        # a network's graph.
        if device is None or batch == 1 or not x.is_contiguous():
            return super().forward(x)
        way = pointwise_way(device, channels, self.out_channels, groups, pixels)
        if way == "library":
            return super().forward(x)
        if way == "split":
            biases = [None] * groups if self.bias is None else self.bias.chunk(groups)
            parts = zip(x.chunk(groups, 1), self.weight.chunk(groups), biases, strict=True)
            return torch.cat([F.conv2d(*part) for part in parts], 1)
        weight = self.weight.view(groups, self.out_channels // groups, channels // groups)
        x = x.view(batch, groups, channels // groups, pixels)
        if device == "cpu":
            out = torch.matmul(weight[None], x)
        elif way == "product":
            every = weight.expand(batch, *weight.shape)
            out = conv_product(every.flatten(0, 1), x.flatten(0, 1))
        else:
            columns = x.permute(1, 2, 0, 3).flatten(2)
            out = conv_product(weight, columns).unflatten(2, (batch, pixels)).permute(2, 0, 1, 3)
        out = out.reshape(batch, self.out_channels, height, width).contiguous()
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, computed in the fastest way on a CPU if the maps have very few pixels.

    With AVX2, maps of at most 2x2 pixels are computed by elementwise products. The library's backward pass takes 10 to
    20 times as long for them as for 4x4 pixels: a fifth of a step of MobileNet-V2, whose maps had channels last.
    Other small maps, and all with AVX-512, are converted to channels last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H', W')."""
        if x.shape[2] * x.shape[3] > _DEPTHWISE_MAX or _device(x) != "cpu":
            return super().forward(x)
        if torch.backends.cpu.get_cpu_capability() == "AVX2" and max(x.shape[2:]) <= 2 and self._keeps_size:
            return self._sum_of_products(x)
        if not x.is_contiguous():
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups).contiguous()

    @property
    def _keeps_size(self) -> bool:
        """Whether the convolution is of 3x3 pixels, and its output has the size of its input."""
        numbers = (self.kernel_size, self.stride, self.padding, self.dilation)
        return numbers == ((3, 3), (1, 1), (1, 1), (1, 1))

    def _sum_of_products(self, x: Tensor) -> Tensor:
        """Computes maps of at most 2x2 pixels, each of which depends on all others. The output has the layout of x."""
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        height, width = x.shape[2:]
        inputs = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2).unbind(1)
        weights = self.weight.flatten(1).t()[_kernel_indices(height, width)].unbind(0)
        out = inputs[0][:, None] * weights[0]
        for pixel, weight in zip(inputs[1:], weights[1:], strict=True):
            out = torch.addcmul(out, pixel[:, None], weight)
        out = out if self.bias is None else out + self.bias
        return out.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def pointwise_way(
    device: Literal["cpu", "cuda"], in_channels: int, out_channels: int, groups: int, pixels: int
) -> PointwiseWay:
    """Returns the fastest way to compute a 1x1 convolution of contiguous maps, forward and backward pass together.

    Args:
        device: Type of the device.
        in_channels, out_channels: C and O.
        groups: Of the convolution.
        pixels: H * W of its maps.
    """
    in_group, out_group = in_channels // groups, out_channels // groups
    if device == "cuda":
        if groups == 1:
            return "library"
        # A product for each image reads a copy of the weights for each image, and writes as many gradients; a product
        # of all images reads and writes a copy of the maps. The smaller copy decides.
        return "product" if out_channels * in_group <= (in_channels + out_channels) * pixels else "merged"
    if groups > 1:
        if in_group % _LIBRARY_CHANNELS == out_group % _LIBRARY_CHANNELS == 0:
            return "library"
        if pixels <= _SPLIT_MAX and min(in_group, out_group) >= _SPLIT_CHANNELS:
            return "split"
    # The gradient of the weights is summed over a tensor of (B, O, C / groups), which must not be larger than the maps.
    return "product" if pixels >= _POINTWISE_MIN and out_group <= 4 * pixels else "library"


@cache
def _kernel_indices(height: int, width: int) -> Tensor:
    """Returns (pixels of the input, pixels of the output): index of the weight of a 3x3 kernel between the two."""
    # A tensor that is made in inference mode could not be used in a training afterwards.
    with torch.inference_mode(False):
        rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
        row, column = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
        return 3 * (row[:, None] - row + 1) + column[:, None] - column + 1


def use_fast_convs(network: nn.Module) -> nn.Module:
    """Replaces a network's convolutions, in place, by those that choose the fastest way; returns the network.

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


def use_library_convs(network: nn.Module) -> nn.Module:
    """Undoes ``use_fast_convs``, in place; returns the network."""
    for conv in network.modules():
        if type(conv) in (PointwiseConv2d, DepthwiseConv2d):
            conv.__class__ = nn.Conv2d
    return network


def cuda_memory_format(network: nn.Module) -> torch.memory_format:
    """Returns the layout of a network's maps and weights that is fastest on a GPU.

    Channels last for a network of convolutions: with contiguous maps cuDNN takes FFT algorithms and changes layouts. A
    step of WRN-40-2 took 7.3 ms with contiguous maps and 4.3 ms with channels last on an H200. Contiguous if 1x1
    convolutions are grouped, because only then ``PointwiseConv2d`` can compute them as matrix products: with these and
    without counters of batch norms, eight ShuffleNet-V1 took 30.6 ms instead of 62.5 ms with a teacher. Contiguous,
    too, if the only convolutions are those that cut an image into patches, as in transformers.

    Args:
        network: After ``use_fast_convs``.
    """
    convs = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if any(isinstance(conv, PointwiseConv2d) and conv.groups > 1 for conv in convs):
        return torch.contiguous_format
    cuts_patches = all(conv.kernel_size == conv.stride != (1, 1) for conv in convs)
    return torch.contiguous_format if cuts_patches else torch.channels_last


def _device(x: Tensor) -> Literal["cpu", "cuda"] | None:
    """Returns the device's type if this module knows ways that are faster there; otherwise None.

    On a CPU it knows them only if x is computed eagerly in its own precision: not traced, compiled or under autocast.
    """
    if x.device.type == "cuda":
        return "cuda"
    on_cpu = type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"
    plain = on_cpu and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    return "cpu" if plain else None
