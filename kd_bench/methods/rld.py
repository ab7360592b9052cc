"""Refined logit distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, hard_labels, require_teacher, warmup_of
from kd_bench.methods.parameters import Count, NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class RLD(Method):
    """Refined logit distillation: the teacher's confidence for the label, and its ranking of the classes below it.

    ce_weight * CE + warm-up * (alpha * SCD + beta * MCD). Sun et al., "Knowledge Distillation with Refined Logits"
    (2025). SCD = T'^2 * KL of (max_j p_j, 1 - max_j p_j) from (q_y, 1 - q_y) at temperature T': the student's
    probability of the label y is compared with the teacher's largest, whichever class that is. MCD = T^2 * KL of the
    softmaxes at T over the classes with t_j < t_y; if the teacher ranks y last, it is 0. The label of a mixed image is
    the class with the largest share.

    The defaults are those of the released code, which has no settings for single pairs of CIFAR-100; notes on the paper
    report beta 4 for some. On ImageNet T is 1, the warm-up 1, and beta 0.5 (ResNet18) or 2 (MobileNet-V1).

    Args:
        alpha: Weight of SCD.
        beta: Weight of MCD.
        confidence_temperature: T' of teacher and student in SCD.
        temperature: T of teacher and student in MCD.
        warmup_epochs: Epochs over which SCD and MCD grow linearly to their full weight; 0 for no warm-up.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        confidence_temperature: Temperature = 1.0,
        temperature: Temperature = 4.0,
        warmup_epochs: Count = 20,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.ce_weight = alpha, beta, ce_weight
        self.confidence_temperature, self.temperature = confidence_temperature, temperature
        self.warmup_epochs = warmup_epochs

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "scd" and "mcd"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        scd, mcd = losses.rld_terms(
            student.logits, logits, hard_labels(batch), self.temperature, self.confidence_temperature, sample_weights
        )
        factor = warmup_of(batch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "scd": factor * self.alpha * scd,
            "mcd": factor * self.beta * mcd,
        }
