"""timm's interface for networks made for 32x32 images; a subclass says only how its stages follow one another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from timm import models
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from kd_bench.utils.errors import UserError

Entry = TypeVar("Entry", bound=Callable[..., nn.Module])


class Walk(NamedTuple):
    """What a network computes on the way to its classifier."""

    features: Tensor
    """(B, D, H, W), what ``forward_head`` takes."""
    stages: list[Tensor]
    """(B, C, H, W) each, stem first."""
    preacts: list[Tensor]
    """As ``stages``, before the activation; empty unless asked for."""


class CifarNet(nn.Module, ABC):
    """Base of our networks: timm's methods on top of ``forward_stages``.

    A subclass builds its layers in the order of the published definition, whose state-dict keys it keeps, lists its
    stages in ``feature_info`` and takes its classifier from ``make_classifier``. The global pooling is adaptive, so
    every input size that the strides divide works.

    The batch norms behind the pre-activations are found by ``outputs.preact_norms``. A network of which a single
    pre-activation is put together from the outputs of several has a method ``preact_norms`` that gives their scales and
    shifts, as ``CifarShuffleNetV2`` has.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the images.
    """

    classifier_name: ClassVar[str] = "fc"
    """Where the classifier sits, as the published state dicts call it."""

    feature_info: list[dict[str, Any]]
    """What the function ``feature_info`` gives."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans

    @abstractmethod
    def forward_stages(self, x: Tensor, *, preacts: bool = False, last: int | None = None) -> Walk:
        """Runs the network up to its classifier.

        No tensor that is returned is written to afterwards, and nothing is computed for the pre-activations that the
        plain forward would not compute anyway.

        Args:
            x: (B, in_chans, H, W).
            preacts: Whether to return the pre-activations.
            last: Index of the last stage wanted. The run ends after it, and ``features`` are that stage's output; with
                the index of the network's last stage or None they are what the classifier's pooling reads.
        """

    @staticmethod
    def initialise(layer: nn.Module) -> None:
        """Sets the published initial weights of one layer; called on each."""

    def make_classifier(self, num_features: int, global_pool: str) -> nn.Module:
        """Sets the pooling and the feature counts, and returns the classifier for the subclass to keep."""
        self.num_features = self.head_hidden_size = num_features
        classifier: nn.Module
        self.global_pool, classifier = create_classifier(num_features, self.num_classes, pool_type=global_pool)
        return classifier

    def get_classifier(self) -> nn.Module:
        """The layer that maps the pooled embedding to logits."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one with initial weights.

        Args:
            num_classes: Its width; 0 removes the classifier.
            global_pool: timm's name of a pooling; None keeps the present one.
        """
        self.num_classes = num_classes
        like = next(self.parameters())
        classifier = self.make_classifier(self.num_features, global_pool or self.global_pool.pool_type)
        classifier.apply(self.initialise)
        self.set_submodule(self.classifier_name, classifier.to(like.device, like.dtype))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images to the (B, D, h, w) map that ``forward_head`` takes."""
        return self.forward_stages(x).features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) features to (B, K) logits, or to the (B, D) pooled embedding with ``pre_logits``."""
        pooled = self.global_pool(x)
        out: Tensor = pooled if pre_logits else self.get_classifier()(pooled)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) images to (B, K) logits."""
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
        """The final features and the stages' outputs, as timm's networks give them.

        Args:
            x: (B, in_chans, H, W).
            indices: Which stages: the last n for an int, all for None.
            norm: Without effect, as for timm's convolutional networks.
            stop_early: Whether to end after the last stage asked for, whose output then stands for the features.
            output_fmt: Only "NCHW".
            intermediates_only: Whether to return the stages alone.

        Raises:
            ValueError: For another format.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, but a convolutional network gives 'NCHW'")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        walk = self.forward_stages(x, last=last if stop_early else None)
        intermediates = [stage for index, stage in enumerate(walk.stages) if index in taken]
        return intermediates if intermediates_only else (walk.features, intermediates)


def feature_info(widths: Sequence[int], reductions: Sequence[int], modules: Sequence[str]) -> list[dict[str, Any]]:
    """timm's list of a network's stages: channels, reduction of the image's size, the module that puts each out."""
    return [
        {"num_chs": width, "reduction": reduction, "module": module}
        for width, reduction, module in zip(widths, reductions, modules, strict=True)
    ]


def register_model(entry: Entry) -> Entry:
    """timm's decorator of that name, with types."""
    models.register_model(entry)
    return entry


def cifar_cfg(**overrides: Any) -> dict[str, Any]:
    """timm's description of a network for CIFAR-100: no weights, and the normalisation of the published teachers."""
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
    return cfg | overrides


def build(cls: type[CifarNet], name: str, pretrained: bool, **kwargs: Any) -> CifarNet:
    """Builds a registered network as timm builds its own; the body of every function decorated with ``register_model``.

    Args:
        cls: The network's class.
        name: The registered name.
        pretrained: Whether to load the weights that timm's configuration names.
        **kwargs: Arguments of the class and of timm's builder.

    Raises:
        UserError: For ``pretrained`` without a file.
    """
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise UserError(
            f"model {name}: pretrained=True, but no weights come with it; give a file, as in checkpoint_path='FILE' or "
            "pretrained_cfg_overlay={'file': 'FILE'}"
        )
    kwargs.setdefault("feature_cfg", {"out_indices": (0, 1, 2, 3)})
    network: CifarNet = build_model_with_cfg(cls, name, pretrained, **kwargs)
    return network
