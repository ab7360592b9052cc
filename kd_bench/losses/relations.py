"""Losses of the relations between the images of a batch: SP, CC and PKT.

Student and teacher are compared by (B, B) numbers, one for each pair of images, so their features may have any sizes.
CC's released form compares the features of neighbours instead.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_choice, check_positive, check_shapes, check_whole
from kd_bench.losses.maps import unit_vectors
from kd_bench.losses.precision import at_least_float32, matmul

#: PKT's constant that avoids divisions by 0 and log(0), as released.
_EPS = 1e-7


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving loss: squared differences of the images' inner products, each row of norm 1.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (2019), section 3.1, for one layer:
    |G_t - G_s|^2 / B^2, where G is F F^T with rows of norm 1, and F is (B, C H W). Both sides have a gradient.

    Args:
        student: (B, ...), e.g. the last feature map; all but the first dimension are flattened.
        teacher: (B, ...).

    >>> import torch
    >>> from kd_bench.losses import sp
    >>> sp(torch.eye(2), 3 * torch.eye(2)).item(), sp(torch.eye(2), torch.tensor([[1.0], [0.0]])).item()
    (0.0, 0.25)
    """
    check_shapes(student=(student, "B ..."), teacher=(teacher, "B ..."))
    difference = unit_vectors(_gram(student)) - unit_vectors(_gram(teacher))
    return difference.square().mean()


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlation congruence as released: products of the absolute differences of neighbours in the batch.

    For the absolute differences d_i of the embeddings of image i, (D,), the mean over i = 1..B-1 of the inner product
    of d_i and d_(i+1). This is not the loss of the paper, see ``cc_kernel``. 0 for a batch of one. Both sides have a
    gradient.

    Args:
        student, teacher: (B, D) embeddings.

    >>> import torch
    >>> from kd_bench.losses import cc
    >>> cc(torch.tensor([[1.0], [-2.0], [3.0]]), torch.zeros(3, 1)).item()  # (1 * 2 + 2 * 3) / 2
    4.0
    """
    check_shapes(student=(student, "B D"), teacher=(teacher, "B D"))
    difference = (at_least_float32(student) - at_least_float32(teacher)).abs()
    return (difference[:-1] * difference[1:]).sum() / max(1, len(difference) - 1)


def cc_kernel(
    student: Tensor,
    teacher: Tensor,
    kernel: Literal["gaussian", "bilinear"] = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
    squared: bool = True,
) -> Tensor:
    """Correlation congruence as in the paper: differences of the kernels of all pairs of images.

    Peng et al., "Correlation Congruence for Knowledge Distillation" (2019), section 3.2 and 3.3: |K_s - K_t|^2 / B^2
    for the kernels K_ij = k(e_i, e_j) of the embeddings e. Both sides have a gradient.

    Args:
        student, teacher: (B, D) and (B, E) embeddings.
        kernel: "gaussian", exp(-2 gamma) * sum over p = 0..order of (2 gamma)^p / p! * (x . y)^p, which is the Taylor
            series of exp(-gamma |x - y|^2) if the embeddings have norm 1; or "bilinear", x . y.
        gamma: Of the Gaussian kernel.
        order: Highest power of the inner product in the series.
        squared: Whether the norm is squared. torchdistill does not square it.

    >>> import torch
    >>> from kd_bench.losses import cc_kernel
    >>> cc_kernel(torch.eye(2), torch.tensor([[1.0], [1.0]]), "bilinear").item()
    0.5
    """
    check_shapes(student=(student, "B D"), teacher=(teacher, "B E"))
    check_choice(("gaussian", "bilinear"), kernel=kernel)
    check_positive(gamma=gamma)
    check_whole(0, order=order)
    difference = _kernel(student, kernel, gamma, order) - _kernel(teacher, kernel, gamma, order)
    return difference.square().mean() if squared else torch.linalg.vector_norm(difference) / len(student) ** 2


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: divergence of the probabilities that images are neighbours.

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer" (2018), section 3, with
    the cosine kernel, as released: q_ij = (1 + cos_ij) / 2, divided by the row's sum, and the mean over all B^2 entries
    of q_t log((q_t + 1e-7) / (q_s + 1e-7)). The paper leaves an image's similarity with itself out and sums. An
    embedding of zeros has cosine 0 and no gradient. The (B, B) numbers are in float64, because the divergence is a
    small difference of them. Both sides have a gradient.

    Args:
        student, teacher: (B, D) and (B, E) embeddings.

    >>> import torch
    >>> from kd_bench.losses import pkt
    >>> abs(pkt(torch.eye(3), 2 * torch.eye(3)).item()) < 1e-7
    True
    """
    check_shapes(student=(student, "B D"), teacher=(teacher, "B E"))
    q, p = _neighbour_probabilities(student), _neighbour_probabilities(teacher)
    return (p * ((p + _EPS).log() - (q + _EPS).log())).mean().to(at_least_float32(student).dtype)


def _gram(features: Tensor) -> Tensor:
    """Returns the inner products of all pairs of rows, (B, B), in float32 or float64."""
    rows = at_least_float32(features).flatten(1)
    return matmul(rows, rows.T)


def _kernel(embeddings: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    gram = _gram(embeddings)
    if kernel == "bilinear":
        return gram
    terms = [(2 * gamma) ** power / math.factorial(power) * gram**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)


def _neighbour_probabilities(embeddings: Tensor) -> Tensor:
    embeddings = at_least_float32(embeddings)
    norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    cosines = _gram(unit_vectors(embeddings) * (norms / (norms + _EPS))).double()
    similarities = ((cosines + 1) / 2).clamp(min=0)  # rounding may leave a cosine below -1
    return similarities / similarities.sum(1, keepdim=True)
