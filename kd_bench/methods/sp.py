"""Similarity-preserving knowledge distillation."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class SP(Method):
    """Similarity-preserving distillation: the images' similarities, by the inner products of their last feature maps.

    ce_weight * CE + similarity_weight * |G_s - G_t|^2 / B^2. Tung and Mori, "Similarity-Preserving Knowledge
    Distillation" (2019), section 3.1. G is F F^T with rows of norm 1, and F holds the last feature maps of a batch of B
    images, flattened. The maps may have any sizes. There are no extra parameters.

    The paper allows for several pairs of layers; the code behind published numbers compares the last one. 3000 is the
    weight of RepDistiller and mdistiller.

    Args:
        similarity_weight: Weight of the similarities.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(self, pair: Pair, *, similarity_weight: Weight = 3000.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.similarity_weight, self.ce_weight = similarity_weight, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "similarity"."""
        target = require_teacher(teacher).stages[-1].detach()
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "similarity": self.similarity_weight * losses.sp(student.stages[-1], target),
        }
