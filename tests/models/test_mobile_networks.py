"""What sets the mobile networks apart: shuffled channels, linear bottlenecks, a head behind the stages."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models import create
from kd_bench.models.cifar_network import CifarNet
from kd_bench.models.outputs import observe
from kd_bench.models.shufflenet_v1 import channel_shuffle
from kd_bench.types import Output

MOBILE, V1, V2 = "cifar_mobilenet_v2", "cifar_shufflenet_v1", "cifar_shufflenet_v2"
SHUFFLE = pytest.mark.parametrize("name", [V1, V2])
ALL_THREE = pytest.mark.parametrize("name", [MOBILE, V1, V2])

OUTPUTS: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})


def network(name: str, num_classes: int = 10, **kwargs: object) -> CifarNet:
    torch.manual_seed(0)
    built = create(name, num_classes, **kwargs)
    assert isinstance(built, CifarNet)
    return built


def trained(name: str) -> CifarNet:
    """Batch norms that do something: with statistics of their own and in evaluation mode."""
    built = network(name)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return built.eval()


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_channel_shuffle_deals_the_groups_out_and_keeps_the_layout(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 3, 4).to(memory_format=memory_format)
    shuffled = channel_shuffle(x, 3)
    order = [group * 4 + index for index in range(4) for group in range(3)]
    assert torch.equal(shuffled, x[:, order])
    assert shuffled.is_contiguous(memory_format=memory_format)
    assert torch.equal(channel_shuffle(shuffled, 4), x)
    assert torch.equal(channel_shuffle(x[:, 2:8], 2), x[:, [2, 5, 3, 6, 4, 7]])
    assert torch.equal(channel_shuffle(x[..., :1, :1], 3), x[:, order, :1, :1])


@ALL_THREE
@pytest.mark.parametrize(("num_classes", "channels", "size"), [(2, 1, 64), (1000, 4, 48)])
def test_any_class_count_channels_and_size(name: str, num_classes: int, channels: int, size: int) -> None:
    built = network(name, num_classes, in_chans=channels).eval()
    with torch.no_grad():
        outputs = observe(built, images(channels, size), OUTPUTS)
    assert outputs.logits.shape == (2, num_classes)
    expected = [(2, info["num_chs"], *[size // info["reduction"]] * 2) for info in built.feature_info]
    assert [stage.shape for stage in outputs.stages] == expected
    assert [preact.shape for preact in outputs.preacts] == expected
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (2, built.num_features)


@ALL_THREE
def test_one_training_pass_whatever_is_asked_for(name: str) -> None:
    plain, observed, x = network(name).train(), network(name).train(), images()
    logits = plain(x)
    logits.square().sum().backward()
    outputs = observe(observed, x, OUTPUTS)
    outputs.logits.square().sum().backward(retain_graph=True)
    assert torch.equal(outputs.logits, logits)
    assert len(outputs.stages) == len(outputs.preacts) == len(observed.feature_info)
    state = observed.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], value)
        assert not key.endswith("num_batches_tracked") or value == 1
    for parameter, other in zip(plain.parameters(), observed.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, other.grad)

    assert outputs.pooled is not None
    first = observed.get_parameter(f"{observed.pretrained_cfg['first_conv']}.weight")
    for output in (*outputs.stages, *outputs.preacts, outputs.pooled):
        (gradient,) = torch.autograd.grad(output.square().mean(), first, retain_graph=True)
        assert gradient.abs().max() > 0


@SHUFFLE
@torch.no_grad()
def test_shufflenets_preacts_are_the_stages_before_relu(name: str) -> None:
    walk = trained(name).forward_stages(images(), preacts=True)
    for stage, preact in zip(walk.stages, walk.preacts, strict=True):
        assert torch.equal(F.relu(preact), stage)
        assert preact.min() < 0


@torch.no_grad()
def test_every_channel_of_shufflenet_v2s_preacts_is_a_batch_norms_output() -> None:
    built, x = trained(V2), images()
    outputs: list[Tensor] = []
    for norm in ("layer2.0.bn2", "layer2.0.bn5", *(f"layer2.{unit}.bn3" for unit in range(1, 8))):
        built.get_submodule(norm).register_forward_hook(lambda _, __, output: outputs.append(output))
    preact = built.forward_stages(x, preacts=True).preacts[2]
    channels = torch.cat(outputs, 1)
    indices = [int((channels == channel).all(3).all(2).all(0).nonzero()) for channel in preact.split(1, 1)]
    assert len(set(indices)) == preact.shape[1] == 232
    # Half comes from the last unit, half of the rest from the one before, and so on: nothing old is left over.
    assert sum(index >= channels.shape[1] - 116 for index in indices) == 116
    assert sum(channels.shape[1] - 232 <= index < channels.shape[1] - 116 for index in indices) == 58


@torch.no_grad()
def test_mobilenets_preacts_are_its_linear_stages() -> None:
    built, x = trained(MOBILE), images()
    stages, preacts = built.forward_stages(x, preacts=True)[1:]
    assert torch.equal(F.relu(preacts[0]), stages[0])
    assert preacts[0].min() < 0
    for stage, preact in zip(stages[1:], preacts[1:], strict=True):
        assert preact is stage
        assert stage.min() < 0


@ALL_THREE
@torch.no_grad()
def test_the_parts_make_up_the_whole(name: str) -> None:
    built, x = trained(name), images()
    features = built.forward_features(x)
    assert torch.equal(built.forward_head(features), built(x))
    assert torch.equal(built.forward_head(features, pre_logits=True), features.mean((2, 3)))
    end, stages = built.forward_intermediates(x)
    assert torch.equal(end, features)
    last = len(stages) - 1
    assert torch.equal(built.forward_intermediates(x, indices=[last], stop_early=True)[0], features)
    for index in range(last):
        early = built.forward_stages(x, preacts=True, last=index)
        assert len(early.stages) == len(early.preacts) == index + 1
        assert torch.equal(early.stages[-1], stages[index])
        assert torch.equal(early.features, stages[index])


@ALL_THREE
@torch.no_grad()
def test_features_only_gives_the_stages(name: str) -> None:
    built, x = trained(name), images()
    seen: list[Tensor] = []
    for info in built.feature_info:
        built.get_submodule(info["module"]).register_forward_hook(lambda _, __, output: seen.append(output))
    stages = built.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(stage, other) for stage, other in zip(seen, stages, strict=True))

    wrapped = create(name, 10, features_only=True).eval()
    # timm takes Sequential modules apart and so renames their weights, but keeps the order.
    wrapped.load_state_dict(dict(zip(wrapped.state_dict(), built.state_dict().values(), strict=False)))
    assert all(torch.equal(stage, other) for stage, other in zip(wrapped(x), stages, strict=True))
    some = timm.create_model(name, features_only=True, out_indices=(1, 3))
    assert some.feature_info.channels() == [built.feature_info[index]["num_chs"] for index in (1, 3)]
    assert len(some(x)) == 2


@ALL_THREE
@torch.no_grad()
def test_nothing_that_a_layer_puts_out_is_written_to_afterwards(name: str) -> None:
    built = trained(name)
    kept: list[tuple[Tensor, Tensor]] = []
    for layer in built.modules():
        layer.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    observe(built, images(), OUTPUTS)
    assert len(kept) > 100
    assert all(torch.equal(output, copy) for output, copy in kept)


@ALL_THREE
def test_reset_classifier(name: str) -> None:
    built, x = network(name).double().eval(), images().double()
    features = built.forward_features(x)
    keys = list(built.state_dict())
    built.reset_classifier(3)
    assert list(built.state_dict()) == keys
    assert built(x).shape == (2, 3)
    assert built(x).dtype == torch.float64
    built.reset_classifier(0, "max")
    assert torch.equal(built(x), features.amax((2, 3)))
    assert isinstance(built.get_classifier(), nn.Identity)


def test_mobilenet_starts_as_published() -> None:
    built = network(MOBILE, 1000)
    for name, layer in built.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5_000:
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    for classes in (1000, 500):
        built.reset_classifier(classes)
        assert built.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not built.get_classifier().bias.any()


@ALL_THREE
def test_timm_loads_a_file_for_other_channels_and_classes(name: str, tmp_path: Path) -> None:
    source = network(name, 100)
    torch.save(source.state_dict(), tmp_path / "student.pth")
    overlay = {"file": str(tmp_path / "student.pth")}
    loaded = create(name, 5, pretrained=True, in_chans=1, pretrained_cfg_overlay=overlay)
    first = f"{source.pretrained_cfg['first_conv']}.weight"
    source_state, loaded_state = source.state_dict(), loaded.state_dict()
    torch.testing.assert_close(loaded_state[first], source_state[first].sum(1, keepdim=True))
    classifier = f"{source.pretrained_cfg['classifier']}."
    same = [key for key in source_state if key != first and not key.startswith(classifier)]
    assert len(same) == len(source_state) - 3
    assert all(torch.equal(loaded_state[key], source_state[key]) for key in same)
