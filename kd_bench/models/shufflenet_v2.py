"""ShuffleNet-V2 for 32x32 images.

After Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018.
``cifar_shufflenet_v2`` has the paper's width 1. Its stem is a 1x1 convolution at full size instead of the paper's
strided one with pooling, as in the CIFAR-100 student of the distillation literature (Tian et al., "Contrastive
Representation Distillation", 2020), whose state-dict keys, shapes and outputs it keeps.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Walk, build, cifar_cfg, register_model
from kd_bench.models.shufflenet_v1 import CifarShuffleNet, channel_shuffle

#: Channels of the stem, of the three stages and of the head.
WIDTHS = (24, 116, 232, 464, 1024)

#: Units of the three stages.
DEPTHS = (4, 8, 4)


class DownUnit(nn.Module):
    """Halves the size: the whole input goes through two branches, each of which puts out half of the channels.

    Takes an activated input. Its output, as that of ``BasicUnit``, is not activated.
    """

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        half = out_chs // 2
        self.conv1 = nn.Conv2d(in_chs, in_chs, 3, stride=2, padding=1, groups=in_chs, bias=False)
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv2 = nn.Conv2d(in_chs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_chs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chs, H, W) after the activation to (B, out_chs, H / 2, W / 2) before it."""
        short = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        long = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        long = self.bn5(self.conv5(long))
        return _join(short, long)

    def affine(self) -> Tensor:
        """(2, out_chs, 1, 1): scale and shift of each channel of the output."""
        return _join(_affine(self.bn2), _affine(self.bn5))


class BasicUnit(nn.Module):
    """Lets half of the channels pass and sends the other half through two 1x1 convolutions with a 3x3 one between.

    Input and output are not activated. ReLU goes with any order of the channels, so it may wait until a channel is read
    by a convolution or leaves the stage, and works on each channel once, as it would right after the batch norms.
    """

    def __init__(self, chs: int) -> None:
        super().__init__()
        half = chs // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, chs, H, W) before the activation to the same."""
        kept, read = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(F.relu(read))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return _join(kept, out)

    def affine(self, before: Tensor) -> Tensor:
        """(2, chs, 1, 1): scale and shift of each channel of the output, given those of the input, of that shape."""
        kept, _ = before.chunk(2, 1)
        return _join(kept, _affine(self.bn3))


class ShuffleStage(nn.Sequential):
    """A unit that halves the size, others one after another, and ReLU."""

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """The stage's output, or with ``activate=False`` what its ReLU takes."""
        for unit in self:
            x = unit(x)
        return F.relu(x) if activate else x

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (out_chs,) each, of the channels that ReLU takes."""
        down, *others = self
        both = cast(DownUnit, down).affine()
        for unit in others:
            both = cast(BasicUnit, unit).affine(both)
        scale, shift = both.flatten(1)
        return scale, shift


def _join(kept: Tensor, out: Tensor) -> Tensor:
    return channel_shuffle(torch.cat([kept, out], 1), 2)


def _affine(norm: nn.BatchNorm2d) -> Tensor:
    return torch.stack([norm.weight, norm.bias])[:, :, None, None]


class CifarShuffleNetV2(CifarShuffleNet):
    """ShuffleNet-V2 for 32x32 images, with a 1x1 convolution between the stages and the pooling.

    Stages are the outputs after ReLU of the stem and of each ``layer``; pre-activations are the same tensors before
    that ReLU, in the same order of channels. Every channel of a pre-activation is some batch norm's output: those that
    the last units let pass come unchanged from earlier units of the stage. (Published code has only the last unit's
    half before ReLU, in front of the shuffle, and the stem after ReLU.) Hence no single batch norm puts a
    pre-activation out: the scale and shift of its channels are those of the stage's ``bn2`` and ``bn5`` of the first
    unit and ``bn3`` of the others, which take the same way through the shuffles. The pooled embedding is read from the
    last convolution, after batch norm and ReLU.

    Args:
        widths: Channels of the stem, of the three stages and of the head.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int, int] = WIDTHS,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(widths[:4], num_classes, in_chans)
        self.layer1 = _stage(widths[0], widths[1], DEPTHS[0])
        self.layer2 = _stage(widths[1], widths[2], DEPTHS[1])
        self.layer3 = _stage(widths[2], widths[3], DEPTHS[2])
        self.conv2 = nn.Conv2d(widths[3], widths[4], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[4])
        self.linear = self.make_classifier(widths[4], global_pool)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> Walk:
        """See ``CifarNet.forward_stages``."""
        walk = super().forward_stages(x, preacts=preacts, last=last)
        if len(walk.stages) < len(self.feature_info):
            return walk
        return walk._replace(features=F.relu(self.bn2(self.conv2(walk.features))))

    def preact_norms(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Scale and shift of each pre-activation's channels, (C,) each, stem first."""
        layers = (cast(ShuffleStage, layer) for layer in (self.layer1, self.layer2, self.layer3))
        return ((self.bn1.weight, self.bn1.bias), *(layer.affine() for layer in layers))


def _stage(in_chs: int, out_chs: int, depth: int) -> ShuffleStage:
    return ShuffleStage(DownUnit(in_chs, out_chs), *(BasicUnit(out_chs) for _ in range(depth - 1)))


default_cfgs = generate_default_cfgs({"cifar_shufflenet_v2": cifar_cfg(pool_size=(4, 4), classifier="linear")})


@register_model
def cifar_shufflenet_v2(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ShuffleNet-V2 of width 1 for 32x32 images, 1.36 M parameters."""
    return build(CifarShuffleNetV2, "cifar_shufflenet_v2", pretrained, **kwargs)
