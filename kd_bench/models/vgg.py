"""VGG for 32x32 images (Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015), with batch norm.

State-dict keys, shapes and outputs are those of the CIFAR-100 networks of the distillation literature (Tian et al.,
"Contrastive Representation Distillation", 2020), whose "vgg13" has batch norm too.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Walk, build, cifar_cfg, feature_info, register_model

WIDTHS = (64, 128, 256, 512, 512)

#: Height of an image from which on there is a pooling before the last stage.
_TALL = 64


class CifarVGG(CifarNet):
    """VGG for 32x32 images: five stages of 3x3 convolutions with max poolings between them.

    As published 32x32 images have no pooling before the last stage and 64x64 images have one, so both end at 4x4; here
    every image of at least 64 pixels has it. ``feature_info`` gives the reductions of images below that.

    Stages are the outputs after ReLU of each ``block``; pre-activations are the same tensors before that ReLU, the
    outputs of the blocks' last batch norms (published code returns the first stage after ReLU there).

    Args:
        blocks: Convolutions of each stage.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling.
    """

    classifier_name: ClassVar[str] = "classifier"

    def __init__(
        self, blocks: tuple[int, ...], num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg"
    ) -> None:
        super().__init__(num_classes, in_chans)
        before = in_chans
        for index, (convolutions, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            self.add_module(f"block{index}", _block(before, width, convolutions))
            before = width
        # What puts a stage out is a ReLU; modules of their own, so that timm can name them.
        for index in range(len(WIDTHS)):
            self.add_module(f"relu{index}", nn.ReLU())
        modules = [f"relu{index}" for index in range(len(WIDTHS))]
        self.feature_info = feature_info(WIDTHS, (1, 2, 4, 8, 8), modules)
        self.classifier = self.make_classifier(WIDTHS[-1], global_pool)
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

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> Walk:
        """See ``CifarNet.forward_stages``."""
        tall = x.shape[2] >= _TALL
        walk = Walk(x, [], [])
        end = len(WIDTHS) - 1 if last is None else last
        for index in range(end + 1):
            if index and (tall or index < len(WIDTHS) - 1):
                x = F.max_pool2d(x, 2)
            before = self.get_submodule(f"block{index}")(x)
            x = self.get_submodule(f"relu{index}")(before)
            walk.stages.append(x)
            if preacts:
                walk.preacts.append(before)
        return walk._replace(features=x)


def _block(in_chs: int, out_chs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        if index:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(in_chs if index == 0 else out_chs, out_chs, 3, padding=1), nn.BatchNorm2d(out_chs)]
    return nn.Sequential(*layers)


_BLOCKS = {
    "cifar_vgg8": (1, 1, 1, 1, 1),
    "cifar_vgg11": (1, 1, 2, 2, 2),
    "cifar_vgg13": (2, 2, 2, 2, 2),
    "cifar_vgg16": (2, 2, 3, 3, 3),
    "cifar_vgg19": (2, 2, 4, 4, 4),
}

default_cfgs = generate_default_cfgs(
    {name: cifar_cfg(first_conv="block0.0", classifier="classifier", pool_size=(4, 4)) for name in _BLOCKS}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> CifarNet:
    # timm would by default run the modules one after another, and so without the poolings between them.
    kwargs.setdefault("feature_cfg", {"out_indices": tuple(range(len(WIDTHS))), "feature_cls": "getter"})
    return build(CifarVGG, name, pretrained, blocks=_BLOCKS[name], **kwargs)


@register_model
def cifar_vgg8(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-8 with batch norm for 32x32 images, 3.97 M parameters."""
    return _build("cifar_vgg8", pretrained, **kwargs)


@register_model
def cifar_vgg11(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-11 with batch norm for 32x32 images, 9.28 M parameters."""
    return _build("cifar_vgg11", pretrained, **kwargs)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-13 with batch norm for 32x32 images, 9.46 M parameters."""
    return _build("cifar_vgg13", pretrained, **kwargs)


@register_model
def cifar_vgg16(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-16 with batch norm for 32x32 images, 14.77 M parameters."""
    return _build("cifar_vgg16", pretrained, **kwargs)


@register_model
def cifar_vgg19(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """VGG-19 with batch norm for 32x32 images, 20.09 M parameters."""
    return _build("cifar_vgg19", pretrained, **kwargs)
