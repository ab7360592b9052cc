"""ResNet-18 and ResNet-50 as on ImageNet, with a stem for 32x32 images (He et al., 2016).

State-dict keys, shapes and outputs are those of the CIFAR-100 "ResNet18" and "ResNet50" of the distillation literature
(Tian et al., "Contrastive Representation Distillation", 2020).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Stage, StagedCifarNet, build, cifar_cfgs, register_model
from kd_bench.models.resnet import CifarResNet

#: Channels inside the blocks of the four stages.
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """A basic block of two 3x3 convolutions, or a bottleneck of a 3x3 convolution between two of 1x1, with a shortcut.

    Args:
        in_chs: Channels of the input.
        width: Inner channels.
        out_chs: Channels of the output; the block is a bottleneck if they differ from ``width``.
        stride: Stride of the first 3x3 convolution.
    """

    def __init__(self, in_chs: int, width: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv3: nn.Conv2d | None = None
        is_basic = out_chs == width
        kernel, first_stride, second_stride = (3, stride, 1) if is_basic else (1, 1, stride)
        self.conv1 = nn.Conv2d(in_chs, width, kernel, first_stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second_stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if not is_basic:
            self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_chs)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """Returns the block's output, or with ``activate=False`` the sum that the last ReLU reads."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None:
            out = self.bn3(self.conv3(F.relu(out)))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu(out) if activate else out


class CifarBottleneckResNet(StagedCifarNet):
    """ResNet with ImageNet's four stages and a 3x3 stem, at full, full, half, quarter and eighth size.

    Args:
        blocks: Blocks of each stage.
        expansion: Ratio of a block's output channels to its inner channels.
        **options: As for ``CifarNet``.
    """

    classifier_name = "linear"
    timm_feature_cfg = {"out_indices": (0, 1, 2, 3, 4)}

    def __init__(self, blocks: tuple[int, int, int, int], expansion: int, **options: Any) -> None:
        widths = (WIDTHS[0], *(width * expansion for width in WIDTHS))
        super().__init__(widths, (1, 1, 2, 4, 8), 3, **options)
        for index, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            in_chs, out_chs = widths[index : index + 2]
            first = Block(in_chs, width, out_chs, 1 if index == 0 else 2)
            others = (Block(out_chs, width, out_chs, 1) for _ in range(count - 1))
            self.add_module(f"layer{index + 1}", Stage(first, *others))
        self.linear = self.make_classifier(widths[-1])
        self.apply(self.initialise)

    initialise = staticmethod(CifarResNet.initialise)


default_cfgs = cifar_cfgs("cifar_resnet18", "cifar_resnet50", classifier="linear", pool_size=(4, 4))


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-18 with a stem for 32x32 images, 11.22 M parameters."""
    return build(CifarBottleneckResNet, "cifar_resnet18", pretrained, blocks=(2, 2, 2, 2), expansion=1, **kwargs)


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-50 with a stem for 32x32 images, 23.71 M parameters."""
    return build(CifarBottleneckResNet, "cifar_resnet50", pretrained, blocks=(3, 4, 6, 3), expansion=4, **kwargs)
