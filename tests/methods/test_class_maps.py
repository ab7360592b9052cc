"""SDD, CAT-KD and CTKD: their terms, what they learn, and the networks that they need."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Method
from kd_bench.models import create
from kd_bench.models.outputs import shapes
from kd_bench.types import Outputs
from kd_bench.utils.errors import UserError
from tests.losses.golden import inputs_of, name_and_seed, read_cases
from tests.methods.cases import PAIR, batch, make, network, outputs, pair, seen, teacher_outputs

STUDENT, TAUGHT, SAMPLES = outputs(1), teacher_outputs(2), batch()
CE = losses.cross_entropy(STUDENT.logits, SAMPLES.labels)
HOSTS = ("kd", "dkd", "nkd", "nkd_with_label")


def regions(grids: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits of student and teacher, and weights, of each region, one region after another."""
    both = [losses.pool_regions(network_outputs.class_maps, grids) for network_outputs in (STUDENT, TAUGHT)]
    weights = losses.region_weights(both[1], SAMPLES.labels)
    return [(both[0][:, index], both[1][:, index], weights[:, index]) for index in range(weights.shape[1])]


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("number", "grids"), [(5, (1, 2)), (21, (1, 2, 4))])
def test_sdd_is_the_mean_of_its_host_over_the_regions(number: int, grids: tuple[int, ...]) -> None:
    labels, parts = SAMPLES.labels, regions(grids)
    assert len(parts) == number
    terms = make("sdd", regions=number, temperature=3, kd_weight=0.5)(STUDENT, TAUGHT, SAMPLES)
    torch.testing.assert_close(
        terms, {"ce": 0.1 * CE, "kd": 0.5 * mean([losses.kd(s, t, 3.0, w) for s, t, w in parts])}
    )

    tckd, nckd = zip(*(losses.dkd_terms(s, t, labels, 4.0, w) for s, t, w in parts), strict=True)
    method = make("sdd", host="dkd", regions=number, alpha=3, beta=5, warmup_epochs=0)
    terms = method(STUDENT, TAUGHT, SAMPLES)
    torch.testing.assert_close(terms, {"ce": CE, "tckd": 3 * mean(tckd), "nckd": 5 * mean(nckd)})

    target, others = zip(*(losses.nkd_terms(s, t, labels, 4.0, w) for s, t, w in parts), strict=True)
    for host, second in (
        ("nkd", mean(others)),
        ("nkd_with_label", 16 * mean([losses.soft_cross_entropy(s, t, 4.0, w) for s, t, w in parts])),
    ):
        terms = make("sdd", host=host, regions=number, gamma=2, warmup_epochs=0)(STUDENT, TAUGHT, SAMPLES)
        torch.testing.assert_close(terms, {"ce": CE, "target": mean(target), "others": 2 * second})


def test_sdds_regions_have_the_classifiers_logits() -> None:
    """On a network: those of the pooled features, and the whole map's are the network's own."""
    built = network(0)
    network_outputs = seen(built, torch.randn(4, 3, 16, 16))
    pooled = losses.pool_regions(network_outputs.features, (1, 2))
    logits = losses.pool_regions(network_outputs.class_maps, (1, 2))
    torch.testing.assert_close(logits, built.fc(pooled))
    torch.testing.assert_close(logits[:, 0], network_outputs.logits)


@pytest.mark.parametrize("host", HOSTS)
def test_sdd_warms_up_except_for_kd(host: str) -> None:
    early, full = (make("sdd", host=host)(STUDENT, TAUGHT, batch(epoch=epoch)) for epoch in (4, 19))
    factor = 1.0 if host == "kd" else 0.25
    for name, term in full.items():
        torch.testing.assert_close(early[name], term if name == "ce" else factor * term)
    half = make("sdd", host=host, warmup_epochs=10)(STUDENT, TAUGHT, batch(epoch=4))
    torch.testing.assert_close(half, {**{name: 0.5 * term for name, term in full.items()}, "ce": full["ce"]})
    assert make("sdd", host=host, ce_weight=0.3)(STUDENT, TAUGHT, SAMPLES)["ce"] == 0.3 * CE


def test_cat_kd_terms() -> None:
    assert PAIR.teacher_classifier is not None
    bias = PAIR.teacher_classifier[1][:, None, None]
    assert bias.any()
    for normalise in (False, True):
        method = make("cat_kd", cat_weight=7, resolution=2, normalise=normalise)
        expected = 7 * losses.cat_kd(STUDENT.class_maps, TAUGHT.class_maps - bias, 2, normalise)
        assert method(STUDENT, TAUGHT, SAMPLES) == {"ce": CE, "cat": expected}
        method = make("cat_kd", cat_weight=7, resolution=2, normalise=normalise, teacher_bias=True)
        expected = 7 * losses.cat_kd(STUDENT.class_maps, TAUGHT.class_maps, 2, normalise)
        assert method(STUDENT, TAUGHT, SAMPLES) == {"ce": CE, "cat": expected}
    assert not method.state_dict()


