"""Information theoretic representation distillation."""

from __future__ import annotations

from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import embedding
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, Positive, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class ITRD(Method):
    """Information theoretic distillation: correlations of coordinates, and mutual information of the images' relations.

    ce_weight * CE + correlation_weight * log2 sum over k of ((C_kk - 1)^2)^alpha + mutual_weight * sum of (A^2 - M^2).
    Miles et al., "Information Theoretic Representation Distillation" (2022), section 3. C_kk is the correlation over
    the batch of coordinate k of the student's pooled embedding, after a trained linear layer to the teacher's width,
    with the teacher's. A is the Gram matrix of the cosines of the student's embeddings, and M its elementwise product
    with the teacher's, each divided by its trace.

    As released, the layer is always used in the first term, but in the second only if the widths differ. The defaults
    are those that the repository names for pairs of one family on CIFAR-100; those of its code are ``mutual_weight``
    0.05 and ``alpha`` 1.5, and the paper has others for pairs of different families.

    Args:
        correlation_weight: Weight of the correlations.
        mutual_weight: Weight of the mutual information.
        alpha: Order of the entropy in the first term.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    def __init__(
        self,
        pair: Pair,
        *,
        correlation_weight: Weight = 2.0,
        mutual_weight: Weight = 1.0,
        alpha: Positive = 1.01,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.correlation_weight, self.mutual_weight, self.ce_weight = correlation_weight, mutual_weight, ce_weight
        self.alpha = alpha
        if pair.teacher is None or pair.student.pooled is None or pair.teacher.pooled is None:
            raise ValueError("itrd needs the pooled embeddings of both networks")
        self.embed = nn.Linear(pair.student.pooled[0], pair.teacher.pooled[0])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce", "correlation" and "mutual"."""
        student_embedding, teacher_embedding = embedding(student), embedding(require_teacher(teacher)).detach()
        embedded = self.embed(student_embedding)
        compared = student_embedding if student_embedding.shape == teacher_embedding.shape else embedded
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "correlation": self.correlation_weight * losses.itrd_correlation(embedded, teacher_embedding, self.alpha),
            "mutual": self.mutual_weight * losses.itrd_mutual(compared, teacher_embedding),
        }
