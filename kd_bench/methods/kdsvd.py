"""Distillation by singular value decomposition."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_bench import losses
from kd_bench.methods._maps import paired, paired_shapes
from kd_bench.methods.base import Method, require_teacher
from kd_bench.methods.parameters import NonNegative, PositiveCount, Weight
from kd_bench.types import Batch, Needs, Outputs, Pair
from kd_bench.utils.errors import UserError


class KDSVD(Method):
    """Distillation by singular value decomposition: how the singular vectors of neighbouring stages relate.

    ce_weight * CE + svd_weight * sum over neighbouring stages of |R_s - R_t|^2. Lee et al., "Self-supervised Knowledge
    Distillation Using Singular Value Decomposition" (2018). R = exp(-(v_i - w_j)^2 / 8) for all coordinates of the
    first right singular vectors v and w of two neighbouring feature maps of an image; the squares are summed over the
    coordinates, mean over the batch. The student's vectors are those most like the teacher's, with the same sign, and
    both are weighted by the teacher's singular values. All stages except the stems are compared, matched from the
    deepest. There are no extra parameters.

    The two released losses differ. mdistiller's matrix is (C H, W), so that vectors run over the columns of a map, and
    its weight is 1, the only published one; here the larger map is averaged to the smaller one's size. RepDistiller's
    matrix is (H W, C), which needs a student with the teacher's channels. The sign of the teacher's vectors is
    arbitrary in both; here the entry of the largest magnitude is positive. Singular values that coincide have no finite
    gradient. Released code sets such losses to 0, but not their gradients; here gradients are bounded.

    Args:
        svd_weight: Weight of the correlations.
        vectors: Singular vectors of each of the teacher's maps.
        matrix: What the vectors run over: "columns" as in mdistiller, or "channels" as in RepDistiller.
        ce_weight: Weight of the cross-entropy with the labels.
    """

    family = "features"
    needs = Needs(student=frozenset({"logits", "stages"}), teacher=frozenset({"stages"}))

    def __init__(
        self,
        pair: Pair,
        *,
        svd_weight: Weight = 1.0,
        vectors: PositiveCount = 1,
        matrix: Literal["columns", "channels"] = "columns",
        ce_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__(pair)
        self.svd_weight, self.ce_weight = svd_weight, ce_weight
        self.vectors, self.matrix = vectors, matrix
        for student_shape, teacher_shape in paired_shapes("kdsvd", pair, at_least=2):
            if matrix == "channels" and student_shape[0] != teacher_shape[0]:
                raise UserError(
                    f"kdsvd: matrix = 'channels' compares stages with equal channels, but {pair.student_name} has a "
                    f"stage of {_size(student_shape)} where {pair.teacher_name} has {_size(teacher_shape)}; "
                    "choose 'columns'"
                )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms "ce" and "svd"."""
        student_maps, teacher_maps = zip(*paired(student.stages, require_teacher(teacher).stages), strict=True)
        return {
            "ce": self.ce_weight * self.label_loss(student, batch),
            "svd": self.svd_weight * losses.kdsvd(student_maps, teacher_maps, self.vectors, self.matrix),
        }


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
