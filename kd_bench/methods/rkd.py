"""Relational knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.connectors import embedding
from kd_bench.methods.parameters import NonNegative, Positive
from kd_bench.types import Batch, Needs, Outputs, Pair


class RKD(Method):
    """Relational distillation: distances and angles between a batch's pooled embeddings.

    ce_weight * CE + distance_weight * RKD-D + angle_weight * RKD-A, each a smooth L1 loss. Park et al., "Relational
    Knowledge Distillation" (2019), eq. 5 to 9. The embeddings are those that the classifiers read, of any two widths.

    Args:
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.
        ce_weight: Weight of the cross-entropy with the labels.
        squared: Whether to compare squared distances.
        eps: Below it a squared distance counts as ``eps``.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    def __init__(
        self,
        pair: Pair,
        *,
        distance_weight: NonNegative = 25.0,
        angle_weight: NonNegative = 50.0,
        ce_weight: NonNegative = 1.0,
        squared: bool = False,
        eps: Positive = 1e-12,
    ) -> None:
        super().__init__(pair)
        self.distance_weight, self.angle_weight, self.ce_weight = distance_weight, angle_weight, ce_weight
        self.squared, self.eps = squared, eps

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Terms "ce", "distance" and "angle"."""
        ours, theirs = embedding(student), embedding(require_teacher(teacher)).detach()
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "distance": self.distance_weight * losses.rkd_distance(ours, theirs, self.squared, self.eps),
            "angle": self.angle_weight * losses.rkd_angle(ours, theirs),
        }
