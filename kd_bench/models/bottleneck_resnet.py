"""ResNet-18 and ResNet-50 as on ImageNet, with a stem for 32x32 images (He et al., 2016).

State-dict keys, shapes and outputs are those of the CIFAR-100 "ResNet18" and "ResNet50" of the distillation literature
(Tian et al., "Contrastive Representation Distillation", 2020).
"""

from __future__ import annotations

from typing import Any, ClassVar

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models.cifar_network import CifarNet, Walk, build, cifar_cfg, feature_info, register_model
from kd_bench.models.resnet import Stage

#: Channels inside the blocks of the four stages.
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Convolutions with batch norms and a shortcut: two of 3x3, or a 3x3 one between two of 1x1.

    Args:
        in_chs: Channels of the input.
        width: Channels inside.
        out_chs: Channels of the output; the block is a bottleneck where they are more than ``width``.
        stride: Of the first 3x3 convolution.
    """

    def __init__(self, in_chs: int, width: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv3: nn.Conv2d | None = None
        if out_chs == width:
            self.conv1 = nn.Conv2d(in_chs, width, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        else:
            self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_chs)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_chs != out_chs:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """The block's output, or with ``activate=False`` the sum that the last ReLU takes."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None:
            out = self.bn3(self.conv3(F.relu(out)))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu(out) if activate else out


class CifarBottleneckResNet(CifarNet):
    """ResNet with ImageNet's four stages and a 3x3 stem, at full, full, half, quarter and eighth size.

    Stages are the outputs after ReLU of the stem and of each ``layer``; pre-activations are the same tensors before
    that ReLU, the stem's included (published code returns the stem after ReLU there).

    Args:
        blocks: Blocks of each stage.
        expansion: How many times wider a block's output is than its inside.
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling.
    """

    classifier_name: ClassVar[str] = "linear"

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        expansion: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        before = WIDTHS[0]
        for index, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            after = width * expansion
            first = Block(before, width, after, 1 if index == 0 else 2)
            self.add_module(
                f"layer{index + 1}", Stage(first, *(Block(after, width, after, 1) for _ in range(count - 1)))
            )
            before = after
        modules = ("relu", "layer1", "layer2", "layer3", "layer4")
        widths = (WIDTHS[0], *(width * expansion for width in WIDTHS))
        self.feature_info = feature_info(widths, (1, 1, 2, 4, 8), modules)
        self.linear = self.make_classifier(before, global_pool)
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
        for index in range(1, 1 + (len(WIDTHS) if last is None else last)):
            layer = self.get_submodule(f"layer{index}")
            if preacts:
                before = layer(x, activate=False)
                walk.preacts.append(before)
                x = F.relu(before)
            else:
                x = layer(x)
            walk.stages.append(x)
        return walk._replace(features=x)


default_cfgs = generate_default_cfgs(
    {name: cifar_cfg(classifier="linear", pool_size=(4, 4)) for name in ("cifar_resnet18", "cifar_resnet50")}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> CifarNet:
    kwargs.setdefault("feature_cfg", {"out_indices": (0, 1, 2, 3, 4)})
    return build(CifarBottleneckResNet, name, pretrained, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-18 with a stem for 32x32 images, 11.22 M parameters."""
    return _build("cifar_resnet18", pretrained, blocks=(2, 2, 2, 2), expansion=1, **kwargs)


@register_model
def cifar_resnet50(pretrained: bool = False, **kwargs: Any) -> CifarNet:
    """ResNet-50 with a stem for 32x32 images, 23.71 M parameters."""
    return _build("cifar_resnet50", pretrained, blocks=(3, 4, 6, 3), expansion=4, **kwargs)
