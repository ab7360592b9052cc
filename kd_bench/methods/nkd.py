"""Normalised knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, hard_labels, require_teacher
from kd_bench.methods.parameters import NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class NKD(Method):
    """Normalised distillation: soft cross-entropies for the label, and for the other classes normalised to sum to one.

    ce_weight * CE - p_y log q_y - gamma * T^2 * sum_{j != y} p'_j log q'_j, where p = softmax(t) and q = softmax(s), p'
    and q' are the softmaxes of t / T and s / T over the classes other than the label y. Yang et al., "From Knowledge
    Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels"
    (2023). The label of a mixed image is the class with the largest share.

    The defaults are those of the authors' ResNet34 to ResNet18 on CIFAR-100, whose networks are not those of the 13
    pairs; for these nothing is published. On ImageNet gamma is 1.5 and T is 1. The rows called NKD in the tables of
    scale-decoupled distillation (SDD) are another loss, whose second sum includes the label.

    Args:
        gamma: Weight of the other classes.
        temperature: T of teacher and student for the other classes; the label's term has temperature 1.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    weighs_samples = True

    def __init__(
        self, pair: Pair, *, gamma: Weight = 3.5, temperature: Temperature = 3.0, ce_weight: NonNegative = 1.0
    ) -> None:
        super().__init__(pair)
        self.gamma, self.temperature, self.ce_weight = gamma, temperature, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "target" and "others"."""
        teacher = require_teacher(teacher)
        logits, sample_weights = teacher.logits.detach(), self.sample_weights(student, teacher)
        labels = hard_labels(batch)
        target, others = losses.nkd_terms(student.logits, logits, labels, self.temperature, sample_weights)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "target": target,
            "others": self.gamma * others,
        }
