"""Every network of ours under the checks that timm makes of its own networks (its tests/test_models.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kd_bench.models import own_models, register
from kd_bench.models.cifar_network import CifarNet
from kd_bench.utils.errors import UserError

#: Deep or wide ones, made of the same blocks as others.
LARGE = {
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet50",
    "cifar_wrn_28_10_swish",
    "cifar_wrn_34_10",
}
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in own_models()]
)


def network(name: str, **options: Any) -> CifarNet:
    register()
    torch.manual_seed(0)
    return cast(CifarNet, timm.create_model(name, **options).eval())


def images(batch: int = 1, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def stage_shapes(channels: Sequence[int], reductions: Sequence[int]) -> list[tuple[int, ...]]:
    """Of one image of 32 pixels."""
    return [(1, width, 32 // ratio, 32 // ratio) for width, ratio in zip(channels, reductions, strict=True)]


def assert_all_gradients(traced: nn.Module, logits: Tensor) -> None:
    assert logits.shape[-1] == 42
    assert logits.isfinite().all()
    logits.mean().backward()
    lacking = [name for name, parameter in traced.named_parameters() if parameter.grad is None]
    assert not lacking


@EACH
def test_forward_and_backward(name: str) -> None:
    built = network(name, num_classes=42).train()
    assert_all_gradients(built, built(images(2)))


@EACH
@torch.no_grad()
def test_default_configuration_and_heads(name: str) -> None:
    built, x = network(name), images()
    cfg = built.default_cfg
    assert built.num_classes == cfg["num_classes"] == 100
    assert cfg["input_size"] == (3, 32, 32)
    for layer in (cfg["classifier"], cfg["first_conv"]):
        assert f"{layer}.weight" in built.state_dict()
    maps = (1, built.num_features, *cfg["pool_size"])

    features = built.forward_features(x)
    pooled = built.forward_head(features, pre_logits=True)
    assert features.shape == maps
    assert pooled.shape == (1, built.head_hidden_size)

    built.reset_classifier(0)
    assert built.num_classes == 0
    assert torch.equal(built(x), pooled)
    built.reset_classifier(0, "")
    assert torch.equal(built(x), features)
    built.reset_classifier(0)  # keeps the pooling, which is none
    assert built(x).shape == maps
    built.reset_classifier(5, "avg")
    assert built(x).shape == (1, 5)
    assert network(name, num_classes=0, global_pool="")(x).shape == maps
    assert network(name, num_classes=0)(x).shape == (1, built.num_features)


@EACH
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"feature_cls": "getter"}], ids=["default", "getter"])
def test_features_only(name: str, options: dict[str, Any]) -> None:
    built = cast(Any, network(name, features_only=True, **options))
    channels, reductions = built.feature_info.channels(), built.feature_info.reduction()
    assert len(channels) >= 3
    assert [output.shape for output in built(images())] == stage_shapes(channels, reductions)


@EACH
@torch.no_grad()
def test_forward_intermediates(name: str) -> None:
    built, x = network(name), images()
    info = FeatureInfo(built.feature_info, tuple(range(len(built.feature_info))))
    features, stages = built.forward_intermediates(x)
    assert torch.equal(features, built.forward_features(x))
    assert [stage.shape for stage in stages] == stage_shapes(info.channels(), info.reduction())


@EACH
def test_torch_fx_traces(name: str) -> None:
    built = network(name, num_classes=42)
    options: dict[str, Any] = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    _, nodes = get_graph_node_names(built, tracer_kwargs=options)
    extractor = create_feature_extractor(built, [nodes[-1]], tracer_kwargs=options)
    with torch.no_grad():
        for size in (32, 64):  # one graph for both, though VGG pools larger images once more
            (logits,) = extractor.eval()(images(size=size)).values()
            assert torch.equal(logits, built(images(size=size)))
    (logits,) = extractor.train()(images(2)).values()
    assert_all_gradients(extractor, logits)


@EACH
@torch.no_grad()
def test_plain_torch_fx_keeps_bits_and_memory_format(name: str) -> None:
    built = network(name)
    traced = fx.symbolic_trace(built)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = images(2).to(memory_format=layout)
        assert torch.equal(traced(x), built(x))


@EACH
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning", "ignore:.*torch.jit.script:FutureWarning")
def test_a_traced_network_is_scripted(name: str) -> None:
    built = network(name)
    scripted = torch.jit.script(fx.symbolic_trace(built))
    torch.testing.assert_close(scripted(images(2)), built(images(2)))


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_mobilenet_v2"])
def test_a_classifier_needs_a_pooling(name: str) -> None:
    expected = "global_pool='' removes the pooling, which a classifier of 7 classes needs; it goes with num_classes=0"
    with pytest.raises(UserError) as caught:
        network(name, num_classes=7, global_pool="")
    assert str(caught.value) == expected
    built = network(name, num_classes=7)
    with pytest.raises(UserError) as caught:
        built.reset_classifier(7, "")
    assert str(caught.value) == expected
