"""Transformed teacher matching."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Positive, Weight
from kd_bench.types import Batch, Outputs, Pair


class TTM(Method):
    """Transformed teacher matching: KL divergence from the teacher at a temperature, the student at temperature 1.

    ce_weight * CE + beta * KL(q || softmax(s)) with q = p^gamma / sum_j p_j^gamma and p = softmax(t). Zheng and Yang,
    "Knowledge Distillation Based on Transformed Teacher Matching" (2024). q is the teacher at temperature 1 / gamma;
    there is no factor T^2.

    The defaults are those of the released command for VGG13 to VGG8. Another repository (ABKD) has gamma 0.1 and beta
    76 for WRN-40-2 to WRN-40-1. The released code has no settings for the other pairs.

    Args:
        gamma: Exponent of the teacher's probabilities.
        beta: Weight of the KL divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(self, pair: Pair, *, gamma: Positive = 0.1, beta: Weight = 45.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.gamma, self.beta, self.ce_weight = gamma, beta, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "ttm"."""
        teacher = require_teacher(teacher)
        sample_weights = self.sample_weights(student, teacher)
        divergence = losses.ttm(student.logits, teacher.logits.detach(), self.gamma, sample_weights)
        return {"ce": self.ce_weight * self.label_loss(student, batch), "ttm": self.beta * divergence}