@pytest.mark.parametrize("name", ["sdd", "cat_kd"])
def test_class_maps_teach_the_classifier_as_well_as_the_features(name: str) -> None:
    student, teacher = network(0), network(1, (4, 8, 12, 16))
    method = methods.build(name, pair(student, teacher, (3, 8, 8)), {})
    with torch.no_grad():
        taught = seen(teacher, SAMPLES.images)
    terms = method(seen(student, SAMPLES.images), taught, SAMPLES)
    torch.stack([term for key, term in terms.items() if key != "ce"]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())


@pytest.mark.parametrize("name", ["sdd", "cat_kd"])
def test_a_network_without_class_maps_is_named(name: str) -> None:
    needs = methods.needs(name, {})
    for network_name, reason in (
        ("mobilenetv3_small_050", "its classifier does not read its last feature map"),
        ("test_vit", "its last features are not a .* map"),
    ):
        image = (3, 160, 160) if network_name == "test_vit" else (3, 32, 32)
        with pytest.raises(UserError, match=f"model {network_name}: has no output '.*': {reason}"):
            shapes(create(network_name, 5), image, needs.student)
    with pytest.raises(ValueError, match="the class maps were not asked for"):
        make(name)(replace(STUDENT, class_maps=None), TAUGHT, SAMPLES)


def test_ctkd_is_kd_at_its_temperature() -> None:
    method = make("ctkd", lowest_temperature=2, temperature_range=6, ce_weight=0.2, kd_weight=0.5)
    temperature = 2 + 6 / (1 + math.exp(-1))
    terms = method(STUDENT, TAUGHT, SAMPLES)
    torch.testing.assert_close(
        terms, {"ce": 0.2 * CE, "kd": 0.5 * losses.kd(STUDENT.logits, TAUGHT.logits, temperature)}
    )
    assert [name for name, _ in method.named_parameters()] == ["theta"]
    published = make("ctkd")
    torch.testing.assert_close(
        published(STUDENT, TAUGHT, SAMPLES)["kd"], 0.9 * losses.kd(STUDENT.logits, TAUGHT.logits, 15.6212)
    )


@pytest.mark.parametrize(("epoch", "strength"), [(0, 0.0244717), (4, 0.5), (9, 1), (100, 1)])
def test_ctkds_temperature_ascends(epoch: int, strength: float) -> None:
    """Its gradient is the reversed one of the loss, at finite differences; descending it raises the loss."""
    method = make("ctkd").double()
    student, teacher = (network_outputs.map(Tensor.double) for network_outputs in (STUDENT, TAUGHT))
    samples, step = batch(epoch=epoch), 1e-6
    values = []
    for change in (-step, step):
        torch.nn.init.constant_(method.theta, 1 + change)
        values.append(method(student, teacher, samples)["kd"].item())
    torch.nn.init.constant_(method.theta, 1)
    before = method(student, teacher, samples)["kd"]
    before.backward()
    slope = (values[1] - values[0]) / (2 * step)
    assert method.theta.grad.item() == pytest.approx(-strength * slope, rel=1e-4)
    with torch.no_grad():
        method.theta -= 0.1 * method.theta.grad / method.theta.grad.abs()
    assert method(student, teacher, samples)["kd"] > before


def test_ctkds_first_epochs_are_a_ramp_of_the_trials_choice() -> None:
    for ramp, strength in ((0, 1.0), (2, 0.5)):
        method = make("ctkd", ramp_epochs=ramp)
        method(STUDENT, TAUGHT, SAMPLES)["kd"].backward()
        full = make("ctkd", ramp_epochs=0)
        full(STUDENT, TAUGHT, SAMPLES)["kd"].backward()
        torch.testing.assert_close(method.theta.grad, strength * full.theta.grad)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ctkd", {}),
    ("cat_kd", {}),
    ("cat_kd", {"normalise": False}),
    *(("sdd", {"host": host}) for host in HOSTS),
]


@pytest.mark.parametrize(("name", "hyperparameters"), SETTINGS)
def test_forward_and_backward_read_no_number_from_the_device(name: str, hyperparameters: dict[str, Any]) -> None:
    """Fake tensors have no values, so an operation whose shape or branch depends on one raises an error."""
    method = make(name, **hyperparameters)
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = torch.randn(32, 5, 8, 8, requires_grad=True)
        student = Outputs(maps.mean((2, 3)), class_maps=maps)
        teacher = Outputs(torch.randn(32, 5), class_maps=torch.randn(32, 5, 4, 4))
        terms = method(student, teacher, replace(SAMPLES, labels=torch.zeros(32, dtype=torch.int64)))
        torch.stack(list(terms.values())).sum().backward()
    assert maps.grad is not None


