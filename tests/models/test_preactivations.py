"""Pre-activations of timm's networks, and the batch norms behind the pre-activations of any network."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_bench.models import create
from kd_bench.models.outputs import observe, preact_norms, shapes
from kd_bench.models.preactivations import stage_activations
from kd_bench.types import Output
from kd_bench.utils.errors import UserError

ALL: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})
PREACTS: frozenset[Output] = frozenset({"preacts"})

#: What makes each small enough, and the batch norm behind each pre-activation.
OWN: dict[str, tuple[dict[str, Any], list[str | None]]] = {
    "cifar_resnet8": ({}, ["bn1", "layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
    "cifar_resnet20": ({}, ["bn1", "layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"]),
    "cifar_resnet18": ({}, ["bn1", *(f"layer{index}.1.bn2" for index in (1, 2, 3, 4))]),
    "cifar_resnet50": ({}, ["bn1", "layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
    "cifar_wrn_16_1": ({}, [None, "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
    "cifar_wrn_28_10_swish": (
        {"depth": 10, "width": 1},
        [None, "layer.1.block.0.batchnorm_0", "layer.2.block.0.batchnorm_0", "batchnorm"],
    ),
    "cifar_preact_resnet18": ({}, [None, "layer2.0.bn1", "layer3.0.bn1", "layer4.0.bn1", "bn"]),
    "cifar_vgg8": ({}, [f"block{index}.1" for index in range(5)]),
    "cifar_vgg13": ({}, [f"block{index}.4" for index in range(5)]),
    "cifar_mobilenet_v2": (
        {},
        ["conv1.1", "blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"],
    ),
    "cifar_shufflenet_v1": ({}, ["bn1", "layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
}

#: Of the above and of ShuffleNet-V2, the pre-activations that are a batch norm's output and no sum.
PURE = [
    ("cifar_resnet8", [0]),
    ("cifar_wrn_16_1", [1, 2, 3]),
    ("cifar_wrn_28_10_swish", [1, 2, 3]),
    ("cifar_preact_resnet18", [1, 2, 3, 4]),
    ("cifar_vgg8", range(5)),
    ("cifar_vgg13", range(5)),
    ("cifar_mobilenet_v2", [0, 4]),
    ("cifar_shufflenet_v1", [0]),
    ("cifar_shufflenet_v2", range(4)),
]

#: Of timm: arguments, and for each stage its activation (None for a linear one) and batch norm.
TIMM: dict[str, tuple[dict[str, Any], list[str | None], list[str | None]]] = {
    "resnet18": (
        {},
        ["act1", "layer1.1.act2", "layer2.1.act2", "layer3.1.act2", "layer4.1.act2"],
        ["bn1", "layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"],
    ),
    # One block a stage: the projection's batch norm runs after the residual branch's.
    "resnet14t": (
        {},
        ["act1", *(f"layer{index}.0.act3" for index in (1, 2, 3, 4))],
        ["bn1", *(f"layer{index}.0.bn3" for index in (1, 2, 3, 4))],
    ),
    "resnet50": (
        {},
        ["act1", "layer1.2.act3", "layer2.3.act3", "layer3.5.act3", "layer4.2.act3"],
        ["bn1", "layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"],
    ),
    "mobilenetv1_100": (
        {},
        [f"blocks.{end}.bn2.act" for end in ("0.0", "1.1", "2.1", "3.5", "4.1")],
        [f"blocks.{end}.bn2" for end in ("0.0", "1.1", "2.1", "3.5", "4.1")],
    ),
    # Squeeze and excitation within the blocks; activations that are not in place.
    "regnety_002": (
        {},
        ["stem.bn.act", "s1.b1.act3", "s2.b1.act3", "s3.b4.act3", "s4.b7.act3"],
        ["stem.bn", "s1.b1.conv3.bn", "s2.b1.conv3.bn", "s3.b4.conv3.bn", "s4.b7.conv3.bn"],
    ),
    # Its last stage is pooled.
    "vgg11_bn": (
        {"mlp_ratio": 0.01},
        [f"features.{index}" for index in (2, 6, 13, 20, 27, 27)],
        [f"features.{index}" for index in (1, 5, 12, 19, 26, 26)],
    ),
    # One module is the activation of all places of a block.
    "res2net50_26w_4s": (
        {"layers": (1, 1, 1, 1)},
        ["act1", *(f"layer{index}.0.relu" for index in (1, 2, 3, 4))],
        ["bn1", *(f"layer{index}.0.bn3" for index in (1, 2, 3, 4))],
    ),
    "efficientnet_b0": (
        {},
        [None] * 5,
        ["blocks.0.0.bn2", "blocks.1.1.bn3", "blocks.2.1.bn3", "blocks.4.2.bn3", "blocks.6.0.bn3"],
    ),
    "mobilenetv3_small_050": (
        {},
        ["bn1.act", None, None, None, "blocks.5.0.bn1.act"],
        ["bn1", "blocks.0.0.bn2", "blocks.1.1.bn3", "blocks.3.1.bn3", "blocks.5.0.bn1"],
    ),
    # Blocks that begin with batch norm end with a convolution.
    "resnetv2_18": ({}, [None] * 5, [None] * 5),
    # Branches of equal length.
    "repvgg_a0": (
        {},
        ["stem.act", "stages.0.1.act", "stages.1.3.act", "stages.2.13.act", "stages.3.0.act"],
        [None] * 5,
    ),
}


def network(name: str, **kwargs: Any) -> nn.Module:
    """With batch norms that differ in every channel."""
    torch.manual_seed(0)
    built = create(name, 10, **kwargs)
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return built


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def same_state(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def assert_norms(built: nn.Module, names: list[str | None]) -> None:
    norms = preact_norms(built, (3, 32, 32))
    assert len(norms) == len(names)
    for scale_and_shift, name in zip(norms, names, strict=True):
        assert (scale_and_shift is None) == (name is None)
        if scale_and_shift is not None and name is not None:
            norm = built.get_submodule(name)
            assert torch.equal(scale_and_shift[0], norm.weight)
            assert torch.equal(scale_and_shift[1], norm.bias)
            assert not scale_and_shift[0].requires_grad
            assert scale_and_shift[0].data_ptr() != norm.weight.data_ptr()


@pytest.mark.parametrize("name", list(OWN))
def test_batch_norms_of_our_networks_are_the_published_ones(name: str) -> None:
    options, names = OWN[name]
    built = network(name, **options).train().requires_grad_(False)
    before = copy.deepcopy(built)
    assert_norms(built, names)
    assert same_state(built, before)
    assert all(module.training and not module._forward_hooks for module in built.modules())


@pytest.mark.parametrize(("name", "indices"), PURE)
@torch.no_grad()
def test_scale_and_shift_are_deviation_and_mean_of_every_channel(name: str, indices: list[int]) -> None:
    built = network(name, **OWN.get(name, ({},))[0]).train()
    norms = preact_norms(built, (3, 32, 32))
    preacts = observe(built, images(count=16), PREACTS).preacts
    assert len(norms) == len(preacts)
    for index in indices:
        assert norms[index] is not None
        scale, shift = norms[index]
        deviation, mean = torch.std_mean(preacts[index], (0, 2, 3), correction=0)
        torch.testing.assert_close(deviation, scale, rtol=1e-3, atol=0)
        torch.testing.assert_close(mean, shift, rtol=0, atol=1e-4)
        assert len(set(scale.tolist())) == len(scale)  # a wrong order of channels would show


@pytest.mark.parametrize("name", list(TIMM))
@torch.no_grad()
def test_activations_and_batch_norms_of_timms_networks(name: str) -> None:
    options, activations, norms = TIMM[name]
    built = network(name, **options).eval()
    assert_norms(built, norms)
    assert [source.module if source else None for source in stage_activations(built, (3, 32, 32))] == activations
    outputs = observe(built, images(), ALL)
    for stage, preact, activation in zip(outputs.stages, outputs.preacts, activations, strict=True):
        assert preact.min() < 0
        if activation is None:
            assert preact is stage
        else:
            assert torch.equal(built.get_submodule(activation)(preact.clone()), stage)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "vgg11_bn", "mobilenetv3_small_050"])
def test_a_training_step_is_the_same_with_preacts(name: str) -> None:
    plain, observed = (network(name, drop_rate=0.2, **TIMM[name][0]).train() for _ in range(2))
    x = images()
    torch.manual_seed(2)
    expected = plain(x)
    expected.square().sum().backward()
    torch.manual_seed(2)
    outputs = observe(observed, x, ALL)
    outputs.logits.square().sum().backward(retain_graph=True)
    assert torch.equal(outputs.logits, expected)
    assert same_state(plain, observed)
    gradients = [[parameter.grad for parameter in model.parameters()] for model in (plain, observed)]
    assert all(torch.equal(gradient, other) for gradient, other in zip(*gradients, strict=True))

    observed.zero_grad()
    for preact in outputs.preacts:
        assert preact.requires_grad
    sum(preact.square().mean() for preact in outputs.preacts).backward()
    first = next(observed.parameters()).grad
    assert first is not None
    assert first.any()


def test_the_places_are_found_once() -> None:
    built, x = network("mobilenetv3_small_050").train(), images()
    runs: list[bool] = []
    built.get_submodule("conv_stem").register_forward_hook(lambda module, *_: runs.append(module.training))
    keys = list(built.state_dict())
    first = observe(built, x, PREACTS)
    assert runs == [False, True]
    observe(built, x, ALL)
    shapes(built, (3, 64, 64), PREACTS)
    assert runs == [False, True, True, False]  # a pass in evaluation mode to find them, and none again
    assert list(built.state_dict()) == keys
    assert not any(module._forward_pre_hooks for module in built.modules())

    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(network("mobilenetv3_small_050").train()))):
        again = observe(other, x, PREACTS)
        assert all(torch.equal(preact, expected) for preact, expected in zip(again.preacts, first.preacts, strict=True))
    assert runs[4:] == [False, True]  # of the deep copy, which has the hook

    late, early = network("mobilenetv3_small_050").eval(), built.eval()
    late.load_state_dict(early.state_dict())
    with torch.inference_mode():
        pairs = zip(observe(late, x, PREACTS).preacts, observe(early, x, PREACTS).preacts, strict=True)
        assert all(torch.equal(preact, expected) for preact, expected in pairs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "cifar_shufflenet_v2"])
def test_autocast_and_channels_last(name: str) -> None:
    plain, observed = (network(name).train().to(memory_format=torch.channels_last) for _ in range(2))
    x = images().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
        outputs = observe(observed, x, ALL)
        norms = preact_norms(observed, (3, 32, 32))
    assert torch.equal(outputs.logits, expected)
    assert same_state(plain, observed)
    activation = F.hardswish if name.startswith("mobilenetv3") else F.relu
    for stage, preact in zip(outputs.stages, outputs.preacts, strict=True):
        assert preact.dtype == torch.bfloat16
        assert preact.is_contiguous(memory_format=torch.channels_last)
        assert preact is stage or torch.equal(activation(preact), stage)
    assert all(norm is not None and norm[0].dtype == torch.float32 for norm in norms)
    sum(preact.float().square().mean() for preact in outputs.preacts).backward()
    first = next(observed.parameters())
    assert first.grad is not None
    assert first.grad.any()


def test_published_preacts_of_shufflenet_v2_are_half_after_relu() -> None:
    """Joined as in published code: what the last unit passes on after ReLU, and the output of its last batch norm."""
    built = network("cifar_shufflenet_v2").train()
    expected: list[Tensor] = []

    def join(unit: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        passed = inputs[0][:, : inputs[0].shape[1] // 2]
        expected.append(torch.cat([F.relu(passed), outputs_of_norms[unit.bn3]], 1))

    outputs_of_norms: dict[nn.Module, Tensor] = {}
    for stage in (built.layer1, built.layer2, built.layer3):
        stage[-1].bn3.register_forward_hook(lambda norm, _, out: outputs_of_norms.update({norm: out}))
        stage[-1].register_forward_hook(join)
    outputs = observe(built, images(), frozenset({"logits", "stages", "published_preacts"}))
    for preact, other, stage in zip(outputs.preacts[1:], expected, outputs.stages[1:], strict=True):
        assert torch.equal(preact, other)
        passed, read = preact.chunk(2, 1)
        assert passed.min() == 0
        assert read.min() < 0
        assert torch.equal(torch.stack([passed, F.relu(read)], 2).flatten(1, 2), stage)
    sum(preact.square().mean() for preact in outputs.preacts).backward()
    assert built.conv1.weight.grad.any()


@pytest.mark.parametrize("name", ["cifar_shufflenet_v2", "cifar_resnet8", "resnet18"])
def test_published_preacts_change_nothing_else(name: str) -> None:
    built, x = network(name).eval(), images()
    outputs = observe(built, x, ALL - {"preacts"} | {"published_preacts"})
    before_relu = observe(built, x, ALL)
    assert torch.equal(outputs.logits, before_relu.logits)
    same = [torch.equal(preact, other) for preact, other in zip(outputs.preacts, before_relu.preacts, strict=True)]
    assert same == [True] * len(same) if name != "cifar_shufflenet_v2" else [True, False, False, False]
    assert (
        shapes(built, (3, 32, 32), frozenset({"published_preacts"})).preacts
        == shapes(built, (3, 32, 32), PREACTS).preacts
    )


def test_a_scale_of_zero_is_passed_on() -> None:
    norms = preact_norms(create("resnet18", 10), (3, 32, 32))  # timm starts residual branches with zeros
    assert [bool(norm[0].any()) for norm in norms if norm is not None] == [True, False, False, False, False]


class Toy(nn.Module):
    """A network of one stage, with timm's interface as far as it is needed here."""

    def __init__(self, norm: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), norm, end

    def forward_intermediates(self, x: Tensor, output_fmt: str) -> tuple[Tensor, list[Tensor]]:
        x = self.norm(self.conv(x))
        x = F.relu(x) if isinstance(self.end, nn.Identity) else self.end(x)
        return x, [x]

    def forward_head(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Idle(nn.Sequential):
    """Skips what it holds in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else super().forward(x)


def test_a_batch_norm_without_scale_and_shift_has_one_and_zero() -> None:
    (norm,) = preact_norms(Toy(nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True)), (3, 8, 8))
    assert norm is not None
    assert torch.equal(torch.stack(norm), torch.tensor([[1.0] * 4, [0.0] * 4]))
    assert preact_norms(Toy(nn.GroupNorm(2, 4), nn.PReLU()), (3, 8, 8)) == (None,)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, "no activation ends its stage 0.*batch norms"),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, "no activation ends its stage 0.*no layer norms"),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 1, "depths": (1, 1, 1, 1)}, "no activation"),
    ],
)
def test_what_has_no_preacts_is_named(name: str, options: dict[str, Any], reason: str) -> None:
    built = create(name, 10, **options)
    for ask in (lambda: observe(built, images(), ALL), lambda: preact_norms(built, (3, 32, 32))):
        with pytest.raises(UserError, match=f"^model {name}: has no output 'preacts': {reason}"):
            ask()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in built.modules())


def test_what_a_network_hides_is_named() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(
        UserError, match=r"model Toy: .*'preacts': its stage 0 ends with an activation that is not a mod"
    ):
        observe(Toy(nn.BatchNorm2d(4), nn.Identity()), x, PREACTS)
    with pytest.raises(
        UserError, match=r"model Toy: .*'preacts': its end\.0 does not run as it did in evaluation mode"
    ):
        observe(Toy(nn.BatchNorm2d(4), Idle(nn.ReLU())), x, PREACTS)
    with pytest.raises(UserError, match=r"model Linear: .*'preacts': it has no forward_intermediates"):
        observe(nn.Linear(3, 3), x, PREACTS)
    with pytest.raises(UserError, match="model resnet18: cannot take images of 5x32x32"):
        preact_norms(create("resnet18", 10), (5, 32, 32))
