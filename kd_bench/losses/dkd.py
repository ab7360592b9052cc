"""Decoupled knowledge distillation: the divergence split at the target class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.precision import at_least_float32


def dkd_terms(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each times T^2, mean over the batch.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), eq. 5 to 7: with p the teacher's and q the student's
    softmax at temperature T, and y the target class,

    * TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), the target against all other classes;
    * NCKD = KL(p' || q') with p'_j = p_j / (1 - p_y) for j != y, the other classes; 0 for two classes.

    KL(p || q) = TCKD + (1 - p_y) * NCKD. Computed from logits, with log-odds of the target z_y - logsumexp over the
    others, because a probability can round to 0 or 1. Both sides have a gradient.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C).
        labels: (B,) int64, y.
        temperature: T.

    >>> import torch
    >>> from kd_bench.losses import dkd_terms, kd
    >>> student, teacher, labels = torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    >>> tckd, nckd = dkd_terms(student, teacher, labels, temperature=1.0)
    >>> divergence = kd(student, teacher, temperature=1.0)
    >>> bool((tckd - divergence).abs() < 1e-6), nckd.item()
    (True, 0.0)
    """
    target = labels[:, None] == torch.arange(student_logits.shape[-1], device=labels.device)
    student, _, student_total = _split(student_logits, target, temperature)
    teacher, teacher_others, teacher_total = _split(teacher_logits, target, temperature)

    student_odds = student.gather(-1, labels[:, None]) - student_total
    teacher_odds = teacher.gather(-1, labels[:, None]) - teacher_total
    tckd = _divergence_at(teacher_odds, student_odds) + _divergence_at(-teacher_odds, -student_odds)

    # At the target the weight is exactly 0 and the difference is finite: no contribution to value or gradient.
    difference = (teacher - teacher_total) - (student - student_total)
    nckd = (teacher_others.softmax(-1) * difference).sum(-1)
    return tckd.mean() * temperature**2, nckd.mean() * temperature**2


def dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """``alpha`` * TCKD + ``beta`` * NCKD. Shapes as for ``dkd_terms``.

    Zhao et al. (2022), eq. 8. ``alpha`` = 1 and ``beta`` = 1 - p_y for each sample would be classical distillation.

    >>> import torch
    >>> from kd_bench.losses import dkd
    >>> logits = torch.randn(3, 5)
    >>> dkd(logits, logits, torch.tensor([0, 1, 4]), alpha=1.0, beta=8.0, temperature=4.0).item()
    0.0
    """
    tckd, nckd = dkd_terms(student_logits, teacher_logits, labels, temperature)
    return alpha * tckd + beta * nckd


def _split(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits / T, the same with -inf at the target, and the logsumexp of the latter, up to a constant per row.

    The constant moves the largest of the other logits to 0, so that a shift of all logits or a large target logit does
    not reduce their precision.
    """
    logits = at_least_float32(logits)
    top = logits.detach().masked_fill(target, -float("inf")).amax(-1, keepdim=True)
    logits = (logits - top) / temperature
    others = logits.masked_fill(target, -float("inf"))
    return logits, others, others.logsumexp(-1, keepdim=True)


def _divergence_at(teacher_odds: Tensor, student_odds: Tensor) -> Tensor:
    """Returns p * log(p / q) from the log-odds of p and q."""
    return teacher_odds.sigmoid() * (F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds))
