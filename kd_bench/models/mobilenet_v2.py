"""MobileNet-V2 for 32x32 images (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018).

``cifar_mobilenet_v2`` is half as wide as the paper's network and halves its image four times instead of five, as the
CIFAR-100 student of the distillation literature (Tian et al., "Contrastive Representation Distillation", 2020), whose
state-dict keys, shapes and outputs it keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.models.cifar_network import CifarNet, StageOutputs, build, cifar_cfgs, feature_info, register_model

#: Channels at width 1, number of blocks and first stride of each of the ``blocks``.
BLOCKS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))

#: Indices of the ``blocks`` that end a stage.
STAGE_ENDS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a 3x3 depthwise convolution, a linear 1x1 convolution, and a shortcut.

    Unlike in the paper, the first convolution exists with expansion 1 too. The shortcut exists only if the block
    changes neither width nor size.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid_chs = in_chs * expansion
        self.has_shortcut = stride == 1 and in_chs == out_chs
        self.conv = nn.Sequential(
            nn.Conv2d(in_chs, mid_chs, 1, bias=False),
            nn.BatchNorm2d(mid_chs),
            nn.ReLU(),
            nn.Conv2d(mid_chs, mid_chs, 3, stride, padding=1, groups=mid_chs, bias=False),
            nn.BatchNorm2d(mid_chs),
            nn.ReLU(),
            nn.Conv2d(mid_chs, out_chs, 1, bias=False),
            nn.BatchNorm2d(out_chs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, without an activation."""
        out: Tensor = self.conv(x)
        return torch.add(x, out) if self.has_shortcut else out


class CifarMobileNetV2(CifarNet):
    """MobileNet-V2 for 32x32 images: a stem at half size, seven groups of blocks, and a 1x1 convolution to the head.

    Stages are the outputs of the stem after ReLU and of ``blocks`` 1, 2, 4 and 6. Blocks end without an activation, so
    each stage except the stem is its own pre-activation: the output of the batch norm ``conv.7`` of its last block, to
    which ``blocks`` 1, 2 and 4 add a shortcut. As in the residual networks, the scale and shift of that batch norm are
    those of the pre-activation. (The next batch norm, from which the wide residual networks' pre-activations come,
    follows a convolution to six times the channels here.) The stem's pre-activation is its batch norm's output. The
    pooled embedding is read from the head's convolution, after batch norm and ReLU.

    Args:
        width: Multiple of the paper's channels; the head has at least 1280 channels.
        expansion: Ratio of a block's inner channels to its input channels, in all groups except the first, which has 1.
        **options: As for ``CifarNet``.
    """

    classifier_name = "classifier.0"
    # timm reads stages from inside Sequential modules only if it flattens them.
    timm_feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True}

    def __init__(self, width: float, expansion: int, **options: Any) -> None:
        super().__init__(**options)
        stem, head = int(32 * width), int(1280 * max(1.0, width))
        widths = [int(width * chs) for chs, _, _ in BLOCKS]
        self.conv1 = _conv(self.in_chans, stem, 3, stride=2)
        self.blocks = nn.Sequential()
        in_chs = stem
        for index, (out_chs, (_, depth, stride)) in enumerate(zip(widths, BLOCKS, strict=True)):
            self.blocks.append(_group(in_chs, out_chs, depth, stride, expansion if index else 1))
            in_chs = out_chs
        self.conv2 = _conv(in_chs, head, 1, stride=1)
        self.feature_info = feature_info(
            [stem, *(widths[index] for index in STAGE_ENDS)],
            (2, 2, 4, 8, 16),
            ["conv1.2", *(f"blocks.{index}" for index in STAGE_ENDS)],
        )
        self.classifier = nn.Sequential(self.make_classifier(head))
        self.apply(self.initialise)

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out, the classifier with deviation 0.01 and without bias."""
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.zeros_(layer.bias)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        conv, norm, relu = self.conv1
        before = norm(conv(x))
        x = relu(before)
        outputs = StageOutputs(x, [x], [before] if preacts else [])
        for index, group in enumerate(self.blocks):
            if last == len(outputs.stages) - 1:
                break
            x = group(x)
            if index in STAGE_ENDS:
                outputs.stages.append(x)
                if preacts:
                    outputs.preacts.append(x)
        if len(outputs.stages) == len(self.feature_info):
            x = self.conv2(x)
        return outputs._replace(features=x)


def _conv(in_chs: int, out_chs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), nn.ReLU())


def _group(in_chs: int, out_chs: int, depth: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(in_chs, out_chs, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(out_chs, out_chs, 1, expansion) for _ in range(depth - 1)))


default_cfgs = cifar_cfgs("cifar_mobilenet_v2", pool_size=(2, 2), first_conv="conv1.0", classifier="classifier.0")


@register_model
def cifar_mobilenet_v2(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """MobileNet-V2 of half width for 32x32 images, 0.81 M parameters."""
    return build(CifarMobileNetV2, "cifar_mobilenet_v2", pretrained, width=0.5, expansion=6, **kwargs)
