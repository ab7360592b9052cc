"""ShuffleNet for 32x32 images.

After Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018.
``cifar_shufflenet_v1`` has three groups. Its stem is a 1x1 convolution at full size instead of the paper's strided one
with pooling, as in the CIFAR-100 student of the distillation literature (Tian et al., "Contrastive Representation
Distillation", 2020), whose state-dict keys, shapes and outputs it keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Stage, StagedCifarNet, build, cifar_cfgs, register_model

#: Channels of the stem and of the three stages.
WIDTHS = (24, 240, 480, 960)

#: Units of the three stages.
DEPTHS = (4, 8, 4)


@fx.wrap  # one node of torch.fx's graph, because it cannot trace the branch
def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Reorders channels so that neighbours come from different groups: channel i of group g moves to index i G + g.

    The memory format is kept, contiguous or channels last.

    Args:
        x: (B, C, H, W).
        groups: G, a divisor of C.

    Returns:
        (B, C, H, W).
    """
    if x.stride(1) == 1:  # channels last: merging the two parts of C in front of H and W would copy to contiguous
        return x.movedim(1, 3).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).movedim(3, 1)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A grouped 1x1 convolution, the shuffle, a 3x3 depthwise convolution, a grouped 1x1 convolution, and a shortcut.

    With stride 2 the shortcut is an average pooling, concatenated after the convolution; otherwise both are added.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.stride = stride
        self.first_groups = first_groups
        conv_chs = out_chs - in_chs if stride == 2 else out_chs
        mid_chs = conv_chs // 4
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_chs)
        self.conv2 = nn.Conv2d(mid_chs, mid_chs, 3, stride, padding=1, groups=mid_chs, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_chs)
        self.conv3 = nn.Conv2d(mid_chs, conv_chs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(conv_chs)

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """Returns the unit's output, or with ``activate=False`` the sum or concatenation that the last ReLU reads."""
        out = F.relu(self.bn1(self.conv1(x)))
        if self.first_groups > 1:
            out = channel_shuffle(out, self.first_groups)
        # The published code has this second ReLU; the paper's unit does not.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1) if self.stride == 2 else out + x
        return F.relu(out) if activate else out


class CifarShuffleNetV1(StagedCifarNet):
    """ShuffleNet for 32x32 images: a 1x1 stem at full size, and three stages at half, quarter and eighth size.

    As in the residual networks, a stage's pre-activation is the sum of the last unit's input, which is not negative,
    and the output of its last batch norm ``bn3``, whose scale and shift are those of the pre-activation.

    Args:
        groups: Groups of the 1x1 convolutions; the first convolution is not grouped, because the stem has few channels.
        **options: As for ``CifarNet``.
    """

    classifier_name = "linear"

    def __init__(self, groups: int, **options: Any) -> None:
        super().__init__(WIDTHS, (1, 2, 4, 8), 1, **options)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[1], DEPTHS[0], groups, first_groups=1)
        self.layer2 = _stage(WIDTHS[1], WIDTHS[2], DEPTHS[1], groups, first_groups=groups)
        self.layer3 = _stage(WIDTHS[2], WIDTHS[3], DEPTHS[2], groups, first_groups=groups)
        self.linear = self.make_classifier(WIDTHS[3])


def _stage(in_chs: int, out_chs: int, depth: int, groups: int, first_groups: int) -> Stage:
    first = ShuffleUnit(in_chs, out_chs, 2, groups, first_groups)
    return Stage(first, *(ShuffleUnit(out_chs, out_chs, 1, groups, groups) for _ in range(depth - 1)))


default_cfgs = cifar_cfgs("cifar_shufflenet_v1", pool_size=(4, 4), classifier="linear")


@register_model
def cifar_shufflenet_v1(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ShuffleNet with three groups for 32x32 images, 0.95 M parameters."""
    return build(CifarShuffleNetV1, "cifar_shufflenet_v1", pretrained, groups=3, **kwargs)
