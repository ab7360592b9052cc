"""MLKD: its terms with one view and with two."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kd_bench import losses
from kd_bench.methods import _registry as methods
from kd_bench.types import Outputs
from tests.losses.golden import inputs_of, name_and_seed, read_cases
from tests.methods.cases import batch, make, outputs, teacher_outputs

SAMPLES = batch()
STUDENT = replace(outputs(1), second_view=outputs(3))
TAUGHT = replace(teacher_outputs(2), second_view=teacher_outputs(4))

CASES = [case for case in read_cases("losses2.json") if case["name"].startswith("mlkd")]


@pytest.mark.parametrize("case", CASES, ids=name_and_seed)
def test_equals_the_published_implementations(case: dict[str, Any]) -> None:
    """All terms, and the gradients of the students' logits, with two views and with one."""
    inputs, labels = inputs_of(case)
    assert labels is not None
    second = len(inputs) == 4
    student, teacher = (
        Outputs(weak, second_view=Outputs(strong) if second else None)
        for weak, strong in ((inputs[0], inputs[1]), (inputs[2 if second else 1], inputs[-1]))
    )
    settings = case["params"]
    method = make(
        "mlkd",
        temperature=settings["temperature"],
        kd_weight=settings["weight"],
        ce_weight=settings["ce_weight"],
        standardise="standardisation" in case["name"],
    )
    terms = method(student, teacher, replace(SAMPLES, labels=labels))
    names = {"ce": "ce", "samples": "sample", "batch": "batch", "classes": "classes"}
    assert set(terms) == set(names)
    for name, published in names.items():
        assert terms[name].item() == pytest.approx(case["terms"][published], rel=1e-9)
    (terms["samples"] + terms["batch"] + terms["classes"]).backward()
    for index, expected in case["grads"].items():
        gradient = inputs[int(index)].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["norm"], rel=1e-9)
    assert all(logits.grad is None for logits in inputs[2 if second else 1 :])


@pytest.mark.parametrize("as_released", [True, False])
@pytest.mark.parametrize("views", [1, 2])
def test_terms(as_released: bool, views: int) -> None:
    student, teacher = STUDENT, TAUGHT
    strong: tuple[Tensor, Tensor] | None = (student.second_view.logits, teacher.second_view.logits)
    if views == 1:
        student, teacher, strong = replace(student, second_view=None), replace(teacher, second_view=None), None
    method = make("mlkd", ce_weight=0.5, kd_weight=3, temperature=2.5, as_released=as_released)
    samples, of_batch, classes = losses.mlkd_terms(
        student.logits, teacher.logits, 2.5, strong=strong, as_released=as_released
    )
    ce = losses.cross_entropy(student.logits, SAMPLES.labels)
    if strong:
        ce = ce + losses.cross_entropy(strong[0], SAMPLES.labels)
    expected = {"ce": 0.5 * ce, "samples": 3 * samples, "batch": 3 * of_batch, "classes": 3 * classes}
    assert method(student, teacher, SAMPLES) == expected


def test_the_setting_of_a_row_is_the_methods_own() -> None:
    """Only KL reads standardised logits, and not all terms as with the methods that have no such hyper-parameter."""
    parameters, logit_settings = methods.split_row("mlkd", {"standardise": True, "kd_weight": 9})
    assert (parameters, logit_settings.logit_settings()) == ({"standardise": True, "kd_weight": 9}, {})
    plain, standardised = make("mlkd"), make("mlkd", standardise=True)
    plain_terms, standardised_terms = plain(STUDENT, TAUGHT, SAMPLES), standardised(STUDENT, TAUGHT, SAMPLES)
    assert [name for name in plain_terms if plain_terms[name] != standardised_terms[name]] == ["samples"]


def test_it_says_what_it_needs() -> None:
    info = methods.describe("mlkd")
    assert (info.family, info.keeps_layers, info.needs_teacher, info.uses_second_view) == ("logits", False, True, True)
    assert methods.check("mlkd", {}) == {
        "ce_weight": 0.1,
        "kd_weight": 0.9,
        "temperature": 4.0,
        "as_released": True,
        "standardise": False,
    }


@pytest.mark.parametrize("hyperparameters", [{}, {"as_released": False, "standardise": True}])
def test_forward_and_backward_read_no_number_from_the_device(hyperparameters: dict[str, Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = [torch.randn(32, 5, requires_grad=index < 2) for index in range(4)]
        student, teacher = (Outputs(weak, second_view=Outputs(strong)) for weak, strong in (logits[:2], logits[2:]))
        terms = make("mlkd", **hyperparameters)(student, teacher, SAMPLES)
        torch.stack(list(terms.values())).sum().backward()
    assert all(values.grad is not None for values in logits[:2])
