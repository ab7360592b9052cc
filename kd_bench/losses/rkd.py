"""Relational knowledge distillation: distances and angles between the embeddings of a batch.

Both are computed from the distances between all pairs, and these from inner products: (B, B) numbers instead of
(B, B, D). The (B, B) numbers are in float64, because this loses precision for embeddings that are close. Embeddings are
centred first; neither distances nor angles depend on a common shift.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_positive, check_shapes
from kd_bench.losses.precision import at_least_float32


def rkd_distance(student: Tensor, teacher: Tensor, squared: bool = False, eps: float = 1e-12) -> Tensor:
    """Smooth L1 loss between the distances of all pairs of embeddings, divided by their mean for each network.

    Park et al., "Relational Knowledge Distillation" (2019), eq. 5 to 7. Mean over all ordered pairs of the batch,
    including an embedding with itself (distance 0). Only the student has a gradient.

    Args:
        student, teacher: (B, D) and (B, E) embeddings.
        squared: Whether to compare squared distances.
        eps: Smaller squared distances are replaced by ``eps`` and have no gradient.

    >>> import torch
    >>> from kd_bench.losses import rkd_distance
    >>> line = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(rkd_distance(5 * line, line + 7).item(), 12)  # neither scale nor shift matters
    0.0
    """
    check_shapes(student=(student, "B ..."), teacher=(teacher, "B ..."))
    check_positive(eps=eps)
    distances = _relative_distances(_squared_distances(student)[0], squared, eps)
    with torch.no_grad():
        targets = _relative_distances(_squared_distances(teacher)[0], squared, eps)
    return F.smooth_l1_loss(distances, targets).to(at_least_float32(student).dtype)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 loss between the cosines of the angles in all triples of embeddings.

    Park et al. (2019), eq. 8 and 9. Mean over all ordered triples of the batch. If two of the three coincide, the
    cosine is 0 and has no gradient (in published code one of the order of 1e12). Only the student has a gradient.
    Memory is O(B^3).

    Args:
        student, teacher: (B, D) and (B, E) embeddings.

    >>> import torch
    >>> from kd_bench.losses import rkd_angle
    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> rotated = square @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    >>> round(rkd_angle(rotated, square).item(), 12)
    0.0
    """
    check_shapes(student=(student, "B ..."), teacher=(teacher, "B ..."))
    cosines = _cosines(student)
    with torch.no_grad():
        targets = _cosines(teacher)
    return F.smooth_l1_loss(cosines, targets.to(cosines.dtype))


def _squared_distances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Returns squared distances, (B, B) float64, and a mask of those that are larger than their rounding error."""
    with torch.autocast(embeddings.device.type, enabled=False):  # the product would be in half precision
        embeddings = embeddings.flatten(1).double()
        embeddings = embeddings - embeddings.mean(0)
        gram = embeddings @ embeddings.T
    norms = gram.diagonal()
    sums = norms[:, None] + norms[None, :]
    squares = sums - 2 * gram
    return squares, squares > 64 * torch.finfo(squares.dtype).eps * sums


def _relative_distances(squares: Tensor, squared: bool, eps: float) -> Tensor:
    distances = squares.clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    others = 1 - torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    distances = distances * others
    mean = distances.sum() / others.sum().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)  # 0 for a batch of one


def _cosines(embeddings: Tensor) -> Tensor:
    """Returns the cosine at i of the angle between j and k, (B, B, B), by the law of cosines."""
    squares, known = _squared_distances(embeddings)
    inverse = torch.where(known, squares, 1).rsqrt() * known
    dtype = at_least_float32(embeddings).dtype
    distances, squares = (squares * inverse).to(dtype), squares.to(dtype)
    inverse, half = inverse.to(dtype), (inverse / 2).to(dtype)
    # (|ij|^2 + |ik|^2 - |jk|^2) / (2 |ij| |ik|), with |ik|^2 as a separate summand
    rest = (squares * -half[:, :, None]).add_((distances / 2)[:, :, None])
    return torch.addcmul(half[:, :, None] * distances[:, None, :], rest, inverse[:, None, :])