@pytest.mark.parametrize(("name", "hyperparameters"), SETTINGS[1:])
def test_maps_of_any_size(name: str, hyperparameters: dict[str, Any]) -> None:
    """Maps of one pixel, of sizes that 4 does not divide, and of unequal edges."""
    for student_size, teacher_size in (((1, 1), (8, 8)), ((7, 7), (2, 2)), ((3, 5), (6, 4))):
        student, teacher = (
            replace(network_outputs, class_maps=F.interpolate(network_outputs.class_maps, size).requires_grad_())
            for network_outputs, size in ((STUDENT, student_size), (TAUGHT, teacher_size))
        )
        terms = make(name, **hyperparameters)(student, teacher, SAMPLES)
        assert all(torch.isfinite(term) for term in terms.values())
        torch.stack(list(terms.values())).sum().backward()
        assert torch.isfinite(student.class_maps.grad).all()
        assert teacher.class_maps.grad is None


def _outputs_of(case: dict[str, Any], inputs: list[Tensor]) -> tuple[Outputs, Outputs]:
    """Returns outputs of student and teacher with the inputs of a published case."""
    if case["name"] == "ctkd":
        return Outputs(inputs[0]), Outputs(inputs[1])
    if case["name"] == "cat-kd":
        student_maps, teacher_maps = inputs
    else:
        weights = ((inputs[2], inputs[3]), (inputs[4], inputs[5]))
        student_maps, teacher_maps = (
            F.conv2d(maps, w[:, :, None, None], b) for maps, (w, b) in zip(inputs[:2], weights, strict=True)
        )
    return Outputs(student_maps.mean((2, 3)), class_maps=student_maps), Outputs(
        teacher_maps.mean((2, 3)), class_maps=teacher_maps
    )


def _published_method(case: dict[str, Any], theta: Tensor) -> Method:
    settings = case["params"]
    if case["name"] == "ctkd":
        bounds = {"lowest_temperature": settings["T_start"], "temperature_range": settings["T_range"]}
        method = make("ctkd", **bounds, ramp_epochs=settings["loops"], kd_weight=1).double()
        torch.nn.init.constant_(method.theta, theta.item())
        return method
    if case["name"] == "cat-kd":
        shape = {"resolution": settings["resolution"], "normalise": settings["normalise"]}
        return make("cat_kd", cat_weight=1, teacher_bias=True, **shape)
    number = {"[1,2]": 5, "[1,2,4]": 21}[settings["M"]]
    return make("sdd", regions=number, temperature=settings["temperature"], kd_weight=1)


PUBLISHED = [case for case in read_cases("losses2.json") if case["name"] in ("ctkd", "cat-kd", "sdd-kd from maps")]


@pytest.mark.parametrize("case", PUBLISHED, ids=name_and_seed)
def test_methods_equal_the_published_implementations(case: dict[str, Any]) -> None:
    """Values, and all gradients that a case lists; CTKD's third input is theta."""
    inputs, _ = inputs_of(case)
    student, teacher = _outputs_of(case, inputs)
    method = _published_method(case, inputs[-1].flatten()[0])
    labels = torch.zeros(len(student.logits), dtype=torch.int64)
    if case["name"] == "sdd-kd from maps":
        parts = losses.pool_regions(teacher.class_maps, (1, 2))
        labels = parts[torch.arange(len(parts)), torch.arange(len(parts)) % 2].argmax(-1)
        assert labels.tolist() == case["labels_used"]
    samples = replace(batch(size=len(labels), epoch=case["params"].get("epoch", 1) - 1), labels=labels)
    terms = method(student, teacher, samples)
    (value,) = [term for name, term in terms.items() if name != "ce"]
    value.backward()
    assert value.item() == pytest.approx(case["loss"], rel=1e-9)
    for index, expected in case["grads"].items():
        of_theta = case["name"] == "ctkd" and index == "2"
        gradient = method.theta.grad if of_theta else inputs[int(index)].grad
        assert gradient.norm().item() == pytest.approx(expected["norm"], rel=1e-9)
        assert gradient.flatten()[:5].tolist() == pytest.approx(expected["first5"], rel=1e-9)


def test_settings_of_the_published_runs_are_the_defaults() -> None:
    assert methods.check("ctkd", {}) == {
        "ce_weight": 0.1,
        "kd_weight": 0.9,
        "lowest_temperature": 1.0,
        "temperature_range": 20.0,
        "ramp_epochs": 10,
    }
    assert methods.check("cat_kd", {}) == {
        "cat_weight": 600.0,
        "resolution": 4,
        "normalise": True,
        "teacher_bias": False,
        "ce_weight": 1.0,
    }
    assert methods.check("sdd", {}) == {
        "host": "kd",
        "regions": 21,
        "kd_weight": 0.9,
        "alpha": 1.0,
        "beta": 8.0,
        "gamma": 8.0,
        "temperature": 4.0,
        "warmup_epochs": None,
        "ce_weight": None,
    }
