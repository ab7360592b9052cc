"""timm's interface for networks made for 32x32 images; a subclass only defines its layers and ``forward_stages``."""

# Without "from __future__ import annotations", because torch.fx gives graphs the annotations of ``forward``, and
# TorchScript reads them.
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from timm import models
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.utils.errors import UserError

Entry = TypeVar("Entry", bound=Callable[..., nn.Module])


class StageOutputs(NamedTuple):
    """Outputs of a network up to its classifier."""

    features: Tensor
    """(B, D, H, W), the input of ``forward_head``."""
    stages: list[Tensor]
    """(B, C, H, W) each, stem first."""
    preacts: list[Tensor]
    """As ``stages``, before the activation; empty if not requested."""


class CifarNet(nn.Module, ABC):
    """Base of our networks: timm's methods on top of ``forward_stages``.

    A subclass builds its layers in the order of the published definition and keeps its state-dict keys, lists its
    stages in ``feature_info``, and creates its classifier with ``make_classifier``. The global pooling is adaptive, so
    every input size that the strides divide works.

    ``outputs.preact_norms`` finds the batch norms behind the pre-activations. A network has a method ``preact_norms``
    that returns their scales and shifts if several batch norms contribute to one pre-activation, and a method
    ``published_preacts`` if its pre-activations have another form in published code, as ``CifarShuffleNetV2`` has.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
        global_pool: timm's name of a pooling; "" for none, with ``num_classes=0``: the network returns its last maps.

    Raises:
        UserError: If there is a classifier, but no pooling.
    """

    classifier_name: ClassVar[str] = "fc"
    """Name of the classifier in the published state dicts."""

    timm_feature_cfg: ClassVar[dict[str, Any]] = {"out_indices": (0, 1, 2, 3)}
    """timm's configuration of ``features_only`` networks. A network with fewer stages names those that it has."""

    feature_info: list[dict[str, Any]]
    """Result of the function ``feature_info``."""

    def __init__(self, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__()
        self.num_classes, self.in_chans, self._pool_type = num_classes, in_chans, global_pool

    @abstractmethod
    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """Runs the network up to its classifier.

        Returned tensors are not overwritten afterwards, and pre-activations cost no extra computation.

        Args:
            x: (B, in_chans, H, W).
            preacts: Whether to return the pre-activations.
            last: Index of the last stage to run; None for all. ``features`` are the output of that stage; with None or
                the index of the network's last stage they are the input of the classifier's pooling.
        """

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Sets the published initial weights of one layer; called for each layer."""

    def make_classifier(self, num_features: int) -> nn.Module:
        """Sets the pooling and the feature counts, and returns the classifier, which the subclass assigns."""
        if self.num_classes and not self._pool_type:
            raise UserError(
                f"global_pool='' removes the pooling, which a classifier of {self.num_classes} classes needs; "
                "it goes with num_classes=0"
            )
        self.num_features = self.head_hidden_size = num_features
        classifier: nn.Module
        self.global_pool, classifier = create_classifier(num_features, self.num_classes, pool_type=self._pool_type)
        return classifier

    def get_classifier(self) -> nn.Module:
        """Returns the layer that maps the pooled embedding to logits."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one with initial weights.

        Args:
            num_classes: Width of the new classifier; 0 removes the classifier.
            global_pool: timm's name of a pooling; "" removes the pooling, None keeps the current one.

        Raises:
            UserError: If there is a classifier, but no pooling.
        """
        self.num_classes = num_classes
        self._pool_type = self._pool_type if global_pool is None else global_pool
        like = next(self.parameters())
        classifier = self.make_classifier(self.num_features)
        classifier.apply(self.initialise)
        self.set_submodule(self.classifier_name, classifier.to(like.device, like.dtype))

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps (B, in_chans, H, W) images to the (B, D, h, w) input of ``forward_head``."""
        return self.forward_stages(x).features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, D, h, w) features to (B, K) logits, or to the (B, D) pooled embedding with ``pre_logits``.

        Without a classifier it returns the pooled embedding, and without a pooling the features.
        """
        pooled = self.global_pool(x)
        out: Tensor = pooled if pre_logits else self.get_classifier()(pooled)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, in_chans, H, W) images to (B, K) logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the final features and the outputs of the stages, as timm's networks do.

        Args:
            x: (B, in_chans, H, W).
            indices: Stages to return: the last n for an int, all for None.
            norm: Has no effect, as for timm's convolutional networks.
            stop_early: Whether to stop after the last requested stage and return its output as the features.
            output_fmt: Only "NCHW".
            intermediates_only: Whether to return only the stages.

        Raises:
            ValueError: If ``output_fmt`` is not "NCHW".
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, but a convolutional network returns 'NCHW'")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        outputs = self.forward_stages(x, last=last if stop_early else None)
        intermediates = [stage for index, stage in enumerate(outputs.stages) if index in taken]
        return intermediates if intermediates_only else (outputs.features, intermediates)


class Stage(nn.Sequential):
    """Blocks one after another."""

    def forward(self, x: Tensor, activate: bool = True) -> Tensor:
        """Returns the last block's output, or with ``activate=False`` the sum that its last ReLU reads."""
        end = len(self) - 1
        for index, block in enumerate(self):
            x = block(x, activate or index < end)
        return x


