"""Information theoretic representation distillation: a correlation loss and a mutual information loss."""

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_positive, check_shapes
from kd_bench.losses.maps import unit_vectors
from kd_bench.losses.precision import at_least_float32, matmul


def itrd_correlation(student: Tensor, teacher: Tensor, alpha: float = 1.01) -> Tensor:
    """Correlation loss: log2 of the sum over coordinates of ((c - 1)^2)^alpha, c being a coordinate's correlation.

    Miles et al., "Information Theoretic Representation Distillation" (2022), section 3.1, as released: coordinates
    are standardised over the batch with the divisor B - 1, and their products are divided by B, so that c is at most
    (B - 1) / B, and the logarithm is always finite. A coordinate that is constant over the batch correlates with
    nothing: c is 0 and has no gradient, where the published code is not a number. Both sides have a gradient.

    Args:
        student: (B, D) embeddings, after the layer that maps them to the teacher's width.
        teacher: (B, D).
        alpha: Order of the entropy.

    >>> import torch
    >>> from kd_bench.losses import itrd_correlation
    >>> itrd_correlation(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [6.0]]), 1.0).item()  # log2 (1/2 - 1)^2
    -2.0
    """
    check_shapes(student=(student, "B D"), teacher=(teacher, "B D"))
    check_positive(alpha=alpha)
    share = (len(student) - 1) / len(student)
    correlations = share * (_standardised(student) * _standardised(teacher)).sum(0)
    return (1 - correlations).square().pow(alpha).sum().log2()


def itrd_mutual(student: Tensor, teacher: Tensor) -> Tensor:
    """Mutual information loss: sum of A^2 - M^2 for the student's Gram matrix A and the joint one M of both networks.

    Miles et al. (2022), section 3.2, as released, with the Gram matrices G_s and G_t of the cosines of all pairs of
    images: A is G_s divided by its trace; M is the elementwise product of G_s and G_t divided by its trace. Both sides
    have a gradient. The loss may be negative.

    Args:
        student, teacher: (B, D) and (B, E) embeddings.

    >>> import torch
    >>> from kd_bench.losses import itrd_mutual
    >>> itrd_mutual(torch.ones(2, 1), torch.eye(2)).item()  # 4 * 1/4 - 2 * 1/4
    0.5
    """
    check_shapes(student=(student, "B D"), teacher=(teacher, "B E"))
    student, teacher = unit_vectors(student), unit_vectors(teacher)
    gram = matmul(student, student.T)
    joint = gram * matmul(teacher, teacher.T)
    return _of_trace_one(gram).square().sum() - _of_trace_one(joint).square().sum()


def _standardised(features: Tensor) -> Tensor:
    """Returns the deviations from the batch's means, (B, D), each coordinate of norm 1; 0 for a constant coordinate."""
    features = at_least_float32(features)
    deviations = features - features.mean(0)
    rounding = 64 * torch.finfo(features.dtype).eps * torch.linalg.vector_norm(features.detach(), dim=0)
    varies = torch.linalg.vector_norm(deviations.detach(), dim=0) > rounding
    return unit_vectors(torch.where(varies, deviations, 0), dim=0)


def _of_trace_one(matrix: Tensor) -> Tensor:
    trace = matrix.trace()
    return matrix / torch.where(trace == 0, 1, trace)
