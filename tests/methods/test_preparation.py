"""The methods with a stage before the main one: what they build for a pair, and their terms in both stages."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.methods._connectors import Regressor
from kd_bench.methods.ab import AB
from kd_bench.methods.base import Method
from kd_bench.methods.ft import FT
from kd_bench.types import NOTHING, Outputs, Pair, Shapes
from kd_bench.utils.errors import UserError
from tests.methods.cases import (
    EQUAL_PAIR,
    PAIR,
    batch,
    call,
    make,
    mapped,
    network,
    outputs,
    seen,
    taught_outputs,
    teacher_outputs,
    tensors,
)

NAMES = [
    name
    for name in methods.names()
    if any(parameter.name == "preparation_epochs" for parameter in methods.describe(name).parameters)
]
#: The term of each preparation.
TERMS = {"ab": "boundary", "fsp": "flow", "ft": "reconstruction"}
TEACHER = PAIR.teacher
assert TEACHER is not None


def prepare(method: Method, student: Outputs | None, teacher: Outputs) -> dict[str, Tensor]:
    """Returns the terms of a step of the preparation."""
    student = student if method.needs_in_preparation().student else None
    return method.prepare(student, teacher, batch(epoch=-1))


def test_published_settings_are_the_defaults() -> None:
    assert set(NAMES) == set(TERMS)
    assert {methods.check(name, {})["preparation_epochs"] for name in NAMES} == {30}
    assert {methods.check(name, {})["ce_weight"] for name in NAMES} == {1}
    assert methods.check("ab", {})["boundary_weight"] == 3 / 1000
    assert methods.check("fsp", {})["flow_weight"] == 1
    assert methods.check("ft", {})["factor_weight"] == 200
    assert methods.check("ft", {})["preparation_lr"] == 0.01
    assert methods.check("ft", {"preparation_lr": None})["preparation_lr"] is None
    assert all(methods.describe(name).needs_teacher for name in NAMES)


def test_what_each_stage_reads() -> None:
    for name, output in (("ab", "preacts"), ("fsp", "stages")):
        method = make(name)
        assert method.needs_in(preparation=True).student == method.needs_in(preparation=True).teacher == {output}
        assert (method.needs_in(preparation=False).student, method.needs.teacher) == ({"logits"}, NOTHING)
        both = methods.needs(name, {})
        assert (both.student, both.teacher) == ({"logits", output}, {output})
        # An estimate builds methods without a preparation, and their layers need the shapes.
        assert methods.needs(name, {"preparation_epochs": 0}) == both
    ft = make("ft")
    assert (ft.needs_in(preparation=True).student, ft.needs_in(preparation=True).teacher) == (NOTHING, {"stages"})
    assert ft.needs_in(preparation=False).student == {"logits", "stages"}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_the_preparation_falls_in_twenty_steps(name: str) -> None:
    method, student, samples, teacher = make(name), network(0), batch(epoch=-1), taught_outputs(name, 1)
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.01)
    history = []
    for _ in range(20):
        terms = prepare(method, seen(student, samples.images), teacher)
        assert set(terms) == {TERMS[name]}
        loss = terms[TERMS[name]]
        assert loss.dtype == torch.float32
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*student.parameters(), *method.parameters()], 5.0)
        optimizer.step()
    assert history[-1] < history[0]


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_huge_outputs_give_finite_losses_and_gradients(name: str, half: bool, scale: float) -> None:
    method = make(name)
    dtype = torch.bfloat16 if half else torch.float32
    student = mapped(outputs(1), lambda values: (scale * values).to(dtype).requires_grad_())
    teacher = mapped(taught_outputs(name, 2), lambda values: (scale * values).to(dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        (loss,) = prepare(method, student, teacher).values()
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    reached = [values.grad for values in [*tensors(student), *method.parameters()] if values.grad is not None]
    assert reached
    assert all(torch.isfinite(gradient).all() for gradient in reached)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_given_is_changed_and_no_gradient_reaches_the_teacher(name: str) -> None:
    method = make(name)
    student = mapped(outputs(1), lambda values: values.requires_grad_())
    teacher = mapped(taught_outputs(name, 2), lambda values: values.requires_grad_())
    given = [*tensors(student), *tensors(teacher)]
    before = [values.detach().clone() for values in given]
    (loss,) = prepare(method, student, teacher).values()
    loss.backward()
    assert all(values.grad is None for values in tensors(teacher))
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)
    assert student.logits.grad is None  # the classifier is not trained


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_main_stage_is_the_cross_entropy(name: str) -> None:
    student = outputs(1)
    terms = make(name, ce_weight=3)(student, None, batch())
    assert terms == {"ce": 3 * losses.cross_entropy(student.logits, batch().labels)}


def test_ab_weights_the_stages_and_connects_what_differs() -> None:
    pair = replace(PAIR, teacher=replace(TEACHER, preacts=((4, 8, 8), (6, 8, 8), (12, 4, 4), (16, 4, 4))))
    method = methods.build("ab", pair, {"boundary_weight": 5, "margin": 0.5})
    assert isinstance(method, AB)
    assert pair.teacher is not None
    student, teacher = outputs(1), outputs(2, of=pair.teacher)
    same, other, larger = method.connectors
    assert isinstance(same, nn.Identity)
    assert isinstance(other, Regressor) and isinstance(larger, Regressor)
    assert isinstance(other.conv, nn.Conv2d) and other.conv.kernel_size == (1, 1)
    assert isinstance(larger.conv, nn.ConvTranspose2d) and larger.conv.kernel_size == (4, 4)
    method.eval()
    expected = torch.zeros(())
    for index, (maps, target) in enumerate(zip(student.preacts[1:], teacher.preacts[1:], strict=True)):
        s = (maps, other.norm(other.conv(student.preacts[2])), larger.norm(larger.conv(student.preacts[3])))[index]
        assert (s < 0).any()  # no ReLU
        wrong = torch.where(target > 0, (s - 0.5).clamp(max=0) ** 2, (s + 0.5).clamp(min=0) ** 2)
        expected = expected + 2.0 ** (index - 2) * wrong.sum() / len(s)
    torch.testing.assert_close(prepare(method, student, teacher)["boundary"], 5 * expected)


def test_ab_pairs_the_deepest_stages() -> None:
    student = replace(PAIR.student, preacts=PAIR.student.preacts[1:])
    method = methods.build("ab", replace(PAIR, student=student), {})
    assert isinstance(method, AB)
    assert [connector.norm.num_features for connector in method.connectors if isinstance(connector, Regressor)] == [
        shape[0] for shape in TEACHER.preacts[2:]
    ]
    student_outputs = replace(outputs(1), preacts=outputs(1).preacts[1:])
    assert torch.isfinite(prepare(method, student_outputs, teacher_outputs(2))["boundary"])


def test_fsp_compares_neighbouring_stages() -> None:
    method, student, teacher = make("fsp", flow_weight=7), outputs(1), taught_outputs("fsp", 2)
    expected = torch.zeros(())
    for (a, b), (c, d) in zip(pairwise(student.stages), pairwise(teacher.stages), strict=True):
        flows = []
        for first, second in ((a, b), (c, d)):
            pooled = F.adaptive_avg_pool2d(first, second.shape[2:])
            flows.append(torch.einsum("bchw,bdhw->bcd", pooled, second) / second[0, 0].numel())
        expected = expected + (flows[0] - flows[1]).square().mean()
    torch.testing.assert_close(prepare(method, student, teacher)["flow"], 7 * expected)


def test_fsp_refuses_other_channels_and_numbers_of_stages() -> None:
    named = replace(PAIR, student_name="small_net", teacher_name="big_net")
    end = "choose two networks of one family and width, e.g. resnet56 and resnet20"
    sentence = (
        "fsp: compares stages with equal channels, but those of small_net have 4, 6, 8, 10 channels and those of "
        f"big_net 4, 8, 12, 16; {end}"
    )
    with pytest.raises(UserError) as caught:
        methods.build("fsp", named, {})
    assert str(caught.value) == sentence
    fewer = replace(EQUAL_PAIR.student, stages=EQUAL_PAIR.student.stages[:3])
    with pytest.raises(UserError, match="have 4, 6, 8 channels and those of big_net 4, 6, 8, 10; choose two networks"):
        methods.build("fsp", replace(EQUAL_PAIR, student=fewer, student_name="small_net", teacher_name="big_net"), {})


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_stages_after_the_stem_is_named(name: str) -> None:
    few = replace(PAIR.student, stages=PAIR.student.stages[:1], preacts=PAIR.student.preacts[:1])
    with pytest.raises(
        UserError, match=f"{name}: small_net has 1 stages, the stem included, but {name} needs at least 2"
    ):
        methods.build(name, replace(PAIR, student=few, student_name="small_net"), {})


def test_ft_builds_the_published_networks() -> None:
    method = make("ft")
    assert isinstance(method, FT)
    for network_, conv, widths, norms in (
        (method.paraphraser, nn.Conv2d, (16, 16, 8, 8), False),
        (method.decoder, nn.ConvTranspose2d, (8, 8, 16, 16), False),
        (method.translator, nn.Conv2d, (10, 10, 8, 8), True),
    ):
        assert isinstance(network_, nn.Sequential)
        kinds = [conv, *([nn.BatchNorm2d] if norms else []), nn.LeakyReLU] * 3
        assert [type(layer) for layer in network_] == kinds
        convs = [layer for layer in network_ if isinstance(layer, conv)]
        assert [(layer.in_channels, layer.out_channels) for layer in convs] == list(pairwise(widths))
        assert all(layer.kernel_size == (3, 3) and layer.padding == (1, 1) for layer in convs)
        assert {layer.negative_slope for layer in network_ if isinstance(layer, nn.LeakyReLU)} == {0.1}


def test_ft_terms_and_what_they_train() -> None:
    method, student, teacher = make("ft", factor_weight=7), outputs(1), teacher_outputs(2)
    assert isinstance(method, FT)
    maps = teacher.stages[-1]
    terms = prepare(method, None, teacher)
    torch.testing.assert_close(
        terms["reconstruction"], (method.decoder(method.paraphraser(maps)) - maps).square().mean()
    )
    terms["reconstruction"].backward()
    trained = {name.partition(".")[0] for name, values in method.named_parameters() if values.grad is not None}
    assert trained == {"paraphraser", "decoder"}

    method.zero_grad()
    method.eval()
    terms = call(method, student, teacher, batch())
    factors = method.translator(student.stages[-1]), method.paraphraser(maps)
    u, v = (factor.square().mean(1).flatten(1) for factor in factors)
    torch.testing.assert_close(terms["factor"], 7 * (F.normalize(u) - F.normalize(v)).abs().mean())
    torch.testing.assert_close(terms["ce"], losses.cross_entropy(student.logits, batch().labels))
    sum(terms.values()).backward()
    trained = {name.partition(".")[0] for name, values in method.named_parameters() if values.grad is not None}
    assert trained == {"translator"}


@pytest.mark.parametrize("name", ["ab", "ft"])
def test_any_shapes(name: str) -> None:
    """Stages of other sizes and numbers, as a transformer's all alike, on either side; for ab, of a single pixel."""
    flat = Shapes((5,), stages=((12, 4, 4),) * 6, preacts=((12, 4, 4),) * 6, pooled=(12,))
    small = ((12, 2, 2), (12, 1, 1), (1, 1, 1))
    pixels = Shapes((5,), stages=small, preacts=small, pooled=(12,))
    single = ((pixels, TEACHER), (PAIR.student, pixels)) if name == "ab" else ()
    for student, teacher in ((PAIR.student, flat), (flat, TEACHER), *single):
        method = methods.build(name, Pair(5, 32, student, teacher), {})
        given, taught = mapped(outputs(1, of=student), lambda values: values.requires_grad_()), outputs(2, of=teacher)
        terms = [*prepare(method, given, taught).values(), *call(method, given, taught, batch()).values()]
        torch.stack(terms).sum().backward()
        assert all(torch.isfinite(term) for term in terms)
        reached = [values.grad for values in [*tensors(given), *method.parameters()] if values.grad is not None]
        assert reached
        assert all(torch.isfinite(gradient).all() for gradient in reached)


def test_ft_refuses_maps_of_a_single_pixel() -> None:
    """The attention map of one pixel is 1, so that the method would compare nothing."""
    small = replace(PAIR.student, stages=(*PAIR.student.stages[:-1], (10, 1, 1)))
    with pytest.raises(UserError) as caught:
        methods.build("ft", replace(PAIR, student=small, student_name="small_net"), {})
    assert str(caught.value) == (
        "ft: the last feature map of small_net has a single pixel for these images, and the attention map of one pixel "
        "is always 1; choose larger images or a network with larger maps"
    )
    with pytest.raises(UserError, match="the last feature map of big_net has a single pixel"):
        methods.build("ft", replace(PAIR, teacher=small, teacher_name="big_net"), {})