class StagedCifarNet(CifarNet):
    """Base of networks with a stem and stages ``layer1``, ``layer2``, ... that end with a ReLU.

    Stages are the outputs after ReLU of the stem and of each ``layer``. Pre-activations are the same tensors before
    that ReLU; in published code the stem's pre-activation is after it. A subclass adds the layers, which return their
    output before the last ReLU if called with ``activate=False``, and the classifier.

    Args:
        widths: Channels of the stem and of the stages.
        reductions: Reduction of the image's size by the stem and by the stages.
        stem_kernel: Kernel size of the stem's convolution.
        **options: As for ``CifarNet``.
    """

    def __init__(self, widths: Sequence[int], reductions: Sequence[int], stem_kernel: int, **options: Any) -> None:
        super().__init__(**options)
        self.conv1 = nn.Conv2d(self.in_chans, widths[0], stem_kernel, padding=stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.feature_info = feature_info(
            widths, reductions, ("relu", *(f"layer{index}" for index in range(1, len(widths))))
        )

    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> StageOutputs:
        """See ``CifarNet.forward_stages``."""
        before = self.bn1(self.conv1(x))
        x = self.relu(before)
        outputs = StageOutputs(x, [x], [before] if preacts else [])
        for index in range(1, len(self.feature_info))[:last]:
            layer = self.get_submodule(f"layer{index}")
            if preacts:
                before = layer(x, activate=False)
                outputs.preacts.append(before)
                x = F.relu(before)
            else:
                x = layer(x)
            outputs.stages.append(x)
        return outputs._replace(features=x)


def feature_info(widths: Sequence[int], reductions: Sequence[int], modules: Sequence[str]) -> list[dict[str, Any]]:
    """Returns timm's list of stages: channels, reduction of the image's size, name of the module that outputs it."""
    return [
        {"num_chs": width, "reduction": reduction, "module": module}
        for width, reduction, module in zip(widths, reductions, modules, strict=True)
    ]


def register_model(entry: Entry) -> Entry:
    """Is timm's decorator of that name, with types."""
    models.register_model(entry)
    return entry


def cifar_cfgs(*names: str, **overrides: Any) -> Any:
    """Returns timm's configurations of networks for CIFAR-100: no weights, the published teachers' normalisation.

    ``overrides`` are the values that differ.
    """
    cfg: dict[str, Any] = {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return generate_default_cfgs(dict.fromkeys(names, cfg | overrides))


def build(cls: type[CifarNet], name: str, pretrained: bool, **kwargs: Any) -> CifarNet:
    """Builds a registered network as timm builds its own; every function with ``register_model`` calls it.

    With ``pretrained`` the weights are those that timm's configuration names, otherwise the published ones of the
    network's card, downloaded if necessary. As timm's, they lose a classifier with another number of classes, and
    adapt to other ``in_chans``.

    ``kwargs`` are arguments of the class and of timm's builder.

    Raises:
        UserError: If ``pretrained`` is true and no weights are known.
        RunFailed: If they cannot be downloaded.
    """
    from kd_bench.models import pretrained as published

    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        overlay |= published.load_overlay(name) or {}
        if not overlay.get("state_dict"):
            raise UserError(
                f"model {name}: pretrained=True, but no weights come with it; give a file, as in "
                "checkpoint_path='FILE' or pretrained_cfg_overlay={'file': 'FILE'}"
            )
    kwargs.setdefault("feature_cfg", dict(cls.timm_feature_cfg))
    network: CifarNet = build_model_with_cfg(cls, name, pretrained, pretrained_cfg_overlay=overlay, **kwargs)
    return published.without_state(network)
