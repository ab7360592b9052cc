"""Values and gradients of the published losses of feature maps and relations, in float64.

The layers that are part of a published loss, such as connectors, are applied here with the weights of the case.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench import losses
from tests.losses.golden import inputs_of, name_and_seed, read_cases

CASES = [*read_cases("losses.json"), *read_cases("losses2.json")]


def _batch_norm(maps: Tensor) -> Tensor:
    return F.batch_norm(maps, None, None, training=True)


def _at(p: dict[str, Any], *maps: Tensor) -> Tensor:
    assert p["p"] == 2
    return losses.at(*maps)


def _plain(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda p, *inputs: loss(*inputs)


def _cc_embedded(p: dict[str, Any], student: Tensor, teacher: Tensor, *layers: Tensor) -> Tensor:
    return losses.cc(F.linear(student, *layers[:2]), F.linear(teacher, *layers[2:]))


def _cc_gaussian(p: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    return losses.cc_kernel(student, teacher, "gaussian", p["gamma"], p["order"], squared=False)


def _cc_bilinear(p: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    return losses.cc_kernel(student, teacher, "bilinear", squared=False)


def _vid(p: dict[str, Any], prediction: Tensor, teacher: Tensor, a: Tensor) -> Tensor:
    return losses.vid(prediction, teacher, F.softplus(a) + 1e-5)


def _vid_fixed(p: dict[str, Any], prediction: Tensor, teacher: Tensor) -> Tensor:
    return losses.vid(prediction, teacher, torch.full_like(prediction[0, :, 0, 0], p["initial_v"]))


def _vid_regressor(p: dict[str, Any], student: Tensor, teacher: Tensor, a: Tensor, *weights: Tensor) -> Tensor:
    student, teacher = losses.equal_sizes(student, teacher)
    prediction = F.conv2d(F.conv2d(F.conv2d(student, weights[0]).relu(), weights[1]).relu(), weights[2])
    return _vid(p, prediction, teacher, a)


def _itrd_correlation(p: dict[str, Any], student: Tensor, teacher: Tensor, *layer: Tensor) -> Tensor:
    return losses.itrd_correlation(F.linear(student, *layer), teacher, p["alpha"])


def _itrd_mutual(p: dict[str, Any], student: Tensor, teacher: Tensor, *layer: Tensor) -> Tensor:
    return losses.itrd_mutual(F.linear(student, *layer), teacher)


def _kdsvd(p: dict[str, Any], *maps: Tensor, matrix: Any) -> Tensor:
    half = len(maps) // 2
    return losses.kdsvd(maps[:half], maps[half:], p["k"], matrix)


def _ft(p: dict[str, Any], student: Tensor, teacher: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights[:3]:
        student = F.leaky_relu(_batch_norm(F.conv2d(student, weight, padding=1)), 0.1)
    for weight in weights[3:]:
        teacher = F.leaky_relu(F.conv2d(teacher, weight, padding=1), 0.1)
    return losses.ft(student, teacher.detach())


def _ab(p: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    return 3 / 1000 * losses.ab(student, teacher, p["margin"])


def _ab_connected(p: dict[str, Any], *inputs: Tensor) -> Tensor:
    students, teachers, weights = list(inputs[:4]), inputs[4:8], inputs[8:]
    students[1] = _batch_norm(F.conv2d(students[1], weights[0], stride=2, padding=1))
    students[2] = _batch_norm(F.conv_transpose2d(students[2], weights[1], stride=2, padding=1))
    students[3] = _batch_norm(F.conv2d(students[3], weights[2]))
    terms = [
        losses.ab(s, t, p["margin"]) / 2 ** (3 - i) for i, (s, t) in enumerate(zip(students, teachers, strict=True))
    ]
    return 3 / 1000 * torch.stack(terms).sum()


def _fsp(p: dict[str, Any], *maps: Tensor) -> Tensor:
    return losses.fsp((maps[0], maps[1]), (maps[2], maps[3]))


def _cat_kd(p: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    return losses.cat_kd(student, teacher, p["resolution"], p["normalise"])


LOSSES: dict[str, Callable[..., Tensor]] = {
    "at one stage": _at,
    "sp": _plain(losses.sp),
    "nst one stage": _plain(losses.nst),
    "pkt": _plain(losses.pkt),
    "cc": _plain(losses.cc),
    "cc with embeddings": _cc_embedded,
    "cc gaussian kernel (torchdistill)": _cc_gaussian,
    "cc bilinear (torchdistill)": _cc_bilinear,
    "vid given the regressor's output": _vid,
    "vid mdistiller, fixed variance": _vid_fixed,
    "vid with regressor": _vid_regressor,
    "itrd correlation": _itrd_correlation,
    "itrd mutual, embedded": _itrd_mutual,
    "itrd mutual, equal sizes": _plain(losses.itrd_mutual),
    "kdsvd repdistiller, signs fixed": lambda p, *maps: _kdsvd(p, *maps, matrix="channels"),
    "kdsvd mdistiller, signs fixed": lambda p, *maps: _kdsvd(p, *maps, matrix="columns"),
    "ft factor loss": _plain(losses.ft),
    "ft translator and paraphraser": _ft,
    "ab": _ab,
    "ab with connectors": _ab_connected,
    "fsp one pair of stages": _fsp,
    "cat-kd": _cat_kd,
}


@pytest.mark.parametrize("case", [case for case in CASES if case["name"] in LOSSES], ids=name_and_seed)
def test_equals_the_published_implementation(case: dict[str, Any]) -> None:
    """To a relative 1e-9 in every number, because gradients of means over maps are small."""
    inputs, _ = inputs_of(case)
    loss = LOSSES[case["name"]](case["params"], *inputs)
    loss.backward()
    assert math.isclose(loss.item(), case["loss"], rel_tol=1e-9)
    for index, expected in case["grads"].items():
        gradient = inputs[int(index)].grad
        assert gradient is not None
        assert math.isclose(gradient.norm().item(), expected["norm"], rel_tol=1e-9)
        assert gradient.flatten()[:5].tolist() == pytest.approx(expected["first5"], rel=1e-9, abs=0)


def test_every_loss_has_its_case() -> None:
    assert LOSSES.keys() <= {case["name"] for case in CASES}
