import copy

import pytest
import torch
from torch import Tensor, nn

from kd_bench.models import create
from kd_bench.models.outputs import observe, shapes
from kd_bench.types import LOGITS, NOTHING, Output, Shapes
from kd_bench.utils.errors import UserError

ALL: frozenset[Output] = frozenset({"logits", "stages", "preacts", "pooled"})
NO_PREACTS: frozenset[Output] = ALL - {"preacts"}


def network(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return create(name, 10, **kwargs)


def images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def same_state(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "needs", [LOGITS, {"stages"}, {"preacts"}, {"pooled"}, ALL], ids=lambda needs: "+".join(sorted(needs))
)
@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_1"])
def test_one_training_pass_whatever_is_asked_for(name: str, needs: frozenset[Output]) -> None:
    plain, observed, x = network(name).train(), network(name).train(), images()
    logits = plain(x)
    logits.sum().backward()
    outputs = observe(observed, x, frozenset(needs))
    outputs.logits.sum().backward()

    assert torch.equal(outputs.logits, logits)
    assert same_state(plain, observed)  # the batch norms' statistics and counts included
    assert observed.state_dict()["bn1.num_batches_tracked"] == 1
    gradients = [[parameter.grad for parameter in model.parameters()] for model in (plain, observed)]
    assert all(torch.equal(gradient, other) for gradient, other in zip(*gradients, strict=True))
    assert len(outputs.stages) == (4 if "stages" in needs else 0)
    assert len(outputs.preacts) == (4 if "preacts" in needs else 0)
    assert (outputs.pooled is not None) == ("pooled" in needs)


@pytest.mark.parametrize("name", ["cifar_resnet8", "cifar_wrn_16_1"])
def test_gradients_reach_the_weights_through_every_output(name: str) -> None:
    outputs = observe(network(name).train(), images(), ALL)
    assert outputs.pooled is not None
    for output in (*outputs.stages, *outputs.preacts, outputs.pooled):
        assert output.requires_grad
    sum(output.square().mean() for output in (*outputs.stages, *outputs.preacts, outputs.pooled)).backward()


@pytest.mark.parametrize(
    ("name", "size", "options", "stages", "pooled"),
    [
        ("resnet10t", 32, {}, [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)], 512),
        ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 2}, [(192, 2, 2)] * 2, 192),
        ("convnext_atto", 32, {"depths": (1, 1, 1, 1)}, [(40, 8, 8), (80, 4, 4), (160, 2, 2), (320, 1, 1)], 320),
        # its head holds a convolution, a batch norm and dropout
        ("repghostnet_050", 32, {}, [(8, 16, 16), (12, 8, 8), (20, 4, 4), (40, 2, 2), (80, 1, 1)], 1280),
        # its classifier has a batch norm of its own in front, after pre_logits
        ("shvit_s1", 64, {}, [(128, 4, 4), (224, 2, 2), (320, 1, 1)], 320),
        # its classifier is a 1x1 convolution
        ("resnetv2_18", 32, {}, [(64, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)], 512),
    ],
)
def test_timms_networks(name: str, size: int, options: dict[str, object], stages: list[tuple], pooled: int) -> None:
    plain, observed, x = network(name, **options).train(), network(name, **options).train(), images(size)
    torch.manual_seed(2)
    expected = plain(x)
    torch.manual_seed(2)
    outputs = observe(observed, x, NO_PREACTS)
    assert torch.equal(outputs.logits, expected)
    assert same_state(plain, observed)
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == stages
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (4, pooled)
    again = network(name, **options).train()
    torch.manual_seed(2)
    assert torch.equal(observe(again, x, frozenset({"pooled"})).pooled, outputs.pooled)

    classifier = observed.get_classifier()
    if isinstance(classifier, nn.Linear):
        assert torch.allclose(classifier(outputs.pooled), outputs.logits)


def test_the_last_map_of_networks_with_the_channels_last() -> None:
    """timm's Swin returns (B, H, W, D) features."""
    options = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 1}
    swin = network("swin_tiny_patch4_window7_224", image_size=64, **options).eval()
    assert shapes(swin, (3, 64, 64), frozenset({"features", "class_maps"})).features == (64, 2, 2)
    outputs = observe(swin, images(64), frozenset({"features", "class_maps", "pooled"}))
    assert outputs.features is not None and outputs.class_maps is not None and outputs.pooled is not None
    torch.testing.assert_close(outputs.features.mean((2, 3)), outputs.pooled)
    torch.testing.assert_close(outputs.class_maps.mean((2, 3)), outputs.logits)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 0.0])
def test_a_classifier_that_does_not_read_the_average_of_the_last_map(scale: float) -> None:
    """However small its weights are: those of a student are new."""
    maximum = network("cifar_resnet8", global_pool="max")
    maximum.get_parameter("fc.weight").data.mul_(scale)
    with pytest.raises(UserError, match="its classifier does not read the average of its last feature map"):
        shapes(maximum, (3, 32, 32), frozenset({"class_maps"}))
    average = network("cifar_resnet8")
    average.get_parameter("fc.weight").data.mul_(scale)
    assert shapes(average, (3, 32, 32), frozenset({"class_maps"})).class_maps == (10, 8, 8)


