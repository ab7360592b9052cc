"""VGG for 32x32 images (Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015), with batch norm.

State-dict keys, shapes and outputs are those of the CIFAR-100 networks of the distillation literature (Tian et al.,
"Contrastive Representation Distillation", 2020), whose "vgg13" has batch norm too.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, StageOutputs, build, cifar_cfgs, feature_info, register_model

WIDTHS = (64, 128, 256, 512, 512)

#: Smallest image height with a pooling before the last stage.
_MIN_POOLED_HEIGHT = 64


class CifarVGG(CifarNet):
    """VGG for 32x32 images: five stages of 3x3 convolutions with max poolings between them.

    As published, 32x32 images have no pooling before the last stage and 64x64 images have one, so both end at 4x4. Here
    every image of at least 64 pixels has it. ``feature_info`` lists the reductions of smaller images.

    Stages are the outputs after ReLU of each ``block``. Pre-activations are the same tensors before that ReLU, the
    outputs of the blocks' last batch norms; in published code the first stage's pre-activation is after ReLU.

    Args:
        blocks: Convolutions of each stage.
        **options: As for ``CifarNet``.
    """

    classifier_name = "classifier"
    # By default timm runs the modules one after another, without the poolings between them.
    timm_feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}

    def __init__(self, blocks: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        in_chs = (self.in_chans, *WIDTHS)
        for index, (convolutions, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            self.add_module(f"block{index}", _block(in_chs[index], width, convolutions))
            self.add_module(f"relu{index}", nn.ReLU())  # a module, so that timm can name the end of the stage
        self.feature_info = feature_info(WIDTHS, (1, 2, 4, 8, 8), [f"relu{index}" for index in range(len(WIDTHS))])
        self.classifier = self.make_classifier(WIDTHS[-1])
        self.apply(self.initialise)

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out, the classifier's weights normal with 0.01; biases zero."""
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        height = x.shape[2]
        outputs = StageOutputs(x, [], [])
        end = len(WIDTHS) - 1 if last is None else last
        for index in range(end + 1):
            if index == len(WIDTHS) - 1:
                x = pool_large(x, height, _MIN_POOLED_HEIGHT)
            elif index:
                x = F.max_pool2d(x, 2)
            before = self.get_submodule(f"block{index}")(x)
            x = self.get_submodule(f"relu{index}")(before)
            outputs.stages.append(x)
            if preacts:
                outputs.preacts.append(before)
        return outputs._replace(features=x)


@fx.wrap  # one node of torch.fx's graph, because it cannot trace the branch
def pool_large(x: Tensor, height: int, least: int) -> Tensor:
    """Halves the size of maps (B, C, H, W) if the height of their images, in pixels, is at least ``least``."""
    return F.max_pool2d(x, 2) if height >= least else x


def _block(in_chs: int, out_chs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        if index:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(in_chs if index == 0 else out_chs, out_chs, 3, padding=1), nn.BatchNorm2d(out_chs)]
    return nn.Sequential(*layers)


_NAMES = [f"cifar_vgg{depth}" for depth in (8, 11, 13, 16, 19)]
default_cfgs = cifar_cfgs(*_NAMES, first_conv="block0.0", classifier="classifier", pool_size=(4, 4))


@register_model
def cifar_vgg8(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-8 with batch norm for 32x32 images, 3.97 M parameters."""
    return build(CifarVGG, "cifar_vgg8", pretrained, blocks=(1, 1, 1, 1, 1), **kwargs)


@register_model
def cifar_vgg11(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-11 with batch norm for 32x32 images, 9.28 M parameters."""
    return build(CifarVGG, "cifar_vgg11", pretrained, blocks=(1, 1, 2, 2, 2), **kwargs)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-13 with batch norm for 32x32 images, 9.46 M parameters."""
    return build(CifarVGG, "cifar_vgg13", pretrained, blocks=(2, 2, 2, 2, 2), **kwargs)


@register_model
def cifar_vgg16(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-16 with batch norm for 32x32 images, 14.77 M parameters."""
    return build(CifarVGG, "cifar_vgg16", pretrained, blocks=(2, 2, 3, 3, 3), **kwargs)


@register_model
def cifar_vgg19(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-19 with batch norm for 32x32 images, 20.09 M parameters."""
    return build(CifarVGG, "cifar_vgg19", pretrained, blocks=(2, 2, 4, 4, 4), **kwargs)
