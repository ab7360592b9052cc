"""Variational information distillation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Positive, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair

#: Smallest variance.
_EPS = 1e-5


class VID(Method):
    """Variational information distillation: likelihood of the teacher's feature maps, predicted from the student's.

    ce_weight * CE + information_weight * sum over stages of the mean of ((mu(F_s) - F_t)^2 / v + log v) / 2. Ahn et
    al., "Variational Information Distillation for Knowledge Transfer" (2019), section 2.1. mu is three 1x1 convolutions
    without bias, with the teacher's channels, and ReLU between them. Each channel of the teacher has a variance v =
    log(1 + exp(a)) + 1e-5. Both are trained. All stages except the stems are compared, matched from the deepest; the
    larger map is averaged to the smaller one's size.

    The paper sums over channels and pixels; the code behind published numbers takes their mean, with a weight of 1. In
    mdistiller the variances do not reach the optimiser and keep their initial value, which leaves a mean squared error:
    ``variances`` "fixed". RepDistiller trains them.

    Args:
        information_weight: Weight of the likelihood.
        variances: Whether the variances are "trained" or "fixed".
        initial_variance: Their initial value; if they are trained, at least 2e-5.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(
        self,
        pair: Pair,
        *,
        information_weight: Weight = 1.0,
        variances: Literal["trained", "fixed"] = "trained",
        initial_variance: Positive = 5.0,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.information_weight, self.ce_weight = information_weight, ce_weight
        shapes = paired_shapes("vid", pair)
        self.regressors = nn.ModuleList(
            _regressor(student_shape[0], teacher_shape[0]) for student_shape, teacher_shape in shapes
        )
        self.variances, self.initial_variance = variances, initial_variance
        if variances == "trained":
            excess = max(initial_variance - _EPS, _EPS)
            scale = excess + math.log(-math.expm1(-excess))  # of which the softplus is ``excess``
            self.scales = nn.ParameterList(torch.full((teacher_shape[0],), scale) for _, teacher_shape in shapes)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "information"."""
        terms = []
        for index, maps in enumerate(paired(student.stages, require_teacher(teacher).stages)):
            student_map, teacher_map = losses.equal_sizes(maps[0], maps[1].detach())
            terms.append(
                losses.vid(self.regressors[index](student_map), teacher_map, self._variance(index, teacher_map))
            )
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "information": self.information_weight * torch.stack(terms).sum(),
        }

    def _variance(self, index: int, maps: Tensor) -> Tensor:
        if self.variances == "fixed":
            return maps.new_full((maps.shape[1],), self.initial_variance)
        return F.softplus(losses.at_least_float32(self.scales[index])) + _EPS


def _regressor(in_chs: int, out_chs: int) -> nn.Sequential:
    widths = (in_chs, out_chs, out_chs, out_chs)
    convs = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
