"""Values and gradients that the published implementations gave, in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench import losses
from tests.losses.golden import Loss, assert_equals_published, name_and_seed, read_cases

CASES = read_cases("losses.json")


def _kd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    return losses.kd(*inputs, p["temperature"])


def _dkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    assert labels is not None
    return losses.dkd(*inputs, labels, p["alpha"], p["beta"], p["temperature"])


def _ikl_sample(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher = inputs
    weights = (teacher.detach() / p["weight_temperature"]).softmax(-1)
    return losses.ikl(student, teacher, weights, p["wmse_weight"], p["soft_ce_weight"], p["temperature"])


def _ikl_class(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, prior = inputs
    weights = prior.detach().softmax(-1)[labels]
    return losses.ikl(student, teacher, weights, p["wmse_weight"], p["soft_ce_weight"], p["temperature"])


def _ikl_adversarial(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    natural, adversarial, prior = inputs
    weights = prior.detach().softmax(-1)[labels]
    return losses.ikl(adversarial, natural, weights, p["wmse_weight"], p["soft_ce_weight"])


def _dist(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    inter, intra = losses.dist_terms(*inputs, p["tau"])
    return p["tau"] ** 2 * (p["beta"] * inter + p["gamma"] * intra)


def _rkd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    distance = losses.rkd_distance(*inputs, p["squared"], p["eps"])
    return p["distance_weight"] * distance + p["angle_weight"] * losses.rkd_angle(*inputs)


def _hcl(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    return losses.hierarchical_context(*inputs)


def _partial_l2(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher, third = inputs
    return losses.partial_l2(student, teacher, -third.detach().abs())


def _crd(p: dict[str, Any], inputs: list[Tensor], labels: Tensor | None) -> Tensor:
    student, teacher = (F.normalize(embedding) for embedding in inputs[:2])
    student_bank, teacher_bank = (memory.detach() for memory in inputs[2:])
    index = 3 * torch.arange(8)
    index = (index[:, None] + 7 * torch.arange(51)) % 200
    sides = [(student, teacher_bank), (teacher, student_bank)]
    z = [losses.log_normaliser(*side, index, p["T"]) for side in sides]
    return torch.stack(
        [losses.contrast(*side, index, log_z, p["T"]) for side, log_z in zip(sides, z, strict=True)]
    ).sum()


LOSSES: dict[str, Loss] = {
    "kd": _kd,
    "dkd": _dkd,
    "ikl_kd sample-wise weights": _ikl_sample,
    "ikl_kd class-wise weights": _ikl_class,
    "ikl adversarial": _ikl_adversarial,
    "dist": _dist,
    "rkd": _rkd,
    "reviewkd hcl": _hcl,
    "reviewkd hcl 32x32": _hcl,
    "ofd partial l2": _partial_l2,
    "crd first step": _crd,
}


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] in LOSSES], ids=name_and_seed)
def test_equals_the_published_implementation(case: dict[str, Any]) -> None:
    assert_equals_published(case, LOSSES[case["name"]])


def test_every_loss_has_its_case() -> None:
    assert LOSSES.keys() <= {case["name"] for case in CASES}
