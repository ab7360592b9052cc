"""Neuron selectivity transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class NST(Method):
    """Neuron selectivity transfer: maximum mean discrepancy of the channels of all stages.

    ce_weight * CE + selectivity_weight * sum over stages of (mean k(t, t) + mean k(s, s) - 2 mean k(s, t)). Huang and
    Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer" (2017), section 4, with the polynomial
    kernel k(a, b) = (a . b)^2 of channels, which are vectors of pixels of norm 1. All stages except the stems are
    compared, matched from the deepest; the larger map is averaged to the smaller one's size. There are no extra
    parameters.

    The paper has other kernels too. RepDistiller and mdistiller have this one, with a weight of 50, and form every pair
    of channels; here the same number is the norm of products of matrices.

    Args:
        selectivity_weight: Weight of the discrepancy.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(self, pair: Pair, *, selectivity_weight: Weight = 50.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.selectivity_weight, self.ce_weight = selectivity_weight, ce_weight
        paired_shapes("nst", pair)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "selectivity"."""
        maps = paired(student.stages, require_teacher(teacher).stages)
        terms = [losses.nst(student_map, teacher_map) for student_map, teacher_map in maps]
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "selectivity": self.selectivity_weight * torch.stack(terms).sum(),
        }
