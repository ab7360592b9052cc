"""ShuffleNet for 32x32 images, and what it shares with its second version.

After Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018.
``cifar_shufflenet_v1`` has three groups. Its stem is a 1x1 convolution at full size instead of the paper's strided one
with pooling, as in the CIFAR-100 student of the distillation literature (Tian et al., "Contrastive Representation
Distillation", 2020), whose state-dict keys, shapes and outputs it keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Walk, build, cifar_cfg, feature_info, register_model
from kd_bench.models.resnet import Stage

#: Channels of the stem and of the three stages.
WIDTHS = (24, 240, 480, 960)

#: Units of the three stages.
DEPTHS = (4, 8, 4)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Reorders channels so that neighbours come from different groups: channel i of group g goes to place i G + g.

    The layout in memory stays: images with channels last come out with channels last.

    Args:
        x: (B, C, H, W).
        groups: G, a divisor of C.

    Returns:
        (B, C, H, W).
    """
    if x.stride(1) == 1:  # channels last: shuffled as such, since merging C's two parts in front of H and W reorders
        return x.movedim(1, 3).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).movedim(3, 1)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """A grouped 1x1 convolution, the shuffle, a 3x3 convolution of each channel, a grouped 1x1 one, and a shortcut.

    With a stride of 2 the shortcut is an average pooling, whose channels follow the convolution's; otherwise the two
    are added.
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
        """The unit's output, or with ``activate=False`` the sum or the concatenation that the last ReLU takes."""
        out = F.relu(self.bn1(self.conv1(x)))
        if self.first_groups > 1:
            out = channel_shuffle(out, self.first_groups)
        # This second ReLU is the published code's; the paper's unit does without.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1) if self.stride == 2 else out + x
        return F.relu(out) if activate else out


class CifarShuffleNet(CifarNet):
    """What both ShuffleNets share: a 1x1 stem at full size, and three stages at half, quarter and eighth size.

    A subclass adds ``layer1`` to ``layer3``, which return their output before the last ReLU with ``activate=False``,
    then what follows them, and the classifier.
    """

    classifier_name = "linear"

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int, in_chans: int) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, widths[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.feature_info = feature_info(widths, (1, 2, 4, 8), ("relu", "layer1", "layer2", "layer3"))

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> Walk:
        """See ``CifarNet.forward_stages``."""
        before = self.bn1(self.conv1(x))
        x = self.relu(before)
        walk = Walk(x, [x], [before] if preacts else [])
        for layer in (self.layer1, self.layer2, self.layer3)[:last]:
            if preacts:
                before = layer(x, activate=False)
                walk.preacts.append(before)
                x = F.relu(before)
            else:
                x = layer(x)
            walk.stages.append(x)
        return walk._replace(features=x)


class CifarShuffleNetV1(CifarShuffleNet):
    """ShuffleNet for 32x32 images.

    Stages are the outputs after ReLU of the stem and of each ``layer``; pre-activations are the same tensors before
    that ReLU, the stem's included (published code returns the stem after ReLU there). As in the residual networks, a
    stage's pre-activation is a sum of the last unit's input, which is not negative, and of its last batch norm's
    output; that batch norm, ``bn3``, is the one whose scale and shift stand for the pre-activation's spread.

    Args:
        groups: Of the 1x1 convolutions; the very first unit reads the stem's few channels ungrouped.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling.
    """

    def __init__(self, groups: int, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__(WIDTHS, num_classes, in_chans)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[1], DEPTHS[0], groups, first_groups=1)
        self.layer2 = _stage(WIDTHS[1], WIDTHS[2], DEPTHS[1], groups, first_groups=groups)
        self.layer3 = _stage(WIDTHS[2], WIDTHS[3], DEPTHS[2], groups, first_groups=groups)
        self.linear = self.make_classifier(WIDTHS[3], global_pool)


def _stage(in_chs: int, out_chs: int, depth: int, groups: int, first_groups: int) -> Stage:
    first = ShuffleUnit(in_chs, out_chs, 2, groups, first_groups)
    return Stage(first, *(ShuffleUnit(out_chs, out_chs, 1, groups, groups) for _ in range(depth - 1)))


default_cfgs = generate_default_cfgs({"cifar_shufflenet_v1": cifar_cfg(pool_size=(4, 4), classifier="linear")})


@register_model
def cifar_shufflenet_v1(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ShuffleNet with three groups for 32x32 images, 0.95 M parameters."""
    return build(CifarShuffleNetV1, "cifar_shufflenet_v1", pretrained, groups=3, **kwargs)
