"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, "Wide Residual Networks", 2016).

``cifar_wrn_40_2`` has 40 layers and width 2. State-dict keys, shapes and outputs are those of
the CIFAR-100 teachers of the distillation literature (Tian et al., "Contrastive Representation Distillation", 2020).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, StageOutputs, build, cifar_cfgs, feature_info, register_model


class PreActBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut.

    If the width changes, the shortcut is a 1x1 convolution of the activated input, otherwise the input itself.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if in_chs != out_chs:
            self.convShortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Returns the block's output; ``normalised`` is ``bn1(x)`` if the caller has computed it."""
        active = F.relu(self.bn1(x) if normalised is None else normalised)
        out = F.relu(self.bn2(self.conv1(active)))
        if self.drop_rate > 0:
            out = F.dropout(out, self.drop_rate, self.training)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return torch.add(self.conv2(out), shortcut)


class PreActBlocks(nn.Sequential):
    """Pre-activation blocks one after another.

    Args:
        block: Builds a block from input channels, output channels and stride.
        count: Number of blocks.
        in_chs, out_chs, stride: Of the first block; the others change neither width nor size.
    """

    def __init__(
        self, block: Callable[[int, int, int], nn.Module], count: int, in_chs: int, out_chs: int, stride: int
    ) -> None:
        super().__init__(block(in_chs, out_chs, stride), *(block(out_chs, out_chs, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Returns the last block's output; ``normalised`` is the input after the first batch norm if it is known."""
        for block in self:
            x, normalised = block(x, normalised), None
        return x


class PreActStage(nn.Module):
    """Pre-activation blocks under a name of their own in the state dict.

    Args:
        name: Name of the blocks in the state dict.
        block, count, in_chs, out_chs, stride: As for ``PreActBlocks``.
    """

    def __init__(
        self, name: str, block: Callable[[int, int, int], nn.Module], count: int, in_chs: int, out_chs: int, stride: int
    ) -> None:
        super().__init__()
        self.blocks_name = name
        self.add_module(name, PreActBlocks(block, count, in_chs, out_chs, stride))

    @property
    def first(self) -> Any:
        """The first block, whose batch norm reads the stage's input."""
        return next(self.get_submodule(self.blocks_name).children())

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Returns the last block's output; ``normalised`` is the input after the first batch norm if it is known."""
        output: Tensor = self.get_submodule(self.blocks_name)(x, normalised)
        return output


class CifarWideResNet(CifarNet):
    """WRN for 32x32 images: a 3x3 stem and three stages of pre-activation blocks at full, half and quarter size.

    Stages are the outputs of the stem's convolution and of each ``block``. They are sums without an activation, because
    this is a pre-activation network. Pre-activations are the stem's output and, for each stage, its output after the
    next batch norm, which is the following stage's first or the final one. That batch norm runs once per forward pass,
    not again for the pre-activation. The pooled embedding is read from the last pre-activation after ReLU.

    State dicts of TRADES' definition (Zhang et al., "Theoretically Principled Trade-off between Robustness and
    Accuracy", 2019) load strictly too. Their second ``block1``, ``sub_block1``, never runs and is ignored.

    Args:
        depth: 6 n + 4 for n blocks per stage.
        width: Multiple of the stages' 16, 32 and 64 channels.
        drop_rate: Probability of dropout between the convolutions of a block.
        **options: As for ``CifarNet``.
    """

    def __init__(self, depth: int, width: int, drop_rate: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        blocks = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(self.in_chans, widths[0], 3, padding=1, bias=False)
        block = functools.partial(PreActBlock, drop_rate=drop_rate)
        self.block1 = PreActStage("layer", block, blocks, widths[0], widths[1], stride=1)
        self.block2 = PreActStage("layer", block, blocks, widths[1], widths[2], stride=2)
        self.block3 = PreActStage("layer", block, blocks, widths[2], widths[3], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.feature_info = feature_info(widths, (1, 1, 2, 4), ("conv1", "block1", "block2", "block3"))
        self.fc = self.make_classifier(widths[3])
        self.apply(self.initialise)
        self.register_load_state_dict_pre_hook(_ignore_sub_block1)

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out, the classifier's bias zero; torch's defaults elsewhere."""
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        norms = (self.block2.first.bn1, self.block3.first.bn1, self.bn1)
        return run_preact_stages(self.conv1(x), (self.block1, self.block2, self.block3), norms, F.relu, preacts, last)


def run_preact_stages(
    stem: Tensor,
    stages: Iterable[nn.Module],
    norms: Sequence[nn.Module],
    activation: Callable[[Tensor], Tensor],
    preacts: bool,
    last: int | None,
) -> StageOutputs:
    """Runs the stages of a pre-activation network.

    Args:
        stem: (B, C, H, W), the output of the stem.
        stages: The stages, called with their input and, if it is known, the output of their first batch norm.
        norms: The batch norm that reads each stage's output.
        activation: The activation after the last batch norm.
        preacts, last: As for ``CifarNet.forward_stages``.
    """
    outputs = StageOutputs(stem, [stem], [stem] if preacts else [])
    x, normalised = stem, None
    for stage, norm in list(zip(stages, norms, strict=True))[:last]:
        x = stage(x, normalised)
        outputs.stages.append(x)
        if preacts:
            normalised = norm(x)
            outputs.preacts.append(normalised)
    if last is None or last == len(norms):
        x = activation(norms[-1](x) if normalised is None else normalised)
    return outputs._replace(features=x)


def _ignore_sub_block1(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    block1 = network.get_submodule("block1").state_dict()
    expected = {f"{prefix}sub_block1.{key}": value.shape for key, value in block1.items()}
    unused = {key: value.shape for key, value in state.items() if key.startswith(f"{prefix}sub_block1.")}
    # Anything but a complete second block1 is an unknown layout, which strict loading should reject.
    if unused == expected:
        for key in unused:
            del state[key]


default_cfgs = {
    **cifar_cfgs("cifar_wrn_16_1", "cifar_wrn_16_2", "cifar_wrn_40_1", "cifar_wrn_40_2"),
    # Adversarial training works on pixels from 0 to 1, without normalisation.
    **cifar_cfgs("cifar_wrn_34_10", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}


@register_model
def cifar_wrn_16_1(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-16-1 for 32x32 images, 0.18 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_16_1", pretrained, depth=16, width=1, **kwargs)


@register_model
def cifar_wrn_16_2(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-16-2 for 32x32 images, 0.70 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_16_2", pretrained, depth=16, width=2, **kwargs)


@register_model
def cifar_wrn_40_1(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-40-1 for 32x32 images, 0.57 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_40_1", pretrained, depth=40, width=1, **kwargs)


@register_model
def cifar_wrn_40_2(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-40-2 for 32x32 images, 2.26 M parameters."""
    return build(CifarWideResNet, "cifar_wrn_40_2", pretrained, depth=40, width=2, **kwargs)


@register_model
def cifar_wrn_34_10(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """WRN-34-10 for 32x32 images in [0, 1], 46.22 M parameters, as adversarial training uses it."""
    return build(CifarWideResNet, "cifar_wrn_34_10", pretrained, depth=34, width=10, **kwargs)
