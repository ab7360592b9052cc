"""Classical knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Temperature, Weight
from kd_bench.types import Batch, Outputs, Pair


class KD(Method):
    """Classical distillation: KL divergence from the teacher's softened probabilities.

    ce_weight * CE + kd_weight * T^2 * KL(softmax(t / T) || softmax(s / T)). Hinton, Vinyals and Dean, "Distilling the
    Knowledge in a Neural Network" (2015). The defaults are those of the published CIFAR-100 benchmarks.

    Args:
        ce_weight: Weight of the cross-entropy with the labels.
        kd_weight: Weight of the KL divergence.
        temperature: T of teacher and student.
    """

    weighs_samples = True

    def __init__(
        self, pair: Pair, *, ce_weight: NonNegative = 0.1, kd_weight: Weight = 0.9, temperature: Temperature = 4.0
    ) -> None:
        super().__init__(pair)
        self.ce_weight, self.kd_weight, self.temperature = ce_weight, kd_weight, temperature

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "kd"."""
        teacher = require_teacher(teacher)
        divergence = losses.kd(
            student.logits, teacher.logits.detach(), self.temperature, self.sample_weights(student, teacher)
        )
        return {"ce": self.ce_weight * self.label_loss(student, batch), "kd": self.kd_weight * divergence}
