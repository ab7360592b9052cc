"""What holds for every network of ours: timm's interface, any size and class count, initial weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models import create, register
from kd_bench.models.cifar_network import CifarNet
from kd_bench.utils.errors import UserError

SWISH = "cifar_wrn_28_10_swish"
#: One of each class, and what makes it small enough.
SMALL: dict[str, dict[str, Any]] = {
    "cifar_resnet8": {},
    "cifar_wrn_16_1": {},
    "cifar_vgg8": {},
    "cifar_resnet18": {},
    "cifar_preact_resnet18": {},
    SWISH: {"depth": 10, "width": 1},
}
EACH = pytest.mark.parametrize("name", list(SMALL))


def network(name: str, num_classes: int = 10, **kwargs: Any) -> CifarNet:
    torch.manual_seed(0)
    built = create(name, num_classes, **SMALL.get(name, {}), **kwargs)
    assert isinstance(built, CifarNet)
    return built


def trained(name: str, **kwargs: Any) -> CifarNet:
    """Batch norms that do something: with statistics of their own and in evaluation mode."""
    built = network(name, **kwargs)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return built.eval()


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@EACH
@pytest.mark.parametrize(("num_classes", "channels", "size"), [(2, 3, 32), (1000, 1, 16), (7, 4, 48)])
def test_any_class_count_channels_and_size(name: str, num_classes: int, channels: int, size: int) -> None:
    built = network(name, num_classes, in_chans=channels)
    x = images(channels, size)
    assert built(x).shape == (2, num_classes)
    features, stages = built.forward_intermediates(x)
    assert features.shape[-1] == size // built.feature_info[-1]["reduction"]
    expected = [(info["num_chs"], size // info["reduction"]) for info in built.feature_info]
    assert [(stage.shape[1], stage.shape[2]) for stage in stages] == expected


@EACH
@torch.no_grad()
def test_the_parts_make_up_the_whole(name: str) -> None:
    built, x = trained(name), images()
    logits = built(x)
    features = built.forward_features(x)
    assert torch.equal(built.forward_head(features), logits)
    pooled = built.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, built.num_features) == (2, built.head_hidden_size)
    assert torch.equal(pooled, features.mean((2, 3)))
    assert torch.equal(built.get_classifier()(pooled), logits)


@EACH
@torch.no_grad()
def test_intermediates_follow_timms_rules(name: str) -> None:
    built, x = trained(name), images()
    features, stages = built.forward_intermediates(x)
    assert torch.equal(features, built.forward_features(x))
    count = len(built.feature_info)
    assert len(stages) == count

    only = built.forward_intermediates(x, indices=[0, -2], intermediates_only=True)
    assert len(only) == 2
    assert torch.equal(only[0], stages[0])
    assert torch.equal(only[1], stages[-2])

    end, last_two = built.forward_intermediates(x, indices=2)
    assert torch.equal(end, features)
    assert all(torch.equal(stage, other) for stage, other in zip(last_two, stages[-2:], strict=True))

    early, first_two = built.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert torch.equal(early, stages[1])
    assert all(torch.equal(stage, other) for stage, other in zip(first_two, stages[:2], strict=True))
    assert torch.equal(built.forward_intermediates(x, indices=[count - 1], stop_early=True)[0], features)

    with pytest.raises(ValueError, match="NLC"):
        built.forward_intermediates(x, output_fmt="NLC")


@EACH
def test_stopping_early_computes_less(name: str) -> None:
    built = network(name)
    last = built.get_submodule(built.feature_info[-1]["module"])
    calls: list[int] = []
    last.register_forward_hook(lambda *_: calls.append(1))
    built.forward_intermediates(images(), indices=[1], stop_early=True)
    assert not calls
    built.forward_intermediates(images(), indices=[1])
    assert calls == [1]


@EACH
@torch.no_grad()
def test_feature_info_names_the_modules_that_put_the_stages_out(name: str) -> None:
    built, x = trained(name), images()
    seen: list[Tensor] = []
    for info in built.feature_info:
        built.get_submodule(info["module"]).register_forward_hook(lambda _, __, output: seen.append(output))
    stages = built.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(stage, other) for stage, other in zip(seen, stages, strict=True))

    wrapped = create(name, 10, features_only=True, **SMALL[name]).eval()
    # timm may put a prefix before the keys and leaves the classifier out, but keeps the order.
    wrapped.load_state_dict(dict(zip(wrapped.state_dict(), built.state_dict().values(), strict=False)))
    assert all(torch.equal(stage, other) for stage, other in zip(wrapped(x), stages, strict=True))


@pytest.mark.parametrize("name", ["cifar_resnet14", "cifar_resnet18", "cifar_vgg8"])
@torch.no_grad()
def test_preacts_are_the_stages_before_relu(name: str) -> None:
    outputs = trained(name).forward_stages(images(), preacts=True)
    for stage, preact in zip(outputs.stages, outputs.preacts, strict=True):
        assert torch.equal(F.relu(preact), stage)
        assert preact.min() < 0
    assert torch.equal(outputs.features, outputs.stages[-1])


@pytest.mark.parametrize(
    ("name", "norms", "activation"),
    [
        ("cifar_wrn_16_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"], F.relu),
        (SWISH, ["layer.1.block.0.batchnorm_0", "layer.2.block.0.batchnorm_0", "batchnorm"], F.silu),
    ],
)
@torch.no_grad()
def test_wrn_preacts_are_the_stages_under_the_next_batch_norm(
    name: str, norms: list[str], activation: Callable[[Tensor], Tensor]
) -> None:
    built, x = trained(name), images()
    stages, preacts = built.forward_stages(x, preacts=True)[1:]
    assert stages[0].shape == (2, 16, 32, 32)
    assert torch.equal(preacts[0], stages[0])
    for stage, preact, norm in zip(stages[1:], preacts[1:], norms, strict=True):
        assert stage.min() < 0
        assert torch.equal(preact, built.get_submodule(norm)(stage))
    assert torch.equal(built.forward_features(x), activation(preacts[-1]))


@EACH
@torch.no_grad()
def test_nothing_that_is_returned_is_written_to_afterwards(name: str) -> None:
    built, x = trained(name), images()
    kept, copies = [], []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        kept.append(output)
        copies.append(output.clone())

    for layer in built.modules():
        layer.register_forward_hook(keep)
    outputs = built.forward_stages(x, preacts=True)
    assert all(torch.equal(output, copy) for output, copy in zip(kept, copies, strict=True))
    alone = [built.forward_stages(x, preacts=True, last=index) for index in range(len(outputs.stages))]
    for index, early in enumerate(alone):
        assert len(early.stages) == len(early.preacts) == index + 1
        assert torch.equal(early.stages[-1], outputs.stages[index])
        assert torch.equal(early.preacts[-1], outputs.preacts[index])


@EACH
def test_reset_classifier(name: str) -> None:
    built, x = network(name).double(), images().double()
    features = built.forward_features(x)
    built.reset_classifier(3)
    assert built.num_classes == 3
    assert built(x).shape == (2, 3)
    assert built(x).dtype == torch.float64
    built.reset_classifier(5, "max")
    assert torch.equal(built.forward_head(features, pre_logits=True), features.amax((2, 3)))
    built.reset_classifier(0)
    assert torch.equal(built.forward_head(features), features.amax((2, 3)))
    assert isinstance(built.get_classifier(), nn.Identity)


@torch.no_grad()
def test_vgg_pools_before_its_last_stage_from_64_pixels_on() -> None:
    built = network("cifar_vgg8").eval()
    heights = {size: [stage.shape[2] for stage in built.forward_stages(images(size=size)).stages] for size in (48, 64)}
    assert heights == {48: [48, 24, 12, 6, 6], 64: [64, 32, 16, 8, 4]}


@pytest.mark.parametrize("name", ["cifar_resnet32x4", "cifar_resnet50", "cifar_wrn_40_2", "cifar_vgg16"])
def test_convolutions_start_with_variance_two_over_fan_out(name: str) -> None:
    built = network(name)
    large = [layer for layer in built.modules() if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000]
    assert len(large) > 10
    for layer in large:
        fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.all(layer.weight == 1)
            assert torch.all(layer.bias == 0)


@pytest.mark.parametrize(
    ("name", "deviation", "zero"),
    [
        ("cifar_resnet8", 64**-0.5 / 3**0.5, False),
        ("cifar_resnet18", 512**-0.5 / 3**0.5, False),
        ("cifar_wrn_16_1", 64**-0.5 / 3**0.5, True),
        ("cifar_vgg8", 0.01, True),
    ],
)
def test_the_classifier_starts_as_published(name: str, deviation: float, zero: bool) -> None:
    built = network(name, 1000)
    for classes in (1000, 500):
        built.reset_classifier(classes)
        classifier = built.get_classifier()
        assert isinstance(classifier, nn.Linear)
        assert classifier.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert torch.all(classifier.bias == 0).item() == zero


def test_wrn_drops_out_inside_its_blocks_in_training_only() -> None:
    x = images()
    plain, dropping = network("cifar_wrn_16_1").train(), network("cifar_wrn_16_1", drop_rate=0.5).train()
    torch.manual_seed(3)
    once = dropping(x)
    torch.manual_seed(3)
    assert torch.equal(dropping(x), once)
    assert not torch.equal(dropping(x), once)
    assert not torch.equal(plain(x), once)
    torch.manual_seed(0)
    fresh = network("cifar_wrn_16_1", drop_rate=0.5).eval()
    assert torch.equal(fresh(x), network("cifar_wrn_16_1").eval()(x))


def test_timm_loads_a_file_of_weights(tmp_path: Path) -> None:
    register()
    source, x = trained("cifar_resnet8"), images()
    file = tmp_path / "teacher.pth"
    torch.save({"model": source.state_dict()}, file)
    loaded = timm.create_model("cifar_resnet8", num_classes=10, checkpoint_path=str(file)).eval()
    assert torch.equal(loaded(x), source(x))

    overlay = {"file": str(file), "num_classes": 10}
    overlaid = timm.create_model("cifar_resnet8", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(overlaid(x), source(x))


def test_timm_defaults_and_pretrained_without_a_file() -> None:
    register()
    built = timm.create_model("cifar_resnet8")
    assert built.num_classes == 100
    assert built.pretrained_cfg["input_size"] == (3, 32, 32)
    with pytest.raises(UserError, match=r"cifar_resnet8.*no weights.*checkpoint_path"):
        timm.create_model("cifar_resnet8", pretrained=True)
