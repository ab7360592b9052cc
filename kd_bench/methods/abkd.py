"""Distillation with the alpha-beta divergence."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class ABKD(Method):
    """Alpha-beta distillation: a divergence between KL and reverse KL, which two exponents choose.

    ce_weight * CE + ab_weight * sum_j [a / (a + b) p_j^(a + b) + b / (a + b) q_j^(a + b) - p_j^a q_j^b] / (a b), where
    a = alpha, b = beta, p = softmax(t / T) and q = softmax(s / T). Wang et al., "ABKD: Pursuing a Proper Allocation of
    the Probability Mass in Knowledge Distillation via alpha-beta-Divergence" (2025). There is no factor T^2. a = 1, b =
    0 is KL(p || q), and a = 0, b = 1 is KL(q || p).

    If b, a or a + b is 0, the divergence is its limit. The released code multiplies these limits by a, b and a,
    respectively, unless a and b are both 0. If an exponent is negative, the loss can overflow for large logits.

    The defaults are those of the released command for ResNet56 to ResNet20. The released code has no settings for the
    other pairs of CIFAR-100.

    Args:
        alpha: Exponent of the teacher's probabilities.
        beta: Exponent of the student's probabilities.
        ab_weight: Weight of the divergence.
        temperature: T of teacher and student.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        alpha: float = 0.8,
        beta: float = 0.3,
        ab_weight: Weight = 32.0,
        temperature: Temperature = 4.0,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.ab_weight = alpha, beta, ab_weight
        self.temperature, self.ce_weight = temperature, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "ab"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        divergence = losses.alpha_beta_divergence(
            student.logits, logits, self.alpha, self.beta, self.temperature, sample_weights
        )
        return {"ce": self.ce_weight * self.label_loss(student, batch), "ab": self.ab_weight * divergence}
