"""Weighted transformed teacher matching."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Positive, Weight
from kd_bench.types import Batch, Outputs, Pair


class WTTM(Method):
    """Weighted transformed teacher matching: TTM, with larger weights for images of which the teacher is less certain.

    ce_weight * CE + beta * u * KL(q || softmax(s)) with u = sum_j p_j^gamma, q = p^gamma / u and p = softmax(t). Zheng
    and Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (2024). q is the teacher at temperature
    1 / gamma; there is no factor T^2. u is between 1 and K^(1 - gamma) for K classes, and is not normalised.

    The only released command is for VGG13 to VGG8 in combination with 0.8 * CRD; the defaults are its gamma and beta.
    The released code has no settings of WTTM alone for any of the 13 pairs of CIFAR-100.

    Args:
        gamma: Exponent of the teacher's probabilities.
        beta: Weight of the weighted KL divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(self, pair: Pair, *, gamma: Positive = 0.2, beta: Weight = 4.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.gamma, self.beta, self.ce_weight = gamma, beta, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "wttm"."""
        teacher = require_teacher(teacher)
        sample_weights = self.sample_weights(student, teacher)
        divergence = losses.wttm(student.logits, teacher.logits.detach(), self.gamma, sample_weights)
        return {"ce": self.ce_weight * self.label_loss(student, batch), "wttm": self.beta * divergence}
