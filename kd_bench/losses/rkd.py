"""Relational knowledge distillation: distances and angles between the embeddings of a batch.

Both follow from the distances of every two embeddings, and these from inner products: (B, B) numbers instead of
(B, B, D). Where two embeddings are close that costs more digits than a float32 has, so all that is (B, B) is in
float64. The embeddings are centred first, for neither distances nor angles depend on a common shift.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.precision import at_least_float32


def rkd_distance(student: Tensor, teacher: Tensor, squared: bool = False, eps: float = 1e-12) -> Tensor:
    """Smooth L1 loss between the distances of every two embeddings, each network's divided by their mean.

    Park et al., "Relational Knowledge Distillation" (2019), eq. 5 to 7. The mean over all ordered pairs of the batch,
    an embedding with itself included (at distance 0). The gradient goes to the student only.

    Args:
        student: (B, D) embeddings.
        teacher: (B, E) embeddings.
        squared: Whether to compare squared distances.
        eps: Below it a squared distance counts as ``eps`` and has no gradient.

    >>> import torch
    >>> from kd_bench.losses import rkd_distance
    >>> line = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(rkd_distance(5 * line, line + 7).item(), 12)  # neither scale nor shift matters
    0.0
    """
    ours = _relative_distances(_squared_distances(student)[0], squared, eps)
    with torch.no_grad():
        theirs = _relative_distances(_squared_distances(teacher)[0], squared, eps)
    return F.smooth_l1_loss(ours, theirs).to(at_least_float32(student).dtype)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 loss between the cosines of the angles that every three embeddings form.

    Park et al. (2019), eq. 8 and 9. The mean over all ordered triples of the batch; where two of the three coincide the
    cosine is that of a zero vector, 0, and has no gradient (in published code one of the order of 1e12). The gradient
    goes to the student only. Memory is O(B^3) numbers.

    Args:
        student: (B, D) embeddings.
        teacher: (B, E) embeddings.

    >>> import torch
    >>> from kd_bench.losses import rkd_angle
    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> rotated = square @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    >>> round(rkd_angle(rotated, square).item(), 12)
    0.0
    """
    ours = _cosines(student)
    with torch.no_grad():
        theirs = _cosines(teacher)
    return F.smooth_l1_loss(ours, theirs.to(ours.dtype))


def _squared_distances(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) in float64, and which of them are more than the rounding of what they are computed from."""
    with torch.autocast(embeddings.device.type, enabled=False):  # which would take the product to half precision
        embeddings = embeddings.flatten(1).double()
        embeddings = embeddings - embeddings.mean(0)
        gram = embeddings @ embeddings.T
    norms = gram.diagonal()
    both = norms[:, None] + norms[None, :]
    squares = both - 2 * gram
    return squares, squares > 64 * torch.finfo(squares.dtype).eps * both


def _relative_distances(squares: Tensor, squared: bool, eps: float) -> Tensor:
    distances = squares.clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    others = 1 - torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    distances = distances * others
    mean = distances.sum() / others.sum().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)  # which an embedding that is alone needs


def _cosines(embeddings: Tensor) -> Tensor:
    """(B, B, B): the cosine at i of the angle between j and k, by the law of cosines."""
    squares, known = _squared_distances(embeddings)
    inverse = torch.where(known, squares, 1).rsqrt() * known
    dtype = at_least_float32(embeddings).dtype
    distances, squares = (squares * inverse).to(dtype), squares.to(dtype)
    inverse, half = inverse.to(dtype), (inverse / 2).to(dtype)
    # (|ij|^2 + |ik|^2 - |jk|^2) / (2 |ij| |ik|), where |ik|^2 is a summand of its own
    rest = (squares * -half[:, :, None]).add_((distances / 2)[:, :, None])
    return torch.addcmul(half[:, :, None] * distances[:, None, :], rest, inverse[:, None, :])
