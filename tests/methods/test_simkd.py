"""SimKD: its term, the layers that it keeps in the student, and the networks that it needs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Method, Terms
from kd_bench.methods.simkd import SimKD
from kd_bench.models import create
from kd_bench.models import registry as models
from kd_bench.models.outputs import average_classifier, observe, shapes
from kd_bench.models.student_with_head import StudentWithHead, remove_classifier
from kd_bench.types import Outputs, Pair, Shapes
from kd_bench.utils.errors import UserError
from tests.losses.golden import inputs_of, name_and_seed, read_cases
from tests.methods.cases import CLASSES, PAIR, batch, make, outputs, teacher_outputs

STUDENT, TAUGHT, SAMPLES = outputs(1), teacher_outputs(2), batch()
MAPS = frozenset({"features"})


def head_of(method: Method) -> nn.Module:
    assert method.inference_head is not None
    return method.inference_head


def of_maps(maps: Tensor) -> Outputs:
    """Outputs with these last maps."""
    return Outputs(maps.mean((2, 3)), features=maps)


def built(student: tuple[int, ...], teacher: tuple[int, ...], **hyperparameters: Any) -> Method:
    """The method for maps of these shapes, with five classes."""
    classifier = torch.randn(5, teacher[0]), torch.randn(5)
    student_shapes, teacher_shapes = Shapes((5,), features=student), Shapes((5,), features=teacher)
    return methods.build(
        "simkd", Pair(5, 32, student_shapes, teacher_shapes, teacher_classifier=classifier), hyperparameters
    )


CASES = [case for case in read_cases("losses2.json") if case["name"] == "simkd"]


@pytest.mark.parametrize("case", CASES, ids=name_and_seed)
def test_equals_the_published_implementation(case: dict[str, Any]) -> None:
    """Value, gradients of the student's map and of the projector, and the teacher's classifier of the result."""
    (student, teacher, *convs, weight, bias), _ = inputs_of(case)
    student_shapes, teacher_shapes = (Shapes((10,), features=tuple(maps.shape[1:])) for maps in (student, teacher))
    pair = Pair(10, 4, student_shapes, teacher_shapes, teacher_classifier=(weight.detach(), bias.detach()))
    method = SimKD(pair, factor=case["params"]["factor"]).double()
    layers = [layer for layer in head_of(method).modules() if isinstance(layer, nn.Conv2d)]
    for layer, values in zip(layers, convs, strict=True):
        layer.weight.data.copy_(values)
    terms = method(of_maps(student), of_maps(teacher), SAMPLES)
    assert isinstance(terms, Terms)
    terms["feature"].backward()
    assert terms["feature"].item() == pytest.approx(case["loss"], rel=1e-9)
    gradients = {0: student.grad, **{index: layer.weight.grad for index, layer in enumerate(layers, 2)}}
    assert {int(index) for index in case["grads"]} == set(gradients)
    for index, expected in case["grads"].items():
        gradient = gradients[int(index)]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["norm"], rel=1e-9)
        assert gradient.flatten()[:5].tolist() == pytest.approx(expected["first5"], rel=1e-9, abs=1e-18)
    wanted = case["outputs"]["logits"]
    assert terms.logits.norm().item() == pytest.approx(wanted["norm"], rel=1e-9)
    assert terms.logits.flatten()[:5].tolist() == pytest.approx(wanted["first5"], rel=1e-9)


def test_the_only_term_is_the_distance_of_the_maps() -> None:
    method = make("simkd", feature_weight=3)
    head = head_of(method).train()
    terms = method(STUDENT, TAUGHT, SAMPLES)
    projected = head.projector(STUDENT.features)
    assert terms == {"feature": 3 * F.mse_loss(projected, TAUGHT.features)}
    weight, bias = PAIR.teacher_classifier
    torch.testing.assert_close(terms.logits, F.linear(projected.mean((2, 3)), weight, bias))
    assert not terms.logits.requires_grad


def test_a_step_runs_the_layers_once() -> None:
    method, calls = make("simkd"), []
    for layer in head_of(method).modules():
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    method(STUDENT, TAUGHT, SAMPLES)
    assert calls
    assert len(set(calls)) == len(calls)


def test_the_classifier_is_the_teachers_and_is_not_trained() -> None:
    method = make("simkd")
    head = head_of(method)
    weight, bias = (values.clone() for values in PAIR.teacher_classifier)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    before = [layer.weight.clone() for layer in head.projector if isinstance(layer, nn.Conv2d)]
    for _ in range(3):
        optimizer.zero_grad()
        method(STUDENT, TAUGHT, SAMPLES)["feature"].backward()
        optimizer.step()
    assert torch.equal(head.classifier.weight, weight)
    assert torch.equal(head.classifier.bias, bias)
    assert torch.equal(PAIR.teacher_classifier[0], weight)
    after = [layer.weight for layer in head.projector if isinstance(layer, nn.Conv2d)]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(("factor", "middle"), [(1, 16), (2, 8), (3, 5), (16, 1), (99, 1)])
def test_the_parameters_of_the_layers(factor: int, middle: int) -> None:
    """Convolutions without bias, two numbers a channel for each batch norm, and the classifier."""
    method = make("simkd", factor=factor)
    convolutions = 10 * middle + 9 * middle * middle + middle * 16
    expected = convolutions + 2 * (middle + middle + 16) + 16 * CLASSES + CLASSES
    assert sum(parameter.numel() for parameter in method.parameters()) == expected
    assert {name.partition(".")[0] for name in method.state_dict()} == {"inference_head"}


@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [
        ((6, 8, 8), (9, 4, 4), (4, 4)),
        ((6, 4, 4), (9, 8, 8), (4, 4)),
        ((6, 7, 3), (9, 3, 5), (3, 3)),
        ((6, 1, 1), (9, 2, 2), (1, 1)),
    ],
)
def test_the_larger_map_is_averaged(student: tuple[int, ...], teacher: tuple[int, ...], size: tuple[int, int]) -> None:
    method = built(student, teacher)
    student_maps, teacher_maps = torch.randn(4, *student, requires_grad=True), torch.randn(4, *teacher)
    projector = head_of(method).projector
    terms = method(of_maps(student_maps), of_maps(teacher_maps), SAMPLES)
    projected = projector(F.adaptive_avg_pool2d(student_maps, size))
    torch.testing.assert_close(terms["feature"], F.mse_loss(projected, F.adaptive_avg_pool2d(teacher_maps, size)))
    method.eval()
    expected = head_of(method).classifier(projector(F.adaptive_avg_pool2d(student_maps, size)).mean((2, 3)))
    torch.testing.assert_close(head_of(method)(student_maps), expected)


def test_forward_and_backward_read_no_number_from_the_device() -> None:
    method = make("simkd")
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = torch.randn(32, 10, 8, 8, requires_grad=True)
        method(of_maps(maps), of_maps(torch.randn(32, 16, 2, 2)), SAMPLES)["feature"].backward()
    assert maps.grad is not None


def test_it_says_what_it_needs() -> None:
    info = methods.describe("simkd")
    assert (info.family, info.needs_teacher) == ("features", True)
    assert (info.keeps_layers, info.uses_second_view) == (True, False)
    assert methods.check("simkd", {}) == {"feature_weight": 1.0, "factor": 2}
    for name in ("student", "teacher"):
        without = replace(PAIR, **{name: replace(getattr(PAIR, name), features=None)})
        with pytest.raises(ValueError, match="simkd needs the last feature maps of both networks"):
            methods.build("simkd", without, {})
    with pytest.raises(ValueError, match="the last feature map was not asked for"):
        make("simkd")(replace(STUDENT, features=None), TAUGHT, SAMPLES)
    with pytest.raises(UserError, match="standardise: simkd compares features"):
        methods.split_row("simkd", {"standardise": True})


STUDENTS = (
    *models.own_models(),
    "resnet10t",
    "test_convnext",
    "mobilenetv3_small_050",
    "test_efficientnet",
    "test_mambaout",
)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_gives_its_map_without_its_classifier(name: str) -> None:
    """What is trained is what is evaluated: the map that the method reads is that of ``forward_features``."""
    torch.manual_seed(0)
    network = create(name, 10, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    before = observe(network, images, MAPS).features
    parameters = sum(parameter.numel() for parameter in network.parameters())
    weight, bias = classifier_of(network)
    remove_classifier(network, name, "simkd")
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters - weight.numel() - bias.numel()
    features = observe(network, images, MAPS).features
    assert features is not None
    assert features.shape[1] == network.num_features
    assert torch.equal(features, before)
    assert shapes(network, (3, 32, 32), MAPS).features == tuple(features.shape[1:])
    student = StudentWithHead(network, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    torch.testing.assert_close(student(images), features.mean((2, 3)))


def classifier_of(network: Any) -> tuple[Tensor, Tensor]:
    layer = network.get_classifier()
    return layer.weight, layer.bias


def test_networks_that_it_cannot_use_are_named() -> None:
    image = (3, 32, 32)
    with pytest.raises(UserError, match=r"model mobilenetv3_small_050: .* does not read"):
        average_classifier(create("mobilenetv3_small_050", 10, 32).eval(), image)
    with pytest.raises(UserError, match="has no output 'features': its last features are not a"):
        average_classifier(create("test_vit", 10, 32).eval(), image)
    with pytest.raises(UserError, match="simkd replaces the student's classifier, and my_net lacks reset_classifier"):
        remove_classifier(nn.Linear(2, 2), "my_net", "simkd")
