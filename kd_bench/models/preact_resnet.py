"""Pre-activation ResNets for 32x32 images, as adversarial training uses them.

He et al., "Identity Mappings in Deep Residual Networks", 2016. State-dict keys, shapes and outputs are those of the
network in Wong et al., "Fast is better than free", 2020: a batch norm and a ReLU before the pooling, and shortcuts that
read the block's input. Other definitions with the same keys have shortcuts that read the activated input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, StageOutputs, build, cifar_cfgs, feature_info, register_model
from kd_bench.models.wide_resnet import PreActBlocks, run_preact_stages


class PreActBasicBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut.

    If width or size change, the shortcut is a 1x1 convolution of the input, otherwise the input itself.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False))

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Returns the block's output; ``normalised`` is ``bn1(x)`` if the caller has computed it."""
        active = F.relu(self.bn1(x) if normalised is None else normalised)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return torch.add(self.conv2(F.relu(self.bn2(self.conv1(active)))), shortcut)


class CifarPreActResNet(CifarNet):
    """Pre-activation ResNet for 32x32 images: a 3x3 stem and four stages at full, half, quarter and eighth size.

    Stages, pre-activations and the pooled embedding are those of ``CifarWideResNet``. Initial weights are torch's
    defaults, as published.

    Args:
        blocks: Number of blocks in each stage.
        **options: As for ``CifarNet``.
    """

    classifier_name = "linear"
    timm_feature_cfg = {"out_indices": (0, 1, 2, 3, 4)}

    def __init__(self, blocks: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        widths = (64, 64, 128, 256, 512)
        self.conv1 = nn.Conv2d(self.in_chans, widths[0], 3, padding=1, bias=False)
        self.layer1 = PreActBlocks(PreActBasicBlock, blocks[0], widths[0], widths[1], stride=1)
        self.layer2 = PreActBlocks(PreActBasicBlock, blocks[1], widths[1], widths[2], stride=2)
        self.layer3 = PreActBlocks(PreActBasicBlock, blocks[2], widths[2], widths[3], stride=2)
        self.layer4 = PreActBlocks(PreActBasicBlock, blocks[3], widths[3], widths[4], stride=2)
        self.bn = nn.BatchNorm2d(widths[4])
        self.feature_info = feature_info(widths, (1, 1, 2, 4, 8), ("conv1", "layer1", "layer2", "layer3", "layer4"))
        self.linear = self.make_classifier(widths[4])

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        norms = [*(cast(PreActBasicBlock, stage[0]).bn1 for stage in stages[1:]), self.bn]
        return run_preact_stages(self.conv1(x), stages, norms, F.relu, preacts, last)


default_cfgs = cifar_cfgs("cifar_preact_resnet18", pool_size=(4, 4), classifier="linear")


@register_model
def cifar_preact_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """PreAct ResNet-18 for 32x32 images, 11.22 M parameters, as adversarial training uses it."""
    return build(CifarPreActResNet, "cifar_preact_resnet18", pretrained, blocks=(2, 2, 2, 2), **kwargs)