def test_last_features_that_are_no_tensor_are_named() -> None:
    coat = network("coat_tiny", image_size=32, embed_dims=(8, 8, 8, 8), serial_depths=(1,) * 4, parallel_depth=1)
    with pytest.raises(UserError, match="coat_tiny: has no output 'features': its last features are not a"):
        shapes(coat, (3, 32, 32), frozenset({"features"}))


def test_logits_alone_ask_for_no_interface() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), images()
    for needs in (LOGITS, NOTHING):
        outputs = observe(model, x, needs)
        assert torch.equal(outputs.logits, model(x))
        assert (outputs.stages, outputs.preacts, outputs.pooled) == ((), (), None)


def test_dropout_in_the_head_is_drawn_once() -> None:
    x = images()
    plain, observed = network("resnet10t", drop_rate=0.5).train(), network("resnet10t", drop_rate=0.5).train()
    torch.manual_seed(5)
    expected, after = plain(x), torch.rand(1)
    torch.manual_seed(5)
    outputs = observe(observed, x, NO_PREACTS)
    assert torch.equal(outputs.logits, expected)
    assert torch.equal(torch.rand(1), after)
    assert not observed.get_classifier()._forward_pre_hooks


def test_a_pair_of_classifiers() -> None:
    model, x = network("deit_tiny_distilled_patch16_224", img_size=32, depth=1).eval(), images()
    with torch.no_grad():
        outputs = observe(model, x, NO_PREACTS)
        assert torch.equal(outputs.logits, model(x))
    assert outputs.pooled is not None
    assert outputs.pooled.shape == (4, 192)


def test_what_a_network_cannot_give_is_named() -> None:
    convnext = network("convnext_atto", depths=(1, 1, 1, 1))
    with pytest.raises(UserError, match="model convnext_atto: has no output 'preacts'"):
        observe(convnext, images(), ALL)
    with pytest.raises(UserError, match="model convnext_atto: has no output 'preacts'"):
        shapes(convnext, (3, 32, 32), ALL)
    unpooled = network("resnet10t", global_pool="")
    unpooled.reset_classifier(0, "")
    with pytest.raises(UserError, match="model resnet10t: has no output 'pooled'"):
        observe(unpooled, images(64), NO_PREACTS)

    class Foreign(nn.Module):
        forward_features = nn.Identity()

    with pytest.raises(UserError, match="model Foreign: has no output 'stages'"):
        observe(Foreign(), images(), NO_PREACTS)


class Own(nn.Module):
    """A user's network with timm's interface, all of it or with one function changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = x.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(self, x: Tensor, output_fmt: str = "NCHW") -> tuple[Tensor, list[Tensor]]:
        x = self.conv(x)
        return x, [x]


_PAIR_OF_MAPS = "should return a pair of the last features and a list of the stages, (B, C, H, W) each"


@pytest.mark.parametrize(
    ("name", "function", "need", "problem"),
    [
        ("forward_intermediates", None, "stages", "it has no forward_intermediates, a function of timm's networks"),
        (
            "forward_intermediates",
            lambda x: (x, [x]),
            "stages",
            "its forward_intermediates takes no argument output_fmt, as those of timm do",
        ),
        ("forward_intermediates", lambda x, **_: [x, x, x], "stages", f"its forward_intermediates {_PAIR_OF_MAPS}"),
        ("forward_intermediates", lambda x, **_: (x, [x[0]]), "stages", "its intermediates are not (B, C, H, W) maps"),
        ("forward_features", None, "pooled", "it has no forward_features, a function of timm's networks"),
        ("forward_features", None, "features", "it has no forward_features, a function of timm's networks"),
        ("forward_head", None, "pooled", "it has no forward_head, a function of timm's networks"),
        ("get_classifier", None, "pooled", "it has no get_classifier, a function of timm's networks"),
    ],
)
def test_a_function_of_timms_interface_that_is_missing_or_other_is_named(
    name: str, function: object, need: Output, problem: str
) -> None:
    assert shapes(Own(), (3, 8, 8), frozenset({"stages", "pooled"})).pooled == (4,)
    model = Own()
    setattr(model, name, function)
    with pytest.raises(UserError) as caught:
        shapes(model, (3, 8, 8), frozenset({need}))
    assert str(caught.value) == f"model Own: has no output {need!r}: {problem}"


def test_shapes_of_one_image() -> None:
    stages = ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert shapes(network("cifar_resnet8"), (3, 32, 32), ALL) == Shapes((10,), stages, stages, (64,))
    assert shapes(network("cifar_wrn_16_1", in_chans=1), (1, 32, 32), LOGITS) == Shapes((10,))
    assert shapes(network("resnet10t"), (3, 64, 64), frozenset({"pooled"})) == Shapes((10,), pooled=(512,))
    assert shapes(network("cifar_resnet8"), (3, 32, 32), NOTHING).stages == ()


def test_finding_the_shapes_changes_nothing() -> None:
    model = network("cifar_resnet8").train()
    model.get_submodule("layer1").eval()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    shapes(model, (3, 32, 32), ALL)
    assert same_state(model, before)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UserError):
        shapes(model, (5, 32, 32), ALL)
    assert [module.training for module in model.modules()] == modes


def test_observing_compiles_to_one_graph() -> None:
    model, x = network("cifar_resnet8").eval(), images()
    function = torch.compile(lambda batch: observe(model, batch, ALL), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(function(x).logits, model(x))
