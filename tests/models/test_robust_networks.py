"""What sets the networks for adversarial training apart: images in [0, 1], and the layouts of published checkpoints."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models import create
from kd_bench.models.cifar_network import CifarNet
from kd_bench.models.swish_wide_resnet import CifarSwishWideResNet

ROBUST = ["cifar_wrn_34_10", "cifar_wrn_28_10_swish"]


def swish(**kwargs: Any) -> CifarNet:
    torch.manual_seed(0)
    built = create("cifar_wrn_28_10_swish", **{"num_classes": 10, "depth": 10, "width": 1} | kwargs)
    assert isinstance(built, CifarSwishWideResNet)
    return built.eval()


def wrn(seed: int = 0) -> CifarNet:
    torch.manual_seed(seed)
    built = create("cifar_wrn_16_2", 10)
    assert isinstance(built, CifarNet)
    return built.eval()


def in_trades_layout(built: CifarNet) -> dict[str, Tensor]:
    state: dict[str, Tensor] = built.state_dict()
    unused = {f"sub_{key}": torch.randn(value.shape) for key, value in state.items() if key.startswith("block1.")}
    return {**state, **unused}


def images(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ROBUST)
def test_timm_knows_that_they_read_images_from_0_to_1(name: str) -> None:
    with torch.device("meta"):
        cfg = create(name, 10).pretrained_cfg
    assert (cfg["mean"], cfg["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@torch.no_grad()
def test_wrn_loads_trades_layout_strictly() -> None:
    source, x = wrn(), images()
    state = in_trades_layout(source)
    assert len(state) == len(source.state_dict()) + 25
    before = list(state)
    for target in (copy.deepcopy(wrn(seed=1)), wrn(seed=1)):
        assert not torch.equal(target(x), source(x))
        target.load_state_dict(state)
        assert torch.equal(target(x), source(x))
        assert list(target.state_dict()) == list(source.state_dict())
    assert list(state) == before

    wrapped = nn.Sequential(wrn(seed=1))
    wrapped.load_state_dict({f"0.{key}": value for key, value in state.items()})
    assert torch.equal(wrapped(x), source(x))


@pytest.mark.parametrize("fault", ["missing", "shape", "extra"])
def test_wrn_refuses_what_is_no_second_block1(fault: str) -> None:
    built = wrn()
    state = in_trades_layout(built)
    key = "sub_block1.layer.0.bn1.weight"
    if fault == "missing":
        del state[key]
    elif fault == "shape":
        state[key] = state[key][1:]
    else:
        state["sub_block1.layer.9.bn1.weight"] = state[key]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*sub_block1"):
        built.load_state_dict(state)


@pytest.mark.parametrize(
    ("num_classes", "mean", "std"),
    [
        (10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        (100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        (7, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
@torch.no_grad()
def test_swish_normalises_as_published(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
    built, x = swish(num_classes=num_classes), images()
    plain = swish(num_classes=num_classes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(built(x), plain(normalised))
    assert not torch.allclose(built(x), plain(x))


@pytest.mark.parametrize("channels", [1, 4])
def test_swish_takes_any_number_of_channels(channels: int) -> None:
    built = swish(in_chans=channels)
    assert built.get_buffer("mean").flatten().tolist() == pytest.approx([(0.4914 + 0.4822 + 0.4465) / 3] * channels)
    assert built(images(channels)).shape == (2, 10)


@torch.no_grad()
def test_swish_loads_robustbenchs_layout_strictly() -> None:
    source = swish(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    normalisation = {"mean": source.get_buffer("mean"), "std": source.get_buffer("std")}
    state = normalisation | source.state_dict()
    assert len(state) == len(source.state_dict()) + 2
    loaded = swish()
    for target in (copy.deepcopy(loaded), loaded):
        assert not torch.equal(target(images()), source(images()))
        target.load_state_dict(state)
        assert torch.equal(target(images()), source(images()))
    assert "mean" in state
    loaded.load_state_dict(source.state_dict())
    assert torch.equal(loaded(images()), source(images()))
    with pytest.raises(RuntimeError):
        loaded.load_state_dict(state | {"mean": torch.zeros(4)})


def test_swish_starts_as_published() -> None:
    built = swish(width=4)
    convolutions = [layer for layer in built.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        if layer.weight.numel() > 20_000:
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    classifier = built.get_classifier()
    assert isinstance(classifier, nn.Linear)
    assert not classifier.bias.any()
    norms = [layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 7
    assert all(norm.momentum == 0.01 for norm in norms)


@torch.no_grad()
def test_preact_resnet_computes_what_the_published_weights_mean() -> None:
    torch.manual_seed(0)
    built = create("cifar_preact_resnet18", 10)
    for norm in (layer for layer in built.modules() if isinstance(layer, nn.BatchNorm2d)):
        for values, low, high in ((norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5), (norm.running_mean, -0.5, 0.5),
                                  (norm.running_var, 0.5, 2.0)):  # fmt: skip
            assert values is not None
            nn.init.uniform_(values, low, high)
    state = built.eval().state_dict()
    assert sum(parameter.numel() for parameter in built.parameters()) == 11_172_170

    def activated(x: Tensor, norm: str) -> Tensor:
        scale, shift, mean, var = (state[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var"))
        return F.relu(F.batch_norm(x, mean, var, scale, shift))

    x = images()
    out = F.conv2d(x, state["conv1.weight"], padding=1)
    for name in (f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)):
        stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
        active = activated(out, f"{name}.bn1")
        kernel = state.get(f"{name}.shortcut.0.weight")
        shortcut = out if kernel is None else F.conv2d(out, kernel, stride=stride)
        assert (kernel is None) == (stride == 1)
        inner = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(activated(inner, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1) + shortcut
    pooled = activated(out, "bn").mean((2, 3))
    torch.testing.assert_close(built(x), F.linear(pooled, state["linear.weight"], state["linear.bias"]))
