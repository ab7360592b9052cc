"""Residual networks for 32x32 images (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2).

Shortcuts across a change of width are 1x1 convolutions with batch norm, and the published "x4" networks have twice the
stem's and four times the stages' width, as in the CIFAR-100 teachers of the distillation literature (Tian et al.,
"Contrastive Representation Distillation", 2020), whose state-dict keys, shapes and outputs these networks keep.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Walk, build, cifar_cfg, feature_info, register_model

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
        """The block's output, or with ``activate=False`` the sum that the last ReLU takes."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + shortcut
        return F.relu(out) if activate else out


class Stage(nn.Sequential):
    """Blocks one after another."""

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """The last block's output, or with ``activate=False`` the sum that its last ReLU takes."""
        end = len(self) - 1
        for index, block in enumerate(self):
            x = block(x, activate or index < end)
        return x


class CifarResNet(CifarNet):
    """ResNet for 32x32 images: a 3x3 stem and three stages of basic blocks at full, half and quarter size.

    Stages are the outputs after ReLU of the stem and of each ``layer``; pre-activations are the same tensors before
    that ReLU, the stem's included (published code returns the stem after ReLU there).

    Args:
        depth: 6 n + 2 for n blocks a stage.
        widths: Channels of the stem and of the three stages.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = WIDTHS,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes, in_chans)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        modules = ("relu", "layer1", "layer2", "layer3")
        self.feature_info = feature_info(widths, (1, 1, 2, 4), modules)
        self.fc = self.make_classifier(widths[3], global_pool)
        self.apply(self.initialise)

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out; torch's defaults elsewhere."""
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

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


def _stage(in_chs: int, out_chs: int, blocks: int, stride: int) -> Stage:
    first = BasicBlock(in_chs, out_chs, stride)
    return Stage(first, *(BasicBlock(out_chs, out_chs, 1) for _ in range(blocks - 1)))


default_cfgs = generate_default_cfgs(
    {
        name: cifar_cfg()
        for name in (
            "cifar_resnet8",
            "cifar_resnet14",
            "cifar_resnet20",
            "cifar_resnet32",
            "cifar_resnet44",
            "cifar_resnet56",
            "cifar_resnet110",
            "cifar_resnet8x4",
            "cifar_resnet32x4",
        )
    }
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
