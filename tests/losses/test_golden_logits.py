"""Values and gradients of the losses between logits, other than those of the first ten methods, in published code."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench import losses
from tests.losses.golden import Loss, assert_equals_published, inputs_of, name_and_seed, read_cases

CASES = read_cases("losses2.json")


def _standardised(inputs: list[Tensor]) -> list[Tensor]:
    return [losses.logit_standardise(logits) for logits in inputs]


def _kd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    return losses.kd(*inputs, p["temperature"])


def _dkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    student, teacher = inputs
    rows = torch.arange(len(labels))
    shifts = [torch.zeros_like(student).index_put((rows, labels), torch.tensor(p.get(key, 0.0)).double())
              for key in ("student_shift", "teacher_shift")]  # fmt: skip
    return losses.dkd(student + shifts[0], teacher + shifts[1], labels, p["alpha"], p["beta"], p["temperature"])


def _ctkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, theta = inputs
    theta = losses.reverse_gradient(theta.squeeze(0), losses.reversal_strength(p["epoch"] - 1, p["loops"]))
    return losses.kd(student, teacher, p["T_start"] + p["T_range"] * theta.sigmoid())


def _mlkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None, standardise: bool = False) -> Tensor:
    if len(inputs) == 2:
        terms = losses.mlkd_terms(*inputs, p["temperature"])
    else:
        student, strong_student, teacher, strong_teacher = inputs
        strong = strong_student, strong_teacher
        terms = losses.mlkd_terms(student, teacher, p["temperature"], strong=strong, standardise=standardise)
    return p["weight"] * torch.stack(terms).sum()


def _regions(inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's and teacher's logits of the regions as of samples, their labels and their weights."""
    student, teacher = (logits.transpose(1, 2) for logits in inputs)
    images = torch.arange(len(teacher))
    labels = teacher[images, images % 2].argmax(-1)
    weights = losses.region_weights(teacher, labels)
    repeated = labels[:, None].expand_as(weights)
    return student.flatten(0, 1), teacher.flatten(0, 1), repeated.flatten(), weights.flatten()


def _sdd_kd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, _, weights = _regions(inputs)
    return losses.kd(student, teacher, p["temperature"], weights)


def _sdd_dkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, classes, weights = _regions(inputs)
    return losses.dkd(student, teacher, classes, p["alpha"], p["beta"], p["temperature"], weights)


def _sdd_nkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    """As released, the second term is the soft cross-entropy of all classes, which is KL plus the teacher's entropy."""
    student, teacher, classes, weights = _regions(inputs)
    temperature = p["temperature"]
    target, _ = losses.nkd_terms(student, teacher, classes, temperature, weights)
    log_p = (teacher.detach() / temperature).log_softmax(-1)
    entropy = -(weights[:, None] * log_p.exp() * log_p).sum(-1).mean() * temperature**2
    return target + p["gamma"] * (losses.kd(student, teacher, temperature, weights) + entropy)


def _sdd_maps(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student_map, teacher_map, weight, bias, teacher_weight, teacher_bias = inputs
    grids = [int(grid) for grid in p["M"].strip("[]").split(",")]
    student = F.linear(losses.pool_regions(student_map, grids), weight, bias)
    teacher = F.linear(losses.pool_regions(teacher_map, grids), teacher_weight, teacher_bias)
    return _sdd_kd(p, [student.transpose(1, 2), teacher.transpose(1, 2)], labels)


def _gkl_class(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, prior = inputs
    weights = prior.detach().softmax(-1)[labels].pow(p["gamma"])
    return losses.gkl(student, teacher, weights, p["wmse_weight"], p["soft_ce_weight"], p["temperature"])


def _gkl_sample(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    weights = losses.class_weights(inputs[1], p["weight_temperature"]).pow(p["gamma"])
    return losses.gkl(*inputs, weights, p["wmse_weight"], p["soft_ce_weight"], p["temperature"])


def _nkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    target, others = losses.nkd_terms(*inputs, labels, p["temperature"])
    return target + p["gamma"] * others


def _rld(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    student, teacher = inputs
    last = (torch.arange(len(labels)) < p.get("rows", 0)).double()
    teacher = teacher - 100 * last[:, None] * F.one_hot(labels, teacher.shape[-1])
    scd, mcd = losses.rld_terms(student, teacher, labels, p["temperature"], p["alpha_temperature"])
    return p["alpha"] * scd + p["beta"] * mcd


def _ea_kd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    bound = None if p["bound"] == "log C" else p["bound"]
    weights = losses.entropy_weights(*inputs, p["entropy_temperature"], bound)
    return losses.kd(*inputs, p["temperature"], weights)


def _abkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    return losses.alpha_beta_divergence(*inputs, p["alpha"], p["beta"], p["temperature"])


LOSSES: dict[str, Loss] = {
    "kd + logit standardisation": lambda p, inputs, labels: _kd(p, _standardised(inputs), labels),
    "dkd + logit standardisation": lambda p, inputs, labels: _dkd(p, _standardised(inputs), labels),
    "dkd two classes": _dkd,
    "dkd student sure of another class": _dkd,
    "dkd both sure of the label": _dkd,
    "ttm": lambda p, inputs, _: losses.ttm(*inputs, p["gamma"]),
    "wttm": lambda p, inputs, _: losses.wttm(*inputs, p["gamma"]),
    "ctkd": _ctkd,
    "mlkd as released": _mlkd,
    "mlkd + logit standardisation as released": lambda p, inputs, labels: _mlkd(p, inputs, labels, standardise=True),
    "mlkd_noaug": _mlkd,
    "sdd-kd": _sdd_kd,
    "sdd-dkd": _sdd_dkd,
    "sdd-nkd as released": _sdd_nkd,
    "sdd-kd from maps": _sdd_maps,
    "gkl_kd class-wise weights": _gkl_class,
    "gkl_kd sample-wise weights": _gkl_sample,
    "nkd": _nkd,
    "rld": _rld,
    "rld + logit standardisation": lambda p, inputs, labels: _rld(p, _standardised(inputs), labels),
    "rld label ranked last": _rld,
    "ea-kd on kd": _ea_kd,
    "ea-kd on kd, cifar as released": _ea_kd,
    "abkd": _abkd,
    "abkd limits": _abkd,
    # The released limit is alpha times that of the general form.
    "abkd alpha only, as released": lambda p, inputs, labels: p["alpha"] * _abkd(p, inputs, labels),
}


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] in LOSSES], ids=name_and_seed)
def test_equals_the_published_implementation(case: dict[str, Any]) -> None:
    assert_equals_published(case, LOSSES[case["name"]])


@pytest.mark.parametrize("case", [case for case in CASES if case["name"].startswith("mlkd")], ids=name_and_seed)
def test_the_terms_of_mlkd_equal_the_published_ones(case: dict[str, Any]) -> None:
    inputs, _ = inputs_of(case)
    weight, temperature = case["params"]["weight"], case["params"]["temperature"]
    strong = (inputs[1], inputs[3]) if len(inputs) == 4 else None
    weak = (inputs[0], inputs[2]) if strong else (inputs[0], inputs[1])
    terms = losses.mlkd_terms(*weak, temperature, strong=strong, standardise="standardisation" in case["name"])
    expected = [case["terms"][name] for name in ("sample", "batch", "classes")]
    assert [weight * term.item() for term in terms] == pytest.approx(expected, rel=1e-9)


def test_every_loss_has_its_case() -> None:
    assert LOSSES.keys() <= {case["name"] for case in CASES}
