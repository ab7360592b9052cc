"""Decoupled knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, hard_labels, require_teacher, warmup_of
from kd_bench.methods.parameters import Count, NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class DKD(Method):
    """Decoupled distillation: separate weights for the target class and for the other classes among themselves.

    ce_weight * CE + warm-up * T^2 * (alpha * TCKD + beta * NCKD). Zhao et al., "Decoupled Knowledge Distillation"
    (2022). On CIFAR-100 the published beta depends on the pair: 8 for most pairs, 6 or 2 for some pairs of the same
    family. The target of a mixed label is the class with the largest share.

    Args:
        alpha: Weight of the target class against the rest (TCKD).
        beta: Weight of the classes other than the target among themselves (NCKD).
        temperature: T of teacher and student.
        warmup_epochs: Epochs over which TCKD and NCKD grow linearly to their full weight; 0 for no warm-up.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(
        self,
        pair: Pair,
        *,
        alpha: Weight = 1.0,
        beta: Weight = 8.0,
        temperature: Temperature = 4.0,
        warmup_epochs: Count = 20,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.warmup_epochs, self.ce_weight = warmup_epochs, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "tckd" and "nckd"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        tckd, nckd = losses.dkd_terms(student.logits, logits, hard_labels(batch), self.temperature, sample_weights)
        factor = warmup_of(batch, self.warmup_epochs)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "tckd": factor * self.alpha * tckd,
            "nckd": factor * self.beta * nckd,
        }
