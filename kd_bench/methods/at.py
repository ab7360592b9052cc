"""Attention transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class AT(Method):
    """Attention transfer: mean squared error of the attention maps of all stages.

    ce_weight * CE + attention_weight * sum over stages of MSE(u(F_s), u(F_t)). Zagoruyko and Komodakis, "Paying More
    Attention to Attention" (2017), eq. 2 with p = 2. u(F) is the mean over the channels of the squares of a feature
    map, divided by its L2 norm. All stages except the stems are compared, matched from the deepest; the larger map is
    averaged to the smaller one's size. There are no extra parameters.

    The paper has half the weight and the norm of the difference; its released code, and all code behind published
    numbers, has the mean square and the whole weight. 1000 is the weight of RepDistiller and mdistiller on CIFAR-100,
    and of mdistiller on ImageNet.

    Args:
        attention_weight: Weight of the attention maps.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(self, pair: Pair, *, attention_weight: Weight = 1000.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.attention_weight, self.ce_weight = attention_weight, ce_weight
        paired_shapes("at", pair)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "attention"."""
        maps = paired(student.stages, require_teacher(teacher).stages)
        terms = [losses.at(student_map, teacher_map.detach()) for student_map, teacher_map in maps]
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "attention": self.attention_weight * torch.stack(terms).sum(),
        }
