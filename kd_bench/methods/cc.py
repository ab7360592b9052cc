"""Correlation congruence."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kd_bench import losses
from kd_bench.methods._connectors import embedding
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import Count, NonNegative, Positive, PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair


class CC(Method):
    """Correlation congruence: relations between the embeddings of a batch, as released or by the paper's kernels.

    ce_weight * CE + correlation_weight * (mean over i < B of <d_i, d_(i+1)>, or |K_s - K_t|^2 / B^2). Peng et al.,
    "Correlation Congruence for Knowledge Distillation" (2019), section 3.2 and 3.3. The first form, an inner product,
    is ``kernel`` "none", with d_i = abs(e_s - e_t) for image i of the batch; the second has K_ij = k(e_i, e_j). The
    embeddings e are the pooled ones of each network after a linear layer of its own to ``feature_dim`` numbers; both
    layers are trained.

    The code behind the published CIFAR-100 numbers (RepDistiller) has no kernel: its loss, the default here, is 0 if
    every second image fits, and both layers can reduce it without a student that learns. The paper's loss compares all
    pairs of images. As the Taylor series of its Gaussian kernel is that of vectors of norm 1, embeddings are divided by
    their norms before a kernel. torchdistill's form does not do that, and takes the root of the squared norm. 0.02 is
    the published weight of "none"; for the kernels none is known.

    Args:
        correlation_weight: Weight of the relations.
        kernel: "none", as released; "gaussian", the paper's choice; or "bilinear", the inner product.
        feature_dim: Width of the embeddings.
        gamma: Of the Gaussian kernel exp(-gamma |x - y|^2).
        order: Highest power of the inner product in its Taylor series.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "pooled"}), teacher=frozenset({"pooled"}))

    def __init__(
        self,
        pair: Pair,
        *,
        correlation_weight: Weight = 0.02,
        kernel: Literal["none", "gaussian", "bilinear"] = "none",
        feature_dim: PositiveCount = 128,
        gamma: Positive = 0.4,
        order: Count = 2,
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.correlation_weight, self.ce_weight = correlation_weight, ce_weight
        self.kernel, self.gamma, self.order = kernel, gamma, order
        if pair.teacher is None or pair.student.pooled is None or pair.teacher.pooled is None:
            raise ValueError("cc needs the pooled embeddings of both networks")
        self.embed_student = nn.Linear(pair.student.pooled[0], feature_dim)
        self.embed_teacher = nn.Linear(pair.teacher.pooled[0], feature_dim)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "correlation"."""
        student_embedding = self.embed_student(embedding(student))
        teacher_embedding = self.embed_teacher(embedding(require_teacher(teacher)).detach())
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "correlation": self.correlation_weight * self._correlation(student_embedding, teacher_embedding),
        }

    def _correlation(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.kernel == "none":
            return losses.cc(student, teacher)
        student, teacher = losses.unit_vectors(student), losses.unit_vectors(teacher)
        return losses.cc_kernel(student, teacher, self.kernel, self.gamma, self.order)
