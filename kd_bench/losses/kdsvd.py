"""Distillation by singular value decomposition: how the main directions of neighbouring feature maps relate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kd_bench.losses.arguments import check_choice, check_whole
from kd_bench.losses.maps import equal_sizes, unit_vectors
from kd_bench.losses.precision import at_least_float32, matmul

#: What the right singular vectors of a feature map run over.
Matrix = Literal["columns", "channels"]

#: Singular vectors of the student for each of the teacher's, beyond the teacher's number.
_EXTRA = 3

#: Smallest difference of two squared singular values, relative to the largest square, by which a gradient is divided.
_MIN_GAP = 1e-5


def kdsvd(
    students: Sequence[Tensor], teachers: Sequence[Tensor], vectors: int = 1, matrix: Matrix = "columns"
) -> Tensor:
    """Squared differences of the correlations between the singular vectors of neighbouring feature maps.

    Lee et al., "Self-supervised Knowledge Distillation Using Singular Value Decomposition" (2018), as released. A map
    of an image is a matrix, of which the first right singular vectors are taken: ``vectors`` of the teacher and 3 more
    of the student. Each of the teacher's is matched with the student's vector of the largest absolute cosine, turned by
    the sign of the cosine. Both are multiplied by the teacher's singular values, which are divided by their norm. The
    correlation of neighbouring maps is R = exp(-(v_i - w_j)^2 / 8) for all coordinates i of a vector v of one map and j
    of the vector w of the same number of the next; the loss is the sum of (R_s - R_t)^2, mean over the batch.

    The sign of a singular vector is arbitrary, and the loss depends on the teacher's. Here the entry of the largest
    magnitude is positive. Singular vectors have no finite gradient if singular values coincide: differences of squared
    singular values that are below 1e-5 of the largest square count less the smaller they are, down to 0. Only the
    student has a gradient, and no second one.

    Args:
        students, teachers: (B, C, H, W) maps, from the shallowest to the deepest, at least two. Channels must be equal
            for ``matrix`` "channels". For "columns", the larger map of a pair is averaged to the smaller one's size.
        vectors: Singular vectors of the teacher's maps.
        matrix: "columns" for (C H, W) matrices, as in mdistiller, whose right singular vectors run over the columns of
            a map; "channels" for (H W, C), as in RepDistiller, whose vectors run over the channels.

    Raises:
        ValueError: If the channels differ for ``matrix`` "channels", or if there are fewer than two maps.

    >>> import torch
    >>> from kd_bench.losses import kdsvd
    >>> maps = [torch.eye(4).view(1, 1, 4, 4), torch.arange(9.0).view(1, 1, 3, 3)]
    >>> kdsvd(maps, maps).item()
    0.0
    """
    check_whole(1, vectors=vectors)
    check_choice(get_args(Matrix), matrix=matrix)
    if len(students) != len(teachers):
        raise ValueError(f"kdsvd compares as many maps of the student as of the teacher, not {len(students)} and "
                         f"{len(teachers)}")  # fmt: skip
    terms, before = [], None
    for student, teacher in zip(students, teachers, strict=True):
        aligned = _aligned_vectors(*_matrices(student, teacher, matrix), vectors)
        if before is not None:
            student_correlations, teacher_correlations = (
                _correlations(*vectors) for vectors in zip(aligned, before, strict=True)
            )
            terms.append((student_correlations - teacher_correlations).square().sum())
        before = aligned
    if not terms:
        raise ValueError(f"kdsvd compares neighbouring maps, at least 2, not {len(students)}")
    return torch.stack(terms).sum() / len(students[0])


def _matrices(student: Tensor, teacher: Tensor, matrix: Matrix) -> tuple[Tensor, Tensor]:
    if matrix == "channels":
        if student.shape[1] != teacher.shape[1]:
            raise ValueError(f"kdsvd compares equal channels, not {student.shape[1]} and {teacher.shape[1]}")
        return at_least_float32(student).flatten(2).mT, at_least_float32(teacher).flatten(2).mT
    student, teacher = equal_sizes(student, teacher)
    return student.flatten(1, 2), teacher.flatten(1, 2)


def _aligned_vectors(student: Tensor, teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the teacher's singular vectors and the student's that match them, weighted, (B, N, count) each."""
    with torch.no_grad():
        teacher_vectors = _right_singular_vectors(teacher, count)
        teacher_vectors = (
            teacher_vectors * teacher_vectors.gather(1, teacher_vectors.abs().argmax(1, keepdim=True)).sign()
        )
        values = unit_vectors(torch.linalg.vector_norm(matmul(teacher, teacher_vectors), dim=1))[:, None]
    student_vectors = _right_singular_vectors(student, count + _EXTRA)
    with torch.no_grad():
        cosines = matmul(student_vectors.mT, teacher_vectors)
        best = cosines.abs().argmax(1, keepdim=True)
        signs = cosines.gather(1, best).sign()
    chosen = student_vectors.gather(2, best.expand(-1, student_vectors.shape[1], -1)) * signs
    return chosen * values, teacher_vectors * values


def _correlations(deeper: Tensor, shallower: Tensor) -> Tensor:
    """Returns exp(-(v_i - w_j)^2 / 8), (B, N, M, count), for (B, N, count) and (B, M, count)."""
    count = min(deeper.shape[2], shallower.shape[2])  # a map of one column has one vector only
    return (-(deeper[:, :, None, :count] - shallower[:, None, :, :count]).square() / 8).exp()


def _right_singular_vectors(matrices: Tensor, count: int) -> Tensor:
    """Returns the first right singular vectors, (B, N, count) or as many as there are, of (B, M, N) matrices."""
    rows, columns = matrices.shape[1:]
    if columns <= rows:
        vectors: Tensor = _Eigenvectors.apply(matrices, count)
        return vectors
    # The eigenvectors of the smaller product are the left singular vectors.
    left: Tensor = _Eigenvectors.apply(matrices.mT, count)
    return unit_vectors(matmul(matrices.mT, left), dim=1)


class _Eigenvectors(torch.autograd.Function):
    """The eigenvectors of the largest eigenvalues of A^T A, (B, N, count), for A (B, M, N).

    The product is in float64, because its eigenvalues are squares. The gradient is that of autograd, but divides by no
    difference of eigenvalues that is all but 0.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, count: int) -> Tensor:
        product = matrices.mT.double() @ matrices.double()
        values, vectors = torch.linalg.eigh(product)  # ascending
        values, vectors = values.flip(-1), vectors.flip(-1)
        ctx.save_for_backward(matrices, values, vectors)
        first: Tensor = vectors[..., :count].to(matrices.dtype)
        return first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        matrices, values, vectors = ctx.saved_tensors
        gradient = grads[0].double()
        gaps = values[:, None, : gradient.shape[2]] - values[:, :, None]
        smallest = (_MIN_GAP * values[:, :1, None]).square().clamp(min=torch.finfo(values.dtype).tiny)
        inner = vectors.mT @ gradient * (gaps / torch.maximum(gaps.square(), smallest))
        to_product = vectors @ inner @ vectors[..., : gradient.shape[2]].mT
        return matmul(matrices, (to_product + to_product.mT).to(matrices.dtype)), None
