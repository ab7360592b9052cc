"""Wide residual networks with Swish that normalise their images themselves, for adversarial robustness.

Gowal et al., "Uncovering the Limits of Adversarial Training", 2020; used with generated data by Wang et al., "Better
Diffusion Models Further Improve Adversarial Training", 2023. State-dict keys, shapes and outputs are those of their
published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, StageOutputs, build, cifar_cfgs, feature_info, register_model
from kd_bench.models.wide_resnet import CifarWideResNet, PreActStage, run_preact_stages

#: Channel mean and std with which the published networks normalise.
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

#: Momentum of the batch norms' running statistics in Wang et al.; torch's default is ten times that.
MOMENTUM = 0.01


class SwishBlock(nn.Module):
    """Batch norm, Swish and a 3x3 convolution, twice, and a shortcut.

    If the width changes, the shortcut is a 1x1 convolution of the activated input, otherwise the input itself. A
    convolution of stride 2 pads only below and on the right, as TensorFlow's "SAME" does.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        self.batchnorm_0 = nn.BatchNorm2d(in_chs, momentum=MOMENTUM)
        self.conv_0 = nn.Conv2d(in_chs, out_chs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_chs, momentum=MOMENTUM)
        self.conv_1 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_chs != out_chs:
            self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Returns the block's output; ``normalised`` is ``batchnorm_0(x)`` if the caller has computed it."""
        active = F.silu(self.batchnorm_0(x) if normalised is None else normalised)
        out = F.silu(self.batchnorm_1(self.conv_0(F.pad(active, self.padding))))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return torch.add(shortcut, self.conv_1(out))


class CifarSwishWideResNet(CifarNet):
    """WRN with Swish for 32x32 images in [0, 1]: a 3x3 stem and three stages at full, half and quarter size.

    Stages, pre-activations and the pooled embedding are those of ``CifarWideResNet``, with Swish instead of ReLU. The
    mean and std of the normalisation are not in the state dict, as in Wang et al. A state dict that has them, as
    RobustBench's, loads strictly too and sets them.

    Args:
        depth: 6 n + 4 for n blocks per stage.
        width: Multiple of the stages' 16, 32 and 64 channels.
        mean: Channel mean, for images scaled to 0..1. None for that of the published networks: CIFAR-10's for ten
            classes, else CIFAR-100's; its average over the channels if ``in_chans`` is not 3.
        std: As ``mean``.
        **options: As for ``CifarNet``.
    """

    classifier_name = "logits"
    # By default timm runs the modules one after another, without the normalisation.
    timm_feature_cfg = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}

    def __init__(
        self,
        depth: int,
        width: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        blocks = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.mean: Tensor
        self.std: Tensor
        published = CIFAR10 if self.num_classes == 10 else CIFAR100
        for name, values, default in zip(("mean", "std"), (mean, std), published, strict=True):
            by_default = default if self.in_chans == len(default) else [sum(default) / len(default)] * self.in_chans
            tensor = torch.tensor(by_default if values is None else values)
            self.register_buffer(name, tensor.view(-1, 1, 1), persistent=False)
        self.init_conv = nn.Conv2d(self.in_chans, widths[0], 3, padding=1, bias=False)
        stages = zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        self.layer = nn.Sequential(*(PreActStage("block", SwishBlock, blocks, *stage) for stage in stages))
        self.batchnorm = nn.BatchNorm2d(widths[3], momentum=MOMENTUM)
        self.feature_info = feature_info(widths, (1, 1, 2, 4), ("init_conv", "layer.0", "layer.1", "layer.2"))
        self.logits = self.make_classifier(widths[3])
        self.apply(self.initialise)
        self.register_load_state_dict_pre_hook(_take_normalisation)

    initialise = staticmethod(CifarWideResNet.initialise)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        stem = self.init_conv((x - self.mean) / self.std)
        _, second, third = (cast(PreActStage, stage) for stage in self.layer)
        norms = (second.first.batchnorm_0, third.first.batchnorm_0, self.batchnorm)
        return run_preact_stages(stem, self.layer, norms, F.silu, preacts, last)


def _take_normalisation(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in ("mean", "std"):
        if (value := state.pop(prefix + name, None)) is not None:
            buffer = network.get_buffer(name)
            buffer.copy_(value.reshape(buffer.shape))


default_cfgs = cifar_cfgs(
    "cifar_wrn_28_10_swish", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), first_conv="init_conv", classifier="logits"
)


@register_model
def cifar_wrn_28_10_swish(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-28-10 with Swish for 32x32 images in [0, 1], which it normalises itself, 36.54 M parameters."""
    return build(CifarSwishWideResNet, "cifar_wrn_28_10_swish", pretrained, **{"depth": 28, "width": 10} | kwargs)
