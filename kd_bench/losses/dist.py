"""DIST: correlations between probabilities instead of their divergence."""

from torch import Tensor

from kd_bench.losses.arguments import check_logits, check_positive
from kd_bench.losses.precision import tempered


def dist_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """1 minus Pearson's correlation of the two softmaxes: over the classes of an image, and over the images of a class.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), eq. 6 to 9. The first is the mean over the
    images ("inter-class"), the second the mean over the classes ("intra-class"), which depends on the batch. There is
    no factor T^2. Both sides have a gradient.

    Args:
        student_logits, teacher_logits: (B, C).
        temperature: T of both softmaxes.

    >>> import torch
    >>> from kd_bench.losses import dist_terms
    >>> logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    >>> inter, intra = dist_terms(logits, logits)
    >>> bool(inter.abs() < 1e-6), bool(intra.abs() < 1e-6)
    (True, True)
    """
    check_logits(student_logits, teacher_logits)
    check_positive(temperature=temperature)
    student = tempered(student_logits, temperature).softmax(-1)
    teacher = tempered(teacher_logits, temperature).softmax(-1)
    return 1 - _correlations(student, teacher, -1).mean(), 1 - _correlations(student, teacher, 0).mean()


def _correlations(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Returns Pearson's correlations along ``dim``. The published code's 1e-8 avoids a division by zero."""
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    norms: Tensor = x.norm(dim=dim) * y.norm(dim=dim)
    return (x * y).sum(dim) / (norms + 1e-8)
