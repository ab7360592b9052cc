"""Relational knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._connectors import embedding
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Positive, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class RKD(Method):
    """Relational distillation: distances and angles between the pooled embeddings of a batch.

    ce_weight * CE + distance_weight * RKD-D + angle_weight * RKD-A, where RKD-D and RKD-A are smooth L1 losses. Park et
    al., "Relational Knowledge Distillation" (2019), eq. 5 to 9. The embeddings are the inputs of the classifiers; their
    widths may differ.

    Args:
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.
        ce_weight: Weight of the cross-entropy with the labels.
        squared: Whether to compare squared distances.
        eps: Smallest squared distance. Smaller ones are raised to ``eps`` and have no gradient.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    def __init__(
        self,
        pair: Pair,
        *,
        distance_weight: Weight = 25.0,
        angle_weight: Weight = 50.0,
        ce_weight: NonNegative = 1.0,
        squared: bool = False,
        eps: Positive = 1e-12,
    ) -> None:
        super().__init__(pair)
        self.distance_weight, self.angle_weight, self.ce_weight = distance_weight, angle_weight, ce_weight
        self.squared, self.eps = squared, eps

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "distance" and "angle"."""
        student_embedding, teacher_embedding = embedding(student), embedding(require_teacher(teacher)).detach()
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "distance": self.distance_weight
            * losses.rkd_distance(student_embedding, teacher_embedding, self.squared, self.eps),
            "angle": self.angle_weight * losses.rkd_angle(student_embedding, teacher_embedding),
        }
