"""Probabilistic knowledge transfer."""

from __future__ import annotations

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._connectors import embedding
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class PKT(Method):
    """Probabilistic knowledge transfer: divergence of the probabilities that two images are neighbours.

    ce_weight * CE + transfer_weight * mean over i, j of q_t log(q_t / q_s). Passalis and Tefas, "Learning Deep
    Representations with Probabilistic Knowledge Transfer" (2018), section 3. q_ij is (1 + cos_ij) / 2 divided by its
    row's sum, and cos_ij is the cosine of the pooled embeddings of images i and j of the batch. The embeddings' widths
    may differ. There are no extra parameters.

    The paper leaves out an image's similarity with itself and sums over all pairs; the released code keeps the
    diagonal and takes the mean, so the weight is large: 30000 in RepDistiller and mdistiller.

    Args:
        transfer_weight: Weight of the divergence.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    def __init__(self, pair: Pair, *, transfer_weight: Weight = 30000.0, ce_weight: NonNegative = 1.0) -> None:
        super().__init__(pair)
        self.transfer_weight, self.ce_weight = transfer_weight, ce_weight

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "transfer"."""
        student_embedding, teacher_embedding = embedding(student), embedding(require_teacher(teacher)).detach()
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "transfer": self.transfer_weight * losses.pkt(student_embedding, teacher_embedding),
        }
