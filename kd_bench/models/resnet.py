"""Residual networks for 32x32 images (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2).

Shortcuts across a change of width are 1x1 convolutions with batch norm. The published "x4" networks have twice the
stem's and four times the stages' width. State-dict keys, shapes and outputs are those of the CIFAR-100 teachers of the
distillation literature (Tian et al., "Contrastive Representation Distillation", 2020).
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Stage, StagedCifarNet, build, cifar_cfgs, register_model

#: Channels of the stem and of the three stages.
WIDTHS = (16, 16, 32, 64)
WIDTHS_X4 = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """Returns the block's output, or with ``activate=False`` the sum that the last ReLU reads."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + shortcut
        return F.relu(out) if activate else out


class CifarResNet(StagedCifarNet):
    """ResNet for 32x32 images: a 3x3 stem and three stages of basic blocks at full, half and quarter size.

    Args:
        depth: 6 n + 2 for n blocks per stage.
        widths: Channels of the stem and of the three stages.
        **options: As for ``CifarNet``.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int] = WIDTHS, **options: Any) -> None:
        super().__init__(widths, (1, 1, 2, 4), 3, **options)
        for index, (in_chs, out_chs) in enumerate(itertools.pairwise(widths), 1):
            first = BasicBlock(in_chs, out_chs, 1 if index == 1 else 2)
            others = (BasicBlock(out_chs, out_chs, 1) for _ in range((depth - 2) // 6 - 1))
            self.add_module(f"layer{index}", Stage(first, *others))
        self.fc = self.make_classifier(widths[3])
        self.apply(self.initialise)

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out; torch's defaults elsewhere."""
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


default_cfgs = cifar_cfgs(
    *(f"cifar_resnet{suffix}" for suffix in ("8", "14", "20", "32", "44", "56", "110", "8x4", "32x4"))
)


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-8 for 32x32 images, 0.08 M parameters."""
    return build(CifarResNet, "cifar_resnet8", pretrained, depth=8, **kwargs)


@register_model
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-14 for 32x32 images, 0.18 M parameters."""
    return build(CifarResNet, "cifar_resnet14", pretrained, depth=14, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-20 for 32x32 images, 0.28 M parameters."""
    return build(CifarResNet, "cifar_resnet20", pretrained, depth=20, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-32 for 32x32 images, 0.47 M parameters."""
    return build(CifarResNet, "cifar_resnet32", pretrained, depth=32, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-44 for 32x32 images, 0.67 M parameters."""
    return build(CifarResNet, "cifar_resnet44", pretrained, depth=44, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-56 for 32x32 images, 0.86 M parameters."""
    return build(CifarResNet, "cifar_resnet56", pretrained, depth=56, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-110 for 32x32 images, 1.74 M parameters."""
    return build(CifarResNet, "cifar_resnet110", pretrained, depth=110, **kwargs)


@register_model
def cifar_resnet8x4(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-8 with stages four times as wide, for 32x32 images, 1.23 M parameters."""
    return build(CifarResNet, "cifar_resnet8x4", pretrained, depth=8, widths=WIDTHS_X4, **kwargs)


@register_model
def cifar_resnet32x4(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-32 with stages four times as wide, for 32x32 images, 7.43 M parameters."""
    return build(CifarResNet, "cifar_resnet32x4", pretrained, depth=32, widths=WIDTHS_X4, **kwargs)
