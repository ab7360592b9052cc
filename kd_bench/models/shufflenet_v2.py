"""ShuffleNet-V2 for 32x32 images.

After Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018.
``cifar_shufflenet_v2`` has the paper's width 1. Its stem is a 1x1 convolution at full size instead of the paper's
strided one with pooling, as in the CIFAR-100 student of the distillation literature (Tian et al., "Contrastive
Representation Distillation", 2020), whose state-dict keys, shapes and outputs it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, StagedCifarNet, StageOutputs, build, cifar_cfgs, register_model
from kd_bench.models.shufflenet_v1 import channel_shuffle

fx.wrap("channel_shuffle")  # torch.fx needs to know it in each file that calls it

#: Channels of the stem, of the three stages and of the head.
WIDTHS = (24, 116, 232, 464, 1024)

#: Units of the three stages.
DEPTHS = (4, 8, 4)


class DownUnit(nn.Module):
    """Halves the size: two branches read the whole input, and each outputs half of the channels.

    The input is after the activation, the output before it, as that of ``BasicUnit``.
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
        """Maps (B, in_chs, H, W) after the activation to (B, out_chs, H / 2, W / 2) before it."""
        short = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        long = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        long = self.bn5(self.conv5(long))
        return _join(short, long)

    def scale_shift(self) -> Tensor:
        """Returns scale and shift of each channel of the output, (2, out_chs, 1, 1)."""
        return _join(_scale_shift(self.bn2), _scale_shift(self.bn5))


class BasicUnit(nn.Module):
    """Passes half of the channels on, and the other half through two 1x1 convolutions with a 3x3 one between them.

    Input and output are before the activation. ReLU commutes with the shuffle, so it is applied when a convolution
    reads a channel or when the channel leaves the stage. The result equals a ReLU right after the batch norms.
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
        """Maps (B, chs, H, W) before the activation to the same shape."""
        passed, read = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(F.relu(read))))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return _join(passed, out)

    def scale_shift(self, of_input: Tensor) -> Tensor:
        """Returns scale and shift of each channel of the output, (2, chs, 1, 1), from those of the input."""
        return _join(of_input.chunk(2, 1)[0], _scale_shift(self.bn3))


class ShuffleStage(nn.Sequential):
    """A ``DownUnit``, ``BasicUnit`` after ``BasicUnit``, and ReLU."""

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """Returns the stage's output, or with ``activate=False`` the input of its ReLU."""
        for unit in self:
            x = unit(x)
        return F.relu(x) if activate else x

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """Returns scale and shift, (out_chs,) each, of the channels of the ReLU's input."""
        down, *others = self
        both = cast(DownUnit, down).scale_shift()
        for unit in others:
            both = cast(BasicUnit, unit).scale_shift(both)
        scale, shift = both.flatten(1)
        return scale, shift


def _join(first: Tensor, second: Tensor) -> Tensor:
    return channel_shuffle(torch.cat([first, second], 1), 2)


def _scale_shift(norm: nn.BatchNorm2d) -> Tensor:
    return torch.stack([norm.weight, norm.bias])[:, :, None, None]


class CifarShuffleNetV2(StagedCifarNet):
    """ShuffleNet-V2 for 32x32 images, with a 1x1 convolution between the stages and the pooling.

    Every channel of a pre-activation is the output of a batch norm, but not of the same one: the channels that the last
    units pass on come unchanged from earlier units of the stage. Their scale and shift are those of ``bn2`` and ``bn5``
    of the first unit and of ``bn3`` of the others, shuffled like the channels. ``published_preacts`` returns the form
    of published code. The pooled embedding is read from the last convolution, after batch norm and ReLU.

    Args:
        **options: As for ``CifarNet``.
    """

    classifier_name = "linear"

    def __init__(self, **options: Any) -> None:
        super().__init__(WIDTHS[:4], (1, 2, 4, 8), 1, **options)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[1], DEPTHS[0])
        self.layer2 = _stage(WIDTHS[1], WIDTHS[2], DEPTHS[1])
        self.layer3 = _stage(WIDTHS[2], WIDTHS[3], DEPTHS[2])
        self.conv2 = nn.Conv2d(WIDTHS[3], WIDTHS[4], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTHS[4])
        self.linear = self.make_classifier(WIDTHS[4])

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        outputs = super().forward_stages(x, preacts=preacts, last=last)
        if len(outputs.stages) < len(self.feature_info):
            return outputs
        return outputs._replace(features=F.relu(self.bn2(self.conv2(outputs.features))))

    @staticmethod
    def published_preacts(preacts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns pre-activations in the form that the student of mdistiller has.

        There a stage's pre-activation is read before the last unit's shuffle. Its first half, which the last unit
        passes on, is after ReLU, and its second half, the output of the last ``bn3``, is before ReLU.

        Args:
            preacts: Those of ``forward_stages``, stem first; the stem's is returned as it is.
        """
        stem, *stages = preacts
        halves = (stage.unflatten(1, (-1, 2)).unbind(2) for stage in stages)  # undoes the shuffle
        return (stem, *(torch.cat([F.relu(passed), out], 1) for passed, out in halves))

    def preact_norms(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Returns scale and shift of each pre-activation's channels, (C,) each, stem first."""
        layers = (self.layer1, self.layer2, self.layer3)
        return ((self.bn1.weight, self.bn1.bias), *(layer.scale_shift() for layer in layers))


def _stage(in_chs: int, out_chs: int, depth: int) -> ShuffleStage:
    return ShuffleStage(DownUnit(in_chs, out_chs), *(BasicUnit(out_chs) for _ in range(depth - 1)))


default_cfgs = cifar_cfgs("cifar_shufflenet_v2", pool_size=(4, 4), classifier="linear")


@register_model
def cifar_shufflenet_v2(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ShuffleNet-V2 of width 1 for 32x32 images, 1.36 M parameters."""
    return build(CifarShuffleNetV2, "cifar_shufflenet_v2", pretrained, **kwargs)
